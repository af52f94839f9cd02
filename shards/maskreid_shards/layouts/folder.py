"""Any data set with one folder per identity, in splits or all for training."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .images import ImageEntry, list_folders, list_images, sources

SPLITS = ("train", "query", "gallery")


def scan_folder(src: Path, *, camera: str | None = None) -> Layout:
    """`SRC/<identity>/<image>` is a train split; `SRC/train/<identity>/<image>`, `SRC/query/...` are those
    splits.

    Identities are numbered from 1 by the names of their folders, train before the others; query and gallery
    share them. `camera` is a regular expression with one group, the camera's number, searched in the images'
    names; without it all cameras are 1.

    Raises ShardError: no image, a name in which no camera is found, a name in train and in test.
    """
    if not src.is_dir():
        raise ShardError(f"{src}: no such folder; give the one that holds a folder per identity")
    src = src.resolve()
    pattern = _pattern(camera)
    top = list_folders(src)
    parts = {split: split for split in SPLITS if split in top} or {"train": "."}
    if parts != {"train": "."} and (others := [name for name in top if name not in SPLITS]):
        raise ShardError(f"{src / others[0]}: beside the splits {', '.join(parts)}; move it away or into one")
    names = {split: list_folders(src, folder) for split, folder in parts.items()}
    train = sorted(names.get("train", []))
    test = sorted({name for split, found in names.items() if split != "train" for name in found})
    if shared := set(train) & set(test):
        raise ShardError(
            f"{src}: identity {min(shared)} is in train and in test; test identities need their own names"
        )
    pid_of = {name: pid for pid, name in enumerate([*train, *test], 1)}
    strays: list[str] = []
    splits = {}
    for split, folder in parts.items():
        found = []
        for identity in names[split]:
            images, others = list_images(src, f"{folder}/{identity}".removeprefix("./"))
            strays += others
            found += [
                ImageEntry(
                    folder,
                    f"{identity}/{name}",
                    pid_of[identity],
                    _camera(src / folder / identity / name, pattern),
                )
                for name in images
            ]
        if not found:
            raise ShardError(f"{src / folder}: no image in a folder per identity below it")
        root, inside = (src.parent, src.name) if folder == "." else (src, folder)
        splits[split] = sources(root, split, [ImageEntry(inside, f.rest, f.pid, f.camid) for f in found])
    return Layout("folder", splits, tuple(strays))


def _pattern(camera: str | None) -> re.Pattern[str] | None:
    if camera is None:
        return None
    try:
        pattern = re.compile(camera, re.ASCII)
    except re.error as error:
        raise ShardError(f"camera pattern {camera!r}: {error}") from None
    if pattern.groups != 1:
        raise ShardError(f"camera pattern {camera!r}: write one group, the camera's number, such as _c(\\d+)")
    return pattern


def _camera(path: Path, pattern: re.Pattern[str] | None) -> int:
    if pattern is None:
        return 1
    match = pattern.search(path.name)
    if match is None or not match[1].isdigit() or int(match[1]) < 1:
        raise ShardError(
            f"{path}: no camera (from 1) at {pattern.pattern!r} in the name; rename it or change the pattern"
        )
    return int(match[1])
