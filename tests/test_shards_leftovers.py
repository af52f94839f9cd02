"""A folder per identity: names with a meaning, layumi's tree, and what is left over, counted by name."""

import shutil
from pathlib import Path

import pytest

from market import png, write_market, write_pair
from maskreid_shards import (
    Layout,
    ShardError,
    convert,
    merge_train,
    open_shards,
    scan_folder,
    scan_layumi,
    scan_market1501,
)
from program import run
from test_shards_layouts import pids, write

CAMERA = r"_c(\d)"


def pair(src: Path, split: str, name: str) -> None:
    write(src / split / f"{name}.jpg", len(name))
    mask = src / f"{split}_seg" / f"{name}.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(png(1, (16, 32)))


def layumi(src: Path, *, whole: bool = True) -> Path:
    for pid in ("0002", "0007"):
        for camera in (1, 2):
            pair(src, "train", f"{pid}/{pid}_c{camera}s1_000001_00")
            if whole:
                pair(src, "train_all", f"{pid}/{pid}_c{camera}s1_000001_00")
        if whole:
            for split in ("train_all", "val"):
                pair(src, split, f"{pid}/{pid}_c3s1_000001_00")
    for pid in ("0001", "0003"):
        pair(src, "query", f"{pid}/{pid}_c1s1_000001_00")
        pair(src, "gallery", f"{pid}/{pid}_c2s1_000001_00")
        if whole:
            pair(src, "multi-query", f"{pid}/{pid}_c1s1_000009_00")
            pair(src, "multi-query", f"{pid}/{pid}_c4s1_000009_00")
    for pid in ("-1", "0000"):
        pair(src, "gallery", f"{pid}/{pid}_c2s1_000001_00")
    return src


@pytest.mark.parametrize("whole", [True, False])
def test_layumi_s_tree(tmp_path: Path, whole: bool) -> None:
    layumi(tmp_path / "Market/pytorch", whole=whole)
    layout = scan_layumi(tmp_path / "Market", multi_query=whole)
    assert pids(layout, "train") == ([2, 2, 2, 7, 7, 7] if whole else [2, 2, 7, 7])
    assert pids(layout, "query") == [1, 3] and sorted(pids(layout, "gallery")) == [-1, 0, 1, 3]
    assert not whole or pids(layout, "multi_query") == [1, 3]  # of the query's camera alone
    report = convert(layout, tmp_path / "out", dataset="x")
    assert report.manifest.masks.bad == 0 and report.manifest.splits["gallery"].junk == 1
    if whole:
        assert "train: 4 images not converted: train/0002/0002_c1s1_000001_00.jpg" in "\n".join(
            report.lines()
        )


def test_train_and_val_make_layumi_s_train_all(tmp_path: Path) -> None:
    src = layumi(tmp_path / "pytorch")
    shutil.rmtree(src / "train_all")
    assert pids(scan_layumi(src), "train") == [2, 2, 2, 7, 7, 7]


def test_the_layout_folder_knows_layumi_s_tree(tmp_path: Path) -> None:
    status, output = run("convert", "folder", layumi(tmp_path / "a"), tmp_path / "out", "--camera", CAMERA)
    assert status == 2 and "convert it as the layout layumi" in output
    layout = scan_folder(layumi(tmp_path / "b", whole=False), camera=CAMERA)
    by_folder = {source.path.parent.name: source.pid for source in layout.splits["gallery"]}
    assert by_folder["-1"] == -1 and by_folder["0000"] == 0 and by_folder["0001"] > 0
    assert len(layout.notes) == 3 and "gallery/-1: taken for junk" in layout.notes[0]
    names = {str(source.path.parent.name) for one in layout.splits.values() for source in one}
    assert set(layout.numbering["pid"]) == names - {"-1", "0000"}  # by which their owner knows them


@pytest.mark.parametrize("name", ["-1", "0000", "00-1"])
@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_a_name_with_a_meaning_is_never_an_identity(tmp_path: Path, name: str, split: str) -> None:
    src = layumi(tmp_path / "src", whole=False)
    pair(src, split, f"{name}/x_c1")
    if split == "gallery":
        assert min(pids(scan_folder(src), "gallery")) == -1
        pair(src, "query", f"{name}/y_c1")
    with pytest.raises(ShardError, match=f"{name} means .* rename it"):
        scan_folder(src)


def report_of(layout: Layout, tmp_path: Path) -> str:
    return "\n".join(convert(layout, tmp_path / "out", dataset="x", on_bad_mask="full").lines())


@pytest.mark.parametrize("place", ["train", "train/0001/deeper", "train/0002", ".", "other/tree"])
def test_every_image_is_converted_or_named(tmp_path: Path, place: str) -> None:
    src = tmp_path / "src"
    for number in range(3):
        pair(src, "train", f"0001/{number}")
    name = "x.heic" if place == "train/0002" else "x.jpg"
    (src / place).mkdir(parents=True, exist_ok=True)
    (src / place / name).write_bytes(b"?")
    if place == "other/tree":
        with pytest.raises(ShardError, match="other: beside the splits train"):
            scan_folder(src)
        return
    lines = report_of(scan_folder(src), tmp_path)
    path = f"{place}/{name}".removeprefix("./")
    assert f"1 images not converted: {path}" in lines or f"1 other files ignored: {path}" in lines
    assert ("1 folders without an image of their own: train/0002" in lines) == (place == "train/0002")
    assert "MOST IMAGES" not in lines


def test_more_images_left_than_converted_is_the_last_word(tmp_path: Path) -> None:
    pair(tmp_path / "src", "train", "0001/a")
    for number in range(3):
        pair(tmp_path / "src", "train", f"0002/tracklet/{number}")
    lines = report_of(scan_folder(tmp_path / "src"), tmp_path).splitlines()
    assert lines[-1] == "MOST IMAGES WERE NOT CONVERTED, 3 of 4"
    assert any(line.startswith("train_seg: 3 masks that belong to no image") for line in lines)


def test_an_identity_named_like_a_mask_folder(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for identity in ("0001", "guest_seg", "0002"):
        pair(src, "train", f"{identity}/a")
    write(src / "train/0002_seg/a.png")  # beside 0002: its masks, of another habit
    layout = scan_folder(src)
    assert [source.path.parent.name for source in layout.splits["train"]] == ["0001", "0002", "guest_seg"]
    assert "1 masks that belong to no image: train/0002_seg/a.png" in report_of(layout, tmp_path)
    train = open_shards(tmp_path / "out").split("train")
    assert train.read_many(range(3))[2].mask == png(1, (16, 32))


def test_market_and_merge_count_what_they_leave(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    write_pair(src, "query", "0200_c1s1_000009_01", 1).rename(src / "loose.jpg")
    write(src / "gt_bbox/0200_c1s1_000001_00.jpg")
    lines = report_of(scan_market1501(src), tmp_path)
    assert "gt_bbox: 1 images not converted: gt_bbox/0200_c1s1_000001_00.jpg" in lines
    assert "m: 1 images not converted: loose.jpg" in lines
    assert "query_seg: 1 masks that belong to no image: query_seg/0200_c1s1_000009_01.png" in lines
    notes = merge_train({"a": scan_market1501(src)}).notes
    assert "a: gt_bbox: 1 images not converted: gt_bbox/0200_c1s1_000001_00.jpg" in notes


def test_images_that_lie_too_deep_and_splits_in_capitals(tmp_path: Path) -> None:
    pair(tmp_path / "a", "train", "0001/Camera1/x")
    with pytest.raises(ShardError, match=r"train/0001/Camera1/x\.jpg lies too deep"):
        scan_folder(tmp_path / "a")
    pair(tmp_path / "b", "Train", "0001/x")
    with pytest.raises(ShardError, match="rename Train to train"):
        scan_folder(tmp_path / "b")
