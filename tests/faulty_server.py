"""An http server on the loopback that serves a folder and misbehaves on request, for tests."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer(ThreadingHTTPServer):
    """`fault(path, number)` names what happens to the number-th request (from 0) for a path:

    "ok", "drop" (no answer), "cut" (half of the body), "500", "403", "ignore" (Range ignored), "flip" (a
    wrong byte), "shift" (another range than asked for).
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fault: Callable[[str, int], str] = lambda path, number: "ok"
        self.requests: list[tuple[str, str | None]] = []  # path with query, Range
        self.authorizations: set[str | None] = set()
        self.connections = 0
        self.counts: dict[str, int] = {}
        self.guard = threading.Lock()

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        with server.guard:
            number = server.counts.get(path, 0)
            server.counts[path] = number + 1
            server.requests.append((self.path, self.headers["Range"]))
            server.authorizations.add(self.headers["Authorization"])
        fault = server.fault(path, number)
        file = server.folder / path[1:]
        if fault == "drop":
            self.close_connection = True
        elif fault.isdigit():
            self.answer(int(fault), b"")
        elif not file.is_file():
            self.answer(404, b"")
        else:
            self.send_file(file.read_bytes(), fault)

    def send_file(self, data: bytes, fault: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start, stop = (int(wanted[1]), int(wanted[2] or len(data) - 1) + 1) if wanted else (0, len(data))
        if fault == "shift" and wanted:
            start, stop = start + 1, stop + 1
        body = bytearray(data[start:stop])
        if fault == "flip":
            body[len(body) // 2] ^= 1
        if wanted and fault != "ignore":
            self.answer(206, bytes(body), f"bytes {start}-{stop - 1}/{len(data)}", cut=fault == "cut")
        else:
            self.answer(200, data if fault == "ignore" else bytes(body), cut=fault == "cut")

    def answer(self, status: int, body: bytes, content_range: str = "", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
