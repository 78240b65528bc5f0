from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from localize_core.client import FixSubscriber
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.types.fix import Fix

WAIT_S = 20.0


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], None]:
    return _wait_for


class Publisher:
    """A ZeroMQ sink that can be killed and started again at its address."""

    def __init__(self) -> None:
        self.start("tcp://127.0.0.1:*")
        self.url = str(self._sink.bound_endpoint)

    def start(self, url: str | None = None) -> None:
        self._sink = ZmqFixSink(url or self.url, linger_ms=0)
        self._sink.open()

    def stop(self) -> None:
        self._sink.close()

    def publish(self, *fixes: Fix) -> None:
        for fix in fixes:
            assert self._sink.publish(fix)

    def until_heard(self, fixes: FixSubscriber, fix: Fix) -> Fix:
        """Publish the same fix until the subscriber has it: a subscription takes a moment to reach the publisher."""
        heard = threading.Event()

        def repeat() -> None:
            while not heard.wait(0.01):
                self._sink.publish(fix)

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            return next(fixes)
        finally:
            heard.set()
            thread.join()


class Relay:
    """Forwards connections to a port of this machine; cut, it breaks those that stand and takes no other."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay() -> Iterator[Callable[[int], Relay]]:
    """A maker of relays to a port."""
    relays: list[Relay] = []

    def make(port: int) -> Relay:
        relays.append(Relay(port))
        return relays[-1]

    yield make
    for each in relays:
        each.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.stop()
