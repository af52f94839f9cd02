"""Conversion: what is written, that it is the same each time, and that bad input leaves nothing behind."""

import fcntl
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market import jpeg, write_market, write_pair
from maskreid_shards import OnBadMask, ShardError, convert_market1501, open_shards, scan_market1501
from maskreid_shards.dealing import deal

SHARD_BYTES = 30_000


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market")


def test_members_keep_the_original_bytes(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = convert_market1501(src, out, shard_bytes=SHARD_BYTES)
    assert len(report.manifest.splits["train"].shards) > 2
    for split in ("train", "query", "gallery"):
        found = {}
        for url in open_shards(out).split(split).urls():
            with tarfile.open(url) as tar:
                members = tar.getmembers()
            found_names = [member.name for member in members]
            keys = [name.partition(".")[0] for name in found_names[::3]]
            assert found_names == [key + suffix for key in keys for suffix in (".jpg", ".mask.png", ".json")]
            for member in members:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname, member.isreg()) == ("", "", True)
            with tarfile.open(url) as tar:
                for key in keys:
                    parts = [tar.extractfile(key + suffix) for suffix in (".jpg", ".mask.png", ".json")]
                    found[key] = [part.read() for part in parts if part is not None]
        sources = scan_market1501(src).splits[split]
        assert sorted(found) == sorted(source.key for source in sources)
        for source in sources:
            image, mask, about = found[source.key]
            assert image == source.path.read_bytes()
            assert source.mask_path is not None and mask == source.mask_path.read_bytes()
            expected = {
                "pid": source.pid,
                "camid": source.camid,
                "dataset": "market",
                "split": split,
                "source": source.name,
            }
            assert json.loads(about) == expected


def test_identities_are_contiguous_and_whole(src: Path, tmp_path: Path) -> None:
    convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES)
    index = open_shards(tmp_path / "out").split("train").index
    for pid in set(index["pid"].tolist()):
        places = np.flatnonzero(index["pid"] == pid)
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        assert len(set(index["shard"][places].tolist())) == 1


def test_the_seed_deals_the_identities(src: Path) -> None:
    sources = scan_market1501(src).splits["train"]
    orders = []
    for seed in (0, 1):
        parts = deal(sources, dataset="m", shard_bytes=SHARD_BYTES, seed=seed)
        assert sorted(s.key for part in parts for s in part) == sorted(s.key for s in sources)
        assert all(parts)
        orders.append([source.pid for part in parts for source in part])
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_a_large_identity_is_not_divided_but_junk_is(src: Path) -> None:
    layout = scan_market1501(src)
    parts = deal(layout.splits["train"], dataset="m", shard_bytes=1, seed=0)
    assert [len({source.pid for source in part}) for part in parts] == [1] * 7
    parts = deal(layout.splits["gallery"], dataset="m", shard_bytes=1, seed=0)
    assert sorted(len(part) for part in parts) == [1] * 6 + [3, 3]


def test_the_same_input_gives_the_same_bytes(src: Path, tmp_path: Path) -> None:
    for number, mask in enumerate(sorted((src / "query_seg").iterdir())):
        if number:
            mask.unlink()
        else:
            mask.write_bytes(b"no mask")
    report = convert_market1501(src, tmp_path / "a", shard_bytes=SHARD_BYTES, on_bad_mask="full")
    # Neither the times nor the order in which the files came to be may matter.
    files = sorted(path.relative_to(src) for path in src.rglob("*") if path.is_file())
    copy = tmp_path / "copy" / "market"
    for name in reversed(files):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((src / name).read_bytes())
        os.utime(copy / name, (10**9, 10**9))
    again = convert_market1501(copy, tmp_path / "b", shard_bytes=SHARD_BYTES, on_bad_mask="full")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert report.manifest.fingerprint == again.manifest.fingerprint
    other = convert_market1501(src, tmp_path / "c", shard_bytes=SHARD_BYTES, on_bad_mask="full", seed=1)
    assert other.manifest.fingerprint != report.manifest.fingerprint


def test_report_counts(src: Path, tmp_path: Path) -> None:
    (src / "query" / "Thumbs.db").write_bytes(b"x")
    seen: list[tuple[int, int]] = []
    report = convert_market1501(
        src, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    splits = report.manifest.splits
    assert (splits["train"].samples, splits["train"].identities, splits["train"].single_image_identities) == (
        25,
        7,
        1,
    )
    gallery = splits["gallery"]
    assert (gallery.samples, gallery.identities, gallery.junk, gallery.distractors) == (12, 2, 3, 3)
    assert splits["train"].cameras == (1, 2, 3) and splits["query"].cameras == (1,)
    assert seen == [(done, 39) for done in range(1, 40)]
    text = "\n".join(report.lines())
    assert "train: 1 identities have a single image" in text
    assert "query: all images come from camera 1" in text
    assert "1 other files ignored: query/Thumbs.db" in text


def _rgb(path: Path) -> None:
    Image.new("RGB", (16, 32), (255, 255, 0)).save(path)


def _palette(path: Path) -> None:
    picture = Image.new("P", (16, 32), 1)
    picture.putpalette([0, 0, 0, 192, 128, 128])
    picture.save(path)


def _grey(level: int, size: tuple[int, int] = (16, 32)) -> Callable[[Path], None]:
    return lambda path: Image.new("L", size, level).save(path)


BAD_MASKS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("missing", Path.unlink),
    "truncated": ("unreadable", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "0 bytes": ("unreadable", lambda path: path.write_bytes(b"")),
    "a jpeg of colours": ("mode", lambda path: path.write_bytes(jpeg(1))),
    "rgb": ("mode", _rgb),
    "palette": ("mode", _palette),
    "16 bit": ("mode", lambda path: Image.new("I;16", (16, 32), 255).save(path)),
    "all zero": ("empty", _grey(0)),
    "label map": ("empty", _grey(1)),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_under_each_policy(src: Path, tmp_path: Path, case: str) -> None:
    kind, spoil = BAD_MASKS[case]
    mask = src / "bounding_box_train_seg" / "0099_c2s1_000001_01.png"
    spoil(mask)
    with pytest.raises(ShardError) as caught:
        convert_market1501(src, tmp_path / "fail")
    assert str(mask) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "fail").exists()

    policies: tuple[OnBadMask, ...] = ("full", "skip")
    for policy in policies:
        report = convert_market1501(src, tmp_path / policy, on_bad_mask=policy)
        masks = report.manifest.masks
        assert {name: count for name, count in masks.counts.items() if count} == {kind: 1}
        assert masks.checked == 39 and masks.bad == 1 and "0099_c2s1_000001_01" in masks.examples[0]
        assert f"masks: 1 {kind}" in report.lines()
    full = open_shards(tmp_path / "full").split("train")
    stored = Image.open(io.BytesIO(full.read(int(full.images_of(99)[0])).mask))
    assert stored.size == (16, 32) and stored.mode == "L" and stored.getextrema() == (255, 255)
    skip = open_shards(tmp_path / "skip").split("train")
    assert len(skip) == 24 and 99 not in skip.identities.tolist()


def test_a_nearly_empty_mask_is_kept(src: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (16, 32))
    mask.putpixel((3, 3), 255)
    mask.save(src / "query_seg" / "0200_c1s1_000001_01.png")
    assert convert_market1501(src, tmp_path / "out").manifest.masks.bad == 0


def test_no_masks_at_all(src: Path, tmp_path: Path) -> None:
    (src / "query_seg").rename(src / "nowhere")
    with pytest.raises(ShardError, match="no mask file"):
        convert_market1501(src, tmp_path / "out")
    with pytest.raises(ShardError, match="split query: every sample was left out"):
        convert_market1501(src, tmp_path / "out", on_bad_mask="skip")
    assert names(tmp_path) == [".out.maskreid-partial", "market"]
    assert convert_market1501(src, tmp_path / "out", on_bad_mask="full").manifest.masks.counts["missing"] == 2


def _png_as_jpeg(path: Path) -> None:
    Image.new("RGB", (16, 32)).save(path, "PNG")


def _too_large(path: Path) -> None:
    # The header claims 60000 x 60000; were it believed, decoding would take 10 GB.
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "truncated or broken JPEG data"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"no picture"), r"not a readable JPEG file \(10 bytes\)"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html>"), "a page of HTML named .jpg"),
        (_png_as_jpeg, "a PNG named .jpg; rename it .png"),
        (_too_large, r"pixels, more than the limit|pixels\) exceeds limit"),
    ],
)
def test_a_bad_image_is_named(
    src: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    image = src / "bounding_box_test" / "0201_c2s1_000002_01.jpg"
    spoil(image)
    with pytest.raises(ShardError, match=message) as caught:
        convert_market1501(src, tmp_path / "deep" / "er" / "out", on_bad_mask="full")
    assert str(image) in str(caught.value) and "\n" not in str(caught.value)
    assert "or leave such images out (--on-bad-image skip)" in str(caught.value)
    assert not (tmp_path / "deep" / "er" / "out").exists()
    report = convert_market1501(src, tmp_path / "out", on_bad_mask="full", on_bad_image="skip")
    images = report.manifest.images
    assert images is not None and (images.checked, images.bad, report.manifest.masks.checked) == (39, 1, 38)
    assert "0201_c2s1_000002_01.jpg" in images.examples[0]
    assert "images: 39 checked, 1 bad (policy: skip)" in report.lines()
    gallery = open_shards(tmp_path / "out").split("gallery")
    assert len(gallery) == 11 and gallery.images_of(201).size == 2


@pytest.mark.parametrize(("before", "kept"), [(20, []), (30, [".out.maskreid-partial"])])
def test_an_exception_leaves_finished_shards_or_nothing(
    src: Path, tmp_path: Path, before: int, kept: list[str]
) -> None:
    def stop(done: int, total: int) -> None:
        if done == before:
            assert (tmp_path / ".out.maskreid-partial" / "train" / "000000.tar").exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):  # train, of 25 images, is one shard
        convert_market1501(src, tmp_path / "out", progress=stop)
    assert names(tmp_path) == [*kept, "market"]


def test_two_conversions_to_one_place(src: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.maskreid-partial"
    partial.mkdir()
    (partial / "theirs").write_bytes(b"x")
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ShardError, match="another conversion is writing"):
        convert_market1501(src, tmp_path / "out")
    assert names(partial) == ["theirs"]
    os.close(lock)


def test_an_output_that_is_taken(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert_market1501(src, out)  # an empty folder is free
    before = tree(out)
    with pytest.raises(ShardError, match="already holds shards"):
        convert_market1501(src, out)
    assert tree(out) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(ShardError, match=r"not empty \(it holds mine.txt\)"):
        convert_market1501(src, tmp_path / "other")
    with pytest.raises(ShardError, match="is a file"):
        convert_market1501(src, tmp_path / "other" / "mine.txt")
    assert names(tmp_path) == ["market", "other", "out"]


def test_wrong_arguments(src: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="'keep': use one of fail, full, skip"):
        convert_market1501(src, tmp_path / "out", on_bad_mask="keep")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="shard size"):
        convert_market1501(src, tmp_path / "out", shard_bytes=0)


def test_a_single_identity(tmp_path: Path) -> None:
    src = tmp_path / "one"
    for split in ("train", "query", "gallery"):
        write_pair(src, split, "0001_c1s1_000001_01", 1)
    report = convert_market1501(src, tmp_path / "out")
    assert [split.samples for split in report.manifest.splits.values()] == [1, 1, 1]
    assert sum("all images come from camera 1" in line for line in report.lines()) == 3
