"""MSMT17, versions 1 and 2: an image folder for train and one for test, and four lists."""

import re
from pathlib import Path

from ..errors import ShardError
from ..samples import Layout
from .images import ImageEntry, lines_of, need_folders, sources

FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
# <pid>/<pid>_<sequence>_<camera>_<time>_<frame>_<box>.jpg <pid>
LINE = re.compile(
    r"^((\d{4})/\2_\d{3}_(\d{2})_\d{4}(?:morning|noon|afternoon)_\d{4}_\d{1,2}(?:_ex)?\.jpe?g) (\d+)$",
    re.ASCII,
)
CAMERAS = 15
PUBLISHED = {
    "list_train images": 30248,
    "list_val images": 2373,
    "train images": 32621,
    "train identities": 1041,
    "query images": 11659,
    "query identities": 3060,
    "gallery images": 82161,
    "gallery identities": 3060,
}


def scan_msmt17(src: Path) -> Layout:
    """Train holds the lists train and val, which have the same identities.

    The lists number the test identities from 0 again. Here pids are label + 1 in train and go on after the
    last of train's in test, so that no pid stands for two people.

    Raises ShardError: a missing folder or list, a line that is not of the form, label and folder that differ.
    """
    version = next((name for name, (train, _) in FOLDERS.items() if (src / train).is_dir()), "V2")
    train_folder, test_folder = FOLDERS[version]
    need_folders(src, [train_folder, test_folder])
    lists = {
        name: _read_list(src, name, test_folder if name in ("query", "gallery") else train_folder)
        for name in ("train", "val", "query", "gallery")
    }
    train = sorted(lists["train"] + lists["val"], key=lambda image: image.rest)
    last = max(image.pid for image in train)
    found = {"train": train}
    for split in ("query", "gallery"):
        found[split] = [ImageEntry(i.folder, i.rest, i.pid + last, i.camid) for i in lists[split]]
    return Layout(
        "msmt17",
        {split: sources(src, split, images) for split, images in found.items()},
        published=PUBLISHED,
        searched=(src / train_folder, src / test_folder),
        roots=(src,),
        more_counts={f"list_{name} images": len(lists[name]) for name in ("train", "val")},
        notes=(f"MSMT17 {version}; test identities are numbered after the {last} of train",),
    )


def _read_list(src: Path, name: str, folder: str) -> list[ImageEntry]:
    path = src / f"list_{name}.txt"
    found = []
    for number, line in lines_of(path):
        match = LINE.match(line)
        if match is None or not 1 <= int(match[3]) <= CAMERAS or int(match[2]) != int(match[4]):
            raise ShardError(
                f"{path}: line {number}: {line[:80]!r} is not of the form "
                "0000/0000_000_01_0303morning_0008_0.jpg 0 (<pid>/<pid>_<sequence>_<camera>_...); fetch the "
                "list again"
            )
        found.append(ImageEntry(folder, match[1], int(match[4]) + 1, int(match[3])))
    if not found:
        raise ShardError(f"{path}: is empty; fetch the list again")
    return sorted(found, key=lambda image: image.rest)
