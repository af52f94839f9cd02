"""Market-1501: three folders named by split, each with a sibling `_seg` of masks; gt_bbox for multiple
queries."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .images import ImageEntry, list_images, need_folders, sources
from .named import FOLDERS, scan_named
from .published import with_published

NAME = re.compile(r"^(-1|\d{4})_c(\d)s\d_\d{6}_\d{2}\.jpg$", re.ASCII)
FORM = "0002_c1s1_000451_03.jpg (<pid>_c<camera>s<sequence>_<frame>_<box>.jpg)"
MULTI_QUERY = "gt_bbox"
NAMES = ("market1501", "market1501v150915")
PUBLISHED = {
    "train images": 12936,
    "train identities": 751,
    "query images": 3368,
    "query identities": 750,
    "gallery images": 19732,
    "gallery identities": 750,
    "gallery junk": 3819,
    "gallery distractors": 2798,
}


def scan_market1501(src: Path, *, multi_query: bool = False) -> Layout:
    """Find every image of a Market-1501 folder, sorted by name, with the path its mask should have.

    Nothing is opened. Junk (pid -1) and distractors (pid 0) are accepted in the gallery only. `multi_query`
    adds a split of the images of gt_bbox that show a query's identity in that query's camera.

    Raises ShardError: a folder is missing, an image's name does not match, a folder holds no image, or the
    train or query folder holds junk or distractors.
    """
    found, strays = scan_named(src, FOLDERS, NAME, FORM)
    published = PUBLISHED
    more_counts = {}
    if multi_query:
        images = _scan_multi_query(src)
        queries = {(image.pid, image.camid) for image in found["query"]}
        found["multi_query"] = [image for image in images if (image.pid, image.camid) in queries]
        if not found["multi_query"]:
            raise ShardError(f"{src / MULTI_QUERY}: no image of a query's identity and camera in it")
        more_counts["gt_bbox images"] = len(images)
        published = {**PUBLISHED, "gt_bbox images": 25259}
    splits = {split: sources(src, split, images) for split, images in found.items()}
    layout = Layout("market1501", splits, strays, more_counts=more_counts, searched=(src,), roots=(src,))
    return with_published(layout, src, NAMES, published)


def _scan_multi_query(src: Path) -> list[ImageEntry]:
    """gt_bbox holds hand-drawn boxes of all identities, train and test."""
    need_folders(src, [MULTI_QUERY])
    images = []
    for name in list_images(src, MULTI_QUERY)[0]:
        match = NAME.match(name)
        if match is None:
            raise ShardError(f"{src / MULTI_QUERY / name}: the name is not of the form {FORM}; rename it")
        images.append(ImageEntry(MULTI_QUERY, name, int(match[1]), int(match[2])))
    return images
