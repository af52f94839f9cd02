"""The manifest and the index are believed only as far as they agree with each other and with the files."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskreid_shards import ShardError, open_shards
from maskreid_shards.manifest import INDEX_DTYPE, read_manifest, write_manifest


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(ShardError) as caught:
        open_shards(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    for word in words:
        assert word in message


def test_round_trip(shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(shards)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == (shards / "manifest.json").read_bytes()


def test_extra_files_do_not_matter(shards: Path) -> None:
    fingerprint = open_shards(shards).fingerprint
    (shards / "README.md").write_text("hello")
    assert open_shards(shards).fingerprint == fingerprint


def test_fingerprints_of_splits_differ(shards: Path) -> None:
    opened = open_shards(shards)
    assert len({opened.split(name).fingerprint for name in opened.splits}) == 3
    with pytest.raises(ShardError, match="no split 'test'; there are gallery, query, train"):
        opened.split("test")


def test_the_index_record(shards: Path) -> None:
    assert INDEX_DTYPE.itemsize == 96
    index = open_shards(shards).split("train").index
    assert index.dtype == INDEX_DTYPE and not index.flags.writeable and isinstance(index, np.memmap)


def test_no_manifest(shards: Path, tmp_path: Path) -> None:
    (shards / "manifest.json").unlink()
    fails(shards, "no manifest.json", "maskreid convert")
    fails(tmp_path / "nowhere", "no manifest.json")


def _set(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(field, value)


def _split(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["splits"]["train"].__setitem__(field, value)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (_set("format", "tar"), "not the manifest"),
        (_set("version", 2), "format version 2"),
        (_set("seed", 5), "fingerprint"),
        (_set("fingerprint", None), "fingerprint"),
        (_set("splits", None), "missing or odd"),
        (lambda content: content.pop("masks"), "missing or odd"),
        (_split("samples", 3), "fingerprint"),
        (_split("index", "../../secret.npy"), "index name"),
        (
            lambda content: content["splits"]["train"]["shards"][0].__setitem__("name", "/etc/passwd"),
            "shard name",
        ),
        (lambda content: content["splits"].__setitem__("../x", content["splits"]["train"]), "split name"),
        (_split("surprise", 1), "missing or odd"),
    ],
)
def test_an_edited_manifest(shards: Path, edit: Callable[[dict[str, Any]], None], word: str) -> None:
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    fails(shards, "manifest.json", word)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00\xff"])
def test_a_broken_manifest(shards: Path, text: str) -> None:
    (shards / "manifest.json").write_bytes(text.encode("latin-1"))
    fails(shards, "manifest.json")


def test_a_shard_missing_or_of_another_size(shards: Path) -> None:
    shard = shards / "train" / "000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    fails(shards, "train/000001.tar", f"{len(data) - 512} bytes", str(len(data)))
    shard.unlink()
    fails(shards, "train/000001.tar", "missing")


def test_every_bit_of_the_index_counts(shards: Path) -> None:
    path = shards / "index" / "query.npy"
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 7):
        data[position] ^= 4
        path.write_bytes(data)
        fails(shards, "index/query.npy")
        data[position] ^= 4
    path.write_bytes(data)
    open_shards(shards)
    path.unlink()
    path.mkdir()
    fails(shards, "index/query.npy")


def _forge(shards: Path, rows: np.ndarray) -> None:
    """An index with a manifest that vouches for it."""
    path = shards / "index" / "query.npy"
    np.save(path, rows)
    manifest = read_manifest(shards)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = dataclasses.replace(
        manifest.splits["query"], index_bytes=path.stat().st_size, index_sha256=digest
    )
    write_manifest(shards, dataclasses.replace(manifest, splits={**manifest.splits, "query": entry}))


def test_a_forged_index(shards: Path) -> None:
    good = np.load(shards / "index" / "query.npy")
    rows = good.copy()
    rows["shard"][1] = 7
    _forge(shards, rows)
    fails(shards, "index/query.npy", "a shard that does not exist")
    for member, value in (("image", -1), ("mask", 2**62), ("json", 10**9)):
        rows = good.copy()
        rows[f"{member}_offset"][1] = value
        _forge(shards, rows)
        fails(shards, "index/query.npy", f"record 1: the {member} lies outside")
    _forge(shards, good[:1])
    fails(shards, "not the index of 2 samples")
    _forge(shards, np.zeros(2))
    fails(shards, "not the index of 2 samples")
