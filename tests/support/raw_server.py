"""A server that sends any bytes, at any pace: what a broken or hostile web server may send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def sending(*answers: Iterable[bytes]) -> Iterator[str]:
    """Serve each connection with the next answer, the last one for ever; yields the URL.

    An answer is the pieces that are sent; then the connection is closed. Every request is read to
    its end before.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def serve() -> None:
            served = 0
            while not stop.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                answer = answers[min(served, len(answers) - 1)]
                served += 1
                with connection, suppress(OSError):
                    request = b""
                    while b"\r\n\r\n" not in request and (more := connection.recv(4096)):
                        request += more
                    for piece in answer:
                        if stop.is_set():
                            break
                        connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/f"
        stop.set()
        with suppress(OSError):
            socket.create_connection(listening.getsockname()).close()
    thread.join(5)
