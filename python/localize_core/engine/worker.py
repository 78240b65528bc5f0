"""A thread between the scheduler, which must not wait, and inference, which takes as long as it takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.windows import Window
from localize_core.errors import ConfigError
from localize_core.types.fix import Fix

Policy = Literal["block", "drop-oldest"]


@dataclass(frozen=True)
class _Job:
    window: Window
    context: WindowContext


class InferenceWorker:
    """Runs a locator on windows in the order of their coming and hands each fix to `deliver`, in its own thread.

    `policy` says what happens when `capacity` windows wait: "block" holds the caller back (files: nothing is lost),
    "drop-oldest" lets the window go that has waited longest (radios: the stream must not stall). Every window that is
    dropped is counted, and the next fix carries the number. An exception of the locator or of `deliver` ends
    the thread and is kept in `failure`.
    """

    def __init__(
        self, locator: Locator, deliver: Callable[[Fix], None], *, policy: Policy = "drop-oldest", capacity: int = 8
    ) -> None:
        if policy not in ("block", "drop-oldest"):
            raise ConfigError(f"policy={policy!r}: must be 'block' or 'drop-oldest'")
        if capacity < 1:
            raise ConfigError(f"capacity={capacity}: must be at least 1")
        self._locator, self._deliver, self._policy, self._capacity = locator, deliver, policy, capacity
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._stopping = False
        self._unreported = 0
        self.dropped = 0
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="localize-infer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, window: Window, context: WindowContext) -> None:
        """Queue a window. Raises what ended the thread, if it has ended."""
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self.failure is not None)
            elif len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self.dropped += 1
                self._unreported += 1
            self._raise_failure()
            self._waiting.append(_Job(window, context))
            self._changed.notify_all()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until every window has been answered, the thread has failed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._busy) or self.failure is not None, timeout_s)

    def drain(self) -> None:
        """Wait until every window has been answered. Raises what ended the thread, if it has ended."""
        self.settle()
        with self._changed:
            self._raise_failure()

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                context = replace(job.context, dropped=job.context.dropped + self._unreported)
                self._unreported = 0
                self._busy = True
                self._changed.notify_all()
            try:
                self._deliver(self._locator.locate(job.window, context))
            except Exception as error:  # kept for whoever submits or drains next
                with self._changed:
                    self.failure = error
                    self._changed.notify_all()
                return
