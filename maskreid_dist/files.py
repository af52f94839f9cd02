"""Writing that a kill or a full disk cannot leave half done: beside, fsync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskreid_dist.errors import UserError


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Whether a file, or a folder of files, could be written here, with the folders
    that are missing. Makes nothing.

    For before long work, whose input may yet be refused. Raises UserError.
    """
    place = path if folder else path.parent
    if not folder and path.is_dir():
        raise UserError(f"{path}: is a folder; give a file's name")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{path}: cannot be written ({place} is no folder); choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission in {place}); choose another place")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system that names no file this one: a write does not know whose it is."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: afterwards it holds either the old bytes or all of the new ones.

    Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with naming(path), beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
