"""Finished folders merged: the images, masks and numbers that converting the sources together gives."""

import json
from pathlib import Path

import pytest

from market import jpeg, png, write_market
from maskreid_shards import (
    MaskOptions,
    ShardError,
    convert,
    convert_market1501,
    merge_shards,
    merge_train,
    open_shards,
    scan_csv,
    scan_market1501,
    verify,
)
from program import run
from test_shards_checks import sources_in
from test_shards_convert import names, tree

SHARD_BYTES = 20_000


def samples(folder: Path) -> set[tuple[object, ...]]:
    train = open_shards(folder).split("train")
    return {(p.key, p.pid, p.camid, p.image, p.mask) for p in train.read_many(range(len(train)))}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    found = {"a": write_market(tmp_path / "a"), "b": write_market(tmp_path / "b", identities=4, images=7)}
    for path in (found["b"] / "bounding_box_train_seg").iterdir():
        path.write_bytes(b"" if path.name.startswith("0001") else path.read_bytes())
    return found


def test_the_same_as_converted_together(sets: dict[str, Path], tmp_path: Path) -> None:
    for name, src in sets.items():
        convert_market1501(src, tmp_path / f"{name}-shards", shard_bytes=SHARD_BYTES, on_bad_mask="full")
    whole = merge_train({name: scan_market1501(src) for name, src in sets.items()})
    converted = convert(whole, tmp_path / "whole", dataset="merge", on_bad_mask="full")
    (tmp_path / ".out.maskreid-partial" / "train").mkdir(parents=True)  # what a killed call left
    (tmp_path / ".out.maskreid-partial" / "train" / "000009.tar").write_bytes(b"x")
    command = ("merge", tmp_path / "out", f"a={tmp_path / 'a-shards'}", f"b={tmp_path / 'b-shards'}")
    status, output = run(*command)
    assert status == 0 and "b: 29 images, pids 8 to 12, cameras 4 to 6" in output, output
    assert samples(tmp_path / "out") == samples(tmp_path / "whole") and not verify(tmp_path / "out")
    merged = open_shards(tmp_path / "out").manifest
    assert set(sources_in(tmp_path / "out")) < set(sources_in(tmp_path / "whole"))  # those of the first shard
    first, second = merged.splits["train"], converted.manifest.splits["train"]
    assert (first.samples, first.identities, first.cameras) == (
        second.samples,
        second.identities,
        second.cameras,
    )
    assert len(first.shards) == sum(
        len(open_shards(tmp_path / f"{name}-shards").split("train").urls()) for name in sets
    )
    assert merged.masks.counts == converted.manifest.masks.counts and merged.masks.counts["unreadable"] == 7
    status, output = run(*command)
    assert status == 2 and "already holds shards" in output


def test_a_stopped_merge_goes_on(sets: dict[str, Path], tmp_path: Path) -> None:
    folders: dict[str, Path | str] = {}
    for name, src in sets.items():
        folders[name] = tmp_path / f"{name}-shards"
        convert_market1501(src, tmp_path / f"{name}-shards", shard_bytes=SHARD_BYTES, on_bad_mask="full")
    merge_shards(folders, tmp_path / "whole")
    partial = tmp_path / ".out.maskreid-partial"
    for stop_at, damage in ((1, False), (30, True), (50, False)):

        def stop(done: int, total: int, stop_at: int = stop_at) -> None:
            if done >= stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merge_shards(folders, tmp_path / "out", progress=stop)
        if damage:
            shard = partial / "train" / "000000.tar"
            shard.write_bytes(shard.read_bytes()[:-1])
    finished = {path.name: path.stat().st_ino for path in (partial / "train").iterdir()}
    report = merge_shards(folders, tmp_path / "out")
    assert f"{len(finished)} of " in report.notes[-1] and len(finished) > 2
    assert finished.items() <= {p.name: p.stat().st_ino for p in (tmp_path / "out/train").iterdir()}.items()
    assert tree(tmp_path / "out") == tree(tmp_path / "whole") and not partial.exists()
    with pytest.raises(KeyboardInterrupt):
        merge_shards(folders, tmp_path / "other", progress=stop)
    swapped = dict(reversed(folders.items()))  # another merge, of which nothing is kept
    assert "kept" not in merge_shards(swapped, tmp_path / "other").notes[-1]
    merge_shards(swapped, tmp_path / "swapped")
    assert tree(tmp_path / "other") == tree(tmp_path / "swapped")


def test_numbering_and_makers_are_kept(tmp_path: Path) -> None:
    folders: dict[str, Path | str] = {}
    for name, pids, model in (
        ("a", ("ann", "bob"), "pose"),
        ("b", ("7", "9"), ""),
        ("c", ("zoe", "ann"), "x"),
    ):
        src = tmp_path / name
        for number, pid in enumerate(pids):
            for file, data in (
                (f"i/{pid}.jpg", jpeg(number + ord(name))),
                (f"masks/i/{pid}.png", png(number)),
            ):
                (src / file).parent.mkdir(parents=True, exist_ok=True)
                (src / file).write_bytes(data)
        rows = [f"i/{pid}.jpg,{pid},{number},train" for number, pid in enumerate(pids)]
        (src / "list.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
        if model:
            (src / "masks" / "segmentation.json").write_text(json.dumps({"model": model}))
        options = MaskOptions(str(src / "masks"))
        folders[name] = tmp_path / f"{name}-shards"
        convert(scan_csv(src / "list.csv"), tmp_path / f"{name}-shards", dataset=name, mask_options=options)
    manifest = merge_shards(folders, tmp_path / "out").manifest
    assert manifest.numbering == {
        "pid": {"a/ann": 1, "a/bob": 2, "c/ann": 5, "c/zoe": 6},
        "camid": {f"{name}/{at}": 1 + at + 2 * rank for rank, name in enumerate("abc") for at in (0, 1)},
    }
    assert manifest.masks.maker == {"model": "a: pose; c: x"}
    assert merge_shards({"a": folders["a"]}, tmp_path / "one").manifest.masks.maker == {"model": "pose"}
    assert open_shards(tmp_path / "out").manifest == manifest and not verify(tmp_path / "out")


def test_what_cannot_be_merged_leaves_nothing(sets: dict[str, Path], tmp_path: Path) -> None:
    convert_market1501(sets["a"], tmp_path / "one", shard_bytes=SHARD_BYTES)
    convert_market1501(sets["a"], tmp_path / "two", shard_bytes=SHARD_BYTES)
    before = names(tmp_path)
    with pytest.raises(ShardError, match="y: holds the same shards as x"):
        merge_shards({"x": tmp_path / "one", "y": tmp_path / "two"}, tmp_path / "out")
    with pytest.raises(ShardError, match="nothing to merge"):
        merge_shards({}, tmp_path / "out")
    shard = sorted((tmp_path / "one" / "train").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="the image does not fit its crc32"):
        merge_shards({"x": tmp_path / "one"}, tmp_path / "out")
    for wrong, words in (("x", "write NAME=SHARDS"), (f"x={tmp_path / 'a'}", "not a shard folder")):
        status, output = run("merge", tmp_path / "out", wrong)
        assert status == 2 and words in output
    assert names(tmp_path) == before
