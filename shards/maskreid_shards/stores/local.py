"""Where the files of a shard folder are. `LocalStore` reads a folder; `remote` and `cache` have the
others."""

import os
from collections import OrderedDict
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from ..errors import ShardError
from ..manifest import ShardEntry
from ..opening import INDEX_BYTES, read_file, regular_only

MAX_OPEN_SHARDS = 128


class Store(Protocol):
    """What a Split reads from. Pickles to its location: files and connections are opened in each process."""

    def url(self, name: str) -> str:
        """The path or URL of a file, for other programs."""
        ...

    def where(self, name: str) -> str:
        """The same for messages: without credentials."""
        ...

    def read(self, name: str, size: int | None = None) -> bytes:
        """A whole small file; `size` is the expected one in bytes."""
        ...

    def fetch(self, shard: ShardEntry, start: int, length: int, key: str) -> bytes:
        """Bytes of a shard, fewer at its end; `key` is for messages. Raises ShardError."""
        ...

    def distrust(self, shard: ShardEntry) -> bool:
        """Bytes of this shard were wrong: forget what is kept of it. Returns whether to fetch them again."""
        ...


class OpenShard(FileIO):
    """A shard, closed when the last reader lets go of it; FileIO itself would warn then."""

    def __del__(self) -> None:
        self.close()

    def pread(self, start: int, length: int) -> bytes:
        """Up to `length` bytes. Needs no position: threads, and processes after a fork, may share the
        file."""
        parts = []
        while length > 0:  # pread may return less than asked for
            try:
                part = os.pread(self.fileno(), length, start)
            except OSError as error:
                raise ShardError(
                    f"{self.name}: reading at offset {start} failed ({error.strerror})"
                ) from error
            if not part:
                break
            parts.append(part)
            start += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class OpenShards:
    """The open files of a process, at most MAX_OPEN_SHARDS; pickles to none."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict()}

    def get(self, name: str, opener: Callable[[], OpenShard]) -> OpenShard:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = opener()
            while len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)  # closed once nobody reads from it any more
        return file

    def forget(self, name: str) -> None:
        self._files.pop(name, None)


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = OpenShards()

    def url(self, name: str) -> str:
        return str(self.folder / name)

    def where(self, name: str) -> str:
        return self.url(name)

    def read(self, name: str, size: int | None = None) -> bytes:
        return read_file(self.folder / name, INDEX_BYTES)

    def fetch(self, shard: ShardEntry, start: int, length: int, key: str) -> bytes:
        return self._open.get(shard.name, lambda: self._opened(shard)).pread(start, length)

    def distrust(self, shard: ShardEntry) -> bool:
        return False  # the disk would say the same again

    def _opened(self, shard: ShardEntry) -> OpenShard:
        path = self.folder / shard.name
        try:
            return OpenShard(path, opener=regular_only)
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be opened ({error.strerror}); restore it or convert again"
            ) from error
