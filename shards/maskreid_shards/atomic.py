"""Files and folders that appear whole or not at all, and are on the disk then: beside, fsync, rename.

All writing and deleting goes through here. Folders may come from others, so what has one of our names there
need not be ours: no link is followed, and nothing but a regular file is written to.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import ShardError

PARTIAL = re.compile(r"\.maskreid-[0-9a-f]{16}\.partial")  # a file that is being written
A_LINK = "is a link, and nothing is written through links; remove it"


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
        at = partial if error.errno == errno.ELOOP else out
        raise ShardError(f"{at}: cannot be written ({error.strerror}); choose another place") from error
    try:
        yield partial
        partial.replace(out)
        sync_folder(out.parent)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kept = worth_keeping(partial)
        if not kept:
            remove_folder(partial)
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


def plain_folder(path: Path, *, own: bool = True) -> None:
    """Make a folder, or find it. Raises OSError where a link, or with `own` somebody else's folder, has the
    name."""
    with naming(path):
        path.mkdir(exist_ok=True)
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, A_LINK)
        if own and found.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"is there and belongs to user {found.st_uid}; remove it")


def remove_folder(path: Path) -> None:
    """Remove a folder of ours with all that it holds; of a link, the link alone. One that cannot be removed
    is left."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)  # follows no link inside either


def _claim(partial: Path) -> int:
    """Make the partial folder, or find it, and lock it. The lock ends with the process."""
    while True:
        plain_folder(partial)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
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


def write_atomically(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Replace `path` by `data` at once: afterwards it holds either the old bytes or all of the new ones.

    Missing folders are made; a link is replaced, not followed. A killed call leaves a hidden
    `.maskreid-*.partial`. synced=False: a power cut may lose it. Raises OSError that names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file; choose another place", str(path))
    beside = path.with_name(f".maskreid-{secrets.token_hex(8)}.partial")
    with naming(path):
        try:
            write_synced(beside, data, synced=synced)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    if synced:
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Write a new file and fsync it; its name is durable after `sync_folder`."""
    with create(path) as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def create(path: Path) -> BinaryIO:
    """A new file, in place of the file or the link that has the name. Raises OSError, also where another one
    appears meanwhile."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def open_to_append(path: Path) -> int:
    """The descriptor of a file, made if missing, for `os.fdopen`: each write goes to its end, and it can be
    read.

    Raises OSError: a link, a pipe, a device, ... has the name.
    """
    # O_NONBLOCK: opening a pipe would wait for its other end.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, A_LINK, str(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file; remove it", str(path))
    return handle


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
