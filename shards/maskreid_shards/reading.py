"""Read samples from shards by byte range: any sample at any time, each checked against its crc32."""

import hashlib
import io
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RemoteError, ShardError
from .identities import IdentityTable
from .manifest import (
    INDEX_DTYPE,
    MANIFEST,
    Manifest,
    ShardEntry,
    SplitEntry,
    odd_keys,
    parse_manifest,
    read_manifest,
)
from .names import SourceNames
from .opening import MANIFEST_BYTES, PICTURE_BYTES, regular_only
from .stores.cache import CachedStore
from .stores.fsspec_store import FsspecStore
from .stores.http_store import HttpStore
from .stores.local import LocalStore, Store
from .stores.remote import RemoteStore

# Two samples with less than this between them are fetched by one read; a json member and three headers lie
# between neighbours. One read grows no further than MAX_READ.
MAX_GAP = 16 * 1024
MAX_READ = 8 * 1024 * 1024
MAX_SPAN = 2 * PICTURE_BYTES + MAX_GAP
_PAIR_FIELDS = ["pid", "camid", "key"]
_PAIR_FIELDS += [f"{m}_{field}" for m in ("image", "mask") for field in ("offset", "length", "crc32")]


@dataclass(frozen=True)
class RawPair:
    """One sample as stored: the original bytes of the image and of the mask. `shard` is for messages."""

    key: str
    pid: int
    camid: int
    image: bytes
    mask: bytes
    shard: str


class Split:
    """One split: `len(split)` samples, numbered in shard order, an identity's images adjacent.

    The index is memory-mapped (of a remote store: fetched) and the shards are opened on first use, in each
    process: a Split pickles to its location.
    """

    def __init__(self, store: Store, name: str, entry: SplitEntry) -> None:
        self.store = store
        self.name = name
        self.entry = entry

    def __len__(self) -> int:
        return self.entry.samples

    def __repr__(self) -> str:
        size = f"{len(self)} samples, {self.entry.identities} identities"
        return f"Split({self.name!r}, {size}, {self.store.where('')})"

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "name": self.name, "entry": self.entry}

    @cached_property
    def index(self) -> NDArray[np.void]:
        """(N,) records of `manifest.INDEX_DTYPE`, read-only."""
        if isinstance(self.store, LocalStore):  # checked by `open_shards`
            return _map_index(self.store.folder / self.entry.index, self.entry)
        return _fetch_index(self.store, self.entry)

    @cached_property
    def pids(self) -> NDArray[np.int64]:
        """(N,) int64; 0 marks a distractor, -1 junk."""
        return np.ascontiguousarray(self.index["pid"])

    @cached_property
    def camids(self) -> NDArray[np.int64]:
        """(N,) int64, counting from 1."""
        return self.index["camid"].astype(np.int64)

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """(N,) bytes, without the zero padding."""
        return self.index["key"]

    @cached_property
    def table(self) -> IdentityTable:
        """The samples of each identity, as flat arrays."""
        return IdentityTable.of_pids(self.pids)

    @property
    def identities(self) -> NDArray[np.int64]:
        """The pids, each once, sorted (with 0 and -1 where the split holds them)."""
        return self.table.pids

    @property
    def fingerprint(self) -> str:
        """sha256, equal exactly when the split's shards and index are equal byte for byte."""
        return self.entry.fingerprint

    def images_of(self, pid: int) -> NDArray[np.int64]:
        """The sample numbers of an identity, int64. Raises KeyError for one that is not here."""
        return self.table.images_of(pid)

    def urls(self) -> list[str]:
        """The paths or URLs of the tar files, as `webdataset.WebDataset` takes them."""
        return [self.store.url(shard.name) for shard in self.entry.shards]

    def read(self, number: int) -> RawPair:
        """Sample `number` (negative: from the end). Raises IndexError, and ShardError as `read_many`."""
        return self.read_many([number])[0]

    def read_many(self, numbers: Iterable[int] | NDArray[np.integer[Any]]) -> list[RawPair]:
        """Samples in the order asked for (a number may come twice); neighbours share one read.

        Raises ShardError naming shard, key and offset: a shard that cannot be read, is too short, or holds
        bytes that do not fit their crc32.
        """
        wanted = np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers), np.int64)
        rows = self.index[wanted]
        pairs: list[RawPair | None] = [None] * len(rows)
        for run in _runs(rows):
            for i, pair in zip(run, self._pairs(rows[run]), strict=True):
                pairs[i] = pair
        return [pair for pair in pairs if pair is not None]

    def _pairs(self, rows: NDArray[np.void]) -> list[RawPair]:
        """Neighbours in one shard, by one read; bytes that do not fit are fetched once more where that can
        help."""
        shard = self.entry.shards[int(rows["shard"][0])]
        start = int(rows["image_offset"].min())
        stop = max((rows["mask_offset"] + rows["mask_length"]).tolist())
        key = _key(rows["key"][0])
        data = self.store.fetch(shard, start, stop - start, key)
        try:
            return self._cut(rows, shard, data, start)
        except ShardError:
            if not self.store.distrust(shard):
                raise
        data = self.store.fetch(shard, start, stop - start, key)
        return self._cut(rows, shard, data, start)

    def _cut(self, rows: NDArray[np.void], shard: ShardEntry, data: bytes, start: int) -> list[RawPair]:
        """The samples in bytes of a shard that begin at `start`."""
        where = self.store.where(shard.name)
        fields = rows[_PAIR_FIELDS].tolist()  # plain integers and bytes: taking them one by one is slow
        pairs = []
        for pid, camid, key, *image_and_mask in fields:
            members = []
            for member, (offset, length, crc32) in zip(
                ("image", "mask"), (image_and_mask[:3], image_and_mask[3:]), strict=True
            ):
                part = data[offset - start : offset - start + length]
                if len(part) != length or zlib.crc32(part) != crc32:
                    found = "is cut short" if len(part) != length else "does not fit its crc32"
                    raise ShardError(
                        f"{where}: {_key(key)}: the {member} at offset {offset} {found}; restore it or "
                        "convert again"
                    )
                members.append(part)
            pairs.append(RawPair(_key(key), pid, camid, members[0], members[1], where))
        return pairs


@dataclass(frozen=True)
class ShardSet:
    """An opened shard folder."""

    store: Store
    manifest: Manifest
    _splits: dict[str, Split] = field(default_factory=dict, repr=False, compare=False)

    @property
    def location(self) -> str:
        """The folder or the URL, without credentials."""
        return self.store.where("")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything the folder holds."""
        return self.manifest.fingerprint

    @cached_property
    def names(self) -> SourceNames:
        """How the source calls the persons and cameras."""
        return SourceNames.of(self.manifest.numbering)

    def split(self, name: str) -> Split:
        """Always the same object. Raises ShardError for a split that is not there, naming those that are."""
        if name not in self.manifest.splits:
            raise ShardError(f"{self.location}: no split {name!r}; there are {', '.join(self.splits)}")
        return self._splits.setdefault(name, Split(self.store, name, self.manifest.splits[name]))

    def against_itself(self, name: str) -> "ShardSet":
        """The same shards with two splits, query and gallery, which are both the split `name`: each of its
        images is a query among all of them. Its fingerprint is its own. Raises ShardError as `split`."""
        split = self.split(name)
        sides = dict.fromkeys(("query", "gallery"), split.entry)
        return ShardSet(self.store, replace(self.manifest, splits=sides), dict.fromkeys(sides, split))


def open_shards(
    location: Path | str, *, cache: Path | str | None = None, cache_bytes: int | None = None
) -> ShardSet:
    """Open a shard folder, given as a path or a URL (http, https, or any that fsspec knows).

    Of a folder, the manifest and the indexes are checked in full, the shards by their sizes. Of a URL, only
    the manifest is fetched now, and an index with the first use of its split; sizes are checked with every
    answer. Samples are checked when they are read. `cache` is a local folder for the shards of a URL, which
    are then fetched whole, once a machine; `cache_bytes` limits it.

    Raises ShardError: see `read_manifest`; an index that does not fit the manifest or points outside its
    shards; a shard that is missing or of another size. Other files in the folder are ignored.
    """
    if "://" in str(location):
        return _open_remote(str(location), cache, cache_bytes)
    if cache is not None:
        raise ShardError(f"{location}: a cache is for shards behind a URL; leave it out")
    folder = Path(location)
    manifest = read_manifest(folder)
    for entry in manifest.splits.values():
        for shard in entry.shards:
            _check_size(folder / shard.name, shard.bytes)
        _check_index_file(folder / entry.index, entry)
    return ShardSet(LocalStore(folder), manifest)


def _open_remote(location: str, cache: Path | str | None, cache_bytes: int | None) -> ShardSet:
    remote: RemoteStore
    if location.startswith(("http://", "https://")):
        remote = HttpStore(location)
    else:
        remote = FsspecStore(location)
    try:
        manifest = parse_manifest(remote.read(MANIFEST, limit=MANIFEST_BYTES), remote.where(MANIFEST))
    except RemoteError:
        raise
    except ShardError:  # once more: the transport may have spoilt it
        manifest = parse_manifest(remote.read(MANIFEST, limit=MANIFEST_BYTES), remote.where(MANIFEST))
    return ShardSet(CachedStore(remote, Path(cache), cache_bytes) if cache else remote, manifest)


def _runs(rows: NDArray[np.void]) -> list[list[int]]:
    """Positions of `rows` grouped into reads: the same shard, in file order, small gaps."""
    runs: list[list[int]] = []
    shards, starts = rows["shard"].tolist(), rows["image_offset"].tolist()
    stops = (rows["mask_offset"] + rows["mask_length"]).tolist()
    first = last = -1
    for i in np.lexsort((rows["image_offset"], rows["shard"])).tolist():
        near = runs and shards[i] == shards[last] and starts[i] - stops[last] <= MAX_GAP
        if near and stops[i] - starts[first] <= MAX_READ:
            runs[-1].append(i)
        else:
            runs.append([i])
            first = i
        last = i
    return runs


def _check_size(path: Path, expected: int) -> None:
    try:
        about = path.stat()
    except OSError as error:
        raise ShardError(f"{path}: missing ({error.strerror}); restore it or convert again") from error
    if not stat.S_ISREG(about.st_mode):
        raise ShardError(f"{path}: is no regular file; restore it")
    found = about.st_size
    if found != expected:
        raise ShardError(f"{path}: {found} bytes, the manifest says {expected}; restore it or convert again")


def _check_index_file(path: Path, entry: SplitEntry) -> None:
    _check_size(path, entry.index_bytes)
    with open(path, "rb", opener=regular_only) as file:
        _check_digest(hashlib.file_digest(file, "sha256").hexdigest(), str(path), entry)
    _check_records(_map_index(path, entry), str(path), entry)


def _map_index(path: Path, entry: SplitEntry) -> NDArray[np.void]:
    try:
        index: NDArray[np.void] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises nearly anything on arbitrary bytes; it never unpickles here
        raise ShardError(f"{path}: not a readable index ({error}); restore it or convert again") from error
    _check_type(index, str(path), entry)
    return index


def _fetch_index(store: Store, entry: SplitEntry) -> NDArray[np.void]:
    where = store.where(entry.index)
    data = store.read(entry.index, entry.index_bytes)
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:  # once more: the transport may have spoilt it
        data = store.read(entry.index, entry.index_bytes)
        _check_digest(hashlib.sha256(data).hexdigest(), where, entry)
    try:
        index: NDArray[np.void] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as in _map_index
        raise ShardError(f"{where}: not a readable index ({error}); convert again") from error
    _check_type(index, where, entry)
    _check_records(index, where, entry)
    index.flags.writeable = False
    return index


def _check_digest(found: str, where: str, entry: SplitEntry) -> None:
    if found != entry.index_sha256:
        raise ShardError(f"{where}: the bytes do not fit the manifest; restore it or convert again")


def _check_type(index: NDArray[np.void], where: str, entry: SplitEntry) -> None:
    if index.dtype != INDEX_DTYPE or index.shape != (entry.samples,):
        raise ShardError(
            f"{where}: {index.dtype} of {index.shape}, not the index of {entry.samples} samples; convert "
            "again"
        )


def _check_records(index: NDArray[np.void], where: str, entry: SplitEntry) -> None:
    """Every record lies inside its shard, and a sample is read by one read of bounded length."""
    if len(index) and int(index["shard"].max()) >= len(entry.shards):
        raise ShardError(f"{where}: names a shard that does not exist; convert again")
    limit = np.array([shard.bytes for shard in entry.shards], np.int64)[index["shard"]]
    for member in ("image", "mask", "json"):
        offset = index[f"{member}_offset"]
        # No sum of offset and length, which could overflow.
        outside = np.flatnonzero((offset < 0) | (offset > limit - index[f"{member}_length"]))
        if len(outside):
            raise ShardError(
                f"{where}: record {outside[0]}: the {member} lies outside its shard; convert again"
            )
    # Not below 0 and below 2^63, by the above.
    span = index["mask_offset"] + index["mask_length"] - index["image_offset"]
    far = np.flatnonzero((span < index["image_length"]) | (span > MAX_SPAN))
    if len(far):
        raise ShardError(
            f"{where}: record {far[0]}: image and mask are not close together, in this order; convert again"
        )
    odd = odd_keys(index["key"])
    if len(odd):
        raise ShardError(f"{where}: record {odd[0]}: its key is not letters, digits, _ and -; convert again")


def _key(stored: bytes) -> str:
    return stored.decode("ascii")
