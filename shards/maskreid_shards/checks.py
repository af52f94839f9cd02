"""What no layout may hand to the writer, whatever it was scanned from: checked before the first byte."""

import difflib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from .errors import ShardError
from .samples import Layout, Source

T = TypeVar("T")
READ_SPLITS = ("train", "query", "gallery", "multi_query")


def check_layout(layout: Layout) -> list[str]:
    """Notes on what is odd but sound: splits that nothing reads, images in more than one test split.

    Raises ShardError: a misspelt split, a name that is absolute or leads out of the data set, an image twice
    in a split, in train and elsewhere, or with two identities, and a mask that is its own image.
    """
    notes = check_splits(layout)
    shared: dict[tuple[str, str], int] = {}
    for source in layout.sources():
        check_relative(source.name)
        if source.mask_path is not None and source.array is None:
            check_mask_is_no_image(source.mask_path, source)
    for other, source in repeats(lambda: _places(layout)):
        _check_twice(other, source)
        splits = (other.split, source.split)
        shared[splits] = shared.get(splits, 0) + 1
    return notes + [f"{count} images are in {one} and in {other}" for (one, other), count in shared.items()]


def _check_twice(first: Source, second: Source) -> None:
    """Whether one image may stand at both places: in two test splits it may, as the same person."""
    path = first.path if first.array is None else f"{first.path}: {first.array}"
    if first.dataset != second.dataset:
        raise ShardError(f"{path}: is in {first.dataset} and in {second.dataset}; give each data set once")
    if first.pid != second.pid:
        raise ShardError(
            f"{path}: is listed twice, as identity {first.pid} ({first.split}) and as {second.pid} "
            f"({second.split}); keep one"
        )
    if first.split == second.split:
        raise ShardError(f"{path}: is listed twice in {first.split}; keep one")
    if "train" in (first.split, second.split):
        raise ShardError(f"{path}: is in {first.split} and in {second.split}; keep one")


def repeats(pairs: Callable[[], Iterable[tuple[Hashable, T]]]) -> Iterator[tuple[T, T]]:
    """Of pairs of a key and an item, each item whose key an earlier one has, after the first of these.

    The pairs are gone through twice: what is held is a hash of each key, and the items that repeat.
    """
    hashes, counts = np.unique(np.fromiter((hash(key) for key, _ in pairs()), np.int64), return_counts=True)
    often = set(hashes[counts > 1].tolist())
    first: dict[Hashable, T] = {}
    for key, item in pairs() if often else ():
        if hash(key) in often:
            if key in first:
                yield first[key], item
            else:
                first[key] = item


def _places(layout: Layout) -> Iterator[tuple[Hashable, Source]]:
    """Each source after where its image really lies: folders may be links to each other."""
    folders: dict[str, str] = {}
    for source in layout.sources():
        folder, name = os.path.split(source.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield (f"{folders[folder]}/{name}", source.array), source


def relative_name(name: str) -> PurePosixPath:
    """The name of an image, fit to be joined to a folder. Raises ShardError as `check_relative` does."""
    check_relative(name)
    return PurePosixPath(name)


def check_relative(name: str) -> None:
    """Raises ShardError: the name is absolute, holds `..`, or names nothing."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or not set(parts) - {"", "."}:
        raise ShardError(
            f"{name!r}: an image's name must be relative to the data set, without ..: it is joined to the "
            "masks' folder, and stored"
        )


def check_mask_is_no_image(mask: Path, source: Source) -> None:
    """Raises ShardError where `mask` is the path of the image itself. Nothing is opened."""
    if mask.name == source.path.name and os.path.normpath(mask.absolute()) == os.path.normpath(
        source.path.absolute()
    ):
        raise ShardError(f"{source.path}: is given as its own mask; say where the masks are (--masks)")


def check_splits(layout: Layout) -> list[str]:
    """Notes on splits that nothing reads. Raises ShardError for one that is nearly the name of another."""
    notes = []
    for split in layout.splits:
        if split in READ_SPLITS:
            continue
        if close := difflib.get_close_matches(split, READ_SPLITS, n=1, cutoff=0.8):
            raise ShardError(f"split {split!r}: is it {close[0]}? Name it so, or less alike")
        notes.append(f"split {split}: neither training nor evaluation reads it ({', '.join(READ_SPLITS)})")
    return notes


def evaluation_notes(layout: Layout) -> list[str]:
    """Whether queries have something to find: an image of their identity, of another camera, in the
    gallery."""
    query, gallery = (layout.splits.get(name, ()) for name in ("query", "gallery"))
    if not query and not gallery:
        return []
    cameras: dict[int, set[int]] = {}
    for source in gallery:
        cameras.setdefault(source.pid, set()).add(source.camid)
    lost = sum(not cameras.get(source.pid, set()) - {source.camid} for source in query)
    if not query or not gallery:
        why = f"there is no split {'gallery' if query else 'query'}"
    elif lost == len(query):
        why = "no query has an image of its identity, of another camera, in the gallery"
    elif lost:
        return [f"{lost} of {len(query)} queries have no match of another camera in the gallery"]
    else:
        return []
    return [f"NOTHING HERE CAN BE EVALUATED: {why}"]
