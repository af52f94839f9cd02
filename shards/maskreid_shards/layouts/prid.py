"""PRID2011, single shot: 385 identities in `cam_a`, 749 in `cam_b`, the first 200 of them in both."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .drawn import draw_identities, drawn_layout
from .images import ImageEntry, list_images, need_folders
from .published import with_published

CAMERAS = {"cam_a": 1, "cam_b": 2}
NAME = re.compile(r"^person_(\d{1,9})\.png$", re.ASCII)
IN_BOTH = 200
TRAIN_IDENTITIES = 100
NAMES = ("prid", "prid2011")
PUBLISHED = {"train identities": 100, "query images": 100, "gallery images": 649}


def scan_prid(src: Path, *, train_identities: int = TRAIN_IDENTITIES, split_seed: int = 0) -> Layout:
    """Train: identities drawn by seed from the 200 seen by both cameras. The gallery is the rest of camera b.

    `src` holds `single_shot/` or is that folder. A number above 200 is another person in each camera; such
    ones of camera a are used nowhere.

    Raises ShardError: a missing folder, a name that does not match, too few identities.
    """
    root = src / "single_shot" if (src / "single_shot").is_dir() else src
    need_folders(root, CAMERAS)
    found, strays = [], []
    for folder, camid in CAMERAS.items():
        names, others = list_images(root, folder)
        strays += others
        for name in names:
            match = NAME.match(name)
            if match is None:
                raise ShardError(f"{root / folder / name}: the name is not of the form person_0001.png")
            if camid == 2 or int(match[1]) <= IN_BOTH:
                found.append(ImageEntry(folder, name, int(match[1]), camid))
            else:
                strays.append(f"{folder}/{name}")
    both = {image.pid for image in found if image.pid <= IN_BOTH}
    train = draw_identities(root, both, train_identities, split_seed)
    layout = drawn_layout("prid", root, found, train, strays=strays, seed=split_seed)
    return with_published(layout, src, NAMES, PUBLISHED)
