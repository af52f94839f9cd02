"""CUHK03, MSMT17 and MARS: MATLAB files and lists, in the structure of the published ones."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from maskreid_shards import (
    open_shards,
    scan_cuhk03,
    scan_cuhk03_np,
    scan_mars,
    scan_msmt17,
)
from test_shards_layouts import camids, fails, pids, stored, write


def cuhk03_pixels(kind: int, pair: int, identity: int, column: int) -> np.ndarray:
    shape = (20 + pair, 8 + column, 3)
    return np.random.default_rng((kind, pair, identity, column)).integers(0, 256, shape, np.uint8)


PAIRS = (3, 2, 1, 1, 1)
MISSING = {(1, 2, 4), (2, 1, 10)}  # (pair, identity, column), in both kinds


def write_release(path: Path) -> Path:
    """MATLAB 7.3: cells are arrays of object references, axes reversed, an empty cell is its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:

        def cell(values: np.ndarray) -> h5py.Reference:
            """`values`: an object array of datasets, in MATLAB's order of the axes."""
            data = file.create_dataset(f"#refs#/{len(file['#refs#'])}", values.T.shape, h5py.ref_dtype)
            data[...] = values.T
            return data.ref

        def leaf(values: np.ndarray) -> h5py.Reference:
            return file.create_dataset(f"#refs#/{len(file['#refs#'])}", data=values.T).ref

        file.create_group("#refs#")
        for kind, name in enumerate(("labeled", "detected")):
            top = file.create_dataset(name, (1, 5), h5py.ref_dtype)
            for pair, identities in enumerate(PAIRS, 1):
                cells = np.empty((identities, 10), object)
                for identity in range(1, identities + 1):
                    for column in range(1, 11):
                        empty = (pair, identity, column) in MISSING
                        cells[identity - 1, column - 1] = leaf(
                            np.array([0, 0], np.uint64)
                            if empty
                            else cuhk03_pixels(kind, pair, identity, column)
                        )
                top[0, pair - 1] = cell(cells)
        test_sets = file.create_dataset("testsets", (1, 2), h5py.ref_dtype)
        test_sets[0, 0] = leaf(np.array([[1, 2], [2, 1]], np.float64))
        test_sets[0, 1] = leaf(np.array([[5, 1]], np.float64))
    return path


def test_cuhk03_classic(tmp_path: Path) -> None:
    src = write_release(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    layout = scan_cuhk03(src, boxes="detected")
    # The identities of pair p come after those of the pairs before it: (1, 2) is 2, (2, 1) is 4.
    assert set(pids(layout, "query")) == set(pids(layout, "gallery")) == {2, 4}
    assert set(pids(layout, "train")) == {1, 3, 5, 6, 7, 8}
    assert set(camids(layout, "query")) == {1} and set(camids(layout, "gallery")) == {2}
    assert [len(layout.splits[split]) for split in ("train", "query", "gallery")] == [60, 9, 9]
    assert layout.splits["query"][0].name == "cuhk-03.mat/detected/1_002_1_01.png"
    assert "pair 1 identities: published 843, found 3" in layout.differences()
    assert "train identities: published 1367, found 6" in layout.differences()
    assert set(pids(scan_cuhk03(src.parent, test_set=2), "query")) == {8}

    assert stored(layout, tmp_path / "out") == {"train": 60, "query": 9, "gallery": 9}
    split = open_shards(tmp_path / "out").split("query")
    pair = split.read(int(split.images_of(2)[3]))  # columns 1, 2, 3, 5: column 4 is empty
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pair.image))), cuhk03_pixels(1, 1, 2, 5))
    both = scan_cuhk03(src, boxes="merged")
    assert len(both.splits["train"]) == 120
    assert len({source.name for source in both.splits["train"]}) == 120


def test_cuhk03_wrong_files(tmp_path: Path) -> None:
    src = write_release(tmp_path / "cuhk-03.mat")
    fails(lambda: scan_cuhk03(src, test_set=3), "test set 3: there are 1 to 2")
    fails(lambda: scan_cuhk03(tmp_path / "nowhere"), "no cuhk-03.mat")
    src.write_bytes(src.read_bytes()[:1000])
    fails(lambda: scan_cuhk03(src), str(src), "not the MATLAB file")
    with h5py.File(src, "w") as file:
        file["labeled"] = np.zeros(3)
    fails(lambda: scan_cuhk03(src), "not the MATLAB file")


@pytest.mark.parametrize("package", ["h5py", "scipy.io"])
def test_without_the_optional_packages(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release, mars = write_release(tmp_path / "cuhk-03.mat"), write_mars(tmp_path / "mars")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    scan = (lambda: scan_cuhk03(release)) if package == "h5py" else (lambda: scan_mars(mars))
    fails(scan, package.partition(".")[0], "pip install")


def write_config(src: Path) -> None:
    """The new protocol's config: scipy reads a cell of strings as arrays of one string."""
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "1_002_2_07.png", "1_003_2_08.png"]
    files = np.empty((len(names), 1), object)
    files[:, 0] = names
    savemat(
        src / "cuhk03_new_protocol_config_labeled.mat",
        {
            "labels": np.array([[1], [1], [2], [2], [3]], np.uint16),
            "camId": np.array([[1], [2], [1], [2], [2]], np.uint8),
            "filelist": files,
            "train_idx": np.array([[2], [1]]),
            "query_idx": np.array([[3]]),
            "gallery_idx": np.array([[4], [5]]),
        },
    )


def test_cuhk03_new_protocol_from_the_config(tmp_path: Path) -> None:
    write_release(tmp_path / "cuhk-03.mat")
    write_config(tmp_path)
    layout = scan_cuhk03_np(tmp_path)
    assert (
        pids(layout, "train") == [1, 1] and pids(layout, "query") == [2] and pids(layout, "gallery") == [2, 3]
    )
    assert camids(layout, "train") == [1, 2] and camids(layout, "gallery") == [2, 2]
    assert "query images: published 1400, found 1" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 2, "query": 1, "gallery": 2}
    split = open_shards(tmp_path / "out").split("gallery")
    image = split.read(int(split.images_of(3)[0])).image
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), cuhk03_pixels(0, 1, 3, 8))

    config = tmp_path / "cuhk03_new_protocol_config_labeled.mat"
    savemat(config, {"labels": np.ones((1, 1))})
    fails(lambda: scan_cuhk03_np(tmp_path), "holds no variable camId")
    config.write_bytes(b"none")
    fails(lambda: scan_cuhk03_np(tmp_path), str(config), "not a readable MATLAB file")


def test_cuhk03_new_protocol_folders(tmp_path: Path) -> None:
    for folder, pid, camera in (("bounding_box_train", 1, 1), ("query", 9, 1), ("bounding_box_test", 9, 2)):
        write(tmp_path / "detected" / folder / f"{pid:04d}_c{camera}_1.png")
    layout = scan_cuhk03_np(tmp_path, boxes="detected")
    assert pids(layout, "gallery") == [9] and camids(layout, "gallery") == [2]
    mask = layout.splits["query"][0].mask_path
    assert mask == tmp_path / "detected" / "query_seg" / "0009_c1_1.png"
    assert "train images: published 7365, found 1" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 1, "query": 1, "gallery": 1}
    fails(lambda: scan_cuhk03_np(tmp_path), "choose --boxes detected")
    write(tmp_path / "detected" / "query" / "c1_9.png")
    fails(lambda: scan_cuhk03_np(tmp_path, boxes="detected"), "query/c1_9.png")


# MSMT17, MARS


def write_msmt(src: Path, train: str = "train", test: str = "test") -> Path:
    lists = {
        "train": (
            train,
            ["0000/0000_000_01_0303morning_0008_0.jpg 0", "0001/0001_002_15_0303noon_0008_12_ex.jpg 1"],
        ),
        "val": (train, ["0001/0001_001_14_0303afternoon_0008_1.jpg 1"]),
        "query": (test, ["0000/0000_000_02_0303morning_0008_0.jpg 0"]),
        "gallery": (test, ["0000/0000_001_03_0303noon_0009_0.jpg 0"]),
    }
    for name, (folder, lines) in lists.items():
        for number, line in enumerate(lines):
            write(src / folder / line.split()[0], number)
        (src / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return src


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path: Path, folders: tuple[str, str]) -> None:
    layout = scan_msmt17(write_msmt(tmp_path / "m", *folders))
    assert pids(layout, "train") == [1, 2, 2] and camids(layout, "train") == [1, 14, 15]
    assert pids(layout, "query") == pids(layout, "gallery") == [3]  # never a train pid
    assert "list_val images: published 2373, found 1" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 3, "query": 1, "gallery": 1}
    mask = layout.splits["query"][0].mask_path
    assert mask == tmp_path / "m" / f"{folders[1]}_seg" / "0000/0000_000_02_0303morning_0008_0.png"


@pytest.mark.parametrize(
    "line",
    [
        "0000/0001_000_01_0303morning_0008_0.jpg 0",
        "0000/0000_000_01_0303evening_0008_0.jpg 0",
        "0000/0000_000_16_0303morning_0008_0.jpg 0",
        "0000/0000_000_01_0303morning_0008_0.jpg 7",
        "0000/0000_000_01_0303morning_0008_0.jpg",
        "../../etc/passwd 0",
    ],
)
def test_msmt17_wrong_lines(tmp_path: Path, line: str) -> None:
    src = write_msmt(tmp_path)
    (src / "list_query.txt").write_text(f"0000/0000_000_02_0303morning_0008_0.jpg 0\n{line}\n")
    fails(lambda: scan_msmt17(src), "list_query.txt: line 2")
    (src / "list_query.txt").unlink()
    fails(lambda: scan_msmt17(src), "list_query.txt: missing")


def write_mars(src: Path) -> Path:
    tracks = {
        "train": [("0001", 1, 1, 2), ("0001", 2, 1, 1)],
        "test": [("00-1", 1, 1, 1), ("0000", 2, 1, 2), ("0002", 1, 1, 2), ("0002", 3, 1, 1)],
    }
    (src / "info").mkdir(parents=True)
    for part, rows in tracks.items():
        names: list[str] = []
        table = []
        for pid, camera, track, frames in rows:
            first = len(names) + 1
            names += [f"{pid}C{camera}T{track:04d}F{frame:03d}.jpg" for frame in range(1, frames + 1)]
            table.append([first, len(names), -1 if pid == "00-1" else int(pid), camera])
        for name in names:
            write(src / f"bbox_{part}" / name[:4] / name)
        (src / "info" / f"{part}_name.txt").write_text("\n".join(names))
        savemat(src / "info" / f"tracks_{part}_info.mat", {f"track_{part}_info": np.array(table, np.int32)})
    savemat(src / "info" / "query_IDX.mat", {"query_IDX": np.array([[3]], np.uint16)})
    return src


def test_mars(tmp_path: Path) -> None:
    layout = scan_mars(write_mars(tmp_path / "MARS"))
    assert pids(layout, "train") == [1, 1, 1] and camids(layout, "train") == [1, 1, 2]
    assert pids(layout, "query") == [2, 2]
    assert pids(layout, "gallery") == [-1, 0, 0, 2]  # junk, distractor, the other tracklet of identity 2
    assert layout.splits["gallery"][0].name == "bbox_test/00-1/00-1C1T0001F001.jpg"
    differences = layout.differences()
    assert "test junk tracklets: published 870, found 1" in differences
    assert "train tracklets: published 8298, found 2" in differences
    assert stored(layout, tmp_path / "out") == {"train": 3, "query": 2, "gallery": 4}


def test_mars_wrong_tables(tmp_path: Path) -> None:
    for number, (row, word) in enumerate(
        [
            ([1, 9, 1, 1], "frames 1 to 9"),
            ([1, 2, 7, 1], "identity 7"),
            ([1, 2, 1, 3], "camera 3"),
            ([0, 1, 1, 1], "frames 0"),
        ]
    ):
        src = write_mars(tmp_path / str(number))
        savemat(src / "info" / "tracks_train_info.mat", {"track_train_info": np.array([row])})
        fails(lambda src=src: scan_mars(src), "row 1", word)  # type: ignore[misc]
    src = write_mars(tmp_path / "query")
    savemat(src / "info" / "query_IDX.mat", {"query_IDX": np.array([[5]])})
    fails(lambda: scan_mars(src), "rows outside 1..4")
    savemat(src / "info" / "query_IDX.mat", {"query_IDX": np.array([[2]])})
    fails(lambda: scan_mars(src), "junk and distractors belong in the gallery")
