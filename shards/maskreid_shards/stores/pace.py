"""How slowly, and how much, a server may answer: one that drips a byte a second, or never stops, is left."""

import http.client
import io
import time
from typing import Any, BinaryIO

GRACE_S = 60.0  # for any answer; beyond it, MIN_RATE bytes a second on average
MIN_RATE = 16 * 1024
HEAD_BYTES = 1 << 20  # of headers, interim answers, trailers
# Of a body's length: chunks of a few bytes each carry more than themselves.
BODY_FACTOR = 8


class Pace:
    """Of one request, from now on."""

    def __init__(self) -> None:
        self.started, self.received, self.allowed = time.monotonic(), 0, HEAD_BYTES

    def allow(self, length: int) -> None:
        """A body of `length` bytes is read next."""
        self.allowed = self.received + BODY_FACTOR * length + HEAD_BYTES

    def check(self) -> None:
        """Raises OSError: too slow, or too much."""
        if self.received > self.allowed:
            raise OSError(f"sends without end, {self.received} bytes by now")
        took = time.monotonic() - self.started
        if took > GRACE_S + self.received / MIN_RATE:
            raise TimeoutError(f"too slow: {self.received} bytes in {took:.0f} s")


class PacedResponse(http.client.HTTPResponse):
    """An answer whose every read is looked at."""

    def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
        self.pace = Pace()
        super().__init__(_Watched(sock, self.pace), *arguments, **options)  # type: ignore[arg-type]


class _Watched:
    """A socket, as far as http.client's answers use one."""

    def __init__(self, socket: Any, pace: Pace) -> None:
        self.socket, self.pace = socket, pace

    def makefile(self, mode: str) -> BinaryIO:
        return io.BufferedReader(_Reads(self.socket.makefile(mode, buffering=0), self.pace))


class _Reads(io.RawIOBase):
    def __init__(self, raw: Any, pace: Pace) -> None:
        super().__init__()
        self.raw, self.pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.pace.check()
        count: int | None = self.raw.readinto(buffer)
        self.pace.received += count or 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()
