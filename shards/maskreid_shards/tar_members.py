"""A shard's members, read from the tar file alone: strict, bounded memory, going on after damage."""

import bisect
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCK = 512
_ZERO = bytes(BLOCK)
# What the format fixes of a header (ustar, POSIX 1003.1-1988): mode 0644, user and group 0; time 0; after the
# type no link, magic and version, no names, device or prefix.
_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_END = (bytes(100) + b"ustar\00000").ljust(BLOCK - 157, b"\0")
_SIZE = re.compile(rb"[0-7]{11}\0")
_TYPES = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "fifo",
}


@dataclass(frozen=True)
class Member:
    """A member with a sound header: `header` and `start` (of its data) are offsets in bytes."""

    name: str
    header: int
    start: int
    length: int


@dataclass(frozen=True)
class Damage:
    """What is wrong with the tar file at `offset`; `kind` is one of `verify.KINDS`."""

    offset: int
    kind: str
    detail: str


def tar_members(file: int, size: int, resume: Sequence[int] = ()) -> Iterator[Member | Damage]:
    """Every member of the tar file open as descriptor `file`, of `size` bytes, and every damage, in file
    order.

    `resume` are sorted offsets at which headers should stand: reading continues at the next one after a
    header that cannot be believed, and stops for good where there is none.
    """
    position = 0
    while True:
        block = os.pread(file, BLOCK, position)
        following = bisect.bisect_right(resume, position)
        if len(block) < BLOCK or (
            block == _ZERO and following == len(resume) and position not in resume[-1:]
        ):
            yield from _end(file, size, position)
            return
        damage, length = _check(block, position)
        start = position + BLOCK
        if damage is None and start + length > size:
            damage = Damage(position, "tar-truncated", f"a member of {length} bytes ends after the file")
        if damage is None:
            yield Member(block[:100].rstrip(b"\0").decode("ascii"), position, start, length)
        else:
            yield damage
            if damage.kind != "tar-type" or start + length > size:
                if following == len(resume):
                    return
                position = resume[following]
                continue
        padding = -length % BLOCK
        if os.pread(file, padding, start + length).strip(b"\0"):
            yield Damage(start + length, "tar-padding", "the bytes that fill the last block are not zero")
        position = start + length + padding


def _check(block: bytes, position: int) -> tuple[Damage | None, int]:
    """What is wrong with a header, and the length of the member's data in bytes."""
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if block[148:156] != b"%06o\0 " % checksum or not _SIZE.fullmatch(block[124:136]):
        return Damage(position, "tar-header", "no header that fits its checksum"), 0
    length = int(block[124:135], 8)
    if block[156:157] != b"0":
        what = _TYPES.get(block[156:157], f"of type {block[156:157]!r}")
        return Damage(position, "tar-type", f"a member that is no regular file: {what}"), length
    if (block[100:124], block[136:148], block[157:]) != (_OWNER, _TIME, _END):
        return Damage(
            position, "tar-header", "mode, owner, time, link or prefix are not the format's"
        ), length
    name = block[:100].rstrip(b"\0")
    if not name.isascii() or not name.decode("ascii").isprintable():
        return Damage(position, "tar-header", f"the member's name is {name[:40]!r}"), length
    return None, length


def _end(file: int, size: int, position: int) -> Iterator[Damage]:
    """After the last member: two zero blocks and nothing else."""
    if size - position == 2 * BLOCK and not os.pread(file, 2 * BLOCK, position).strip(b"\0"):
        return
    what = f"{max(0, size - position)} bytes after the last member, not two zero blocks alone"
    yield Damage(position, "tar-end", what)
