"""A server on the loopback that answers requests with any bytes, for tests."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def answering(answers: Sequence[bytes], again: bytes = b"") -> Iterator[str]:
    """The URL of a server that answers each request by the next of these, then by the last; and goes on with
    `again`, unless that is empty, for as long as it is listened to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sent = 0
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(answers[min(sent, len(answers) - 1)])
                        sent += 1
                        while again:
                            connection.sendall(again)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
