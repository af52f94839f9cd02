"""Whole shards of a remote store in a local folder, verified, shared by the processes of a machine."""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..atomic import create, open_to_append, sync_folder
from ..errors import RemoteError, ShardError
from ..manifest import ShardEntry
from ..opening import regular_only
from .local import OpenShard, OpenShards
from .remote import RemoteStore

_OURS = re.compile(r"[0-9a-f]{40}\.tar")
DOWNLOADS = 2  # of a shard whose sha256 does not fit, in all
_log = logging.getLogger(__name__)


class CachedStore:
    """A remote store whose shards are downloaded whole, on first use, into `folder`.

    A file's name hashes the shard's whole URL and its sha256, so shards of equal base names, or of two
    generations at one URL, never meet. It appears by a rename after its size and sha256 were checked; a lock
    file beside it lets one process download while the others wait. max_bytes: the least recently opened files
    beyond it are removed after a download.
    """

    def __init__(self, remote: RemoteStore, folder: Path, max_bytes: int | None = None) -> None:
        self.remote, self.folder, self.max_bytes = remote, folder, max_bytes
        self._open = OpenShards()
        self._verified: set[str] = set()
        try:
            folder.mkdir(0o755, parents=True, exist_ok=True)  # whatever the umask
            about = folder.stat()
        except OSError as error:
            raise ShardError(f"{folder}: no place for a cache ({error.strerror}); choose another") from error
        _check_owner(folder, about)

    def url(self, name: str) -> str:
        return self.remote.url(name)

    def where(self, name: str) -> str:
        return self.remote.where(name)

    def read(self, name: str, size: int | None = None) -> bytes:
        return self.remote.read(name, size)

    def fetch(self, shard: ShardEntry, start: int, length: int, key: str) -> bytes:
        return self._open.get(shard.name, lambda: self._opened(shard)).pread(start, length)

    def distrust(self, shard: ShardEntry) -> bool:
        """Remove the shard's file if its sha256 is wrong; it is right when another process mended it
        already."""
        self._open.forget(shard.name)
        self._verified.discard(shard.name)
        path = self.path_of(shard)
        with self._locked(path), contextlib.suppress(FileNotFoundError):
            with open(path, "rb", opener=regular_only) as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
            if not sound:
                _log.warning("%s: damaged, fetching %s again", path, self.where(shard.name))
                path.unlink()
        return True

    def path_of(self, shard: ShardEntry) -> Path:
        name = hashlib.sha256(f"{self.url(shard.name)}\n{shard.sha256}".encode()).hexdigest()
        return self.folder / f"{name[:40]}.tar"

    def _opened(self, shard: ShardEntry) -> OpenShard:
        path = self.path_of(shard)
        for _ in range(10):  # another process may remove the file again to make room
            with contextlib.suppress(FileNotFoundError):
                file = OpenShard(path, opener=regular_only)
                if self._is_it(file, shard):
                    os.utime(path)
                    return file
                file.close()
            with self._locked(path):
                if not self._is_there(path, shard):
                    self._download(shard, path)
        raise RemoteError(f"{self.folder}: shards are removed as soon as they come; make the cache larger")

    def _is_it(self, file: OpenShard, shard: ShardEntry) -> bool:
        """By sha256, once a process: whoever can write here could have made the crc32s fit."""
        if os.fstat(file.fileno()).st_size != shard.bytes:
            return False
        if shard.name not in self._verified:
            with open(file.fileno(), "rb", closefd=False) as reader:
                if hashlib.file_digest(reader, "sha256").hexdigest() != shard.sha256:
                    _log.warning("%s: damaged, fetching %s again", file.name, self.where(shard.name))
                    return False
            self._verified.add(shard.name)
        return True

    def _is_there(self, path: Path, shard: ShardEntry) -> bool:
        with contextlib.suppress(FileNotFoundError), OpenShard(path, opener=regular_only) as file:
            return self._is_it(file, shard)
        return False

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Alone with a file of the cache; the lock ends with the process. Raises ShardError for a full disk
        and the like."""
        try:
            with os.fdopen(open_to_append(path.with_suffix(".lock")), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise RemoteError(
                f"{error.filename or self.folder}: the cache cannot be written ({error.strerror}); make room "
                "or choose another"
            ) from error

    def _download(self, shard: ShardEntry, path: Path) -> None:
        partial = path.with_suffix(".partial")  # one writer: the lock is held
        try:
            for _ in range(DOWNLOADS):
                digest = hashlib.sha256()
                with create(partial) as file:
                    for part in self.remote.stream(shard.name, 0, shard.bytes, shard.bytes):
                        file.write(part)
                        digest.update(part)
                    file.flush()
                    os.fsync(file.fileno())
                if digest.hexdigest() == shard.sha256:
                    partial.replace(path)
                    sync_folder(self.folder)
                    self._make_room(path)
                    return
                _log.warning("%s: came with another sha256 than the manifest's", self.where(shard.name))
        finally:
            partial.unlink(missing_ok=True)
        raise RemoteError(
            f"{self.where(shard.name)}: does not fit the manifest's sha256, {DOWNLOADS} downloads in all; "
            "upload it again or convert again"
        )

    def _make_room(self, newest: Path) -> None:
        if self.max_bytes is None:
            return
        files = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                about = path.lstat()
                if _OURS.fullmatch(path.name) and stat.S_ISREG(about.st_mode):  # not what else lies here
                    files.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self.max_bytes and path != newest:
                path.unlink(missing_ok=True)  # processes that have it open keep reading it
                total -= size


def _check_owner(folder: Path, about: os.stat_result) -> None:
    """Raises ShardError for another user's folder, who may change a file after it was checked; root is told
    instead, and so is everybody of a folder that others may write to."""
    if about.st_uid not in (os.geteuid(), 0):
        whose = f"{folder}: the cache belongs to user {about.st_uid}, who can change what is read"
        if os.geteuid():
            raise ShardError(f"{whose}; choose a folder of your own")
        _log.warning("%s", whose)
    elif about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _log.warning("%s: others may write to this cache, and change what is read; chmod go-w", folder)
