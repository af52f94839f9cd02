"""Scanning a Market-1501 folder; `write_market` makes the folders that the other shard tests use too."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskreid_shards import ShardError, scan_market1501

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
SIZE = (16, 32)


def jpeg(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def png(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[seed % 8 : 20, 4:12] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_pair(src: Path, split: str, name: str, seed: int) -> Path:
    """One image and its mask; returns the image's path."""
    folder = src / FOLDERS[split]
    masks = src / f"{FOLDERS[split]}_seg"
    folder.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(jpeg(seed))
    (masks / f"{name}.png").write_bytes(png(seed))
    return folder / f"{name}.jpg"


def write_market(src: Path, identities: int = 6, images: int = 4) -> Path:
    """Train: `identities` x `images`, and 0099 with one; query and gallery of 2, 3 junk, 3 distractors."""
    seed = 0
    for pid in range(1, identities + 1):
        for number in range(images):
            seed += 1
            write_pair(src, "train", f"{pid:04d}_c{number % 3 + 1}s1_{seed:06d}_01", seed)
    write_pair(src, "train", "0099_c2s1_000001_01", 999)
    for pid in (200, 201):
        write_pair(src, "query", f"{pid:04d}_c1s1_000001_01", pid)
        for number in range(3):
            write_pair(src, "gallery", f"{pid:04d}_c2s1_{number:06d}_01", pid + 10 * number)
    for number in range(3):
        write_pair(src, "gallery", f"-1_c3s1_{number:06d}_01", 500 + number)
        write_pair(src, "gallery", f"0000_c3s1_{number:06d}_01", 600 + number)
    return src


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
