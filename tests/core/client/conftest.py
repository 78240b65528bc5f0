from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.stop()
