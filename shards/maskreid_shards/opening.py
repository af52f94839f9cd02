"""Opening what a user was given: regular files alone, without waiting, and no more bytes than anybody needs.

A pipe or a device under the name of a file would hang its reader, or feed it for ever.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST_BYTES = 64 << 20  # also of every other JSON file
INDEX_BYTES = 4 << 30  # 37 million samples
PICTURE_BYTES = 256 << 20  # of an image or a mask
TEXT_BYTES = 1 << 30  # of a list of images, of a run's records
WEIGHTS_BYTES = 32 << 30
RECIPE_BYTES = 1 << 20


def regular_only(path: str, flags: int) -> int:
    """The `opener` of `open`. Raises OSError for what is no regular file, or a link to one."""
    return _opened(path, flags)[0]


def _opened(path: str | Path, flags: int = os.O_RDONLY) -> tuple[int, int]:
    """The descriptor of a regular file and its size."""
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    found = os.fstat(handle)
    mode = found.st_mode
    if stat.S_ISREG(mode):
        return handle, found.st_size
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or the like"
    raise OSError(errno.EINVAL, f"is {kind}, no file", str(path))


def read_file(path: Path, limit: int) -> bytes:
    """All bytes of a regular file. Raises OSError: no such file, another kind, or more than `limit` bytes."""
    handle, size = _opened(path)  # no file object: half of the time for a small file
    try:
        if size > limit:
            raise OSError(errno.EFBIG, f"has {size} bytes, and at most {limit} are read", str(path))
        return _read(handle, size)
    finally:
        os.close(handle)


def read_head(path: Path, length: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, and its size. Raises OSError."""
    handle, size = _opened(path)
    try:
        return _read(handle, min(size, length)), size
    finally:
        os.close(handle)


def _read(handle: int, size: int) -> bytes:
    """So many bytes, fewer where the file has become shorter."""
    data = os.read(handle, size)
    while len(data) < size and (more := os.read(handle, size - len(data))):
        data += more
    return data


def read_text(path: Path, limit: int = MANIFEST_BYTES) -> str:
    """The same as UTF-8. Raises UnicodeDecodeError (a ValueError) too."""
    return read_file(path, limit).decode()


def read_json(path: Path, limit: int = MANIFEST_BYTES) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError for one that is none, or too deep."""
    return parse_json(read_file(path, limit))


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError alone."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a text file that are a JSON object, with it; others (torn by a kill) are passed over.
    Raises OSError."""
    for line in read_file(path, TEXT_BYTES).decode(errors="replace").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield line, record
