"""http(s) by range requests on the standard library: connections are kept open, every answer is checked."""

import base64
import http.client
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ..errors import RemoteError, ShardError
from ..opening import MANIFEST_BYTES
from ..shown import urls_without_secrets, without_secrets
from .pace import PacedResponse
from .remote import Interrupted, RemoteStore

TIMEOUT_S = 30.0  # for the connection, and for each read from it
PIECE = 1 << 20
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
TRY_AGAIN = {408, 425, 429}  # and all from 500
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
_log = logging.getLogger(__name__)

Connection = http.client.HTTPConnection
Place = tuple[str, str]  # scheme and host:port


class HttpStore(RemoteStore):
    """`user:password@` in the URL is basic authentication; proxies are those of the environment."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        try:
            parts = urlsplit(location)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not location.isascii() or not location.isprintable() or " " in location:
            raise ShardError(
                f"{without_secrets(location)!r}: not a usable URL; percent-encode odd characters"
            )
        self._forget_connections()

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "query": self.query}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_connections()

    def _forget_connections(self) -> None:
        self._idle: dict[Place, list[Connection]] = {}
        self._pid = os.getpid()
        self._said_slow = False

    def _request(self, name: str, start: int, stop: int | None, size: int | None) -> Iterator[bytes]:
        if stop is not None and start >= stop:
            return
        if os.getpid() != self._pid:  # after a fork: the open connections are the parent's
            self._forget_connections()
        last = "" if stop is None else stop - 1
        headers = {} if (start, stop) == (0, size) else {"Range": f"bytes={start}-{last}"}
        try:
            place, connection, response = self._open(urlsplit(self.url(name)), headers)
            try:
                yield from self._body(response, start, stop, size)
            finally:
                if response.isclosed():  # read to its end: the connection can serve again
                    self._idle.setdefault(place, []).append(connection)
                else:
                    connection.close()
        except ssl.SSLCertVerificationError as error:
            raise RemoteError(f"certificate not accepted ({error.verify_message})") from None
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(f"{type(error).__name__} ({_brief(error)})") from None
        except RemoteError:
            raise
        except ValueError as error:  # of a header or a redirect that no program would send
            raise RemoteError(f"an answer that is no http ({_brief(error)})") from None

    def _open(self, url: SplitResult, headers: dict[str, str]) -> tuple[Place, Connection, PacedResponse]:
        """The answer after redirects, with the connection that it comes from."""
        for _ in range(MAX_REDIRECTS + 1):
            place = (url.scheme, url.netloc.rpartition("@")[2])
            own = {"Accept-Encoding": "identity", **headers}
            if url.username is not None:  # a redirect's URL has none: another host gets no password
                secret = f"{unquote(url.username)}:{unquote(url.password or '')}"
                own["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
            connection, response = self._ask(url, place, own)
            if response.status not in REDIRECTS:
                return place, connection, response
            target = urlsplit(urljoin(url.geturl(), response.getheader("Location", "")))
            connection.close()
            if target.scheme not in ("https", url.scheme) or not target.hostname:
                raise RemoteError("redirected to something that is not https, or away from it")
            url = (
                target._replace(netloc=target.netloc.rpartition("@")[2])
                if target.netloc != url.netloc
                else target
            )
        raise RemoteError(f"more than {MAX_REDIRECTS} redirects")

    def _ask(
        self, url: SplitResult, place: Place, headers: dict[str, str]
    ) -> tuple[Connection, PacedResponse]:
        """Send over a kept connection, or a new one: the server may have closed a kept one in the
        meantime."""
        target = (url.path or "/") + ("?" + url.query if url.query else "")
        proxy = None if urllib.request.proxy_bypass(place[1]) else urllib.request.getproxies().get(url.scheme)
        if proxy and url.scheme == "http":
            target = f"http://{place[1]}{target}"
        idle = self._idle.get(place, [])
        while idle:
            connection = idle.pop()
            try:
                return connection, _answer(connection, target, headers)
            except (OSError, http.client.HTTPException):
                connection.close()
        connection = _connect(url, proxy)
        try:
            return connection, _answer(connection, target, headers)
        except BaseException:
            connection.close()
            raise

    def _body(
        self, response: PacedResponse, start: int, stop: int | None, size: int | None
    ) -> Iterator[bytes]:
        """The wanted bytes of an answer."""
        status = response.status
        if status >= 500 or status in TRY_AGAIN:
            raise Interrupted(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            raise RemoteError(f"HTTP {status} {response.reason}")
        length = response.getheader("Content-Length", "")
        found = int(length) if length.isdecimal() else None
        first, end = 0, stop
        if status == 206:
            answered = _CONTENT_RANGE.match(response.getheader("Content-Range", ""))
            if not answered or int(answered[1]) != start or (stop is not None and int(answered[2]) >= stop):
                raise Interrupted(f"answered another range ({response.getheader('Content-Range')})")
            first, end = start, int(answered[2]) + 1
            found = None if answered[3] == "*" else int(answered[3])
        elif stop is None:
            end = found
        if size is not None and found is not None and found != size:
            raise RemoteError(f"{found} bytes, the manifest says {size}; upload it again or convert again")
        if status == 200 and start > 0 and not self._said_slow:
            self._said_slow = True
            _log.warning(
                "%s: the server ignores Range, so each read transfers a file's beginning too; use a cache",
                self.where(""),
            )
        response.pace.allow(MANIFEST_BYTES if end is None else end - first)
        yield from _pieces(response, first, start, end)


def _answer(connection: Connection, target: str, headers: dict[str, str]) -> PacedResponse:
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    assert isinstance(response, PacedResponse)
    return response


def _brief(error: Exception) -> str:
    return urls_without_secrets(" ".join(str(error).split()))[:200]


def _pieces(response: http.client.HTTPResponse, at: int, start: int, end: int | None) -> Iterator[bytes]:
    """The bytes start ... end of a body that begins at `at`; end None: all that comes."""
    while end is None or at < end:
        part = response.read(PIECE if end is None else min(PIECE, end - at))
        if not part:
            if end is None:
                return
            raise Interrupted(f"the answer broke off at offset {at}, {end - at} bytes before its end")
        if at + len(part) > start:
            yield part[max(0, start - at) :]
        at += len(part)
    response.read(0)  # closes an answer that is read to its end


def _connect(url: SplitResult, proxy: str | None) -> Connection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else Connection
    if not proxy:
        connection = kind(url.hostname or "", url.port, timeout=TIMEOUT_S)
        connection.response_class = PacedResponse
        return connection
    through = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    connection = kind(through.hostname or "", through.port, timeout=TIMEOUT_S)
    connection.response_class = PacedResponse
    if url.scheme == "https":
        connection.set_tunnel(url.hostname or "", url.port)
    return connection
