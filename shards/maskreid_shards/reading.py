"""Read samples from shards by byte range: any sample at any time, each checked against its crc32."""

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShardError
from .identities import IdentityTable
from .manifest import INDEX_DTYPE, Manifest, SplitEntry, read_manifest

MAX_OPEN_SHARDS = 128
# Two samples with less than this between them are fetched by one read; a json member and three headers lie
# between neighbours. One read grows no further than MAX_READ.
MAX_GAP = 16 * 1024
MAX_READ = 8 * 1024 * 1024


@dataclass(frozen=True)
class RawPair:
    """One sample as stored: the original bytes of the image and of the mask. `shard` is for messages."""

    key: str
    pid: int
    camid: int
    image: bytes
    mask: bytes
    shard: str


class OpenShard(FileIO):
    """A shard, closed when the last reader lets go of it; FileIO itself would warn then."""

    def __del__(self) -> None:
        self.close()


class Split:
    """One split: `len(split)` samples, numbered in shard order, an identity's images adjacent.

    The index is memory-mapped and the shards are opened on first use, in each process: a Split pickles to its
    path.
    """

    def __init__(self, folder: Path, name: str, entry: SplitEntry) -> None:
        self.folder = folder
        self.name = name
        self.entry = entry
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return self.entry.samples

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} samples, {self.entry.identities} identities, {self.folder})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name, "entry": self.entry, "_open": OrderedDict()}

    @cached_property
    def index(self) -> NDArray[np.void]:
        """(N,) records of `manifest.INDEX_DTYPE`, read-only."""
        return _map_index(self.folder / self.entry.index, self.entry)

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
        """The paths of the tar files, as `webdataset.WebDataset` takes them."""
        return [str(self.folder / shard.name) for shard in self.entry.shards]

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
            shard = int(rows["shard"][run[0]])
            start = int(rows["image_offset"][run[0]])
            stop = max(int(rows["mask_offset"][i]) + int(rows["mask_length"][i]) for i in run)
            data = self._fetch(shard, start, stop - start)
            for i in run:
                pairs[i] = self._pair(rows[i], data, start)
        return [pair for pair in pairs if pair is not None]

    def _pair(self, row: np.void, data: bytes, start: int) -> RawPair:
        shard = str(self.folder / self.entry.shards[int(row["shard"])].name)
        key = bytes(row["key"]).decode("ascii")
        members = []
        for member in ("image", "mask"):
            offset = int(row[f"{member}_offset"])
            part = data[offset - start : offset - start + int(row[f"{member}_length"])]
            if len(part) != row[f"{member}_length"] or zlib.crc32(part) != row[f"{member}_crc32"]:
                found = "is cut short" if len(part) != row[f"{member}_length"] else "does not fit its crc32"
                raise ShardError(
                    f"{shard}: {key}: the {member} at offset {offset} {found}; restore it or convert again"
                )
            members.append(part)
        return RawPair(key, int(row["pid"]), int(row["camid"]), members[0], members[1], shard)

    def _fetch(self, shard: int, start: int, length: int) -> bytes:
        file = self._file(shard)
        parts = []
        while length > 0:  # pread may return less than asked for
            try:
                part = os.pread(file.fileno(), length, start)
            except OSError as error:
                raise ShardError(
                    f"{file.name}: reading at offset {start} failed ({error.strerror})"
                ) from error
            if not part:
                break
            parts.append(part)
            start += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _file(self, shard: int) -> OpenShard:
        """The open shard. pread needs no position: the file may be shared by threads and after a fork."""
        file = self._open.get(shard)
        if file is None:
            path = self.folder / self.entry.shards[shard].name
            try:
                file = OpenShard(path)
            except OSError as error:
                raise ShardError(
                    f"{path}: cannot be opened ({error.strerror}); restore it or convert again"
                ) from error
            self._open[shard] = file
            while len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)  # closed once nobody reads from it any more
        return file


@dataclass(frozen=True)
class ShardSet:
    """An opened shard folder."""

    folder: Path
    manifest: Manifest

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything the folder holds."""
        return self.manifest.fingerprint

    def split(self, name: str) -> Split:
        """Raises ShardError for a split that is not there, naming those that are."""
        if name not in self.manifest.splits:
            raise ShardError(f"{self.folder}: no split {name!r}; there are {', '.join(self.splits)}")
        return Split(self.folder, name, self.manifest.splits[name])


def open_shards(path: Path | str) -> ShardSet:
    """Open a shard folder: manifest and indexes are checked in full, shards by their sizes.

    Samples are checked when they are read.

    Raises ShardError: see `read_manifest`; an index that does not fit the manifest or points outside its
    shards; a shard that is missing or of another size. Other files in the folder are ignored.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for entry in manifest.splits.values():
        for shard in entry.shards:
            _check_size(folder / shard.name, shard.bytes)
        _check_index(folder / entry.index, entry)
    return ShardSet(folder, manifest)


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
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: missing ({error.strerror}); restore it or convert again") from error
    if found != expected:
        raise ShardError(f"{path}: {found} bytes, the manifest says {expected}; restore it or convert again")


def _check_index(path: Path, entry: SplitEntry) -> None:
    """The index's bytes are those of the manifest, and every record lies inside its shard."""
    _check_size(path, entry.index_bytes)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.index_sha256:
            raise ShardError(f"{path}: the bytes do not fit the manifest; restore it or convert again")
    index = _map_index(path, entry)
    if len(index) and int(index["shard"].max()) >= len(entry.shards):
        raise ShardError(f"{path}: names a shard that does not exist; convert again")
    limit = np.array([shard.bytes for shard in entry.shards], np.int64)[index["shard"]]
    for member in ("image", "mask", "json"):
        offset = index[f"{member}_offset"]
        outside = np.flatnonzero((offset < 0) | (offset + index[f"{member}_length"] > limit))
        if len(outside):
            raise ShardError(
                f"{path}: record {outside[0]}: the {member} lies outside its shard; convert again"
            )


def _map_index(path: Path, entry: SplitEntry) -> NDArray[np.void]:
    try:
        index: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: not a readable index ({error}); restore it or convert again") from error
    if index.dtype != INDEX_DTYPE or index.shape != (entry.samples,):
        raise ShardError(
            f"{path}: {index.dtype} of {index.shape}, not the index of {entry.samples} samples; convert again"
        )
    return index
