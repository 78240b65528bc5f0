"""A station file runs: until its sources end, a signal or a failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from localize_core.errors import ConfigError, LocalizeError
from localize_core.station.config import Station
from localize_core.types.fix import Fix

from localize_apps.commands import controlled, not_followed, reload_model, signals
from localize_apps.graph import Listener, OnAlive, OnFix, OnStatus, Recorder, RunResult, StationGraph, why_no_window
from localize_apps.live import ALIVE_S, run_live
from localize_apps.outlets import OnServing, check_outlets, outlets
from localize_apps.running_graph import STOP_S

log = logging.getLogger(__name__)


def run_station(
    station: Station,
    *,
    on_fix: OnFix,
    on_status: OnStatus | None = None,
    on_alive: OnAlive | None = None,
    duration_s: float | None = None,
    live: bool = True,
    stopped: threading.Event | None = None,
    reread: Callable[[], Station] | None = None,
    on_serving: OnServing | None = None,
    serving: ExitStack | None = None,
    recorder: Recorder | None = None,
) -> RunResult:
    """Run a station until its sources end, `duration_s` of stream has passed, `stopped` is set or a signal comes.

    `live=False` runs simulated streams as fast as they go, losing nothing. Callbacks come from one thread of the
    flowgraph, in order; `on_alive` is called by the caller's. `reread`: the station as its file says now, asked for at
    SIGHUP; its `[model]` takes effect at once. `on_serving`: told where `[http]` and `[metrics]` are served; they end
    with the run, or with `serving` where it is given. `recorder`: keeps what the receivers heard.

    A station with radios goes on without those that are away, survives failures of its graph (but not with a
    `duration_s`), and follows the whole station file at SIGHUP.

    Raises ConfigError, ModelError, RegistryError, UnavailableError, SourceError or PublishError before anything starts.
    """
    stopped = stopped or threading.Event()
    check_outlets(station)  # first: building it takes long, and a recorder makes its folder
    if station.is_live:
        return run_live(
            station,
            on_fix=on_fix,
            on_status=on_status or (lambda _: None),
            on_alive=on_alive or (lambda _: None),
            duration_s=duration_s,
            stopped=stopped,
            reread=reread,
            on_serving=on_serving or (lambda _, __: None),
            serving=serving,
            recorder=recorder,
        )
    hung_up = threading.Event()
    with signals(stopped, None if reread is None else hung_up):
        told: list[OnFix] = [on_fix]

        def tell(fix: Fix) -> None:
            for each in told:
                each(fix)

        listener = Listener(tell, on_status or (lambda _: None), stopped.set)
        live = live and not station.is_recorded
        graph = StationGraph(station, listener, duration_s=duration_s, live=live, recorder=recorder)
        if stopped.is_set():  # while it was built
            graph.localizer.engine.close()
            return RunResult(0, 0, None, interrupted=True)
        ended = threading.Event()

        def wait() -> None:
            graph.wait()
            ended.set()
            stopped.set()

        shown = outlets(station, graph.localizer.engine, graph.named_sinks, on_serving or (lambda _, __: None))
        with controlled(graph.localizer.engine, station), ExitStack() as own:
            told.insert(0, (serving or own).enter_context(shown))  # before whoever may end the run by an exception
            graph.start()
            waiter = threading.Thread(target=wait, name="localize-wait", daemon=True)
            waiter.start()

            def tell_alive(phase: str) -> None:
                if on_alive is not None:
                    said = {"phase": phase, "live": live, "fixes": listener.fixes, "progress": graph.progress}
                    on_alive({**graph.localizer.engine.status(), **said})

            tell_alive("running")
            told_s = time.monotonic()
            while not stopped.wait(0.2):
                if graph.failure is not None:
                    break
                if reread is not None and hung_up.is_set():
                    hung_up.clear()
                    tell_alive("reloading")
                    station = _reload(graph, station, reread)
                    tell_alive("running")
                if time.monotonic() - told_s >= ALIVE_S:
                    told_s = time.monotonic()
                    tell_alive("running")
            tell_alive("stopping")
            interrupted = not ended.is_set() and graph.failure is None
            if not ended.is_set():
                if interrupted:
                    graph.finish()
                graph.stop()
                waiter.join(timeout=STOP_S)
        if ended.is_set():
            graph.localizer.engine.close()
        failure = graph.failure
        if failure is None and not ended.is_set():
            failure = LocalizeError(f"the flowgraph did not stop within {STOP_S:g} s")
        localizer = graph.localizer
        return RunResult(
            listener.fixes, localizer.inference.dropped, failure, interrupted, why_no_window(localizer.engine)
        )


def _reload(graph: StationGraph, station: Station, reread: Callable[[], Station]) -> Station:
    """Have the engine go over to the `[model]` of the file as it is now. Returns the station that runs."""
    try:
        wanted = reread()
    except ConfigError as error:
        log.error("reload: going on as before: %s", error)
        return station
    engine = graph.localizer.engine
    if left := not_followed(station, wanted, has_compiled=engine.has_compiled):
        log.warning("reload: a restart is needed for %s, left as it was", ", ".join(left))
    return reload_model(engine, station, wanted)
