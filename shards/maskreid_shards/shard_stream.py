"""Samples out of whole shards that webdataset reads one after another, each checked against the index."""

import io
import itertools
import logging
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShardError
from .manifest import ShardEntry
from .reading import RawPair, Split
from .stores.local import Store

PIECE = 8 << 20  # bytes of a read, or of a request
SCHEME = "maskreid-shard"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_opened: dict[str, io.BufferedReader] = {}  # by the URL under which webdataset asks for it
_log = logging.getLogger(__name__)


class ShardStream:
    """Hands out `samples`, (n,) sample numbers in the order in which they come, and keeps those that come
    before they are asked for.

    A sample that the stream does not deliver as the index has it is read by its byte range, which says what
    is wrong with it.
    """

    def __init__(self, split: Split, samples: NDArray[np.int64]) -> None:
        self.split = split
        self._coming = self._pairs(samples)
        self._kept: dict[int, RawPair | ShardError] = {}

    def __len__(self) -> int:
        """How many samples are kept."""
        return len(self._kept)

    def read_many(self, numbers: NDArray[np.int64]) -> list[RawPair]:
        """In the order asked for; each number in one call alone, as it is kept no longer.

        Raises ShardError as `Split.read_many`; ValueError for a number that does not come.
        """
        wanted = dict.fromkeys(numbers.tolist())
        for number in wanted:
            while number not in self._kept:
                came, pair = next(self._coming, (None, None))
                if came is None or pair is None:
                    raise ValueError(f"sample {number} is not in what is left of the stream")
                self._kept[came] = pair
        taken = {number: self._kept.pop(number) for number in wanted}
        for found in taken.values():
            if isinstance(found, ShardError):
                raise found
        return [found for number in numbers.tolist() if isinstance(found := taken[number], RawPair)]

    def _pairs(self, samples: NDArray[np.int64]) -> Iterator[tuple[int, RawPair | ShardError]]:
        shards = self.split.index["shard"][samples].tolist()
        for shard, part in itertools.groupby(
            zip(shards, samples.tolist(), strict=True), lambda item: item[0]
        ):
            yield from self._of_shard(self.split.entry.shards[shard], [number for _, number in part])

    def _of_shard(self, shard: ShardEntry, numbers: list[int]) -> Iterator[tuple[int, RawPair | ShardError]]:
        """The shard is read up to the last of the samples."""
        where = self.split.store.where(shard.name)
        wanted = {self.split.keys[number].decode("ascii"): number for number in numbers}
        source = ShardBytes(self.split.store, shard)
        try:
            for sample in tar_samples(source, lambda name: name.partition(".")[0] in wanted):
                number = wanted.pop(sample["__key__"], None)
                if number is not None:
                    yield number, self._checked(sample, number, where) or self._again(number, where)
                if not wanted:
                    return
        except Exception as error:  # tarfile and webdataset raise nearly anything on a damaged tar
            if source.failed:
                raise source.failed from None
            _log.warning("%s: not readable as a tar (%s); `maskreid verify` says more", where, error)
        if wanted:
            _log.warning("%s: %d samples did not come in sequence: reading their bytes", where, len(wanted))
        for number in wanted.values():
            yield number, self._by_range(number)

    def _checked(self, sample: dict[str, Any], number: int, where: str) -> RawPair | None:
        """None where the bytes are not those of the index."""
        row = self.split.index[number]
        image = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), b"")
        mask = sample.get("mask.png", b"")
        for member, data in (("image", image), ("mask", mask)):
            if len(data) != row[f"{member}_length"] or zlib.crc32(data) != row[f"{member}_crc32"]:
                return None
        return RawPair(sample["__key__"], int(row["pid"]), int(row["camid"]), image, mask, where)

    def _again(self, number: int, where: str) -> RawPair | ShardError:
        key = self.split.keys[number].decode("ascii")
        _log.warning("%s: %s did not come in sequence as the index has it: reading its bytes", where, key)
        return self._by_range(number)

    def _by_range(self, number: int) -> RawPair | ShardError:
        try:
            return self.split.read(number)
        except ShardError as error:
            return error


class ShardBytes(io.RawIOBase):
    """A shard from its beginning, of any store. `failed`: what its store raised, before others wrap it."""

    def __init__(self, store: Store, shard: ShardEntry) -> None:
        self.store, self.shard = store, shard
        self.at = 0
        self.failed: ShardError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self.shard.bytes - self.at)
        try:
            data = self.store.fetch(self.shard, self.at, length, "in sequence") if length else b""
        except ShardError as error:
            self.failed = type(error)(str(error))
            raise
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def tar_samples(source: ShardBytes, select: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """webdataset's samples of a shard: key, image and mask of the names that `select` wants, json left out.

    webdataset would hand http URLs, and the secrets in them, to a `curl` that begins again where it broke
    off; so it gets the store's bytes, under a scheme of its own.
    """
    from webdataset import WebDataset
    from webdataset.gopen import gopen_schemes

    gopen_schemes[SCHEME] = lambda url, *_: _opened.pop(url)
    url = f"{SCHEME}:{id(source)}"
    _opened[url] = io.BufferedReader(source, PIECE)
    dataset = WebDataset(
        [url],
        shardshuffle=False,
        nodesplitter=None,  # ranks and workers have shards of their own by the plan
        workersplitter=None,
        empty_check=False,
        select_files=lambda name: not name.endswith(".json") and select(name),
    )
    yield from dataset
