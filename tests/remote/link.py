"""A TCP link to a server that delays, slows down, cuts and refuses requests."""

import math
import socket
import threading
import time
from contextlib import suppress
from typing import Self

_CHUNK = 16_384
_PAUSE = 0.1  # seconds without data after which a client sends another request
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Link:
    """Forward connections on ``port`` to a port of this machine until the end of a ``with`` block.

    Set while it runs:

    latency: seconds by which each request of a client is delayed.
    bytes_per_second: of all connections together.
    cut_in: number of bytes after which all connections are cut, once. Then it is None.
    refused: number of the next requests that are answered with 503.
    """

    def __init__(self, server_port: int) -> None:
        self.latency = 0.0
        self.bytes_per_second = math.inf
        self.cut_in: int | None = None
        self.refused = 0
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()  # also shares the bandwidth
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._open |= {client, server}
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target, source is client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        previous = -math.inf
        with suppress(OSError):  # cut, or closed by the other side
            while chunk := source.recv(_CHUNK):
                if from_client and time.monotonic() > previous + _PAUSE:
                    time.sleep(self.latency)
                with self._lock:
                    time.sleep(len(chunk) / self.bytes_per_second)
                    if from_client and self.refused:
                        self.refused -= 1
                        source.sendall(_UNAVAILABLE)
                        break
                    if self.cut_in is not None:
                        self.cut_in -= len(chunk)
                        if self.cut_in <= 0:
                            self.cut_in = None
                            self._cut()
                            return
                target.sendall(chunk)
                previous = time.monotonic()
        for end in (source, target):
            self._close(end)

    def _cut(self) -> None:
        for end in tuple(self._open):
            self._close(end)

    def _close(self, end: socket.socket) -> None:
        self._open.discard(end)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
