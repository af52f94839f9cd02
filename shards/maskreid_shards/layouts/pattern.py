"""Images whose names say who and where, in any folders: a regular expression with named groups."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout, Sources
from .images import IMAGE_SUFFIXES, MASK_SUFFIX, SYSTEM_FOLDERS, ImageEntry, sources
from .named import FOLDERS
from .numbering import as_mapping, camera_numbers, natural, pid_numbers

GROUPS = ("pid", "camid", "frame", "split")
SPLIT_OF_FOLDER = {name: split for split in ("train", "query", "gallery") for name in (split, FOLDERS[split])}
EXAMPLE = r"(?P<pid>-?\d+)_c(?P<camid>\d+)"


@dataclass(frozen=True, slots=True)
class _Named:
    """An image, with what the pattern found in its path below the data set's folder."""

    path: str
    split: str
    pid: str
    camid: str
    frame: str


def scan_pattern(src: Path, pattern: str) -> Layout:
    """Every image below `src` whose path from there the regular expression `pattern` finds (`re.search`); the
    report counts the others.

    Its groups are `pid`, and if there are such `camid` (without it all cameras are 1), `frame` (the order of
    a camera's images of an identity; else by path) and `split`; without the latter, the first folder says
    it: train, query, gallery or Market-1501's names of them, and train in all others. Pids and cameras are
    those of `scan_csv`: integers as they are, anything else numbered.

    Raises ShardError: a pattern without the group pid, or with others; no image; junk or distractors outside
    the gallery; an identity in train and in test.
    """
    compiled = _compiled(pattern)
    if not src.is_dir():
        raise ShardError(f"{src}: no such folder; give the one that holds the images")
    src = src.resolve()
    found: list[_Named] = []
    missed: str | None = None
    for path in _images(src):
        match = compiled.search(path)
        if match is None or not match["pid"]:
            missed = missed or path
            continue
        groups = match.groupdict()
        split = groups.get("split") or path.partition("/")[0]
        found.append(
            _Named(
                path,
                SPLIT_OF_FOLDER.get(split, split if "split" in groups else "train"),
                match["pid"],
                groups.get("camid") or "1",
                groups.get("frame") or "",
            )
        )
    if not found:
        what = (
            f"no image that {quote(pattern)} finds, not even {missed}; change the pattern"
            if missed
            else "no image"
        )
        raise ShardError(f"{src}: {what}")
    return _layout(src, found)


def _layout(src: Path, found: list[_Named]) -> Layout:
    train = {one.pid for one in found if one.split == "train"}
    pids = pid_numbers(train, {one.pid for one in found} - train)
    cameras = camera_numbers({one.camid for one in found})
    shared = {pids.of[one.pid] for one in found if one.split != "train"} & {pids.of[text] for text in train}
    if shared - {JUNK_PID, DISTRACTOR_PID}:
        one = next(one for one in found if one.split != "train" and pids.of[one.pid] in shared)
        raise ShardError(
            f"{src / one.path}: identity {one.pid} is in train and in {one.split}; test identities need "
            "their own names"
        )
    flat = any("/" not in one.path for one in found)
    splits: dict[str, Sources] = {}
    for split in dict.fromkeys(one.split for one in found):
        part = [one for one in found if one.split == split]
        part.sort(key=lambda one: (cameras.of[one.camid] if one.frame else 0, natural(one.frame), one.path))
        entries = []
        for one in part:
            if split != "gallery" and pids.of[one.pid] <= DISTRACTOR_PID:
                raise ShardError(
                    f"{src / one.path}: pid {one.pid}: junk (-1) and distractors (0) belong in the gallery"
                )
            # Masks lie beside the topmost folder, as those of every layout.
            folder, rest = (src.name, one.path) if flat else one.path.split("/", 1)
            entry = ImageEntry(folder, rest, pids.of[one.pid], cameras.of[one.camid], identity=one.pid)
            entries.append(entry)
        splits[split] = sources(src.parent if flat else src, split, entries)
    return Layout(
        "folder",
        splits,
        searched=(src,),
        roots=(src, src.with_name(f"{src.name}{MASK_SUFFIX}")),  # the masks of a flat folder are beside it
        notes=(*pids.note("identities"), *cameras.note("cameras")),
        numbering=as_mapping({"pid": pids, "camid": cameras}),
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.ASCII)
    except re.error as error:
        raise ShardError(f"pattern {quote(pattern)}: {error}; such as {EXAMPLE}") from None
    if "pid" not in compiled.groupindex or set(compiled.groupindex) - set(GROUPS):
        raise ShardError(
            f"pattern {quote(pattern)}: name a group pid, and if you like camid, frame, split; such as "
            f"{EXAMPLE}"
        )
    return compiled


def _images(src: Path) -> Iterator[str]:
    """The paths of all images below `src`, without those in folders of masks, sorted."""
    for folder, folders, names in os.walk(src):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in SYSTEM_FOLDERS
            and not (name.endswith(MASK_SUFFIX) and name.removesuffix(MASK_SUFFIX) in folders)
        )
        place = os.path.relpath(folder, src)
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield name if place == "." else f"{place}/{name}"
