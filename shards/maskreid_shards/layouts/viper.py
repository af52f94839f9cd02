"""VIPeR: 632 identities, one image of each in `cam_a` and one in `cam_b`, BMP."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .drawn import draw_identities, drawn_layout
from .images import ImageEntry, list_images, need_folders
from .published import with_published

CAMERAS = {"cam_a": 1, "cam_b": 2}
NAME = re.compile(r"^(\d{1,9})_\d+\.bmp$", re.ASCII)
TRAIN_IDENTITIES = 316
NAMES = ("viper", "viperv10")
PUBLISHED = {"train identities": 316, "query images": 316, "gallery images": 316}


def scan_viper(src: Path, *, train_identities: int = TRAIN_IDENTITIES, split_seed: int = 0) -> Layout:
    """Half of the identities, drawn by seed, train; BMP is stored as PNG, as shards hold no BMP. pid = name +
    1.

    Raises ShardError: a missing folder, a name that does not match, too few identities.
    """
    need_folders(src, CAMERAS)
    found, strays = [], []
    for folder, camid in CAMERAS.items():
        names, others = list_images(src, folder)
        strays += others
        for name in names:
            match = NAME.match(name)
            if match is None:
                raise ShardError(
                    f"{src / folder / name}: the name is not of the form 000_45.bmp (<pid>_<angle>.bmp)"
                )
            found.append(ImageEntry(folder, name, int(match[1]) + 1, camid))
    train = draw_identities(src, {image.pid for image in found}, train_identities, split_seed)
    layout = drawn_layout("viper", src, found, train, strays=strays, seed=split_seed)
    return with_published(layout, src, NAMES, PUBLISHED)
