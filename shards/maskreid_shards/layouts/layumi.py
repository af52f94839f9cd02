"""The tree that layumi's Person_reID_baseline_pytorch makes of Market-1501 and others: a folder per identity.

It has `train_all` (or `train` and `val`, which divide it), `query`, `gallery` and `multi-query`; of the
gallery, the folder `-1` is junk and `0000` are distractors.
"""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, Layout
from .dukemtmc import NAMES as DUKE_NAMES
from .dukemtmc import PUBLISHED as DUKE_PUBLISHED
from .images import ImageEntry, list_folders, list_images, need_folders, sources
from .market1501 import NAMES as MARKET_NAMES
from .market1501 import PUBLISHED as MARKET_PUBLISHED
from .published import with_published

IDENTITY = re.compile(r"^(-1|\d+)$", re.ASCII)
CAMERA = re.compile(r"_c(\d+)", re.ASCII)
MULTI_QUERY = "multi-query"
# Folders that no data set in the layout `folder` has.
OWN_FOLDERS = ("train_all", "val", MULTI_QUERY)


def scan_layumi(src: Path, *, multi_query: bool = False) -> Layout:
    """`src` is the folder `pytorch` or holds it. Cameras are what follows `_c` in the images' names, pids the
    folders' names. `multi_query` adds a split of the images of `multi-query` that show a query's identity in
    that query's camera.

    Raises ShardError: a missing folder, one whose name is no pid, a name without a camera, junk or
    distractors outside the gallery, a folder without images.
    """
    root = src / "pytorch" if (src / "pytorch").is_dir() else src
    train = ["train_all"] if (root / "train_all").is_dir() else ["train", "val"]
    train = [folder for folder in train if folder != "val" or (root / folder).is_dir()]
    folders = {"train": train, "query": ["query"], "gallery": ["gallery"]}
    if multi_query:
        folders["multi_query"] = [MULTI_QUERY]
    need_folders(root, [folder for part in folders.values() for folder in part])
    found: dict[str, list[ImageEntry]] = {}
    strays: list[str] = []
    for split, part in folders.items():
        found[split] = []
        for folder in part:
            images, others = _images(root, folder, everyone=split in ("gallery", "multi_query"))
            found[split] += images
            strays += others
        found[split].sort(key=lambda image: image.rest)
        if not found[split]:
            raise ShardError(f"{root / part[0]}: no image in a folder per identity below it")
    if multi_query:
        queries = {(image.pid, image.camid) for image in found["query"]}
        found["multi_query"] = [
            image for image in found["multi_query"] if (image.pid, image.camid) in queries
        ]
    splits = {split: sources(root, split, images) for split, images in found.items()}
    notes = [] if train == ["train"] else [f"train is {' and '.join(train)}"]
    layout = Layout("layumi", splits, tuple(strays), notes=tuple(notes), searched=(root,), roots=(src,))
    layout = with_published(layout, root, MARKET_NAMES, MARKET_PUBLISHED)
    return with_published(layout, root, DUKE_NAMES, DUKE_PUBLISHED)


def _images(root: Path, folder: str, *, everyone: bool) -> tuple[list[ImageEntry], list[str]]:
    """The images of a split's folder, and its other files. `everyone`: junk and distractors may be there."""
    found, strays = [], []
    for identity in list_folders(root, folder):
        if not IDENTITY.match(identity):
            raise ShardError(f"{root / folder / identity}: the folder's name is no pid; move it away")
        if not everyone and int(identity) <= DISTRACTOR_PID:
            raise ShardError(
                f"{root / folder / identity}: junk (-1) and distractors (0000) belong in the gallery"
            )
        names, others = list_images(root, f"{folder}/{identity}")
        strays += others
        for name in names:
            camera = CAMERA.search(name)
            if camera is None or int(camera[1]) < 1:
                raise ShardError(f"{root / folder / identity / name}: no camera such as _c1 in the name")
            found.append(
                ImageEntry(folder, f"{identity}/{name}", int(identity), int(camera[1]), identity=identity)
            )
    return found, strays
