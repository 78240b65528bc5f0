"""The thread that asks for news and does what takes long, so that nobody else has to wait."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from localize_core.errors import ConfigError

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""First wait after a failure; it doubles up to the usual one."""
STOP_S = 5.0
NEVER_S = 365.0 * 86_400.0

T = TypeVar("T")


class Watcher:
    """Calls `poll` about every `interval_s()` seconds, 0 for never, and does tasks in between, one at a time.

    Waits differ a little, so that many stations do not ask at the same time. After a `poll` that returns False the next
    one comes sooner.
    """

    def __init__(self, poll: Callable[[], bool], interval_s: Callable[[], float], *, name: str) -> None:
        self._poll, self._interval_s = poll, interval_s
        self._tasks: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._failures = 0
        self._hurried = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def do(self, task: Callable[[], T]) -> Future[T]:
        """Have it done in the watcher's thread. Raises ConfigError when it is stopping."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except Exception as error:  # belongs to whoever asked for it
                done.set_exception(error)

        with self._changed:
            if self._stopping:
                raise ConfigError("the engine has stopped")
            self._tasks.append(run)
            self._changed.notify_all()
        return done

    def hasten(self) -> None:
        """Poll soon: something points to news."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread when what was asked for before is done; what takes too long is left to itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        due_s = time.monotonic() + self._pause_s()
        while True:
            with self._changed:
                left_s = max(due_s - time.monotonic(), 0.0)
                self._changed.wait_for(lambda: self._tasks or self._stopping or self._hurried, left_s)
                if self._hurried:
                    due_s, self._hurried = min(due_s, time.monotonic() + RETRY_S), False
                task = self._tasks.popleft() if self._tasks else None
                if task is None and self._stopping:
                    return
            if task is not None:
                task()
                due_s = min(due_s, time.monotonic() + self._pause_s())  # it may have changed how often
            elif time.monotonic() >= due_s:
                self._failures = 0 if self._polled() else self._failures + 1
                due_s = time.monotonic() + self._pause_s()

    def _polled(self) -> bool:
        try:
            return self._poll()
        except Exception:  # whatever a library raises: a station that nobody watches must go on watching
            log.exception("asking for news failed")
            return False

    def _pause_s(self) -> float:
        longest_s = self._interval_s() or NEVER_S
        if self._failures:
            longest_s = min(longest_s, RETRY_S * 2.0 ** min(self._failures - 1, 16))
        return longest_s * random.uniform(0.8, 1.0)
