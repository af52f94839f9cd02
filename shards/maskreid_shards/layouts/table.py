"""Any data set, listed in one CSV file: path, pid, camid, split, and a mask if there is one."""

import csv
import io
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ..checks import repeats
from ..errors import ShardError
from ..opening import TEXT_BYTES, read_file
from ..samples import DISTRACTOR_PID, JUNK_PID, Layout, Source, Sources, numbered
from ..shown import in_a_line
from .images import MASK_SUFFIX, need_file
from .numbering import Numbers, as_mapping, camera_numbers, pid_numbers

COLUMNS = ("path", "pid", "camid", "split")
LONGEST = 4096  # letters of a cell: as long as a path may be
SPLIT = re.compile(r"^[a-z][a-z0-9_]*$", re.ASCII)
DELIMITERS = ",;\t|"
HEADER = 100_000  # characters in which it is looked for
# What to write where a data set has no such thing.
WITHOUT = {
    "camid": "; where there are no cameras, write 1 everywhere",
    "split": "; where all is for training, write train everywhere",
}
# What other tools call them, for the message that asks to rename the column.
OTHER_NAMES = {
    "path": ("image", "image_path", "img", "img_path", "file", "filename", "file_name", "filepath"),
    "pid": ("label", "id", "person", "person_id", "personid", "identity", "class", "target"),
    "camid": ("cam", "camera", "camera_id", "cam_id", "cameraid", "view"),
    "split": ("subset", "set", "partition", "part", "phase"),
}


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the list, as text; `mask` is None where there is no such column."""

    line: int
    path: str
    pid: str
    camid: str
    split: str
    mask: str | None


def scan_csv(src: Path) -> Layout:
    """Paths are relative to the CSV file's folder. Without a column `mask`, masks are in `<folder>_seg`.

    Separators are commas, semicolons, tabs or bars; names of columns in any case; other columns are left
    alone. Where a path is absolute or holds `..`, the images' names are relative to the folder that all
    images have in common. pid > 0 is an identity, 0 a distractor, -1 junk (both outside train and query
    only); camid counts from 1. Pids and cameras that are names, or count from 0, are numbered
    (`Layout.numbering`).

    Raises ShardError naming the line: a column or a value that is missing or odd, a path that an earlier line
    has (but in another test split, as the same identity), an identity in train and elsewhere.
    """
    rows = _with_slashes(src, list(_rows(src)))
    if not rows:
        raise ShardError(f"{src}: lists no image")
    train = {row.pid for row in rows if row.split == "train"}
    pids = pid_numbers(train, {row.pid for row in rows} - train)
    cameras = camera_numbers({row.camid for row in rows})
    lines = array("q", (row.line for row in rows))
    found = Sources.of(_source(src, row, pids, cameras) for row in rows)
    del rows  # as large as all the rest
    _check_paths(src, lines, found)
    _check_identities(src, lines, found)
    root = _common_root(found)
    if root is not None:
        found = Sources.of(replace(source, name=source.path.relative_to(root).as_posix()) for source in found)
    splits = {}
    split_of = found.splits
    for split in dict.fromkeys(split_of):
        part = found.take(np.flatnonzero([one == split for one in split_of]))
        keys = numbered(part.pids.tolist())
        splits[split] = Sources.of(replace(source, key=key) for source, key in zip(part, keys, strict=True))
    return Layout(
        "csv",
        splits,
        root=root,
        searched=_searched(found),
        roots=(src.parent, *_listed_folders(found)),
        notes=(*pids.note("identities"), *cameras.note("cameras")),
        numbering=as_mapping({"pid": pids, "camid": cameras}),
    )


def _rows(src: Path) -> Iterator[_Row]:
    """The lines that are not blank."""
    text = _text(src)
    header = next((line for line in text[:HEADER].splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(header), skipinitialspace=True)
    places: dict[str, int] | None = None
    texts: dict[str, str] = {}  # each pid, camera and split once, not once a line
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if places is None:
                places = _places(src, values)
                continue
            cell = {name: values[at].strip() if at < len(values) else "" for name, at in places.items()}
            where = f"{src}: line {reader.line_num}"
            if any("\0" in text or len(text) > LONGEST for text in cell.values()):
                raise ShardError(f"{where}: a cell of more than {LONGEST} letters, or with a NUL; mend it")
            if not cell["path"] or not SPLIT.match(cell["split"]):
                path, split = (in_a_line(repr(cell[name]), 80) for name in ("path", "split"))
                raise ShardError(f"{where}: path {path}, split {split}; a split is a-z, 0-9 and _")
            if not cell["pid"] or not cell["camid"]:
                raise ShardError(f"{where}: pid {cell['pid']!r}, camid {cell['camid']!r}: give both")
            pid, camid, split = (texts.setdefault(cell[name], cell[name]) for name in COLUMNS[1:])
            yield _Row(reader.line_num, cell["path"], pid, camid, split, cell.get("mask"))
    except csv.Error as error:
        raise ShardError(f"{src}: line {reader.line_num}: not CSV ({error})") from None


def _text(src: Path) -> str:
    if src.is_dir():
        lists = sorted(path.name for path in src.glob("*.csv"))
        hint = f"; is it {src / lists[0]}?" if lists else ""
        raise ShardError(f"{src}: is a folder; give the CSV file{hint}")
    data = read_file(need_file(src), TEXT_BYTES)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ShardError(
            f"{src}: not CSV in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _delimiter(header: str) -> str:
    """The separator by which the header has most of the columns."""
    names = (*COLUMNS, "mask")
    return max(
        DELIMITERS, key=lambda one: sum(name.strip(' "').lower() in names for name in header.split(one))
    )


def _places(src: Path, header: list[str]) -> dict[str, int]:
    """Where the columns stand. Raises ShardError: one is missing, or there twice."""
    names = [name.strip().lower() for name in header]
    for name in (*COLUMNS, "mask"):
        if names.count(name) > 1:
            raise ShardError(f"{src}: line 1: two columns {name}; rename one")
    for name in COLUMNS:
        if name not in names:
            other = next((one for one in names if one in OTHER_NAMES[name]), None)
            hint = f"; is it {other}? Rename it" if other else WITHOUT.get(name, "")
            there = in_a_line(", ".join(filter(None, names)), 80)
            raise ShardError(
                f"{src}: line 1: no column {name} (there are {there}); the header is "
                f"path,pid,camid,split[,mask]{hint}"
            )
    return {name: names.index(name) for name in (*COLUMNS, "mask") if name in names}


def _with_slashes(src: Path, rows: list[_Row]) -> list[_Row]:
    """Windows' paths as those of this system, unless there is a file whose name holds a back-slash."""
    odd = next((row for row in rows if "\\" in row.path), None)
    if odd is None or _absolute(src, odd.path).exists():
        return rows
    return [
        replace(
            row,
            path=row.path.replace("\\", "/"),
            mask=row.mask.replace("\\", "/") if row.mask is not None else None,
        )
        for row in rows
    ]


def _source(src: Path, row: _Row, pids: Numbers, cameras: Numbers) -> Source:
    """The row as a source without a key; its name is the path as it stands in the row."""
    pid, camid = pids.of[row.pid], cameras.of[row.camid]
    lowest = DISTRACTOR_PID + 1 if row.split in ("train", "query") else JUNK_PID
    if pid < lowest or camid < 1:
        raise ShardError(
            f"{src}: line {row.line}: pid {pid}, camid {camid}; in {row.split} pids count from {lowest}, "
            "cameras from 1 (both from 0 where train or the first camera is 0)"
        )
    path = _absolute(src, row.path)
    mask = _absolute(src, row.mask) if row.mask else None
    if row.mask is None and path.parent.name:  # the root of all folders has none beside it
        mask = path.parent.with_name(path.parent.name + MASK_SUFFIX) / f"{path.stem}.png"
    name = str(PurePosixPath(row.path))  # without ./ and //
    return Source(path, mask, pid, camid, row.split, "", name, identity=row.pid)


def _check_paths(src: Path, lines: "array[int]", rows: Sources) -> None:
    def listed() -> Iterator[tuple[str, tuple[int, Source]]]:
        for line, row in zip(lines, rows, strict=True):
            yield str(row.path), (line, row)

    for (earlier, other), (line, row) in repeats(listed):
        where = f"{src}: line {line}: {row.name} is on line {earlier} already"
        if row.pid != other.pid:
            raise ShardError(f"{where}, as identity {other.pid} and not {row.pid}; keep one")
        if row.split == other.split:
            raise ShardError(f"{where}; keep one")
        if "train" in (row.split, other.split):
            raise ShardError(f"{where}, in {other.split} and not {row.split}; keep one")


def _check_identities(src: Path, lines: "array[int]", rows: Sources) -> None:
    if len(set(rows.splits)) == 1:
        return
    train = {row.pid for row in rows if row.split == "train"}
    for line, row in zip(lines, rows, strict=True):
        if row.split != "train" and row.pid in train:
            raise ShardError(
                f"{src}: line {line} ({row.name}): identity {row.identity} is in train too; leave the line "
                "out, or give test identities their own pids"
            )


def _common_root(rows: Sources) -> Path | None:
    """The folder that all images have in common, if one of the names cannot be joined to a folder."""
    if all(not row.name.startswith("/") and ".." not in row.name.split("/") for row in rows):
        return None
    return _common_folder(rows)


def _common_folder(rows: Sources) -> Path:
    return Path(os.path.commonpath(rows.folders))


def _searched(rows: Sources) -> tuple[Path, ...]:
    """Where images that are not listed are counted: below the images' common folder, or in each one of
    theirs where that is the root of all."""
    common = _common_folder(rows)
    return (common,) if len(common.parts) > 1 else ()


def _listed_folders(rows: Sources) -> Iterator[Path]:
    """Where the list says that images and masks are: what they have in common below each top folder."""
    tops: dict[str, list[str]] = {}
    for folder in (*rows.places(), *rows.places(masks=True)):
        tops.setdefault(folder.split("/")[1], []).append(folder)
    return (Path(os.path.commonpath(folders)) for folders in tops.values())


def _absolute(src: Path, listed: str) -> Path:
    """A listed path, without `..`, so that one file has one path."""
    return Path(os.path.normpath(Path.cwd() / src.parent / listed))
