"""Scanning a Market-1501 folder."""

from pathlib import Path

import pytest

from market import FOLDERS, jpeg, write_market, write_pair
from maskreid_shards import ShardError, scan_market1501


def test_splits_pids_cameras_and_keys(tmp_path: Path) -> None:
    layout = scan_market1501(write_market(tmp_path / "m", identities=2, images=2))
    assert {name: len(sources) for name, sources in layout.splits.items()} == {
        "train": 5,
        "query": 2,
        "gallery": 12,
    }
    train = layout.splits["train"]
    assert [source.pid for source in train] == [1, 1, 2, 2, 99]
    assert [source.camid for source in train] == [1, 2, 1, 2, 2]
    assert [source.key for source in train][:2] == ["p00000001_00000", "p00000001_00001"]
    assert train[0].name == "bounding_box_train/0001_c1s1_000001_01.jpg"
    assert all(source.mask_path is not None and source.mask_path.is_file() for source in train)
    gallery = {source.key: source.pid for source in layout.splits["gallery"]}
    assert gallery["junk_00002"] == -1 and gallery["distractor_00000"] == 0
    assert all("." not in source.key for sources in layout.splits.values() for source in sources)


def test_strays_are_counted(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    for stray in ("Thumbs.db", ".DS_Store", "._0001_c1s1_000001_01.jpg", "readme.txt"):
        (src / "bounding_box_train" / stray).write_bytes(b"x")
    layout = scan_market1501(src)
    assert len(layout.strays) == 4 and "bounding_box_train/Thumbs.db" in layout.strays
    assert len(layout.splits["train"]) == 25


@pytest.mark.parametrize(
    "name",
    ["holiday.jpg", "0001_c1s1_00001_01.jpg", "0001_c1s1_000001_01.jpeg", "0001_c1s1_000001_01.JPG", "x.png"],
)
def test_a_misnamed_image_is_named(tmp_path: Path, name: str) -> None:
    src = write_market(tmp_path / "m")
    (src / "query" / name).write_bytes(jpeg(1))
    with pytest.raises(ShardError) as caught:
        scan_market1501(src)
    assert f"query/{name}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "query"])
@pytest.mark.parametrize("pid", ["-1", "0000"])
def test_junk_and_distractors_only_in_the_gallery(tmp_path: Path, split: str, pid: str) -> None:
    src = write_market(tmp_path / "m")
    path = write_pair(src, split, f"{pid}_c1s1_000001_01", 1)
    with pytest.raises(ShardError, match=path.name):
        scan_market1501(src)


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_missing_folder_is_named(tmp_path: Path, folder: str) -> None:
    src = write_market(tmp_path / "m")
    (src / folder).rename(src / "elsewhere")
    with pytest.raises(ShardError, match=f"folder {folder} is missing$"):
        scan_market1501(src)


def test_hints_for_missing_folders(tmp_path: Path) -> None:
    src = write_market(tmp_path / "outer" / "inner")
    with pytest.raises(ShardError, match=f"did you mean {src}"):
        scan_market1501(src.parent)
    (src / "bounding_box_train").rename(src / "bounding_box_tran")
    with pytest.raises(ShardError, match="is it bounding_box_tran"):
        scan_market1501(src)
    with pytest.raises(ShardError, match="no such folder"):
        scan_market1501(tmp_path / "nowhere")


def test_a_folder_without_images(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    for path in (src / "query").iterdir():
        path.unlink()
    (src / "query" / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"query: no image named .*\(1 other files\)"):
        scan_market1501(src)
