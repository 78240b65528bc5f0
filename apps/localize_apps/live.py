"""A station with radios, as it runs for months: its graph starts anew where it fails, and follows its station file."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from typing import Any

from gnuradio.localize.radios import open_radio
from gnuradio.localize.receivers import OpenRadio, Receivers
from localize_core.errors import ConfigError, LocalizeError
from localize_core.serving.engine import Engine
from localize_core.station.config import Station
from localize_core.types.fix import Fix

from localize_apps import ending, logs
from localize_apps.commands import controlled, not_followed, reload_model, signals
from localize_apps.graph import Listener, OnAlive, OnFix, OnStatus, Recorder, RunResult, StationGraph, why_no_window
from localize_apps.outlets import OnServing, check_outlets, outlets
from localize_apps.running_graph import STOP_S, RunningGraph, SinkAccount

log = logging.getLogger(__name__)

LOOK_S = 0.2
ALIVE_S = 1.0
"""From one word that the run is alive to the next."""
MOST_FAILURES = 5
"""So many in a row end the run."""
STEADY_S = 60.0
"""A graph that has run for so long begins another row."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0
"""Before a graph that has failed starts anew: after the first failure, and at most."""


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
                    run.reload(reread, lambda: on_alive(run.alive("reloading")), stopped)
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
        self._sinks: dict[str, SinkAccount] = {}
        self._failures = 0
        self._ended_fixes = self._ended_dropped = 0
        self._accepted = False  # whether a device that can never work is only a device that is lost
        self._telling = threading.Lock()
        self._receivers = Receivers(station, self._receivers_changed, radio_of=radio_of)
        self._graph: RunningGraph | None = None
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
        heard = [why_no_window(self.engine)] if len(unheard) < len(told) else []
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

    def reload(self, reread: Callable[[], Station], on_wait: Callable[[], None], stopped: threading.Event) -> None:
        """Go over to the station file as it is now: its `[model]` at once, anything else with another graph.

        `on_wait`: called at first, and about each second while that graph is prepared. It is given up where `stopped`
        is set or the graph that runs fails for good.
        """
        on_wait()
        try:
            wanted = reread()
            if not wanted.is_live:
                raise ConfigError("going over to receivers without radios takes a restart")
        except ConfigError as error:
            log.error("reload: going on as before: %s", error)
            return
        left = not_followed(self.station, wanted, has_compiled=self.engine.has_compiled)
        if not left and self._receivers.fatal is None:
            self.station = reload_model(self.engine, self.station, wanted)
            return
        before, self._accepted = self.station, True
        try:
            if self._replace(wanted, on_wait, stopped):
                logs.say("reload: done")
        except LocalizeError as error:
            log.error("reload: going on as before: %s", error)
            if self.station is wanted:  # what was to be served cannot be
                self._replace(before, on_wait, stopped)

    def _replace(self, station: Station, on_wait: Callable[[], None], stopped: threading.Event) -> bool:
        """Have another station run. Raises what is wrong with it, if possible before the one that runs is ended.

        Returns False where that was given up.
        """
        check_outlets(station, self.station)
        receivers = Receivers(station, self._receivers_changed, before=self._receivers, radio_of=self._radio_of)
        future = self._prepared(station, receivers)
        told_s = time.monotonic()
        while not wait([future], min(LOOK_S, ALIVE_S)).done:
            if stopped.is_set() or not self.look():
                ending.abandoned.append(future)
                future.add_done_callback(_let_go)
                return False
            if time.monotonic() - told_s >= ALIVE_S:
                told_s = time.monotonic()
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
        return True

    def _prepared(self, station: Station, receivers: Receivers) -> Future[RunningGraph]:
        """Another graph, made in a thread that no end of the run waits for: it may take minutes to compile or fetch a
        model.
        """
        future: Future[RunningGraph] = Future()

        def prepare() -> None:
            try:
                future.set_result(self._made(station, receivers))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=prepare, name="localize-prepare", daemon=True).start()
        return future

    def _made(self, station: Station, receivers: Receivers, after: StationGraph | None = None) -> RunningGraph:
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
        return RunningGraph(graph, listener)

    def _serve(self) -> None:
        engine = self.engine
        self._sinks = {name: SinkAccount() for name in self._last.named_sinks}
        shown = outlets(self.station, engine, self._sinks, self._on_serving)
        with ExitStack() as stack:
            self._shown = stack.enter_context(shown)
            stack.enter_context(controlled(engine, self.station))
            self._serving = stack.pop_all()

    def _run(self, running: RunningGraph) -> None:
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


def _let_go(prepared: Future[RunningGraph]) -> None:
    """Of a graph that nobody waits for any more."""
    if prepared.exception() is None:
        prepared.result().graph.localizer.engine.close()
