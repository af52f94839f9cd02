"""Data sets whose file names say who and where: three folders of images, and a pattern for the names."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import ShardError
from ..samples import DISTRACTOR_PID
from .images import ImageEntry, list_images, need_folders

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def scan_named(
    src: Path, folders: Mapping[str, str], pattern: re.Pattern[str], form: str
) -> tuple[dict[str, list[ImageEntry]], tuple[str, ...]]:
    """The images of each split and the strays. `pattern` has the groups pid and camera; `form` describes it.

    Raises ShardError: a missing folder, a name that does not match, a folder without images, junk or
    distractors outside the gallery.
    """
    need_folders(src, folders.values())
    splits, strays = {}, []
    for split, folder in folders.items():
        names, others = list_images(src, folder)
        strays += others
        splits[split] = [_found(src, folder, split, name, pattern, form) for name in names]
        if not names:
            raise ShardError(f"{src / folder}: no image named like {form} in it ({len(others)} other files)")
    return splits, tuple(strays)


def _found(src: Path, folder: str, split: str, name: str, pattern: re.Pattern[str], form: str) -> ImageEntry:
    match = pattern.match(name)
    if match is None:
        raise ShardError(
            f"{src / folder / name}: the name is not of the form {form}; move it away, or convert names "
            "of your own with: folder SRC OUT --pattern '(?P<pid>-?\\d+)_c(?P<camid>\\d+)'"
        )
    pid, camid = int(match[1]), int(match[2])
    if split != "gallery" and pid <= DISTRACTOR_PID:
        raise ShardError(f"{src / folder / name}: junk (-1) and distractors (0000) belong in the gallery")
    return ImageEntry(folder, name, pid, camid, identity=match[1])
