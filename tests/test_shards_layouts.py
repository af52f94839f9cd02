"""Every layout but Market-1501's, as small trees in the structure of the published data sets."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market import jpeg, png, write_market
from maskreid_shards import (
    Layout,
    ShardError,
    convert,
    merge_train,
    open_shards,
    scan_csv,
    scan_cuhk01,
    scan_dgd,
    scan_dukemtmc,
    scan_folder,
    scan_market1501,
    scan_prid,
    scan_viper,
)


def write(path: Path, seed: int = 0) -> Path:
    """A picture in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(jpeg(seed)))
    picture.save(path)
    return path


def pids(layout: Layout, split: str) -> list[int]:
    return [source.pid for source in layout.splits[split]]


def camids(layout: Layout, split: str) -> list[int]:
    return [source.camid for source in layout.splits[split]]


def stored(layout: Layout, out: Path) -> dict[str, int]:
    """Convert with full masks, open, read everything; the number of samples by split."""
    convert(layout, out, dataset="test", on_bad_mask="full")
    shards = open_shards(out)
    for name in shards.splits:
        split = shards.split(name)
        read = split.read_many(range(len(split)))
        assert [pair.pid for pair in read] == split.index["pid"].tolist()
    return {name: len(shards.split(name)) for name in shards.splits}


def fails(scan: Callable[[], Layout], *words: str) -> None:
    with pytest.raises(ShardError) as caught:
        scan()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# Market-1501's multiple queries, DukeMTMC-reID


def test_market_multi_query(tmp_path: Path) -> None:
    src = write_market(tmp_path / "plain")
    for name in ("0200_c1s1_000001_00", "0200_c1s1_000009_00", "0200_c2s1_000001_00", "0001_c1s1_000001_00"):
        write(src / "gt_bbox" / f"{name}.jpg")
    layout = scan_market1501(src, multi_query=True)
    # Only the query's identity in the query's camera: no other camera, no train identity.
    assert [source.path.name for source in layout.splits["multi_query"]] == [
        "0200_c1s1_000001_00.jpg",
        "0200_c1s1_000009_00.jpg",
    ]
    assert layout.counts()["gt_bbox images"] == 4
    assert stored(layout, tmp_path / "out")["multi_query"] == 2
    write(src / "gt_bbox" / "foreign.jpg")
    fails(lambda: scan_market1501(src, multi_query=True), "gt_bbox/foreign.jpg")


def write_duke(src: Path) -> Path:
    for folder, pid, camera in (("bounding_box_train", 1, 2), ("query", 5, 1), ("bounding_box_test", 5, 8)):
        write(src / folder / f"{pid:04d}_c{camera}_f0046182.jpg")
    write(src / "bounding_box_test" / "0009_c3_f0046183.jpg")
    return src


def test_dukemtmc(tmp_path: Path) -> None:
    layout = scan_dukemtmc(write_duke(tmp_path / "DukeMTMC-reID"))
    assert pids(layout, "gallery") == [5, 9] and camids(layout, "gallery") == [8, 3]
    assert "gallery images: published 17661, found 2" in layout.differences()
    assert any("withdrawn" in note for note in layout.notes)
    assert stored(layout, tmp_path / "out") == {"train": 1, "query": 1, "gallery": 2}
    mask = layout.splits["query"][0].mask_path
    assert mask == tmp_path / "DukeMTMC-reID" / "query_seg" / "0005_c1_f0046182.png"


@pytest.mark.parametrize(
    "name", ["0001_c9_f0046182.jpg", "0001_c1_f046182.jpg", "-1_c1_f0046182.jpg", "1.jpg"]
)
def test_dukemtmc_wrong_names(tmp_path: Path, name: str) -> None:
    src = write_duke(tmp_path / "d")
    write(src / "query" / name)
    fails(lambda: scan_dukemtmc(src), f"query/{name}", "0001_c2_f0046182.jpg")


def test_published_counts(tmp_path: Path) -> None:
    named = scan_market1501(write_market(tmp_path / "Market-1501-v15.09.15"))
    assert "train images: published 12936, found 25" in named.differences()
    assert "gallery junk: published 3819, found 3" in named.differences()
    report = convert(named, tmp_path / "out", dataset="m", on_bad_mask="full")
    assert "NOT AS PUBLISHED: gallery distractors: published 2798, found 3" in report.lines()
    assert "0 of 8 counts are as published" in report.lines()
    # Another data set in the same layout is not compared, and the counts are no part of the shards.
    other = tmp_path / "walkers"
    (tmp_path / "Market-1501-v15.09.15").rename(other)
    unnamed = scan_market1501(other)
    assert not unnamed.published and not unnamed.differences()
    again = convert(unnamed, tmp_path / "out2", dataset="m", on_bad_mask="full")
    assert again.manifest.fingerprint == report.manifest.fingerprint


# Data sets with drawn splits


def write_viper(src: Path, identities: int = 10) -> Path:
    for pid in range(identities):
        write(src / "cam_a" / f"{pid:03d}_45.bmp", pid)
        write(src / "cam_b" / f"{pid:03d}_135.bmp", 100 + pid)
    return src


def test_viper(tmp_path: Path) -> None:
    src = write_viper(tmp_path / "VIPeR")
    layout = scan_viper(src, train_identities=6)
    train, test = set(pids(layout, "train")), set(pids(layout, "query"))
    assert len(train) == 6 and train | test == set(range(1, 11)) and not train & test
    assert pids(layout, "query") == pids(layout, "gallery")
    assert set(camids(layout, "query")) == {1} and set(camids(layout, "gallery")) == {2}
    assert any("split seed 0" in note for note in layout.notes)
    assert layout.splits == scan_viper(src, train_identities=6).splits
    assert {
        frozenset(pids(scan_viper(src, train_identities=6, split_seed=s), "train")) for s in range(4)
    } != {frozenset(train)}
    assert "query images: published 316, found 4" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 12, "query": 4, "gallery": 4}
    split = open_shards(tmp_path / "out").split("query")
    source = layout.splits["query"][0]
    picture = Image.open(io.BytesIO(split.read(int(split.images_of(source.pid)[0])).image))
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(source.path)))
    fails(lambda: scan_viper(src), "316 train identities of 10")
    write(src / "cam_a" / "x.bmp")
    fails(lambda: scan_viper(src, train_identities=6), "cam_a/x.bmp")


def test_prid(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4, 201, 202):
        write(tmp_path / "prid_2011" / "single_shot" / "cam_a" / f"person_{number:04d}.png", number)
    for number in (1, 2, 3, 4, 201, 202, 203):
        write(tmp_path / "prid_2011" / "single_shot" / "cam_b" / f"person_{number:04d}.png", 50 + number)
    layout = scan_prid(tmp_path / "prid_2011", train_identities=2)
    train = set(pids(layout, "train"))
    assert len(train) == 2 and train < {1, 2, 3, 4}
    assert set(pids(layout, "query")) == {1, 2, 3, 4} - train
    # 201 and 202 are other people in camera a than in camera b: no queries.
    assert set(pids(layout, "gallery")) == ({1, 2, 3, 4} - train) | {201, 202, 203}
    assert len(layout.strays) == 2
    assert "gallery images: published 649, found 5" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 4, "query": 2, "gallery": 5}


def test_cuhk01(tmp_path: Path) -> None:
    for pid in range(1, 6):
        for image in range(1, 5):
            write(tmp_path / "campus" / f"{pid:04d}{image:03d}.png", pid * 10 + image)
    layout = scan_cuhk01(tmp_path, train_identities=3)
    assert stored(layout, tmp_path / "out") == {"train": 12, "query": 4, "gallery": 4}
    assert {source.path.stem[-1] for source in layout.splits["query"]} == {"1", "2"}
    assert set(pids(layout, "query")) == set(pids(layout, "gallery"))
    write(tmp_path / "campus" / "0001005.png")
    fails(lambda: scan_cuhk01(tmp_path, train_identities=3), "campus/0001005.png")


# Domain Guided Dropout's form, CSV, folders


def write_dgd(src: Path) -> Path:
    identities = []
    for pid in range(4):
        identities.append([[f"cam_{v}/{pid:05d}_00000.bmp"] for v in (0, 1)])
        for view in identities[-1]:
            write(src / view[0], pid)
    identities[3][0] = []  # seen by the second camera only: in the gallery
    (src / "meta.json").write_text(json.dumps({"name": "x", "num_cameras": 2, "identities": identities}))
    split = {"trainval": [0, 1], "train": [0], "val": [1], "test_probe": [2], "test_gallery": [2, 3]}
    (src / "split.json").write_text(json.dumps(split))
    return src


def test_dgd(tmp_path: Path) -> None:
    src = write_dgd(tmp_path / "prid")
    layout = scan_dgd(src)
    assert pids(layout, "train") == [1, 1, 2, 2] and camids(layout, "train") == [1, 2, 1, 2]
    assert pids(layout, "query") == [3] and camids(layout, "query") == [1]
    assert pids(layout, "gallery") == [3, 4] and camids(layout, "gallery") == [2, 2]
    assert "gallery identities: published 649, found 2" in layout.differences()
    assert stored(layout, tmp_path / "out") == {"train": 4, "query": 1, "gallery": 2}
    (src / "split.json").write_text(json.dumps({"trainval": [0, 1, 2, 3]}))
    assert list(scan_dgd(src).splits) == ["train"]
    for split, word in (
        ({"trainval": [0], "test_probe": [0]}, "in train and in test"),
        ({"trainval": [4]}, "outside 0..3"),
        ([], "another structure"),
    ):
        (src / "split.json").write_text(json.dumps(split))
        fails(lambda: scan_dgd(src), word)
    (src / "meta.json").write_text(json.dumps({"identities": [[["../x.bmp"]]]}))
    (src / "split.json").write_text(json.dumps({"trainval": [0]}))
    fails(lambda: scan_dgd(src), "outside the data set's folder")
    (src / "meta.json").write_text("{")
    fails(lambda: scan_dgd(src), "meta.json: not JSON")


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.jpg")
    write(tmp_path / "a" / "2.png")
    write(tmp_path / "a" / "3.png")
    (tmp_path / "m.png").write_bytes(png(1))
    table = tmp_path / "list.csv"
    table.write_text(
        "path,pid,camid,split,mask\na/1.jpg,5,1,train,m.png\na/2.png,6,2,query,\na/3.png,0,2,gallery,\n"
    )
    layout = scan_csv(table)
    assert layout.splits["train"][0].mask_path == tmp_path / "m.png"
    assert layout.splits["query"][0].mask_path is None
    assert stored(layout, tmp_path / "out") == {"train": 1, "query": 1, "gallery": 1}
    split = open_shards(tmp_path / "out").split("train")
    assert split.read(0).mask == png(1)
    table.write_text("path,pid,camid,split\na/1.jpg,5,1,train\n")
    assert scan_csv(table).splits["train"][0].mask_path == tmp_path / "a_seg" / "1.png"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a/1.jpg,1,-1,train", "line 2: pid 1, camid -1"),
        ("a/1.jpg,0,1,query", "pids count from 1"),
        ("a/1.jpg,-2,1,gallery", "pids count from -1"),
        ("a/1.jpg,1,1,Train", "line 2"),
        ("a/1.jpg,1", "line 2"),
        ("a/1.jpg,1,1,train\na/2.jpg,1,1,query", "identity 1 is in train too"),
    ],
)
def test_csv_wrong_lines(tmp_path: Path, line: str, word: str) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"path,pid,camid,split\n{line}\n")
    fails(lambda: scan_csv(table), word)
    table.write_text("path,pid\n")
    fails(lambda: scan_csv(table), "no column camid")
    table.write_bytes(b"path,pid,camid,split\n\xff,1,1,train\n")
    fails(lambda: scan_csv(table), "not CSV in UTF-8")


def test_folder(tmp_path: Path) -> None:
    src = tmp_path / "people"
    for name in ("ann/x_c2.jpg", "ann/y_c1.jpg", "bob/z_c1.jpg"):
        write(src / name)
    (src / "ann" / "notes.txt").write_text("x")
    layout = scan_folder(src)
    assert pids(layout, "train") == [1, 1, 2] and camids(layout, "train") == [1, 1, 1]
    assert layout.splits["train"][0].mask_path == tmp_path / "people_seg" / "ann" / "x_c2.png"
    assert layout.strays == ("ann/notes.txt",)
    assert camids(scan_folder(src, camera=r"_c(\d)"), "train") == [2, 1, 1]
    assert stored(layout, tmp_path / "out") == {"train": 3}
    fails(lambda: scan_folder(src, camera=r"_d(\d)"), "ann/x_c2.jpg")
    fails(lambda: scan_folder(src, camera="c"), "one group")
    fails(lambda: scan_folder(src, camera="("), "camera pattern")

    splits = tmp_path / "splits"
    for name in ("train/a/1.jpg", "query/b/2.jpg", "gallery/b/3.jpg", "gallery/c/4.jpg"):
        write(splits / name)
    layout = scan_folder(splits)
    assert (pids(layout, "train"), pids(layout, "query"), pids(layout, "gallery")) == ([1], [2], [2, 3])
    assert stored(layout, tmp_path / "out2") == {"train": 1, "query": 1, "gallery": 2}
    write(splits / "query" / "a" / "5.jpg")
    fails(lambda: scan_folder(splits), "identity a is in train and in test")
    fails(lambda: scan_folder(tmp_path / "nowhere"), "no such folder")


def test_merge(tmp_path: Path) -> None:
    market = scan_market1501(write_market(tmp_path / "market", identities=2, images=2))
    viper = scan_viper(write_viper(tmp_path / "VIPeR", 4), train_identities=2)
    merged = merge_train({"m": market, "v": viper})
    assert list(merged.splits) == ["train"]
    assert pids(merged, "train")[:5] == [1, 1, 2, 2, 3]  # market: 1, 1, 2, 2, 99
    assert sorted(set(pids(merged, "train"))) == [1, 2, 3, 4, 5]
    assert sorted(set(camids(merged, "train"))) == [1, 2, 3, 4]
    sources = merged.splits["train"]
    assert len({source.key for source in sources}) == len(sources) == 9
    assert {source.dataset for source in sources} == {"m", "v"}
    assert sources[0].name.startswith("m/bounding_box_train/")
    assert any("v: NOT AS PUBLISHED: train identities" in note for note in merged.notes)
    assert stored(merged, tmp_path / "out") == {"train": 9}
    tar = (tmp_path / "out" / "train" / "000000.tar").read_bytes()
    assert b'"dataset":"v"' in tar and b'"dataset":"m"' in tar
    shutil.rmtree(tmp_path / "market" / "query")
    without = Layout("x", {"query": market.splits["query"]})
    fails(lambda: merge_train({"x": without}), "x: has no train split")
