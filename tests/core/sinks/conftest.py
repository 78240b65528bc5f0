from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest


class Proxy:
    """A way to a server that can lose what it answers: `cut_at` counts the answers down, and at 0 the connection ends
    instead. So do the next `refusals` connections as soon as they begin.
    """

    def __init__(self, port: int, refusals: int = 0) -> None:
        self._to, self._refusals = port, refusals
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.cut_at = self.cuts = self._to_refuse = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # ends the wait for another connection
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self._to_refuse:
                    self._to_refuse -= 1
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.cut_at:
                    self.cut_at -= 1
                    if not self.cut_at:
                        self.cuts += 1
                        self._to_refuse = self._refusals
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def start_proxy() -> Iterator[Callable[..., Proxy]]:
    """A starter of proxies to a port of this machine."""
    proxies: list[Proxy] = []

    def start(port: int, *, refusals: int = 0) -> Proxy:
        proxies.append(Proxy(port, refusals))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.stop()
