"""A proxy that cuts connections: between the client and a real server, the network at its worst."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

BLOCK_BYTES = 65_536


class Cutting:
    """Forwards connections; connection number n is cut after `cuts[n]` bytes from the client, later ones never."""

    def __init__(self, upstream: str, cuts: Sequence[int]) -> None:
        self.upstream = (urlsplit(upstream).hostname, urlsplit(upstream).port)
        self.cuts, self.connections = list(cuts), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                limit = self.cuts[self.connections] if self.connections < len(self.cuts) else None
                self.connections += 1
                server = socket.create_connection(self.upstream)
                self._start(client, server, limit)
                self._start(server, client, None)

    def _start(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        thread = threading.Thread(target=_pump, args=(source, target, limit), daemon=True)
        self.threads.append(thread)
        thread.start()


def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    left = limit
    with contextlib.suppress(OSError):
        while data := source.recv(BLOCK_BYTES if left is None else min(left, BLOCK_BYTES)):
            target.sendall(data)
            if left is not None:
                left -= len(data)
                if left == 0:
                    break
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextlib.contextmanager
def between(upstream: str, *, cuts: Sequence[int]) -> Iterator[Cutting]:
    proxy = Cutting(upstream, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
