"""Any data set, listed in one CSV file: path, pid, camid, split, and a mask if there is one."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout, Source, numbered
from .images import MASK_SUFFIX, need_file

COLUMNS = ("path", "pid", "camid", "split")
SPLIT = re.compile(r"^[a-z][a-z0-9_]*$", re.ASCII)


def scan_csv(src: Path) -> Layout:
    """Paths are relative to the CSV file's folder. Without a column `mask`, masks are in `<folder>_seg`.

    Where a path is absolute or holds `..`, the images' names are relative to the folder that all images have
    in common. pid > 0 is an identity, 0 a distractor, -1 junk (both outside train and query only); camid
    counts from 1.

    Raises ShardError naming the line: a column or a value that is missing or odd, a path that an earlier line
    has (but in another test split, as the same identity), an identity in train and elsewhere.
    """
    try:
        with open(need_file(src), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ShardError(
                    f"{src}: line 1: no column {missing[0]}; the header is path,pid,camid,split[,mask]"
                )
            lines = [(reader.line_num, _parse(src, reader.line_num, row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{src}: not CSV in UTF-8 ({error})") from None
    if not lines:
        raise ShardError(f"{src}: lists no image")
    _check_paths(src, lines)
    _check_identities(src, lines)
    rows = [row for _, row in lines]
    root = _common_root(rows)
    if root is not None:
        rows = [replace(row, name=row.path.relative_to(root).as_posix()) for row in rows]
    splits = {}
    for split in dict.fromkeys(row.split for row in rows):
        part = [row for row in rows if row.split == split]
        keys = numbered(row.pid for row in part)
        splits[split] = tuple(replace(row, key=key) for row, key in zip(part, keys, strict=True))
    return Layout("csv", splits, root=root)


def _check_paths(src: Path, lines: list[tuple[int, Source]]) -> None:
    first: dict[Path, tuple[int, Source]] = {}
    for line, row in lines:
        earlier, other = first.setdefault(row.path, (line, row))
        if earlier == line:
            continue
        where = f"{src}: line {line}: {row.name} is on line {earlier} already"
        if row.pid != other.pid:
            raise ShardError(f"{where}, as identity {other.pid} and not {row.pid}; keep one")
        if row.split == other.split:
            raise ShardError(f"{where}; keep one")
        if "train" in (row.split, other.split):
            raise ShardError(f"{where}, in {other.split} and not {row.split}; keep one")


def _check_identities(src: Path, lines: list[tuple[int, Source]]) -> None:
    train = {row.pid for _, row in lines if row.split == "train"}
    for line, row in lines:
        if row.split != "train" and row.pid in train:
            raise ShardError(
                f"{src}: line {line} ({row.name}): identity {row.pid} is in train too; leave the line out, "
                "or give test identities their own pids"
            )


def _common_root(rows: list[Source]) -> Path | None:
    """The folder that all images have in common, if one of the names cannot be joined to a folder."""
    if all(not row.name.startswith("/") and ".." not in row.name.split("/") for row in rows):
        return None
    return Path(os.path.commonpath({row.path.parent for row in rows}))


def _parse(src: Path, line: int, row: dict[str, str | None]) -> Source:
    """The row as a source without a key; its name is the path as it stands in the row."""
    values = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "mask")}
    where = f"{src}: line {line}"
    if not values["path"] or not SPLIT.match(values["split"]):
        raise ShardError(
            f"{where}: path {values['path']!r}, split {values['split']!r}; a split is a-z, 0-9 and _"
        )
    try:
        pid, camid = int(values["pid"]), int(values["camid"])
    except ValueError:
        raise ShardError(
            f"{where}: pid {values['pid']!r}, camid {values['camid']!r}: give integers"
        ) from None
    lowest = DISTRACTOR_PID + 1 if values["split"] in ("train", "query") else JUNK_PID
    if pid < lowest or camid < 1:
        raise ShardError(
            f"{where}: pid {pid}, camid {camid}; in {values['split']} pids count from {lowest}, "
            "cameras from 1"
        )
    path = _absolute(src, values["path"])
    mask = _absolute(src, values["mask"]) if values["mask"] else None
    if mask is None and "mask" not in row:
        mask = path.parent.with_name(path.parent.name + MASK_SUFFIX) / f"{path.stem}.png"
    name = str(PurePosixPath(values["path"]))  # without ./ and //
    return Source(path, mask, pid, camid, values["split"], "", name)


def _absolute(src: Path, listed: str) -> Path:
    """A listed path, without `..`, so that one file has one path."""
    return Path(os.path.normpath(Path.cwd() / src.parent / listed))
