"""The form of Domain Guided Dropout's data: `cam_0/`, `cam_1/`, ..., `meta.json` and `split.json`."""

import json
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..opening import TEXT_BYTES, read_file
from ..samples import Layout
from .images import ImageEntry, need_file, sources
from .published import is_named

SPLITS = {"train": ("trainval", "train", "val"), "query": ("test_probe",), "gallery": ("test_gallery",)}
PUBLISHED = {
    "viper": {"train identities": 316, "query identities": 316},
    "prid": {"query identities": 100, "gallery identities": 649},
    "3dpes": {"query identities": 100},
    "shinpuhkan": {"query identities": 0},
}


def scan_dgd(src: Path) -> Layout:
    """`identities[pid][view]` lists files; `split.json` names pids from 0. Here pid + 1 and view + 1.

    An identity of test_probe and test_gallery has its first view in the query split and the others in the
    gallery. A data set without test identities has a train split only.

    Raises ShardError: a missing or odd file, a pid that is not there, identities in train and in test.
    """
    meta, split = (_read_json(src / name) for name in ("meta.json", "split.json"))
    try:
        identities = [[list(map(str, view)) for view in views] for views in meta["identities"]]
        pids = {
            name: sorted({int(pid) for key in keys for pid in split.get(key, [])})
            for name, keys in SPLITS.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{src}: meta.json or split.json has another structure ({error!r})") from None
    for name, chosen in pids.items():
        if chosen and not 0 <= chosen[0] <= chosen[-1] < len(identities):
            raise ShardError(f"{src / 'split.json'}: {name} names pids outside 0..{len(identities) - 1}")
    test = {*pids["query"], *pids["gallery"]}
    if shared := test & set(pids["train"]):
        raise ShardError(f"{src / 'split.json'}: identity {min(shared)} is in train and in test")
    splits = {}
    for name, chosen in pids.items():
        found = [
            _found(src, file, pid, view)
            for pid in chosen
            for view, files in enumerate(identities[pid])
            for file in sorted(files)
            if _belongs(name, view, probe=pid in pids["query"], gallery=pid in pids["gallery"])
        ]
        if found:
            splits[name] = sources(src, name, found)
    if not splits:
        raise ShardError(f"{src / 'split.json'}: names no identity with images")
    published: dict[str, int] = {}
    for word, counts in PUBLISHED.items():
        published |= counts if is_named(src, (word,)) else {}
    return Layout("dgd", splits, published=published, searched=(src,), roots=(src,))


def _belongs(split: str, view: int, *, probe: bool, gallery: bool) -> bool:
    if split == "train" or probe != gallery:
        return True
    return (view == 0) == (split == "query")


def _found(src: Path, file: str, pid: int, view: int) -> ImageEntry:
    path = Path(file)
    folder = str(path.parent) if len(path.parts) > 1 else f"cam_{view}"
    if path.is_absolute() or ".." in path.parts:
        raise ShardError(f"{src / 'meta.json'}: {file!r} lies outside the data set's folder")
    need_file(src / folder / path.name)
    return ImageEntry(folder, path.name, pid + 1, view + 1)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_file(need_file(path), TEXT_BYTES))
    except ValueError as error:
        raise ShardError(f"{path}: not JSON ({error})") from None
