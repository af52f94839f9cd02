"""An LMDB of image files under keys that name the person, as LUPerson and LUPerson-NL are published."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

from ..errors import BadImageError, ShardError
from ..samples import Layout
from .images import MASK_SUFFIX, ImageEntry, sources
from .numbering import as_mapping, camera_numbers, pid_numbers

# LUPerson-NL's keys are <video>_<identity>_...; those of LUPerson, <country>_<city>_<video>_<number>, name no
# identity.
DEFAULT = r"^(?P<camid>\d{5})_(?P<pid>\d+)(_|$)"
VIDEO = r"(?P<pid>\d\d_\d\d_\d{4})_\d{8}"
INSTALL = "install it with `pip install 'maskreid-shards[lmdb]'`"


def scan_lmdb(src: Path, *, pattern: str = DEFAULT) -> Layout:
    """All images of the environment `src` (the folder with `data.mdb`, or one with `lmdb/` below it): train.

    `pattern` is searched in the keys; its groups are `pid` and, if there is one, `camid`: integers as they
    are, anything else numbered. The default is LUPerson-NL's form, where the video counts as the camera. A
    `keys.pkl` beside it is not read: nothing is ever unpickled.

    Raises ShardError: no environment, no package lmdb, a pattern without the group pid, a key that it does
    not find.
    """
    root = src.resolve()
    place = next((path for path in (root, root / "lmdb") if (path / "data.mdb").is_file()), None)
    if place is None:
        raise ShardError(f"{src}: no data.mdb in it; give the folder of the LMDB")
    try:
        compiled = re.compile(pattern, re.ASCII)
    except re.error as error:
        raise ShardError(f"pattern {quote(pattern)}: {error}; such as {DEFAULT}") from None
    if "pid" not in compiled.groupindex:
        raise ShardError(
            f"pattern {quote(pattern)}: name a group pid, and if you like camid; such as {DEFAULT}"
        )
    found = []
    for key in _keys(place):
        match = compiled.search(key)
        if match is None:
            hint = f", such as '{VIDEO}' where the video stands for the person"
            hint = hint if re.fullmatch(r"\d\d_\d\d_\d{4}_\d{8}", key) else ""
            raise ShardError(
                f"{place}: the key {key!r} names no identity by {quote(pattern)}; say what does "
                f"(--pattern{hint})"
            )
        found.append((key, match["pid"], match.groupdict().get("camid") or "1"))
    if not found:
        raise ShardError(f"{place}: holds no key")
    pids = pid_numbers({pid for _, pid, _ in found}, ())
    cameras = camera_numbers({camid for _, _, camid in found})
    entries = [
        ImageEntry(place.name, key, pids.of[pid], cameras.of[camid], array=key, identity=pid)
        for key, pid, camid in found
    ]
    return Layout(
        "lmdb",
        {"train": sources(place.parent, "train", entries)},
        roots=(root, place.with_name(f"{place.name}{MASK_SUFFIX}")),
        notes=(*pids.note("identities"), *cameras.note("cameras")),
        numbering=as_mapping({"pid": pids, "camid": cameras}),
    )


def read_lmdb(path: Path, key: str) -> bytes:
    """The image file under a key. Raises BadImageError: there is none, or the environment cannot be read."""
    lmdb = _package(path)
    try:
        with _environment(str(path)).begin(buffers=False) as transaction:
            data: bytes | None = transaction.get(key.encode())
    except lmdb.Error as error:
        raise BadImageError(f"{path}: {key}: cannot be read ({error}); check the file", "missing") from None
    if data is None:
        raise BadImageError(f"{path}: {key}: no such key; scan it again", "missing")
    return data


def _keys(path: Path) -> Iterator[str]:
    """All keys, in their order."""
    lmdb = _package(path)
    try:
        with _environment(str(path)).begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                yield key.decode("utf-8", "surrogateescape")
    except lmdb.Error as error:
        _environment.cache_clear()
        raise ShardError(f"{path}: not a readable LMDB ({error}); fetch it again") from None


@cache
def _environment(path: str) -> Any:
    """Opened once a process: without locks, since nobody writes."""
    return _package(Path(path)).open(path, readonly=True, lock=False, readahead=False)


def _package(path: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ShardError(f"{path}: reading it needs the package lmdb; {INSTALL}") from None
    return lmdb
