"""What a converter hands to the writer: a flat list of sources, whatever layout they came from."""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .errors import ShardError

JUNK_PID = -1
DISTRACTOR_PID = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One image-mask pair on disk.

    `key` names it in the shard (no dots); `name` is its path relative to the data set's folder, kept in the
    sample's json. pid > 0 is an identity, 0 a distractor, -1 junk; camid counts from 1. `mask_path` may not
    exist: the mask policy decides then. `array` names an image inside `path`, where that is a file of many;
    `dataset` replaces the conversion's name of the data set, where several are merged. `identity` is the pid
    as it stands in the data set, where that is another text than the number.
    """

    path: Path
    mask_path: Path | None
    pid: int
    camid: int
    split: str
    key: str
    name: str
    array: str | None = None
    dataset: str | None = None
    identity: str = ""


KEPT = 50_000  # sources, 90 MB, that are kept as they were given


class _Texts:
    """Texts in one buffer."""

    def __init__(self) -> None:
        self.data, self.ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self.data += text.encode("utf-8", "surrogatepass")  # names of files may be no UTF-8
        self.ends.append(len(self.data))

    def __getitem__(self, at: int) -> str:
        return self.data[self.ends[at] : self.ends[at + 1]].decode("utf-8", "surrogatepass")


class _Shared:
    """Values of which each is kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.codes = array("i")
        self.known: dict[Hashable, int] = {}

    def append(self, value: Hashable) -> None:
        code = self.known.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        self.codes.append(code)

    def __getitem__(self, at: int) -> Any:
        return self.values[self.codes[at]]


class _Paths:
    """Paths as text, their folders shared; None too."""

    def __init__(self) -> None:
        self.folders, self.names = _Shared(), _Texts()

    def append(self, path: str | None) -> None:
        folder, slash, name = (None, "", "") if path is None else path.rpartition("/")
        self.folders.append(None if folder is None else folder + slash)
        self.names.append(name)

    def __getitem__(self, at: int) -> str | None:
        folder = self.folders[at]
        return None if folder is None else folder + self.names[at]


class _Columns:
    """The fields of sources: a few as they were given, more of them packed, column by column. A conversion
    goes through them seven times, and to make each anew costs as much as to read its image."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.pids = array("q")
        self.paths, self.masks, self.names = _Paths(), _Paths(), _Paths()
        self.keys, self.arrays = _Texts(), _Texts()
        self.camids, self.splits, self.datasets, self.identities = _Shared(), _Shared(), _Shared(), _Shared()
        self.kept: list[Source] | None = []
        for source in sources:
            try:
                self.pids.append(source.pid)
            except OverflowError:
                raise ShardError(too_long(source)) from None
            if self.kept is None:
                self._pack(source)
            else:
                self.kept.append(source)
                if len(self.kept) > KEPT:
                    kept, self.kept = self.kept, None
                    for one in kept:
                        self._pack(one)
        shared = (self.camids, self.splits, self.datasets, self.identities)
        for column in (*shared, self.paths.folders, self.masks.folders, self.names.folders):
            column.known = {}  # needed while packing alone

    def _pack(self, source: Source) -> None:
        self.paths.append(str(source.path))
        self.masks.append(None if source.mask_path is None else str(source.mask_path))
        self.names.append(source.name)
        self.keys.append(source.key)
        self.arrays.append(source.array or "")
        self.camids.append(source.camid)
        self.splits.append(source.split)
        self.datasets.append(source.dataset)
        self.identities.append(source.identity)

    def source(self, at: int) -> Source:
        if self.kept is not None:
            return self.kept[at]
        mask = self.masks[at]
        return Source(
            Path(self.paths[at] or ""),
            None if mask is None else Path(mask),
            self.pids[at],
            self.camids[at],
            self.splits[at],
            self.keys[at],
            self.names[at] or "",
            self.arrays[at] or None,
            self.datasets[at],
            self.identities[at],
        )

    def camid(self, at: int) -> int:
        """Like the next two, without making a source."""
        camid: int = self.camids[at] if self.kept is None else self.kept[at].camid
        return camid

    def split(self, at: int) -> str:
        split: str = self.splits[at] if self.kept is None else self.kept[at].split
        return split

    def places(self, order: Iterable[int], masks: bool) -> set[str]:
        """The folders of the images or masks, as they begin the paths."""
        if self.kept is None:
            folders = (self.masks if masks else self.paths).folders
            found = {folders.codes[at] for at in order}
            return {folder for folder in map(folders.values.__getitem__, found) if folder is not None}
        sources = [self.kept[at] for at in order]
        paths = [source.mask_path if masks else source.path for source in sources]
        texts = (str(path).rpartition("/") for path in paths if path is not None)
        return {folder + slash for folder, slash, _ in texts}

    @property
    def any_arrays(self) -> bool:
        if self.kept is None:
            return bool(self.arrays.data)
        return any(source.array is not None for source in self.kept)


class Sources(Sequence[Source]):
    """Sources in a few flat buffers: about 150 bytes each where an object and its paths take 1,800. They are
    made anew when they are asked for, but those of a small set (KEPT)."""

    def __init__(self, columns: _Columns, order: NDArray[np.int64]) -> None:
        self._columns, self._order = columns, order

    @classmethod
    def of(cls, sources: Iterable[Source]) -> "Sources":
        """Raises ShardError: a pid that no index can hold."""
        if isinstance(sources, Sources):
            return sources
        columns = _Columns(sources)
        return cls(columns, np.arange(len(columns.pids)))

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, at: int) -> Source: ...
    @overload
    def __getitem__(self, at: slice) -> "Sources": ...
    def __getitem__(self, at: int | slice) -> "Source | Sources":
        if isinstance(at, slice):
            return Sources(self._columns, self._order[at])
        return self._columns.source(int(self._order[at]))

    def __iter__(self) -> Iterator[Source]:
        kept = self._columns.kept
        if kept is not None:
            return map(kept.__getitem__, self._order.tolist())
        return map(self._columns.source, map(int, self._order))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sources) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, positions: NDArray[np.int64]) -> "Sources":
        """Those at the positions; they share the buffers."""
        return Sources(self._columns, self._order[positions])

    @property
    def pids(self) -> NDArray[np.int64]:
        return (
            np.frombuffer(self._columns.pids, np.int64)[self._order] if len(self) else np.empty(0, np.int64)
        )

    @property
    def camids(self) -> set[int]:
        """Those that occur."""
        return set(map(self._columns.camid, self._order.tolist()))

    @property
    def splits(self) -> list[str]:
        """Of each."""
        return list(map(self._columns.split, self._order.tolist()))

    @property
    def folders(self) -> set[Path]:
        """Where the images lie."""
        return set(map(Path, self.places()))

    def places(self, *, masks: bool = False) -> set[str]:
        """The folders of the images, or of the masks, as they begin the paths: empty, or with a slash at the
        end."""
        return self._columns.places(self._order.tolist(), masks)

    @property
    def any_arrays(self) -> bool:
        """Whether any, or any that they share the buffers with, is an image inside a larger file."""
        return self._columns.any_arrays

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets these alone, not all that share the buffers, and as plain values: paths are
        slow to hand over."""
        return _of_rows, ([_row(source) for source in self],)


def _row(source: Source) -> tuple[Any, ...]:
    mask = source.mask_path
    return (
        str(source.path),
        None if mask is None else str(mask),
        source.pid,
        source.camid,
        source.split,
        source.key,
        source.name,
        source.array,
        source.dataset,
        source.identity,
    )


def _of_rows(rows: Iterable[tuple[Any, ...]]) -> Sources:
    return Sources.of(
        Source(Path(path), None if mask is None else Path(mask), *others) for path, mask, *others in rows
    )


def too_long(source: Source) -> str:
    """What is said of a pid that does not fit."""
    return f"{source.path}: identity {source.pid}: pids have at most 18 digits; number the identities from 1"


@dataclass(frozen=True)
class Layout:
    """A scanned data set: the sources of each split by its name, and the names of the ignored files.

    `published` are the counts this data set is known to have, for the names of `counts()`; empty where the
    folder does not say which data set it is. `more_counts` are those that splits do not show (tracklets);
    `notes` what the user should know, such as how a split was drawn. `root` is the folder that the names of a
    list's images are relative to, where the list did not say; `searched` are the folders below which every
    image is converted, a mask, or counted in the report. `numbering` says what became of pids and cameras
    that are numbered here: {"pid" or "camid": {as it stands in the source: as it is here}}. `home` is the
    folder that a relative pattern of masks may start from, the data set's; `roots` are those out of which no
    link may lead (`links`). `warnings` end the report.
    """

    name: str
    splits: Mapping[str, Sequence[Source]]
    strays: tuple[str, ...] = ()
    published: dict[str, int] = field(default_factory=dict)
    more_counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    root: Path | None = None
    searched: tuple[Path, ...] = ()
    numbering: dict[str, dict[str, int]] = field(default_factory=dict)
    home: Path | None = None
    roots: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        packed = {split: Sources.of(part) for split, part in self.splits.items()}
        object.__setattr__(self, "splits", packed)

    def sources(self) -> Iterator[Source]:
        """Those of all splits."""
        for part in self.splits.values():
            yield from part

    def counts(self) -> dict[str, int]:
        """Found: `<split> images, identities, junk, distractors`, and `more_counts`. Junk counts as
        images."""
        found = {}
        for split, sources in self.splits.items():
            pids = Sources.of(sources).pids
            found[f"{split} images"] = len(pids)
            found[f"{split} identities"] = int((np.unique(pids) > DISTRACTOR_PID).sum())
            found[f"{split} junk"] = int((pids == JUNK_PID).sum())
            found[f"{split} distractors"] = int((pids == DISTRACTOR_PID).sum())
        return {**found, **self.more_counts}

    def differences(self) -> tuple[str, ...]:
        """Every count that is not the published one, as text; a split that is not there counts 0."""
        found = self.counts()
        return tuple(
            f"{name}: published {count}, found {found.get(name, 0)}"
            for name, count in self.published.items()
            if found.get(name, 0) != count
        )


def sample_key(pid: int, number: int) -> str:
    """Key of an identity's `number`-th image in its split, such as `p00000002_00013` or `junk_00001`.

    Without dots, because WebDataset cuts a member's name at the first dot.
    """
    if pid == JUNK_PID:
        return f"junk_{number:05d}"
    if pid == DISTRACTOR_PID:
        return f"distractor_{number:05d}"
    return f"p{pid:08d}_{number:05d}"


def numbered(pids: Iterable[int]) -> Iterator[str]:
    """Keys for the pids of one split, in the order given: each identity's images are numbered from 0."""
    seen: dict[int, int] = {}
    for pid in pids:
        number = seen.get(pid, 0)
        seen[pid] = number + 1
        yield sample_key(pid, number)
