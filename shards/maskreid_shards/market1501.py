"""Scan a folder in the Market-1501 layout: three image folders, each with a sibling `_seg` of masks."""

import difflib
import re
from pathlib import Path

from .errors import ShardError
from .samples import DISTRACTOR_PID, Layout, Source, numbered

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
MASK_SUFFIX = "_seg"
NAME = re.compile(r"^(-1|\d{4})_c(\d)s(\d)_(\d{6})_(\d{2})\.jpg$", re.ASCII)
# A file that looks like an image but does not match NAME stops the scan; anything else is a stray.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def scan_market1501(src: Path, *, mask_suffix: str = MASK_SUFFIX) -> Layout:
    """Find every image of a Market-1501 folder, sorted by name, with the path its mask should have.

    Nothing is opened. Junk (pid -1) and distractors (pid 0) are accepted in the gallery only.

    Raises ShardError: a folder is missing, an image's name does not match, a folder holds no image, or the
    train or query folder holds junk or distractors.
    """
    if not src.is_dir():
        raise ShardError(f"{src}: no such folder; give the one that holds {', '.join(FOLDERS.values())}")
    for folder in FOLDERS.values():
        if not (src / folder).is_dir():
            raise ShardError(f"{src}: folder {folder} is missing{_hint(src, folder)}")
    splits: dict[str, tuple[Source, ...]] = {}
    strays: list[str] = []
    for split, folder in FOLDERS.items():
        splits[split], ignored = _scan_folder(src, folder, split, mask_suffix)
        strays += ignored
    return Layout(name="market1501", splits=splits, strays=tuple(strays))


def _scan_folder(
    src: Path, folder: str, split: str, mask_suffix: str
) -> tuple[tuple[Source, ...], list[str]]:
    names, strays = [], []
    try:
        listed = sorted(child.name for child in (src / folder).iterdir())
    except OSError as error:
        raise ShardError(
            f"{src / folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    for name in listed:
        # "._x.jpg" is what macOS leaves beside a copied x.jpg: not an image, although named like one.
        if name.startswith(".") or not name.lower().endswith(IMAGE_SUFFIXES):
            strays.append(f"{folder}/{name}")
        else:
            names.append(name)
    matches = []
    for name in names:
        match = NAME.match(name)
        if match is None:
            raise ShardError(
                f"{src / folder / name}: the name is not <pid>_c<camera>s<sequence>_<frame>_<box>.jpg "
                "(as in 0002_c1s1_000451_03.jpg); rename it or move it away"
            )
        if split != "gallery" and int(match[1]) <= DISTRACTOR_PID:
            raise ShardError(
                f"{src / folder / name}: junk (-1) and distractors (0000) belong in bounding_box_test"
            )
        matches.append(match)
    if not matches:
        raise ShardError(
            f"{src / folder}: no image named like 0002_c1s1_000451_03.jpg in it ({len(strays)} other files)"
        )
    keys = numbered(int(match[1]) for match in matches)
    masks = src / (folder + mask_suffix)
    sources = tuple(
        Source(
            path=src / folder / match[0],
            mask_path=masks / (match[0][: -len(".jpg")] + ".png"),
            pid=int(match[1]),
            camid=int(match[2]),
            split=split,
            key=key,
            name=f"{folder}/{match[0]}",
        )
        for match, key in zip(matches, keys, strict=True)
    )
    return sources, strays


def _hint(src: Path, folder: str) -> str:
    """Where the missing folder may be: one level deeper, or under a slightly different name."""
    children = sorted(child.name for child in src.iterdir() if child.is_dir())
    for child in children:
        if (src / child / folder).is_dir():
            return f"; did you mean {src / child}?"
    close = difflib.get_close_matches(
        folder, [name for name in children if name not in FOLDERS.values()], n=1
    )
    return f"; is it {close[0]}?" if close and not close[0].endswith(MASK_SUFFIX) else ""
