"""A station with radios, as it runs for months: its graph starts anew where it fails, and follows its station file."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from gnuradio.localize.radios import open_radio
from gnuradio.localize.receivers import OpenRadio, Receivers
from localize_core.errors import ConfigError, LocalizeError
from localize_core.metrics.sinks import CountingSink
from localize_core.serving.engine import Engine
from localize_core.station.config import Station
from localize_core.types.fix import Fix

from localize_apps import logs
from localize_apps.commands import controlled, not_followed, reload_model, signals
from localize_apps.graph import Listener, OnAlive, OnFix, OnStatus, Recorder, RunResult, StationGraph
from localize_apps.outlets import OnServing, check_outlets, outlets

log = logging.getLogger(__name__)

LOOK_S = 0.2
ALIVE_S = 1.0
"""From one word that the run is alive to the next."""
STOP_S = 10.0
"""A flowgraph may take so long to stop."""
MOST_FAILURES = 5
"""So many in a row end the run."""
STEADY_S = 60.0
"""A graph that has run for so long begins another row."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0
"""Before a graph that has failed starts anew: after the first failure, and at most."""
STALL_S = 30.0
"""A graph that takes nothing for so long while samples wait has failed."""


def run_live(
    station: Station,
    *,
    on_fix: OnFix,
    on_status: OnStatus,
    on_alive: OnAlive,
    duration_s: float | None,
    stopped: threading.Event,
    reread: Callable[[], Station] | None,
    on_serving: OnServing,
    serving: ExitStack | None,
    recorder: Recorder | None,
    radio_of: OpenRadio = open_radio,
) -> RunResult:
    """As `run_station`, of a station with radios."""
    hung_up = threading.Event()
    with signals(stopped, None if reread is None else hung_up):
        run = LiveRun(
            station, on_fix=on_fix, on_status=on_status, on_serving=on_serving, recorder=recorder, radio_of=radio_of,
            most_failures=0 if duration_s is not None else MOST_FAILURES,
        )  # fmt: skip
        end_s = None if duration_s is None else time.monotonic() + duration_s
        told_s = 0.0
        try:
            if not stopped.is_set():  # while it was built
                run.start()
            while not stopped.wait(LOOK_S) and run.look() and (end_s is None or time.monotonic() < end_s):
                if reread is not None and hung_up.is_set():
                    hung_up.clear()
                    run.reload(reread, lambda: on_alive(run.alive("reloading")))
                    told_s = 0.0
                if time.monotonic() - told_s >= ALIVE_S:
                    told_s = time.monotonic()
                    on_alive(run.alive("running"))
            without_fix = run.without_fix()
            on_alive(run.alive("stopping"))
        finally:
            run.stop(serving)
    interrupted = run.failure is None and stopped.is_set()
    return RunResult(run.fixes, run.dropped, run.failure, interrupted, without_fix)


class LiveRun:
    """What a live station consists of while it runs: receivers, graph, and what it serves.

    Between `start` and `stop`, `look` is to be called all the time, from one thread.

    Raises ConfigError, ModelError, RegistryError, UnavailableError or SourceError for what cannot run.
    """

    def __init__(
        self,
        station: Station,
        *,
        on_fix: OnFix,
        on_status: OnStatus,
        on_serving: OnServing,
        recorder: Recorder | None,
        radio_of: OpenRadio,
        most_failures: int,
    ) -> None:
        self.station = station
        self.failure: Exception | None = None
        self._on_fix, self._on_status, self._on_serving = on_fix, on_status, on_serving
        self._recorder, self._radio_of, self._most_failures = recorder, radio_of, most_failures
        self._shown: OnFix = lambda fix: None
        self._serving = ExitStack()
        self._sinks: dict[str, _Sink] = {}
        self._failures = 0
        self._ended_fixes = self._ended_dropped = 0
        self._accepted = False  # whether a device that can never work is only a device that is lost
        self._telling = threading.Lock()
        self._receivers = Receivers(station, self._receivers_changed, radio_of=radio_of)
        self._graph: _Running | None = None
        self._next = self._made(station, self._receivers)
        self._last = self._next.graph
        self._resume_s: float | None = None

    # Figures

    @property
    def fixes(self) -> int:
        return self._ended_fixes + (0 if self._graph is None else self._graph.listener.fixes)

    @property
    def dropped(self) -> int:
        """Windows that were lost."""
        return self._ended_dropped + self._last.localizer.inference.dropped

    @property
    def engine(self) -> Engine:
        return self._last.localizer.engine

    def alive(self, phase: str) -> dict[str, Any]:
        """As OnAlive is told."""
        progress = None if self._graph is None else self._graph.graph.progress
        return {**self.engine.status(), "phase": phase, "live": True, "fixes": self.fixes, "progress": progress}

    def without_fix(self) -> str:
        """Why no window was full, in words."""
        told = self._receivers.report()
        unheard = [
            f"{name} is {each['state']}{each['error'] and ': '}{each['error']}"
            for name, each in told.items()
            if not each["taken"]
        ]
        heard = ["the streams ended before a window was full"] if len(unheard) < len(told) else []
        return "; ".join(heard + unheard)

    # Life

    def start(self) -> None:
        """Raises ConfigError, PublishError or MissingExtraError where what is to be served cannot be."""
        self._serve()
        self._receivers.start()
        self._run(self._next)

    def look(self) -> bool:
        """Start the graph anew where it has failed. Returns False at the end, with `failure` set.

        Raises ConfigError where a receiver can never work, as long as the station file is the first.
        """
        fatal = self._receivers.fatal
        if fatal is not None and not self._accepted:
            raise fatal
        if self._graph is None:
            if self._resume_s is not None and time.monotonic() >= self._resume_s:
                self._resume()
            return self.failure is None
        error = self._graph.listener.failure
        if error is not None:  # whoever is told of fixes does not want them any more
            self.failure = error
            return False
        error = self._graph.trouble(self._receivers)
        if error is not None:
            self._failed(error)
        return self.failure is None

    def stop(self, serving: ExitStack | None) -> None:
        """Let the last fixes out, and close the devices. What is served lives on in `serving` where it is given."""
        self._receivers.begin_stop()
        self._halt(finish=self.failure is None)
        self._receivers.stop()
        if serving is not None:
            serving.push(self._serving.pop_all())
        self._serving.close()
        self._last.localizer.engine.close()

    def reload(self, reread: Callable[[], Station], on_wait: Callable[[], None]) -> None:
        """Go over to the station file as it is now: its `[model]` at once, anything else with another graph.

        `on_wait`: called at first, and about each second while that graph is prepared.
        """
        on_wait()
        try:
            wanted = reread()
            if not wanted.is_live:
                raise ConfigError("going over to receivers without radios takes a restart")
        except ConfigError as error:
            log.error("reload: going on as before: %s", error)
            return
        if not _takes_a_graph(self.station, wanted) and self._receivers.fatal is None:
            self.station = reload_model(self.engine, self.station, wanted)
            return
        before, self._accepted = self.station, True
        try:
            self._replace(wanted, on_wait)
            logs.say("reload: done")
        except LocalizeError as error:
            log.error("reload: going on as before: %s", error)
            if self._graph is None:  # what was to be served cannot be
                self._replace(before, on_wait)

    def _replace(self, station: Station, on_wait: Callable[[], None]) -> None:
        """Have another station run. Raises what is wrong with it, if possible before the one that runs is ended."""
        check_outlets(station, self.station)
        receivers = Receivers(station, self._receivers_changed, before=self._receivers, radio_of=self._radio_of)
        with ThreadPoolExecutor(1, "localize-prepare") as pool:  # a model may take minutes to be compiled or fetched
            future = pool.submit(self._made, station, receivers)
            while not wait([future], ALIVE_S).done:
                on_wait()
        made = future.result()
        self._halt(finish=True)
        self._ended_dropped += self._last.localizer.inference.dropped
        self._serving.close()
        self._last.localizer.engine.close()
        self.station, self._receivers, self._next, self._last = station, receivers, made, made.graph
        self._failures, self._resume_s = 0, None
        receivers.start()
        self._serve()
        self._run(made)

    def _made(self, station: Station, receivers: Receivers, after: StationGraph | None = None) -> _Running:
        listener = Listener(self._tell, self._on_status, lambda: None)
        graph = StationGraph(
            station,
            listener,
            duration_s=None,
            live=True,
            recorder=self._recorder,
            receivers=receivers,
            after=after,
        )
        engine = graph.localizer.engine
        engine.observe("receivers", receivers.report)
        return _Running(graph, listener)

    def _serve(self) -> None:
        engine = self.engine
        self._sinks = {name: _Sink() for name in self._last.named_sinks}
        shown = outlets(self.station, engine, self._sinks, self._on_serving)
        with ExitStack() as stack:
            self._shown = stack.enter_context(shown)
            stack.enter_context(controlled(engine, self.station))
            self._serving = stack.pop_all()

    def _run(self, running: _Running) -> None:
        self._graph, self._last = running, running.graph
        for name, sink in running.graph.named_sinks.items():
            self._sinks[name].go_on(sink)
        running.start()
        self._receivers_changed()

    def _halt(self, *, finish: bool) -> None:
        """End the graph that runs."""
        running, self._graph = self._graph, None
        if running is None:
            return
        stopped = running.stop(finish=finish)
        self._ended_fixes += running.listener.fixes
        if not stopped and self.failure is None:
            self.failure = LocalizeError(f"the flowgraph did not stop within {STOP_S:g} s")

    def _failed(self, error: Exception) -> None:
        assert self._graph is not None
        steady = time.monotonic() - self._graph.began_s > STEADY_S
        self._failures = 1 if steady else self._failures + 1
        if self._failures > self._most_failures:
            self.failure = error
            return
        log.error("the flowgraph failed, starting another (%d of %d): %s", self._failures, self._most_failures, error)
        self._halt(finish=False)
        pause_s = min(FIRST_PAUSE_S * 2.0 ** (self._failures - 1), LAST_PAUSE_S)
        self._resume_s = time.monotonic() + pause_s * random.uniform(0.5, 1.0)

    def _resume(self) -> None:
        self._resume_s = None
        try:
            made = self._made(self.station, self._receivers, self._last)
        except LocalizeError as error:
            self.failure = error
            return
        self._run(made)

    # What others tell

    def _tell(self, fix: Fix) -> None:
        self._shown(fix)  # before whoever may end the run by an exception
        self._on_fix(fix)

    def _receivers_changed(self) -> None:
        """From any thread."""
        if self._graph is None:
            return
        engine = self.engine
        with self._telling:  # else what was true first may be told last
            lost = self._receivers.lost()
            if lost:
                engine.health.report("receiver_lost", lost)
            else:
                engine.health.clear("receiver_lost")
        engine.notify()


class _Running:
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


class _Sink:
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


def _takes_a_graph(station: Station, wanted: Station) -> bool:
    """Whether more has changed than an engine can follow while it runs."""
    now, then = station.model, wanted.model
    to_compiled = then.uri == "compiled" and now.uri != "compiled"
    return bool(not_followed(station, wanted)) or now.fallback != then.fallback or to_compiled
