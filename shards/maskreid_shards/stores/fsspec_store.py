"""Object stores and whatever else fsspec knows (`s3://`, `gs://`, `az://`, `memory://`), by its range
reads."""

import os
from collections.abc import Iterator
from typing import Any

from ..errors import RemoteError, ShardError
from ..opening import MANIFEST_BYTES
from ..shown import urls_without_secrets
from .remote import Interrupted, RemoteStore

PIECE = 8 << 20


class FsspecStore(RemoteStore):
    """Credentials are those that fsspec's file system finds by itself (environment, configuration files)."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._files: Any = None
        self._pid = 0
        self._connect()  # a missing package is said at once, in the first process

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "query": self.query, "_files": None, "_pid": 0}

    def _connect(self) -> Any:
        """The file system; a new one after a fork, as fsspec demands of asynchronous ones."""
        if self._pid != os.getpid():
            where = self.where("")
            try:
                import fsspec
            except ImportError:
                raise ShardError(
                    f"{where}: needs fsspec; install maskreid-shards[remote], or fsspec and the store's "
                    "package"
                ) from None
            try:
                self._files, self._root = fsspec.core.url_to_fs(self.url(""))
            except (ImportError, ValueError) as error:  # an unknown protocol, or its package is missing
                raise ShardError(f"{where}: {self._brief(error)}") from None
            self._pid = os.getpid()
        return self._files

    def _request(self, name: str, start: int, stop: int | None, size: int | None) -> Iterator[bytes]:
        files = self._connect()
        path = f"{self._root.rstrip('/')}/{name}"
        try:
            if stop is None:
                yield files.cat_file(path, start=0, end=MANIFEST_BYTES + 1)  # one more: too large
                return
            while start < stop:
                part = files.cat_file(path, start=start, end=min(stop, start + PIECE))
                if not part:
                    raise RemoteError(f"ends here, the manifest says {size} bytes; upload it again")
                yield part
                start += len(part)
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise RemoteError(f"{type(error).__name__} ({self._brief(error)})") from None
        except (ShardError, Interrupted):
            raise
        except Exception as error:  # every store has exceptions of its own
            raise Interrupted(f"{type(error).__name__} ({self._brief(error)})") from None

    def _brief(self, error: Exception) -> str:
        return urls_without_secrets(" ".join(str(error).split()))[:200]
