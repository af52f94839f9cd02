"""One shard, checked completely: its bytes, its tar structure, and every sample in it."""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decode import IMAGE_MODES, MASK_FORMATS, TooManyPixels, decode
from ..errors import ShardError
from ..manifest import ShardEntry
from ..samples import DISTRACTOR_PID, JUNK_PID
from ..tar_members import BLOCK, Member, tar_members
from ..writing import FORMAT_OF_SUFFIX
from .problems import Problem

PARTS = ("image", "mask", "json")
MAX_JSON = 64 * 1024
_NAME = re.compile(r"([A-Za-z0-9_-]{1,32})(\.jpg|\.jpeg|\.png|\.webp|\.mask\.png|\.json)", re.ASCII)
_PID = re.compile(r"p(\d{8,18})_\d+", re.ASCII)
_PART_OF_SUFFIX = {".mask.png": "mask", ".json": "json"}


@dataclass
class Sample:
    """What is known of a sample: from the index, or from the tar file where there is none.

    `spans` are offset and length in bytes by part, `crc32` is empty without an index, and so are pid and
    camid.
    """

    key: str
    pid: int | None = None
    camid: int | None = None
    suffix: str = ".jpg"
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    crc32: dict[str, int] = field(default_factory=dict)


def verify_shard(
    folder: Path, name: str, entry: ShardEntry | None, rows: NDArray[np.void] | None
) -> list[Problem]:
    """All that is wrong with the shard `folder/name`.

    entry: what the manifest says of it. rows: its index records, all of them inside the shard by the
    manifest; None without an index. Any bytes may stand in the file; memory stays that of one sample and the
    list.
    """
    try:
        file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return [Problem(name, None, None, "shard-missing", error.strerror or "")]
    try:
        return list(
            _Check(name, file, [] if rows is None else _from_index(rows), rows is not None).all(entry)
        )
    except OSError as error:
        return [Problem(name, None, None, "shard-missing", f"reading failed: {error.strerror}")]
    finally:
        os.close(file)


def pid_of_key(key: str) -> int | None:
    """The pid that a key names, None where it follows another scheme."""
    if key.startswith("junk_"):
        return JUNK_PID
    if key.startswith("distractor_"):
        return DISTRACTOR_PID
    match = _PID.fullmatch(key)
    return int(match[1]) if match else None


def _from_index(rows: NDArray[np.void]) -> list[Sample]:
    return [
        Sample(
            row["key"].decode("ascii", "backslashreplace"),
            int(row["pid"]),
            int(row["camid"]),
            spans={part: (int(row[f"{part}_offset"]), int(row[f"{part}_length"])) for part in PARTS},
            crc32={part: int(row[f"{part}_crc32"]) for part in PARTS},
        )
        for row in rows
    ]


class _Check:
    """The checks of one open shard; the tar structure decides which samples can be read."""

    def __init__(self, name: str, file: int, samples: list[Sample], indexed: bool) -> None:
        self.name, self.file, self.samples, self.indexed = name, file, samples, indexed
        self.split = name.partition("/")[0]
        self.gone: set[int] = set()  # headers of listed members that are not there

    def problem(
        self, kind: str, detail: str = "", key: str | None = None, offset: int | None = None
    ) -> Problem:
        return Problem(self.name, key, offset, kind, detail)

    def all(self, entry: ShardEntry | None) -> Iterator[Problem]:
        size = os.fstat(self.file).st_size
        if entry is not None:
            yield from self.whole(entry, size)
        yield from self.structure(size)
        for sample in self.samples:
            yield from self.sample(sample)

    def whole(self, entry: ShardEntry, size: int) -> Iterator[Problem]:
        if size != entry.bytes:
            yield self.problem("shard-size", f"{size} bytes, the manifest says {entry.bytes}")
        digest = hashlib.sha256()
        for start in range(0, size, 2**20):
            digest.update(os.pread(self.file, 2**20, start))
        if digest.hexdigest() != entry.sha256:
            yield self.problem("shard-sha256")

    def structure(self, size: int) -> Iterator[Problem]:
        """The members in the file beside the listed ones; without an index this finds the samples."""
        listed = {sample.spans[part][0] - BLOCK: (sample, part) for sample in self.samples for part in PARTS}
        damaged: set[int] = set()
        seen: set[str] = set()
        last: tuple[str, str] | None = ("", "json")
        for item in tar_members(self.file, size, sorted(listed)):
            if not isinstance(item, Member):
                # The file ends here: what is listed from here on is not there.
                at_end = item.kind == "tar-end"
                sample, _ = listed.get(item.offset, (None, "")) if not at_end else (None, "")
                damaged |= set() if at_end else {item.offset}
                yield self.problem(item.kind, item.detail, sample.key if sample else None, item.offset)
                last = None  # what follows the damage may be any part
                continue
            place = listed.pop(item.header, None)
            match = _NAME.fullmatch(item.name)
            if match is None:
                yield self.problem("tar-name", repr(item.name), place[0].key if place else None, item.header)
                last = None
                continue
            key, suffix = match.groups()
            part = _PART_OF_SUFFIX.get(suffix, "image")
            if item.name in seen:
                yield self.problem("tar-duplicate", item.name, key, item.header)
            elif place is None and self.indexed:
                yield self.problem("tar-unlisted", item.name, key, item.header)
            seen.add(item.name)
            yield from self.agreement(item, key, part, suffix, place)
            if last is not None and not _follows(last, (key, part)):
                yield self.problem("tar-order", f"{item.name} after {last[0]}'s {last[1]}", key, item.header)
            last = (key, part)
        for header, (sample, part) in sorted(listed.items(), key=lambda item: item[0]):
            if header not in damaged:
                self.gone.add(header)
                yield self.problem("tar-missing", f"the {part}", sample.key, header)

    def agreement(
        self, member: Member, key: str, part: str, suffix: str, place: tuple[Sample, str] | None
    ) -> Iterator[Problem]:
        if not self.indexed:
            if not self.samples or self.samples[-1].key != key:
                self.samples.append(Sample(key, pid_of_key(key)))
            place = self.samples[-1], part
            place[0].spans[part] = member.start, member.length
        if place is None:
            return
        sample, listed_part = place
        if part == "image":
            sample.suffix = suffix
        length = sample.spans[listed_part][1]
        if (sample.key, listed_part, length) != (key, part, member.length):
            said = f"the index has the {listed_part} of {sample.key} with {length} bytes here"
            yield self.problem(
                "index-disagrees",
                f"{member.name} of {member.length} bytes; {said}",
                sample.key,
                member.header,
            )

    def sample(self, sample: Sample) -> Iterator[Problem]:
        """Bytes, pictures and json of one sample; a part that is not what it was is not looked into."""
        size: tuple[int, int] | None = None
        for part in PARTS:
            offset, length = sample.spans.get(part, (-1, 0))
            if offset < 0 or offset - BLOCK in self.gone:
                continue
            data = _pread(self.file, length, offset)
            if part in sample.crc32 and (len(data) != length or zlib.crc32(data) != sample.crc32[part]):
                detail = "cut short" if len(data) != length else ""
                yield self.problem(f"{part}-crc32", detail, sample.key, offset)
            elif part == "json":
                kind, detail = _json_problem(data, sample, self.split)
                if kind:
                    yield self.problem(kind, detail, sample.key, offset)
            else:
                kind, detail, found = _picture_problem(data, part, sample.suffix)
                if not kind and part == "mask" and size not in (None, found):
                    kind, detail = "mask-size", f"{found}, the image has {size}"
                size = found if part == "image" else size
                if kind:
                    yield self.problem(kind, detail, sample.key, offset)


def _follows(last: tuple[str, str], now: tuple[str, str]) -> bool:
    expected = PARTS[(PARTS.index(last[1]) + 1) % len(PARTS)]
    return now[1] == expected and (now[1] == "image") == (now[0] != last[0])


def _pread(file: int, length: int, offset: int) -> bytes:
    """`length` bytes, fewer only at the end of the file."""
    parts = []
    while length > 0 and (part := os.pread(file, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)


def _picture_problem(data: bytes, part: str, suffix: str) -> tuple[str, str, tuple[int, int] | None]:
    """Kind and detail of what is wrong, empty when sound, and the picture's (width, height)."""
    formats = MASK_FORMATS if part == "mask" else (FORMAT_OF_SUFFIX[suffix],)
    try:
        picture: Image.Image = decode(data, formats=formats, where=part)
    except TooManyPixels as error:
        return "too-many-pixels", str(error), None
    except ShardError as error:
        return f"{part}-undecodable", str(error), None
    if part == "image" and picture.mode not in IMAGE_MODES:
        return "image-mode", f"mode {picture.mode}", picture.size
    if part == "mask" and picture.mode != "L":
        return "mask-mode", f"mode {picture.mode}", picture.size
    return "", "", picture.size


def _json_problem(data: bytes, sample: Sample, split: str) -> tuple[str, str]:
    """Kind and detail of what is wrong with a json member, empty when sound."""
    try:
        about = json.loads(data) if len(data) <= MAX_JSON else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or any(name not in about for name in ("pid", "camid", "split")):
        return "json-invalid", f"{len(data)} bytes that are not a sample's json"
    for name, expected in (("pid", sample.pid), ("camid", sample.camid), ("split", split)):
        if expected is not None and (about[name] != expected or isinstance(about[name], bool)):
            return "json-disagrees", f"{name} {str(about[name])[:40]!r}, expected {expected!r}"
    return "", ""
