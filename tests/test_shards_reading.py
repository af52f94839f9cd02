"""Reading by byte range gives what tarfile and WebDataset give, and notices what they do not."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from market import jpeg, png
from maskreid_shards import (
    RawPair,
    ShardError,
    Split,
    decode_pair,
    open_shards,
    reading,
)
from maskreid_shards.stores import local

SPLITS = ("train", "query", "gallery")


def by_tarfile(split: Split) -> list[tuple[str, dict[str, bytes]]]:
    """Every sample of a split in file order, read the slow way."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    for url in split.urls():
        with tarfile.open(url) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                part = tar.extractfile(member)
                assert part is not None
                samples[-1][1][suffix] = part.read()
    return samples


@pytest.mark.parametrize("name", SPLITS)
def test_reads_equal_the_tar_members(converted: Path, name: str) -> None:
    split = open_shards(converted).split(name)
    expected = by_tarfile(split)
    assert len(split) == len(expected) == len(split.pids) == len(split.camids) == len(split.keys)
    for number, (key, members) in enumerate(expected):
        about = json.loads(members["json"])
        pair = split.read(number)
        assert (pair.key, pair.pid, pair.camid) == (key, about["pid"], about["camid"])
        assert (pair.image, pair.mask) == (members["jpg"], members["mask.png"])
        assert (
            split.keys[number].decode() == key
            and split.pids[number] == pair.pid
            and split.camids[number] == pair.camid
        )
        row = split.index[number]
        with open(split.urls()[row["shard"]], "rb") as file:
            file.seek(row["json_offset"])
            assert file.read(row["json_length"]) == members["json"]
    assert split.pids.dtype == np.int64 and split.camids.dtype == np.int64


@pytest.mark.parametrize("name", SPLITS)
def test_webdataset_reads_the_same(converted: Path, name: str) -> None:
    split = open_shards(converted).split(name)
    samples = list(webdataset.WebDataset(split.urls(), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [key.decode() for key in split.keys]
    for sample, pair in zip(samples, split.read_many(range(len(split))), strict=True):
        assert (sample["jpg"], sample["mask.png"]) == (pair.image, pair.mask)
        assert json.loads(sample["json"])["pid"] == pair.pid


def test_read_many_keeps_order_and_repetitions(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_shards(converted).split("train")
    single = [split.read(number) for number in range(len(split))]
    rng = np.random.default_rng(0)
    for _ in range(20):
        numbers = rng.integers(-len(split), len(split), 30)
        assert split.read_many(numbers) == [single[number] for number in numbers]
    assert split.read_many([]) == []
    with pytest.raises(IndexError):
        split.read(len(split))
    monkeypatch.setattr(reading, "MAX_READ", 3000)
    monkeypatch.setattr(local, "MAX_OPEN_SHARDS", 1)
    assert split.read_many(range(len(split))) == single


def test_neighbours_share_one_read(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_shards(converted).split("train")
    calls: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, at: int) -> bytes:
        calls.append(at)
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", counted)
    split.read_many(split.images_of(3)[::-1])
    assert len(calls) == 1


def test_short_reads_are_continued(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_shards(converted).split("query")
    expected = split.read_many([0, 1])
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 100), at))
    assert split.read_many([0, 1]) == expected


def test_identities(converted: Path) -> None:
    split = open_shards(converted).split("gallery")
    assert split.identities.tolist() == [-1, 0, 200, 201]
    for pid in split.identities.tolist():
        assert split.images_of(pid).tolist() == np.flatnonzero(split.pids == pid).tolist()
    with pytest.raises(KeyError):
        split.images_of(5)


def test_a_split_travels_to_workers(converted: Path) -> None:
    split = open_shards(converted).split("train")
    pair = split.read(3)
    data = pickle.dumps(split)
    assert len(data) < 4000  # its path, not its index or its open files
    again = pickle.loads(data)
    assert again.read(3) == pair and again.fingerprint == split.fingerprint


@pytest.mark.parametrize("member", ["image", "mask"])
def test_a_flipped_bit_is_named(shards: Path, member: str) -> None:
    split = open_shards(shards).split("train")
    row = split.index[5]
    path = Path(split.urls()[row["shard"]])
    offset = int(row[f"{member}_offset"])
    data = bytearray(path.read_bytes())
    data[offset + int(row[f"{member}_length"]) - 1] ^= 1
    path.write_bytes(data)
    split = open_shards(shards).split("train")  # the size is the same: only reading can tell
    with pytest.raises(ShardError) as caught:
        split.read(5)
    message = str(caught.value)
    assert (
        str(path) in message and row["key"].decode() in message and f"{member} at offset {offset}" in message
    )
    assert "crc32" in message and "\n" not in message
    assert split.read(4).key == split.keys[4].decode()


def test_a_shard_that_shrinks_or_goes_while_in_use(shards: Path) -> None:
    split = open_shards(shards).split("query")
    path = Path(split.urls()[0])
    os.truncate(path, int(split.index["image_offset"][1]) + 10)
    assert split.read(0).key
    with pytest.raises(
        ShardError, match=f"{path}: {split.keys[1].decode()}: the image at offset .* is cut short"
    ):
        split.read(1)
    path.unlink()
    with pytest.raises(ShardError, match=r"000000\.tar: cannot be opened"):
        pickle.loads(pickle.dumps(split)).read(0)


def pair(image: bytes, mask: bytes) -> RawPair:
    return RawPair("p1_0", 1, 1, image, mask, "train/000000.tar")


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_decode_pair() -> None:
    image, mask = decode_pair(pair(jpeg(1), png(1)))
    assert (image.mode, mask.mode, image.size, mask.size) == ("RGB", "L", (16, 32), (16, 32))
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(jpeg(1)))))
    for kind in ("PNG", "WEBP"):
        assert decode_pair(pair(encoded(image, kind), png(1)))[0].size == (16, 32)
    grey, mask = decode_pair(pair(encoded(image.convert("L"), "JPEG"), png(1, (8, 24))))
    assert grey.mode == "RGB" and mask.size == (16, 32)
    assert set(np.unique(np.asarray(mask)).tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("image", "mask", "word"),
    [
        (b"", png(1), "image: not a readable"),
        (b"cos\nsystem\n(S'true'\ntR.", png(1), "image: not a readable"),
        (encoded(Image.new("RGB", (4, 4)), "BMP"), png(1), "image: not a readable"),
        (jpeg(1)[:-300], png(1), "image: truncated"),
        (jpeg(1), b"", "mask: not a readable"),
        (jpeg(1), png(1)[:60], "mask: "),
        (jpeg(1), jpeg(1), "mask: not a readable"),
        (jpeg(1), encoded(Image.new("RGB", (16, 32)), "PNG"), "mask of mode RGB"),
        (encoded(Image.new("L", (5000, 5000)), "PNG"), png(1), "image: 5000 x 5000 pixels"),
        (jpeg(1), encoded(Image.new("L", (5000, 5000)), "PNG"), "mask: 5000 x 5000 pixels"),
    ],
)
def test_decode_pair_names_what_it_refuses(image: bytes, mask: bytes, word: str) -> None:
    with pytest.raises(ShardError) as caught:
        decode_pair(pair(image, mask))
    assert word in str(caught.value)
    assert str(caught.value).startswith("train/000000.tar: p1_0: ") and "\n" not in str(caught.value)


def test_any_flipped_byte_decodes_or_is_a_shard_error() -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        image, mask = bytearray(jpeg(1)), bytearray(png(1))
        target = image if trial % 2 else mask
        target[rng.integers(len(target))] ^= int(rng.integers(1, 256))
        try:
            decode_pair(pair(bytes(image), bytes(mask)))
        except ShardError as error:
            assert "\n" not in str(error)
