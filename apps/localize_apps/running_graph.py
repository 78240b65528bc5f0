"""A graph of a live station while it runs, and what its sinks have done over all graphs."""

from __future__ import annotations

import threading
import time

from gnuradio.localize.receivers import Receivers
from localize_core.errors import LocalizeError
from localize_core.metrics.sinks import CountingSink

from localize_apps.graph import Listener, StationGraph

STOP_S = 10.0
"""A flowgraph may take so long to stop."""
STALL_S = 30.0
"""A graph that takes nothing for so long while samples wait has failed."""


class RunningGraph:
    """A graph with its listener, and the thread that waits for its end."""

    def __init__(self, graph: StationGraph, listener: Listener) -> None:
        self.graph, self.listener = graph, listener
        self.began_s = 0.0
        self._ended = threading.Event()
        self._moved_s = 0.0
        self._progress: list[int] = []

    def start(self) -> None:
        self.began_s = self._moved_s = time.monotonic()
        self.graph.start()
        threading.Thread(target=self._wait, name="localize-wait", daemon=True).start()

    def _wait(self) -> None:
        self.graph.wait()
        self._ended.set()

    def trouble(self, receivers: Receivers) -> Exception | None:
        """Why another graph is needed, if it is."""
        if self.graph.failure is not None:
            return self.graph.failure
        if self._ended.is_set():
            return LocalizeError("the flowgraph ended")
        delivered = [buffer.count.delivered for buffer in receivers.buffers]
        if delivered != self._progress or not any(buffer.count.waiting for buffer in receivers.buffers):
            self._progress, self._moved_s = delivered, time.monotonic()
        if time.monotonic() - self._moved_s > STALL_S:
            return LocalizeError(f"the flowgraph has taken nothing for {STALL_S:g} s")
        return None

    def stop(self, *, finish: bool) -> bool:
        """Returns whether it has stopped."""
        if finish and not self._ended.is_set():
            self.graph.finish()
        self.graph.stop()
        return self._ended.wait(STOP_S)


class SinkAccount:
    """The account of a sink over all graphs that it was in."""

    def __init__(self) -> None:
        self._ended_sent = self._ended_dropped = 0
        self._now: CountingSink | None = None

    def go_on(self, sink: CountingSink) -> None:
        if self._now is not None:
            self._ended_sent += self._now.sent
            self._ended_dropped += self._now.dropped + self._now.backlog
        self._now = sink

    @property
    def sent(self) -> int:
        return self._ended_sent + (0 if self._now is None else self._now.sent)

    @property
    def dropped(self) -> int:
        return self._ended_dropped + (0 if self._now is None else self._now.dropped)

    @property
    def backlog(self) -> int:
        return 0 if self._now is None else self._now.backlog
