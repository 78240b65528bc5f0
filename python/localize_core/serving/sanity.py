"""The sanity of a stream's receivers, looked at beside the stream: whoever waits for fixes does not wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from localize_core.engine.windows import Window
from localize_core.engine.worker import InferenceWorker
from localize_core.sanity.monitor import CONDITIONS, SanityMonitor
from localize_core.serving.health import Health
from localize_core.types.fix import Fix

log = logging.getLogger(__name__)

CAPACITY = 2
"""Windows that may wait: they are large."""
_Job = tuple[Window, Fix]


class SanityWatch:
    """Shows windows and their fixes to a monitor, in a thread between `start` and `stop`, and says in `health` what it
    finds. `notify`: called when that changes.
    """

    def __init__(self, monitor: SanityMonitor, health: Health, notify: Callable[[], None]) -> None:
        self.monitor = monitor
        self._health, self._notify = health, notify
        self._worker: InferenceWorker[_Job, bool] | None = None

    def start(self, *, live: bool) -> None:
        """`live`: a window goes where there is no time for it; else the stream waits, and every run finds the same."""
        self.monitor.forget()
        self._worker = InferenceWorker(
            self._looked,
            self._tell,
            policy="drop-oldest" if live else "block",
            capacity=CAPACITY,
            low_priority=live,
            name="localize-sanity",
        )
        self._worker.start()

    def stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.stop()
        try:
            if worker.failure is not None:
                raise worker.failure
            self._tell(self.monitor.flush())
        except Exception as error:
            self._give_up(error)

    def offer(self, windows: Sequence[Window], fixes: Sequence[Fix]) -> None:
        """Windows of the stream that were answered. Never raises."""
        worker = self._worker
        if worker is None:
            return
        try:
            for window, fix in zip(windows, fixes, strict=True):
                if self.monitor.wants(fix):
                    worker.submit((window, fix))
        except Exception as error:
            self._worker = None
            self._give_up(error)

    def report(self) -> dict[str, Any]:
        """For a status; empty before the first window."""
        return self.monitor.report()

    def _give_up(self, error: Exception) -> None:
        """Whatever looking at windows has done, the stream has nothing to do with it."""
        log.error("the receivers' sanity is not looked at any more", exc_info=error)
        if self._health.clear(*CONDITIONS):
            self._notify()

    def _looked(self, jobs: Sequence[_Job], dropped: Sequence[int]) -> bool:
        ((window, fix),) = jobs
        return self.monitor.add(window, fix)

    def _tell(self, changed: bool) -> None:
        if not changed:
            return
        found = self.monitor.conditions
        news = self._health.clear(*(name for name in CONDITIONS if name not in found))
        for name, detail in found.items():
            if self._health.report(name, detail):
                log.warning("%s: %s", name, detail)
                news = True
        if news:
            self._notify()
