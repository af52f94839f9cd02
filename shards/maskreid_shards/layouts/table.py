"""Any data set, listed in one CSV file: path, pid, camid, split, and a mask if there is one."""

import csv
import re
from pathlib import Path

from ..errors import ShardError
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout, Source, numbered
from .images import MASK_SUFFIX, need_file

COLUMNS = ("path", "pid", "camid", "split")
SPLIT = re.compile(r"^[a-z][a-z0-9_]*$", re.ASCII)


def scan_csv(src: Path) -> Layout:
    """Paths are relative to the CSV file's folder. Without a column `mask`, masks are in `<folder>_seg`.

    pid > 0 is an identity, 0 a distractor, -1 junk (both outside train and query only); camid counts from 1.

    Raises ShardError naming the line: a column or a value that is missing or odd, an identity in train and
    elsewhere.
    """
    try:
        with open(need_file(src), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ShardError(
                    f"{src}: line 1: no column {missing[0]}; the header is path,pid,camid,split[,mask]"
                )
            rows = [_parse(src, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{src}: not CSV in UTF-8 ({error})") from None
    if not rows:
        raise ShardError(f"{src}: lists no image")
    train = {row.pid for row in rows if row.split == "train"}
    for number, row in enumerate(rows, 2):
        if row.split != "train" and row.pid in train:
            raise ShardError(
                f"{src}: image {number - 1} ({row.name}): identity {row.pid} is in train too; test "
                "identities need their own pids"
            )
    splits = {}
    for split in dict.fromkeys(row.split for row in rows):
        part = [row for row in rows if row.split == split]
        keys = numbered(row.pid for row in part)
        splits[split] = tuple(
            Source(row.path, row.mask_path, row.pid, row.camid, split, key, row.name)
            for row, key in zip(part, keys, strict=True)
        )
    return Layout("csv", splits)


def _parse(src: Path, line: int, row: dict[str, str | None]) -> Source:
    """The row as a source without a key."""
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
    path = src.parent / values["path"]
    mask = src.parent / values["mask"] if values["mask"] else None
    if mask is None and "mask" not in row:
        mask = path.parent.with_name(path.parent.name + MASK_SUFFIX) / f"{path.stem}.png"
    return Source(path, mask, pid, camid, values["split"], "", values["path"])
