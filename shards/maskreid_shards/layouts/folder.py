"""Any data set with one folder per identity, in splits or all for training."""

import re
from dataclasses import replace
from pathlib import Path
from shlex import quote

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout
from .images import IMAGE_SUFFIXES, MASK_SUFFIX, ImageEntry, list_folders, list_images, sources
from .layumi import OWN_FOLDERS as LAYUMI_FOLDERS
from .numbering import Numbers, as_mapping, integer
from .pattern import EXAMPLE, scan_pattern

SPLITS = ("train", "query", "gallery")
# Names that are no identities in the trees of Market-1501 and MARS.
MEANINGS = {"-1": JUNK_PID, "00-1": JUNK_PID, "0000": DISTRACTOR_PID}
# Beside the splits, these hold masks: --masks says how.
MASKS = re.compile(r"(^|[_-])(masks?|seg|parsing)([_-]|$)", re.IGNORECASE)
MEANING_OF = {JUNK_PID: "junk", DISTRACTOR_PID: "distractors"}


def scan_folder(src: Path, *, camera: str | None = None, pattern: str | None = None) -> Layout:
    """`SRC/<identity>/<image>` is a train split; `SRC/train/<identity>/<image>`, `SRC/query/...` are those
    splits.

    Identities are numbered from 1 by the names of their folders, train before the others; query and gallery
    share them, and `numbering` keeps the names where they are not their numbers. `camera` is a regular
    expression with one group, the camera's number, searched in the images' names; without it all cameras are
    1. In the gallery, a folder `-1` or `00-1` is junk and `0000` holds distractors, unless a query has that
    name. With `pattern` the images' names say who and where, in any folders: see `scan_pattern`.

    Raises ShardError: no image, a name in which no camera is found, a name in train and in test, a name
    that means junk or distractors where it cannot.
    """
    if pattern is not None:
        if camera is not None:
            raise ShardError("--camera beside --pattern: name a group camid in the pattern instead")
        return scan_pattern(src, pattern)
    if not src.is_dir():
        raise ShardError(f"{src}: no such folder; give the one that holds a folder per identity")
    src = src.resolve()
    cameras = _pattern(camera)
    parts = _parts(src)
    names = {split: list_folders(src, folder) for split, folder in parts.items()}
    for split, identities in names.items():
        _check_meanings(src / parts[split], split, identities, set(names.get("query", ())))
    pids = _numbered(src, names)
    strays: list[str] = []
    empty: list[str] = []
    splits = {}
    for split, folder in parts.items():
        found = []
        for identity in names[split]:
            place = f"{folder}/{identity}".removeprefix("./")
            images, others = list_images(src, place)
            strays += others
            empty += [place] * (not images)
            for name in images:
                camid = _camera(src / folder / identity / name, cameras)
                entry = ImageEntry(folder, f"{identity}/{name}", _pid(identity, pids), camid)
                found.append(replace(entry, identity=identity))
        if not found:
            raise ShardError(f"{src / folder}: no image in a folder per identity below it{_hint(src, parts)}")
        root, inside = (src.parent, src.name) if folder == "." else (src, folder)
        splits[split] = sources(root, split, [replace(entry, folder=inside) for entry in found])
    return Layout(
        "folder",
        splits,
        tuple(strays),
        notes=(*_notes(names, empty), *pids.note("identities")),
        searched=(src,),
        roots=(src, src.with_name(f"{src.name}{MASK_SUFFIX}")),  # without splits, masks are beside the folder
        numbering=as_mapping({"pid": pids}),
    )


def _parts(src: Path) -> dict[str, str]:
    """The folder of each split. Raises ShardError for folders that are no splits beside such as are."""
    top = [name for name in list_folders(src) if name not in (f"{split}{MASK_SUFFIX}" for split in SPLITS)]
    parts = {split: split for split in SPLITS if split in top}
    others = [name for name in top if name not in SPLITS and not MASKS.search(name)]
    if layumi := [name for name in others if name in LAYUMI_FOLDERS]:
        raise ShardError(f"{src / layumi[0]}: is of layumi's tree; convert it as the layout layumi")
    if parts and others:
        raise ShardError(f"{src / others[0]}: beside the splits {', '.join(parts)}; move it away or into one")
    return parts or {"train": "."}


def _check_meanings(folder: Path, split: str, names: list[str], queries: set[str]) -> None:
    """Raise ShardError for a folder named like junk or distractors that may be an identity: only in a
    gallery, where no query has the name, is it what it says."""
    for name in names:
        if name in MEANINGS and (split != "gallery" or name in queries):
            raise ShardError(
                f"{folder / name}: {name} means {MEANING_OF[MEANINGS[name]]} and belongs in the gallery "
                "alone; if it is a person, rename it"
            )


def _numbered(src: Path, names: dict[str, list[str]]) -> Numbers:
    """The identities' numbers. What means junk or distractors has none."""
    train = sorted(names.get("train", []))
    test = sorted({name for split, found in names.items() if split != "train" for name in found})
    test = [name for name in test if name not in MEANINGS]
    if shared := set(train) & set(test):
        raise ShardError(
            f"{src}: identity {min(shared)} is in train and in test; test identities need their own names"
        )
    pid_of = {name: pid for pid, name in enumerate([*train, *test], 1)}
    return Numbers(pid_of, anew=any(integer(name) != pid for name, pid in pid_of.items()))


def _pid(identity: str, pids: Numbers) -> int:
    return MEANINGS[identity] if identity in MEANINGS else pids.of[identity]


def _notes(names: dict[str, list[str]], empty: list[str]) -> tuple[str, ...]:
    gallery = [name for name in names.get("gallery", []) if name in MEANINGS]
    notes = [f"gallery/{name}: taken for {MEANING_OF[MEANINGS[name]]}, by its name" for name in gallery]
    if empty:
        more = ", ..." if len(empty) > 5 else ""
        notes.append(f"{len(empty)} folders without an image of their own: {', '.join(empty[:5])}{more}")
    return tuple(notes)


def _hint(src: Path, parts: dict[str, str]) -> str:
    """Why there may be none: a split's name in capitals, images that lie deeper."""
    capital = [name for name in list_folders(src) if name not in SPLITS and name.lower() in SPLITS]
    if capital:
        return f"; rename {capital[0]} to {capital[0].lower()}"
    flag = f"--pattern, such as '{EXAMPLE}'"
    places = [src / folder for folder in parts.values()]
    deeper = (path for place in places for path in place.glob("*/*/*") if path.is_file())
    first = next((path for path in deeper if path.suffix.lower() in IMAGE_SUFFIXES), None)
    if first:
        return (
            f"; {first.relative_to(src)} lies too deep: move it up, or say where the identity stands ({flag})"
        )
    flat = next((name for place in places for name in list_images(place, ".")[0]), None)
    return f"; of images as {flat} say where the identity stands ({flag})" if flat else ""


def _pattern(camera: str | None) -> re.Pattern[str] | None:
    if camera is None:
        return None
    try:
        pattern = re.compile(camera, re.ASCII)
    except re.error as error:
        raise ShardError(f"camera pattern {quote(camera)}: {error}") from None
    if pattern.groups != 1:
        raise ShardError(
            f"camera pattern {quote(camera)}: write one group, the camera's number, such as _c(\\d+)"
        )
    return pattern


def _camera(path: Path, pattern: re.Pattern[str] | None) -> int:
    if pattern is None:
        return 1
    match = pattern.search(path.name)
    if match is None or not (match[1] or "").isdecimal() or int(match[1]) < 1:
        raise ShardError(
            f"{path}: no camera (from 1) at {quote(pattern.pattern)} in the name; rename it or change the "
            "pattern"
        )
    return int(match[1])
