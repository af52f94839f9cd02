"""A folder over http on the loopback, each answer late by so many milliseconds: an object store's latency.

python -m maskreid_dist.bench.slow_server FOLDER MILLISECONDS   # prints its port; ends with its stdin
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 1 << 20


@contextlib.contextmanager
def slow_server(folder: Path, latency_ms: float) -> Iterator[str]:
    """Its URL. A process of its own: what it computes is none of the reader's time."""
    command = [sys.executable, "-m", "maskreid_dist.bench.slow_server", str(folder), str(latency_ms)]
    bypassed = os.environ.get("no_proxy")
    os.environ["no_proxy"] = ",".join(filter(None, (bypassed, "127.0.0.1")))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
            os.environ.pop("no_proxy")
            if bypassed is not None:
                os.environ["no_proxy"] = bypassed


class Handler(BaseHTTPRequestHandler):
    """GET of a file below `folder`, whole or one range of it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *arguments: Any, folder: Path, latency_s: float) -> None:
        self.folder, self.latency_s = folder, latency_s
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        time.sleep(self.latency_s)
        path = (self.folder / self.path[1:]).resolve()
        if not (path.is_file() and path.is_relative_to(self.folder)):
            self.send_error(404)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start, last = (int(wanted[1]), int(wanted[2] or size - 1)) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        self.end_headers()
        with open(path, "rb") as file, contextlib.suppress(ConnectionError):
            file.seek(start)
            for at in range(start, last + 1, PIECE):
                self.wfile.write(file.read(min(PIECE, last + 1 - at)))


def main(folder: str, latency_ms: str) -> None:
    handler = partial(Handler, folder=Path(folder).resolve(), latency_s=float(latency_ms) / 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
