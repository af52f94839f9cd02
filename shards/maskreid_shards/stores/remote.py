"""Shards behind a URL: what http and fsspec stores share, which is retries and what messages say."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from ..errors import RemoteError
from ..manifest import ShardEntry
from ..shown import printable, without_secrets

ATTEMPTS = 5  # requests for one read, in all
BACKOFF_S = 0.2  # before the second attempt; doubles with each: 3 s in all


class Interrupted(Exception):
    """A request that failed in a way that may pass: worth another attempt."""


class RemoteStore(ABC):
    """Files under a URL. Its query (a signature) goes with every request, and its secrets into no message."""

    def __init__(self, location: str) -> None:
        base, mark, query = location.partition("?")
        self.base, self.query = base.rstrip("/"), mark + query

    def url(self, name: str) -> str:
        return f"{self.base}/{name}{self.query}" if name else self.base + self.query

    def where(self, name: str) -> str:
        base = without_secrets(self.base)
        return f"{base}/{name}" if name else base

    def read(self, name: str, size: int | None = None, *, limit: int | None = None) -> bytes:
        """A whole file. Raises RemoteError, also for one of more than `limit` bytes."""
        parts, got = [], 0
        for part in self.stream(name, 0, size, size, "whole file"):
            got += len(part)
            if limit is not None and got > limit:
                raise RemoteError(f"{self.where(name)}: more than {limit} bytes; is it the right URL?")
            parts.append(part)
        return b"".join(parts)

    def fetch(self, shard: ShardEntry, start: int, length: int, key: str) -> bytes:
        stop = min(start + length, shard.bytes)
        return b"".join(self.stream(shard.name, start, stop, shard.bytes, key))

    def distrust(self, shard: ShardEntry) -> bool:
        return True  # the transport may have spoilt them

    def stream(
        self, name: str, start: int, stop: int | None, size: int | None, key: str = ""
    ) -> Iterator[bytes]:
        """The bytes start ... stop of a file of `size` bytes, in pieces; None: to the end, of unknown size.

        A failed request is followed by one that goes on where it broke off, ATTEMPTS in all. Raises
        RemoteError naming URL, key, offset and the number of attempts.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                for part in self._request(name, start, stop, size):
                    start += len(part)
                    yield part
                return
            except Interrupted as error:
                reason = printable(str(error))
            except RemoteError as error:  # final: another attempt would end alike
                raise RemoteError(
                    f"{self.where(name)}: {key + ': ' if key else ''}offset {start}: {printable(str(error))} "
                    f"(attempt {attempt} of {ATTEMPTS})"
                ) from None
            if attempt < ATTEMPTS:
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        raise RemoteError(
            f"{self.where(name)}: {key + ': ' if key else ''}offset {start}: {reason}; gave up after "
            f"{ATTEMPTS} attempts; check the server and the network"
        )

    @abstractmethod
    def _request(self, name: str, start: int, stop: int | None, size: int | None) -> Iterator[bytes]:
        """One attempt. Raises Interrupted where another may succeed, else RemoteError with the bare
        reason."""
