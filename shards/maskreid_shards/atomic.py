"""Files and folders that appear whole or not at all, and are on the disk then: beside, fsync, rename."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import ShardError


@contextlib.contextmanager
def partial_folder(out: Path, worth_keeping: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A hidden sibling folder that becomes `out` when the block ends well, and disappears when it fails.

    It stays when the process is killed or interrupted (KeyboardInterrupt), or `worth_keeping` says so of it
    after a failure; the next block for the same `out` finds it again, as it was left.
    """
    out = out.resolve()
    partial = partial_of(out)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial)
    except OSError as error:
        raise ShardError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    try:
        yield partial
        partial.replace(out)
        sync_folder(out.parent)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kept = worth_keeping(partial)
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in new_parents:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        if isinstance(error, OSError):
            what = "what was finished is kept, the same command goes on" if kept else "nothing was kept"
            raise ShardError(f"{out}: cannot be written ({error.strerror}); {what}") from error
        raise
    finally:
        os.close(lock)


def partial_of(out: Path) -> Path:
    """The hidden sibling of the folder `out`, an absolute path."""
    return out.parent / f".{out.name}.maskreid-partial"


def _claim(partial: Path) -> int:
    """Make the partial folder, or find it, and lock it. The lock ends with the process."""
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ShardError(
                f"{partial}: another conversion is writing here; wait for it or choose another folder"
            ) from None
        # Another process may have removed and remade the folder between our open and our lock.
        if os.path.samestat(os.fstat(lock), partial.stat()):
            return lock
        os.close(lock)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once: afterwards it holds either the old bytes or all of the new ones.

    Missing folders are made. One writer at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with naming(path):
        write_synced(beside, data)
    beside.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and fsync it; its name is durable after `sync_folder`."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system that names no file this one: a write does not know whose it
    is."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def sync_folder(folder: Path) -> None:
    """fsync a directory: its entries, not its files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
