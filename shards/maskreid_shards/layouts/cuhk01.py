"""CUHK01: 971 identities, two images in each of two cameras, in one folder `campus`."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .drawn import draw_identities, drawn_layout
from .images import ImageEntry, list_images, need_folders
from .published import with_published

FOLDER = "campus"
NAME = re.compile(r"^(\d{4})(\d{3})\.png$", re.ASCII)
IMAGES = 4  # 1 and 2 are camera 1, 3 and 4 camera 2
TRAIN_IDENTITIES = 485
NAMES = ("cuhk01",)
PUBLISHED = {
    "train images": 4 * 485,
    "train identities": 485,
    "query images": 2 * 486,
    "gallery images": 2 * 486,
}


def scan_cuhk01(src: Path, *, train_identities: int = TRAIN_IDENTITIES, split_seed: int = 0) -> Layout:
    """485 identities drawn by seed train, 486 test. `src` holds `campus/`.

    Raises ShardError: a missing folder, a name that does not match, too few identities.
    """
    need_folders(src, [FOLDER])
    names, strays = list_images(src, FOLDER)
    found = []
    for name in names:
        match = NAME.match(name)
        if match is None or int(match[1]) < 1 or not 1 <= int(match[2]) <= IMAGES:
            raise ShardError(
                f"{src / FOLDER / name}: the name is not of the form 0001001.png (<pid><image>.png, images 1 "
                "to 4)"
            )
        found.append(ImageEntry(FOLDER, name, int(match[1]), 1 if int(match[2]) <= IMAGES // 2 else 2))
    train = draw_identities(src, {image.pid for image in found}, train_identities, split_seed)
    layout = drawn_layout("cuhk01", src, found, train, strays=strays, seed=split_seed)
    return with_published(layout, src, NAMES, PUBLISHED)
