"""A station as a flowgraph: sources, localizer, tracker, sinks, and whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pmt
from gnuradio import gr, localize
from gnuradio.localize.counters import switch_on
from gnuradio.localize.pmt_codec import fix_from_pmt
from gnuradio.localize.receiver_source import receiver_source
from gnuradio.localize.receivers import Receivers
from gnuradio.localize.recording_source import recording_source
from localize_core.errors import ConfigError
from localize_core.serving.engine import Engine
from localize_core.sources.sigmf import read_sigmf
from localize_core.station.config import KiwiWavSource, SigmfSource, Station
from localize_core.tracking.clocks import clock_share
from localize_core.types.fix import Fix

FINISH_S = 2.0

OnFix = Callable[[Fix], None]
OnStatus = Callable[[dict[str, Any]], None]
OnAlive = Callable[[dict[str, Any]], None]
"""Told about each second that the run goes on: the engine's status with `phase` (running, reloading, stopping), `live`,
`fixes`, and `progress`, which changes whenever something has gone through the graph."""


class Recorder(Protocol):
    """Keeps what a station hears."""

    def attach(self, graph: StationGraph, outputs: list[tuple[Any, int]]) -> Any:
        """Before a graph starts: connect to the receivers' streams, (block, port) each in the order of the station.

        Returns what is to be kept as long as the graph.
        """

    def settled(self) -> bool:
        """Whether it has taken all samples that the graph's own blocks have."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `failure`: what ended a block, None where all ended well. `interrupted`: by signal or caller.

    `without_fix`: why there is no fix, as far as is known, where there is none.
    """

    fixes: int
    dropped_windows: int
    failure: Exception | None
    interrupted: bool
    without_fix: str = ""


def why_no_window(engine: Engine) -> str:
    """Why streams that were heard have filled no window, in words."""
    lost = [each.detail for each in engine.health.conditions if each.name == "reference_lost"]
    return lost[0] if lost else "the streams ended before a window was full"


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
        if recorder is not None:  # last: it writes, and nothing else may fail after that
            self._attached = recorder.attach(self, outputs)

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
