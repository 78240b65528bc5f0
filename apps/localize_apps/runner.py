"""A station file as a running flowgraph: sources, localizer, sinks, until the end, a signal or a failure."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pmt
from gnuradio import gr, localize
from gnuradio.localize.counters import switch_on
from gnuradio.localize.pmt_codec import fix_from_pmt
from gnuradio.localize.receiver_source import receiver_source
from gnuradio.localize.receivers import Receivers
from gnuradio.localize.recording_source import recording_source
from localize_core.errors import ConfigError, LocalizeError
from localize_core.serving.control import ControlServer
from localize_core.serving.engine import Engine
from localize_core.sources.sigmf import read_sigmf
from localize_core.station.config import KiwiWavSource, SigmfSource, Station
from localize_core.tracking.clocks import clock_share
from localize_core.types.fix import Fix

from localize_apps.outlets import OnServing, outlets

log = logging.getLogger(__name__)

ALIVE_S = 1.0
IMPATIENT_S = 0.5
"""A signal that comes sooner after the first is taken for the same: `timeout`, for one, sends two."""
FINISH_S = 2.0
STOP_S = 10.0

OnFix = Callable[[Fix], None]
OnStatus = Callable[[dict[str, Any]], None]
OnAlive = Callable[[dict[str, Any]], None]
"""Told about each second that the run goes on: the engine's status with `phase` (running, reloading, stopping), `live`,
`fixes`, and `progress`, which changes whenever something has gone through the graph."""


class Recorder(Protocol):
    """Keeps what a station hears."""

    def attach(self, graph: StationGraph, outputs: list[tuple[Any, int]]) -> None:
        """Before a graph starts: connect to the receivers' streams, (block, port) each in the order of the station."""

    def settled(self) -> bool:
        """Whether it has taken all samples that the graph's own blocks have."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `failure`: what ended a block, None where all ended well. `interrupted`: by signal or caller."""

    fixes: int
    dropped_windows: int
    failure: Exception | None
    interrupted: bool


class Listener(gr.sync_block):
    """Hands messages to Python functions; an exception there ends the run."""

    def __init__(self, on_fix: OnFix, on_status: OnStatus, on_failure: Callable[[], None]) -> None:
        gr.sync_block.__init__(self, "listener", None, None)
        self.failure: Exception | None = None
        self.fixes = 0
        self._on_fix, self._on_status, self._on_failure = on_fix, on_status, on_failure
        for port, handler in (("fix", self._handle_fix), ("status", self._handle_status)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)

    def _handle_fix(self, message: Any) -> None:
        self._guard(lambda: self._on_fix(fix_from_pmt(message)))
        self.fixes += 1

    def _handle_status(self, message: Any) -> None:
        self._guard(lambda: self._on_status(pmt.to_python(message)))

    def _guard(self, action: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except Exception as error:  # whatever the listener's function raises: kept, and the run ends
            self.failure = error
            self._on_failure()


class StationGraph(gr.top_block):
    """Sources → localizer → sinks of a station. `duration_s`: end of simulated streams, None for endless.

    `live`: pace simulated streams to real time and let windows go rather than fall behind. `receivers`: of a station
    with radios. `after`: a graph of the same station that has stopped, whose models go on here.
    Raises ConfigError, ModelError or SourceError before anything starts.
    """

    def __init__(
        self,
        station: Station,
        listener: Listener,
        *,
        duration_s: float | None,
        live: bool,
        recorder: Recorder | None = None,
        receivers: Receivers | None = None,
        after: StationGraph | None = None,
    ) -> None:
        switch_on()
        gr.top_block.__init__(self, station.station.name, catch_exceptions=False)
        if live:  # a stream paced to real time with a set end waits, but is no replay
            cache = station.cache.model_copy(update={"replay": station.cache.live})
            station = station.model_copy(update={"cache": cache})
        self.localizer = localize.localizer(
            station if after is None else after.localizer,
            n_receivers=len(station.receiver),
            # A stream with a set end loses nothing: a radio block is not told when its stream ends, so the windows
            # that still wait then would never be answered in time.
            live=live and duration_s is None,
        )
        self.watched: list[Any] = [self.localizer, listener]
        self.sinks: list[Any] = []
        self.station = station
        self._listener, self._recorder = listener, recorder
        if receivers is None:
            outputs = [*self._sources(station, duration_s, live)]
        else:
            outputs = [(receiver_source(buffer, station.station.sample_rate_hz), 0) for buffer in receivers.buffers]
            self.watched += [source for source, _ in outputs]
        for index, (source, port) in enumerate(outputs):
            self.connect((source, port), (self.localizer, index))
        if recorder is not None:
            recorder.attach(self, outputs)
        fixes = self.localizer
        if station.tracker is not None:
            fixes = station_tracker(station, live=live and duration_s is None)
            self.watched.append(fixes)
            for message in ("fix", "status"):
                self.msg_connect(self.localizer, message, fixes, message)
        for sink in self._sinks(station):
            self.watched.append(sink)
            self.sinks.append(sink)
            self.msg_connect(fixes, "fix", sink, "fix")
        self.localizer.counters.add(*self.watched[2:])
        self.msg_connect(fixes, "fix", listener, "fix")
        self.msg_connect(fixes, "status", listener, "status")

    def _sources(self, station: Station, duration_s: float | None, live: bool) -> Iterator[tuple[Any, int]]:
        table = station.station
        if station.scene is not None and station.source_kind == "scene":
            scene = localize.scene_source(
                [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver],
                table.sample_rate_hz,
                table.frequency_hz,
                duration_s=duration_s or 0.0,
                throttle=live,
                **station.scene.model_dump(),
            )
            self.watched.append(scene)
            yield from ((scene, port) for port in range(len(station.receiver)))
            return
        for index, receiver in enumerate(station.receiver):
            origin = receiver.source
            if isinstance(origin, KiwiWavSource):
                source = localize.kiwi_wav_source(origin.path, frequency_hz=table.frequency_hz)
            elif isinstance(origin, SigmfSource):
                recording = read_sigmf(origin.path, channel=origin.channel, stream=origin.stream)
                # What was recorded with its tags has its own frequencies among them.
                frequency_hz = table.frequency_hz if recording.marks is None else None
                source = recording_source("sigmf_source", recording, False, frequency_hz)
                if len(recording) == 0:
                    self.localizer.leave_out(index)
            else:
                raise ConfigError(
                    f"receiver {receiver.name}.source: missing; only a flowgraph can bring the stream itself"
                )
            self.watched.append(source)
            yield source, 0

    @staticmethod
    def _sinks(station: Station) -> Iterator[Any]:
        for table in station.publish.zmq:
            yield localize.zmq_fix_sink(**table.model_dump(exclude_none=True))
        for file in station.publish.file:
            yield localize.file_fix_sink(**file.model_dump(exclude_none=True))
        for redis in station.publish.redis:
            yield localize.redis_fix_sink(**redis.model_dump())
        for mqtt in station.publish.mqtt:
            yield localize.mqtt_fix_sink(station=station.station.name, **mqtt.model_dump(exclude_none=True))
        for cot in station.publish.cot:
            yield localize.cot_fix_sink(**cot.model_dump(exclude_none=True))

    def finish(self) -> None:
        """Answer the windows that wait, and let sinks and listener have the fixes, before `stop()` cuts them off."""
        deadline = time.monotonic() + FINISH_S
        self.localizer.inference.finish(FINISH_S)
        while not self._settled() and self.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _settled(self) -> bool:
        if self._recorder is not None and not self._recorder.settled():
            return False
        published = self.localizer.inference.published
        taken = [sink.sent + sink.dropped + sink.backlog + sink.malformed for sink in self.sinks]
        return min([self._listener.fixes, *taken]) >= published

    @property
    def named_sinks(self) -> dict[str, Any]:
        """The sinks by their kind, counted where there are several of one."""
        named: dict[str, Any] = {}
        for sink in self.sinks:
            kind = sink.name().removesuffix("_fix_sink")
            number = sum(name.partition("-")[0] == kind for name in named) + 1
            named[kind if number == 1 else f"{kind}-{number}"] = sink
        return named

    @property
    def progress(self) -> list[int]:
        """How far the main graph has come."""
        return [block.nitems_read(0) for block in self.localizer.blocks]

    @property
    def failure(self) -> Exception | None:
        return next((block.failure for block in self.watched if block.failure is not None), None)


def station_tracker(station: Station, *, live: bool) -> Any:
    """The tracker that a station asks for."""
    assert station.tracker is not None
    values = station.tracker.model_dump()
    if values["common"] is None:
        values["common"] = clock_share(station)
    return localize.tracker(**values, live=live)


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
    if station.is_live:
        from localize_apps.live import run_live  # which runs what is in this module

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
    told: list[OnFix] = [on_fix]

    def tell(fix: Fix) -> None:
        for each in told:
            each(fix)

    listener = Listener(tell, on_status or (lambda _: None), stopped.set)
    live = live and not station.is_recorded
    graph = StationGraph(station, listener, duration_s=duration_s, live=live, recorder=recorder)
    ended = threading.Event()

    def wait() -> None:
        graph.wait()
        ended.set()
        stopped.set()

    hung_up = threading.Event()
    shown = outlets(station, graph.localizer.engine, graph.named_sinks, on_serving or (lambda _, __: None))
    with (
        signals(stopped, None if reread is None else hung_up),
        controlled(graph.localizer.engine, station),
        ExitStack() as own,
    ):
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
    return RunResult(listener.fixes, graph.localizer.inference.dropped, failure, interrupted)


def _reload(graph: StationGraph, station: Station, reread: Callable[[], Station]) -> Station:
    """Have the engine go over to the `[model]` of the file as it is now. Returns the station that runs."""
    try:
        wanted = reread()
    except ConfigError as error:
        log.error("reload: going on as before: %s", error)
        return station
    if wanted.model_copy(update={"model": station.model}) != station:
        log.warning("reload: only [model] takes effect while the station runs; the rest takes a restart")
    if wanted.model.probability != station.model.probability:
        log.warning("reload: model.probability takes a restart")
    if (wanted.model.max_in_flight, wanted.model.queue) != (station.model.max_in_flight, station.model.queue):
        log.warning("reload: how many windows wait and are answered at a time takes a restart")
    return reload_model(graph.localizer.engine, station, wanted)


def reload_model(engine: Engine, station: Station, wanted: Station) -> Station:
    """Have the engine go over to the `[model]` that is wanted. Returns the station that runs then."""

    def tell(done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            engine.set_min_confidence(wanted.model.min_confidence)
            log.info("reload: done")
        else:
            log.error("reload: going on with the model that serves: %s", error)

    try:
        engine.configure(wanted.model).add_done_callback(tell)
    except ConfigError as error:  # the streams are ending
        log.error("reload: %s", error)
    return station.model_copy(update={"model": wanted.model})


@contextmanager
def controlled(engine: Engine, station: Station) -> Iterator[None]:
    """Take commands meanwhile, where the station says so."""
    if station.control is None:
        yield
        return
    server = ControlServer(engine, station.control.endpoint)
    server.start()
    log.info("commands are taken at %s", server.endpoint)
    try:
        yield
    finally:
        server.stop()


@contextmanager
def signals(stopped: threading.Event, hung_up: threading.Event | None) -> Iterator[None]:
    """SIGINT and SIGTERM set `stopped`, and end the process at once when they come again; SIGHUP sets `hung_up` where
    there is one. None does outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_s: list[float] = []

    def stop(number: int, _: Any) -> None:
        if asked_s and time.monotonic() - asked_s[0] > IMPATIENT_S:
            os._exit(128 + number)
        asked_s.append(time.monotonic())
        stopped.set()

    handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hung_up is not None:
        handlers[signal.SIGHUP] = lambda *_: hung_up.set()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
