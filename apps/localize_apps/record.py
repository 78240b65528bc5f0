"""`gr-localize record`: a station that keeps what it hears, and what it made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from gnuradio import localize
from localize_core.errors import ConfigError
from localize_core.recorder.sigmf_writer import (
    MIN_FREE_BYTES,
    MIN_PART_BYTES,
    PART_BYTES,
    SAMPLE_BYTES,
    Limits,
)
from localize_core.recorder.twin import FIXES_FILE, write_twin
from localize_core.sinks.file_sink import FileFixSink
from localize_core.station.config import Station, load_station
from localize_core.station.engine import station_frames
from localize_core.station.sources import RadioSource
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.text import fix_line
from pydantic import ByteSize, TypeAdapter, ValidationError

from localize_apps import logs
from localize_apps.graph import StationGraph
from localize_apps.run import carry_out, runs_station

LEAST_PARTS = 4
"""That a receiver's share of --max-bytes holds: the oldest goes before the next begins."""


class Size(click.ParamType):
    """A number of bytes, with a unit or without."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r}: wanted a number of bytes, such as 500MB or 2GiB", param, ctx)


@dataclass
class _Session:
    """One graph and its folder."""

    folder: Path
    graph: StationGraph
    sources: list[tuple[Any, int]]
    sink: Any
    fix_file: FileFixSink
    due: list[int] | None = None


class FolderRecorder:
    """Records into a folder what each graph of a station hears, in the form that `gr-localize run FOLDER` plays.

    `live`: whether samples are left out where the disk is too slow, or the streams wait. A graph that takes the place
    of another begins anew, in a folder of its own inside. `limits` are for each receiver.
    """

    def __init__(self, folder: Path, *, datatype: str, live: bool, limits: Limits, author: str = "") -> None:
        self.folder = folder
        self.sessions = self.fixes = self.dropped_windows = self.recorded = self.lost = 0
        self.failure: Exception | None = None
        self._datatype, self._live, self._limits, self._author = datatype, live, limits, author
        self._session: _Session | None = None

    def attach(self, graph: StationGraph, outputs: list[tuple[Any, int]]) -> None:
        """Connect to the receivers' streams. Raises PublishError where the folder cannot be written."""
        self.sessions += 1
        first = self.sessions == 1
        folder = self.folder if first else self.folder / f"run-{self.sessions:04d}"
        station = graph.station
        table = station.station
        sink = localize.sigmf_sink(
            folder,
            [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver],
            table.sample_rate_hz,
            table.frequency_hz,
            datatype=self._datatype,
            max_part_bytes=self._limits.max_part_bytes,
            max_part_s=self._limits.max_part_s or 0.0,
            max_bytes=self._limits.max_bytes or 0,
            max_parts=self._limits.max_parts or 0,
            min_free_bytes=self._limits.min_free_bytes,
            live=self._live,
            collection=table.name,
            hardware=", ".join(dict.fromkeys(_hardware(receiver) for receiver in station.receiver)),
            description=f"{table.name}, {table.frequency_hz / 1e6:g} MHz",
            author=self._author,
        )
        for index, output in enumerate(outputs):
            graph.connect(output, (sink, index))
        session = _Session(folder, graph, outputs, sink, FileFixSink(folder / FIXES_FILE))
        if first:  # what is wrong with the folder is said before anything starts
            self._begin(session)
        else:  # the graph before it may still be running
            sink.recorder.on_open = lambda: self._begin(session)

    def _begin(self, session: _Session) -> None:
        self.close()
        engine, station = session.graph.localizer.engine, session.graph.station
        write_twin(
            session.folder,
            station,
            session.sink.recorder.names,
            contract=engine.contract,
            frames=station_frames(station, engine.contract),
            model=engine.model_file,
            fallback=engine.fallback_file,
        )
        session.fix_file.open()
        self._session = session

    def settled(self) -> bool:
        """Whether all samples are here that there were when this was first asked."""
        session = self._session
        if session is None:
            return True
        if session.due is None:
            session.due = [block.nitems_written(port) for block, port in session.sources]
        return all(taken >= due for taken, due in zip(session.sink.taken, session.due, strict=True))

    def keep(self, fix: Fix) -> None:
        """Write a fix of the graph that runs."""
        self.fixes += 1
        self.dropped_windows += fix.dropped_windows
        if self._session is not None:
            self._session.fix_file.publish(fix)

    def close(self) -> None:
        """Settle the account of a graph that has ended."""
        session, self._session = self._session, None
        if session is None:
            return
        session.fix_file.close()
        self.recorded += session.sink.recorder.recorded
        self.lost += session.sink.recorder.lost
        self.failure = self.failure or session.sink.failure

    def summary(self) -> str:
        """What was recorded, in one line."""
        parts = [f"{self.recorded} samples and {self.fixes} fixes in {self.folder}"]
        if self.lost:
            parts.append(f"{self.lost} samples were not kept")
        if self.dropped_windows:
            parts.append(f"{self.dropped_windows} windows were dropped, a replay answers them too")
        return "; ".join(parts)


def _hardware(receiver: Any) -> str:
    source = receiver.source
    return f"{source.kind} {source.device_key}" if isinstance(source, RadioSource) else source.kind


def recorded_station(station: Station) -> Station:
    """The station, each window answered by itself: how many are answered together shows in the last digits of fixes."""
    queue = station.model.queue.model_copy(update={"max_batch": 1, "max_delay_ms": 0.0})
    return station.model_copy(update={"model": station.model.model_copy(update={"queue": queue})})


@click.command("record")
@runs_station
@click.option(
    "-o",
    "--output",
    "output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the recordings; it is made, and must be empty.",
)
@click.option(
    "--datatype",
    type=click.Choice(tuple(SAMPLE_BYTES)),
    default="cf32_le",
    show_default=True,
    help="cf32_le keeps samples as they are; ci16_le and ci8 round and clip, and fixes differ accordingly.",
)
@click.option("--max-part-bytes", type=Size(), default=PART_BYTES, help="Of a part of a recording; 1GiB if left out.")
@click.option("--max-part-s", type=click.FloatRange(min=0, min_open=True), help="Seconds in a part of a recording.")
@click.option("--max-bytes", type=Size(), help="Of all recordings together; the oldest parts go when there are more.")
@click.option("--max-parts", type=click.IntRange(min=2), help="Parts of each receiver that are kept.")
@click.option(
    "--min-free-bytes",
    type=Size(),
    default=MIN_FREE_BYTES,
    help="Left free on the disk: recording pauses below it, and goes on by itself; 256MiB if left out.",
)
@click.option("--author", default="", help="Whom the recordings name as their author, such as an address.")
def command(
    station_file: Path,
    output: Path,
    duration_s: float | None,
    as_json: bool,
    folder: Path | None,
    fast: bool,
    datatype: str,
    max_part_bytes: int,
    max_part_s: float | None,
    max_bytes: int | None,
    max_parts: int | None,
    min_free_bytes: int,
    author: str,
) -> int:
    """Run the station in the file STATION as `run` does, and keep what its receivers hear.

    `gr-localize run FOLDER` plays it: the same samples, tags, model and windows, and so the same fixes.

    Exit codes are those of `run`; a recording that could not be gone on with, or has nothing, makes 1 of 0.
    """

    def load() -> Station:
        return recorded_station(load_station(station_file, folder=folder))

    station = load()
    if any(receiver.source is None for receiver in station.receiver):
        raise ConfigError(f"{station_file}: a receiver has no source: only a flowgraph can bring the stream itself")
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output}: is not empty; a recording wants a folder of its own")
    if max_bytes is not None:
        least = LEAST_PARTS * MIN_PART_BYTES * len(station.receiver)
        if max_bytes < least:
            raise ConfigError(f"--max-bytes {max_bytes}: wanted at least {least} for {len(station.receiver)} receivers")
        max_bytes //= len(station.receiver)
        max_part_bytes = min(max_part_bytes, max_bytes // LEAST_PARTS)
    limits = Limits(max_part_bytes, max_part_s, max_bytes, max_parts, min_free_bytes)
    live = not (fast or station.is_recorded)
    recorder = FolderRecorder(output, datatype=datatype, live=live, limits=limits, author=author)

    def keep(fix: Fix) -> None:
        recorder.keep(fix)
        print(fix_to_json(fix) if as_json else fix_line(fix), flush=True)

    code = carry_out(load, on_fix=keep, duration_s=duration_s, live=not fast, recorder=recorder)
    recorder.close()
    logs.say(recorder.summary())
    why: object = recorder.failure
    if why is None and recorder.lost > 0 and recorder.recorded == 0:
        why = f"nothing could be written into {output}"
    if why is not None:
        logs.complain(why)
    return code or int(why is not None)
