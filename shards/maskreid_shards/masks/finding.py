"""Masks under other names than the expected one: another suffix, or an addition to the image's name."""

import os
from array import array
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

from ..samples import Layout, Source, Sources

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
ADDITIONS = ("", "_mask", "_seg")
EXAMPLES = 3


class _Folders:
    """The files of folders, each listed once: hashes of their names, and where one is missed the names."""

    def __init__(self) -> None:
        self._hashes: dict[str, array[int]] = {}
        self._names: tuple[str, dict[str, str]] = ("", {})  # of the last folder that was asked for

    def holds(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._hashes:
            self._hashes[folder] = array("q", sorted(map(hash, _listed(folder))))
        hashes = self._hashes[folder]
        at = bisect_left(hashes, hash(name))
        return at < len(hashes) and hashes[at] == hash(name)

    def names(self, folder: Path) -> dict[str, str]:
        """The names by themselves in small letters."""
        if self._names[0] != str(folder):
            listed = sorted(_listed(str(folder)), reverse=True)
            self._names = (str(folder), {name.lower(): name for name in listed})
        return self._names[1]


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []


def find_other_names(layout: Layout) -> Layout:
    """The layout with the masks that lie beside their expected names; the notes count these.

    Where `a.png` is expected for the image a.jpg and not there, the mask is the first of a.PNG, a.jpg,
    a.jpeg, a.bmp, a.tif, a.tiff, a.npy, then of a.jpg.png and the like, a_mask.png, a_seg.png; suffixes in
    any case. Folders are listed, no file is opened.
    """
    folders = _Folders()
    found: list[tuple[str, str]] = []

    def placed(source: Source) -> Source:
        expected = source.mask_path
        if expected is None or folders.holds(expected):
            return source
        other = _other(source, folders.names(expected.parent))
        if other is None:
            return source
        found.append((source.name, other))
        return replace(source, mask_path=expected.with_name(other))

    splits = {}
    for split, sources in layout.splits.items():
        there = all(source.mask_path is None or folders.holds(source.mask_path) for source in sources)
        splits[split] = sources if there else Sources.of(map(placed, sources))
    if not found:
        return layout
    shown = ", ".join(f"{other} of {name}" for name, other in found[:EXAMPLES])
    more = ", ..." if len(found) > EXAMPLES else ""
    note = f"masks: {len(found)} found under another name or suffix: {shown}{more}"
    return replace(layout, splits=splits, notes=(*layout.notes, note))


def _other(source: Source, names: dict[str, str]) -> str | None:
    assert source.mask_path is not None
    stem = source.mask_path.stem.lower()
    image = source.name.rpartition("/")[2].lower()
    for start in (stem, image, *(f"{stem}{addition}" for addition in ADDITIONS[1:])):
        for suffix in SUFFIXES:
            name = names.get(f"{start}{suffix}")
            if name is not None and source.mask_path.with_name(name) != source.path:
                return name
    return None


def what_lies_there(expected: Path) -> str:
    """What a folder holds in place of a missing mask, for people; empty where nothing helps."""
    try:
        names = sorted(name for name in os.listdir(expected.parent) if not name.startswith("."))
    except OSError:
        return f"there is no folder {expected.parent.name}"
    near = next((name for name in names if name.startswith(expected.stem)), None)
    if near is not None:
        pattern = f"{{stem}}{near.removeprefix(expected.stem)}"
        return f"found {near}: --masks '{expected.parent.parent}/.../{pattern}' would name it"
    return f"{expected.parent.name} holds {names[0]} and the like" if names else "its folder is empty"
