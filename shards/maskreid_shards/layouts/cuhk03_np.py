"""CUHK03, the new protocol (767 / 700 identities): ready folders, or the release and the protocol's
config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..errors import ShardError
from ..samples import Layout
from .cuhk03 import as_found, parse_name, release_file
from .images import ImageEntry, sources
from .matlab import load_mat
from .named import FOLDERS, scan_named

Boxes = Literal["labeled", "detected"]
NAME = re.compile(r"^(\d+)_c(\d).*\.png$", re.ASCII)
FORM = "0001_c1_1.png (<pid>_c<camera>...png)"
INDICES = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
PUBLISHED: Mapping[str, tuple[int, int, int]] = {
    "detected": (7365, 1400, 5332),
    "labeled": (7368, 1400, 5328),
}


def scan_cuhk03_np(src: Path, *, boxes: Boxes = "labeled") -> Layout:
    """Folders `<boxes>/bounding_box_train` and so on, or `cuhk-03.mat` with the config of `boxes` beside it.

    Raises ShardError: neither is there, a name or an index that does not fit, no h5py or scipy where needed.
    """
    if boxes not in PUBLISHED:
        raise ShardError(f"boxes {boxes!r}: use one of {', '.join(PUBLISHED)}")
    config = src / f"cuhk03_new_protocol_config_{boxes}.mat"
    strays: tuple[str, ...] = ()
    if config.is_file():
        path = release_file(src)
        root, found = path.parent, _from_config(config, path.name, boxes)
    else:
        _check_boxes(src, boxes)
        folders = {split: f"{boxes}/{folder}" for split, folder in FOLDERS.items()}
        root = src
        found, strays = scan_named(src, folders, NAME, FORM)
    published = dict(zip([f"{split} images" for split in INDICES], PUBLISHED[boxes], strict=True))
    published |= {"train identities": 767, "query identities": 700, "gallery identities": 700}
    splits = {split: sources(root, split, images) for split, images in found.items()}
    return Layout(
        "cuhk03-np",
        splits,
        strays,
        published,
        notes=(f"new protocol, {boxes} boxes",),
        searched=(src / boxes,),
        roots=(src,),
    )


def _check_boxes(src: Path, boxes: str) -> None:
    """Raise ShardError where the folder of the boxes is known to be elsewhere, or to have another name."""
    if (src / boxes).is_dir():
        return
    if other := [name for name in PUBLISHED if (src / name).is_dir()]:
        raise ShardError(f"{src}: no folder {boxes}, but {other[0]}; choose --boxes {other[0]}")
    if (src / "labelled").is_dir():
        raise ShardError(f"{src / 'labelled'}: rename it labeled")
    if (src / FOLDERS["train"]).is_dir():
        known = src.resolve().name in PUBLISHED
        raise ShardError(
            f"{src}: holds {FOLDERS['train']} itself; "
            + (f"give {src.resolve().parent}" if known else f"move its folders into one named {boxes}")
        )


def _from_config(config: Path, release: str, boxes: str) -> dict[str, list[ImageEntry]]:
    labels, cameras, files, *indices = load_mat(config, "labels", "camId", "filelist", *INDICES.values())
    names = [str(cell.item() if hasattr(cell, "item") else cell) for cell in files.ravel()]
    labels, cameras = labels.ravel(), cameras.ravel()
    if not len(names) == len(labels) == len(cameras):
        raise ShardError(
            f"{config}: {len(names)} files, {len(labels)} labels, {len(cameras)} camIds; fetch it again"
        )
    found: dict[str, list[ImageEntry]] = {}
    for split, index in zip(INDICES, indices, strict=True):
        found[split] = []
        for number in sorted(index.ravel().astype(int).tolist()):
            if not 1 <= number <= len(names):
                raise ShardError(
                    f"{config}: {INDICES[split]} holds {number}; there are 1 to {len(names)} files"
                )
            image = parse_name(names[number - 1], boxes)
            if image is None or image.view != int(cameras[number - 1]):
                raise ShardError(
                    f"{config}: file {number}: {names[number - 1]!r} of camera {cameras[number - 1]} is not "
                    "an image of the release; fetch it again"
                )
            found[split].append(as_found(release, image, int(labels[number - 1])))
        if not found[split]:
            raise ShardError(f"{config}: {INDICES[split]} is empty; fetch it again")
    test = {image.pid for split in ("query", "gallery") for image in found[split]}
    if shared := test & {image.pid for image in found["train"]}:
        raise ShardError(f"{config}: identity {min(shared)} is in train and in test; fetch it again")
    return found
