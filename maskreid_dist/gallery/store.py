"""A gallery of embeddings in a folder: rows are appended, people are taken out by a mark, and compaction
removes what is marked.

    manifest.json    format, dimensions, the network (sha256 of its weights), source of the images, generation
    rows-G.f32       little-endian float32 rows; those beyond the journal's count were never finished
    journal-G.txt    a line an event, after its rows are on the disk: crc32 of the rest, then JSON

A process that is killed leaves at most rows without a line, or half a line: both are passed over by readers
and cut off by the next writer. One writer at a time (a lock that ends with the process); readers need none.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.gallery.journal import GalleryError, JournalRows, apply_event, event_line, read_journal
from maskreid_dist.retrieval.faiss_lists import check_index
from maskreid_dist.retrieval.inputs import Features, image_set
from maskreid_dist.retrieval.nearest import Neighbours, nearest_images
from maskreid_dist.retrieval.pairs import JUNK_PID
from maskreid_shards.atomic import open_to_append, sync_folder, write_atomically, write_synced
from maskreid_shards.opening import read_json

FORMAT = "maskreid-gallery-1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Model:
    """The network that made the rows: only rows of one network can be compared."""

    name: str
    step: int
    weights_sha256: str

    def __str__(self) -> str:
        return f"{self.name}, step {self.step}, weights {self.weights_sha256[:12]}"


class Gallery:
    """Rows (N, D) float32 with a key, a pid and a camera each. `Gallery.create`, `Gallery.open`.

    Taken-out rows keep their place until `compact`; `alive` (N,) says which they are.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], rows: JournalRows, lock: int | None) -> None:
        self.folder = folder
        self.dimensions: int = manifest["dimensions"]
        self.model = Model(**manifest["model"])
        self.source: dict[str, Any] | None = manifest["source"]
        self._manifest, self._rows, self._lock = manifest, rows, lock
        self._number = {key: row for row, key in enumerate(rows.keys) if rows.alive[row]}

    @classmethod
    def create(
        cls, folder: Path, dimensions: int, model: Model, source: dict[str, Any] | None = None
    ) -> "Gallery":
        """A new, empty gallery, opened for writing. Raises GalleryError where something lies already."""
        if folder.exists() and any(folder.iterdir()):
            raise GalleryError(f"{folder}: not empty and no gallery; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": FORMAT,
            "dimensions": dimensions,
            "model": vars(model),
            "source": source,
            "generation": 1,
        }
        for name in _names(1):
            write_synced(folder / name, b"")
        write_atomically(folder / MANIFEST, _as_json(manifest))
        return cls.open(folder, writing=True)

    @classmethod
    def open(cls, folder: Path, *, writing: bool = False) -> "Gallery":
        """Raises GalleryError: no gallery, a damaged one, or, for writing, one that is being written."""
        lock = _lock(folder) if writing else None
        try:
            manifest = _read_manifest(folder)
            rows_path, journal_path = (folder / name for name in _names(manifest["generation"]))
            rows = read_journal(journal_path)
            needed = len(rows.keys) * manifest["dimensions"] * 4
            held = rows_path.stat().st_size if rows_path.is_file() else 0
            if held < needed:
                raise GalleryError(
                    f"{rows_path}: {held} bytes, the journal's rows take {needed}; "
                    "the gallery is damaged: make it again"
                )
            if writing:
                _cut(rows_path, needed)
                _cut(journal_path, rows.finished)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return cls(folder, manifest, rows, lock)

    def close(self) -> None:
        """Let the next writer in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows, with those taken out."""
        return len(self._rows.keys)

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, D), memory-mapped, read-only."""
        rows = _names(self._manifest["generation"])[0]
        if not len(self):
            return np.zeros((0, self.dimensions), np.float32)
        return np.memmap(self.folder / rows, "<f4", "r", shape=(len(self), self.dimensions))

    def living(self, rows: slice) -> NDArray[np.float32]:
        """Of the rows that were not taken out those numbered `rows`: (n, D); read-only."""
        return self.features[rows] if self.alive.all() else self.features[np.flatnonzero(self.alive)[rows]]

    @property
    def fingerprint(self) -> str:
        """Equal where network, rows, keys and labels are, whatever folder they lie in."""
        known = self._rows
        said = [self.model.weights_sha256, known.keys, known.pids, known.camids, known.alive, known.checks]
        return f"{zlib.crc32(json.dumps(said).encode()):08x}"

    @property
    def keys(self) -> Sequence[str]:
        return self._rows.keys

    @property
    def sources(self) -> Sequence[str]:
        """Where each image lay: a file, or "" for one of the gallery's own source."""
        return self._rows.sources

    @property
    def pids(self) -> NDArray[np.int64]:
        return np.array(self._rows.pids, np.int64)

    @property
    def camids(self) -> NDArray[np.int64]:
        return np.array(self._rows.camids, np.int64)

    @property
    def alive(self) -> NDArray[np.bool_]:
        return np.array(self._rows.alive, bool)

    def append(
        self,
        features: NDArray[np.float32],
        keys: Sequence[str],
        pids: Sequence[int] | NDArray[np.int64],
        camids: Sequence[int] | NDArray[np.int64],
        sources: Sequence[str] | None = None,
    ) -> None:
        """Rows (N, D), finite. Durable when it returns. Raises GalleryError for a key that is there
        already."""
        features = np.ascontiguousarray(features, "<f4")
        if features.shape != (len(keys), self.dimensions):
            raise GalleryError(
                f"{self.folder}: rows of shape {features.shape} for {len(keys)} keys, "
                f"not ({len(keys)}, {self.dimensions})"
            )
        if not np.isfinite(features).all():
            raise GalleryError(f"{self.folder}: rows that are not finite are not kept")
        again = [key for key in keys if key in self._number] or _twice(keys)
        if again:
            raise GalleryError(f"{self.folder}: {again[0]} is there already; take it out first")
        data = features.tobytes()
        rows, _ = _names(self._manifest["generation"])
        _append(self.folder / rows, data)
        event = {
            "add": list(keys),
            "pids": [int(pid) for pid in pids],
            "camids": [int(camid) for camid in camids],
            "sources": list(sources) if sources else None,
            "crc32": zlib.crc32(data),
        }
        self._record(event)

    def forget(self, *, pids: Iterable[int] = (), keys: Iterable[str] = ()) -> int:
        """Take people or images out; how many rows went. Their bytes stay until `compact`."""
        wanted_pids, wanted_keys = set(pids), set(keys)
        rows = [
            row
            for row, (key, pid) in enumerate(zip(self._rows.keys, self._rows.pids, strict=True))
            if self._rows.alive[row] and (pid in wanted_pids or key in wanted_keys)
        ]
        if rows:
            self._record({"forget": rows})
        return len(rows)

    def compact(self) -> int:
        """Write what is left as a new generation and delete the old one; how many rows are gone for good."""
        self._writing()
        old, kept = self._manifest["generation"], np.flatnonzero(self.alive)
        features, rows = self.features, self._rows
        gone = len(self) - len(kept)
        names = _names(old + 1)
        for name in names:
            write_synced(self.folder / name, b"")
        manifest = self._manifest | {"generation": old + 1}
        fresh = Gallery(self.folder, manifest, JournalRows(), self._lock)
        for start in range(0, len(kept), 4096):
            part = kept[start : start + 4096].tolist()
            keys, sources = ([column[row] for row in part] for column in (rows.keys, rows.sources))
            fresh.append(features[part], keys, self.pids[part], self.camids[part], sources)
        write_atomically(self.folder / MANIFEST, _as_json(manifest))
        for name in _names(old):
            (self.folder / name).unlink()
        self._manifest, self._rows, self._number = manifest, fresh._rows, fresh._number
        return gone

    def verify(self) -> None:
        """Every row against the journal's checksums. Raises GalleryError naming the rows."""
        features = self.features
        for first, count, crc32 in self._rows.checks:
            if zlib.crc32(features[first : first + count].tobytes()) != crc32:
                raise GalleryError(
                    f"{self.folder}: rows {first} to {first + count - 1} are damaged; make them again"
                )

    def search(self, query: Features, k: int, *, index: str = "exact") -> Neighbours:
        """The k rows nearest to every query (Q, D) by cosine, exactly, of those not taken out. Fewer rows
        than k: shorter lists. index: as for `maskreid_dist.retrieval.nearest`."""
        check_index(index)
        count = len(self)
        ids = np.zeros(max(count, len(query)), np.int64)
        mine = image_set("query", query, ids[: len(query)], ids[: len(query)], metric="cosine")
        listed = np.where(self.alive, 0, JUNK_PID)
        rows = image_set("gallery", self.features, listed, ids[:count], metric="cosine")
        return nearest_images(mine, rows, k, "cosine", index=index)

    def _record(self, event: dict[str, Any]) -> None:
        self._writing()
        line = event_line(event)
        _append(self.folder / _names(self._manifest["generation"])[1], line)
        before = len(self)
        apply_event(self._rows, event)
        self._rows.finished += len(line)
        self._number |= {key: before + n for n, key in enumerate(event.get("add", ()))}
        for row in event.get("forget", ()):
            self._number.pop(self._rows.keys[row], None)

    def _writing(self) -> None:
        if self._lock is None:
            raise GalleryError(f"{self.folder}: opened for reading only")


def _names(generation: int) -> tuple[str, str]:
    return f"rows-{generation}.f32", f"journal-{generation}.txt"


def _as_json(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["format"] != FORMAT:
            raise GalleryError(f"{path}: format {manifest['format']!r}, not {FORMAT!r}; make it again")
        whole = all(
            type(manifest[name]) is int and manifest[name] > 0 for name in ("dimensions", "generation")
        )
        Model(**manifest["model"])
        if not whole:
            raise ValueError("dimensions and generation are positive integers")
        return {name: manifest[name] for name in ("format", "dimensions", "model", "source", "generation")}
    except FileNotFoundError:
        raise GalleryError(f"{folder}: no gallery (no {MANIFEST}); maskreid embed makes one") from None
    except OSError as error:
        raise GalleryError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, GalleryError):
            raise
        raise GalleryError(f"{path}: no gallery's manifest ({type(error).__name__}); make it again") from None


def _append(path: Path, data: bytes) -> None:
    with os.fdopen(open_to_append(path), "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, size: int) -> None:
    with os.fdopen(open_to_append(path), "ab") as file:
        os.ftruncate(file.fileno(), size)


def _twice(keys: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def _lock(folder: Path) -> int:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise GalleryError(f"{folder}: no gallery ({error.strerror}); maskreid embed makes one") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise GalleryError(f"{folder}: another process is writing here; wait for it") from None
    sync_folder(folder)
    return lock
