"""`gr-localize record`: a station that keeps what it hears, and what it made of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from localize_core.recorder.station_recorder import StationRecorder
from localize_core.recorder.stream_recorder import Account
from localize_core.recorder.twin import FIXES_FILE, remove_twin, write_twin
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


@dataclass(frozen=True)
class _Begun:
    """What a graph has begun: a folder, which there was not if `is_new`, and in it files of these names."""

    folder: Path
    names: list[str]
    is_new: bool


class FolderRecorder:
    """Records into a folder what each graph of a station hears, in the form that `gr-localize run FOLDER` plays.

    `live`: whether samples are left out where the disk is too slow, or the streams wait. A graph that takes the place
    of another begins anew, in a folder of its own inside. `limits` are for each receiver, over all of these folders;
    `max_bytes`, of all receivers together, is shared out among them, None for none. What a folder has for playing goes
    with the last of its recordings, and its fixes stay.
    """

    def __init__(
        self,
        folder: Path,
        *,
        datatype: str,
        live: bool,
        limits: Limits,
        max_bytes: int | None = None,
        author: str = "",
    ) -> None:
        self.folder = folder
        self.fixes = self.dropped_windows = 0
        self.failure: Exception | None = None
        self._datatype, self._live, self._limits, self._author = datatype, live, limits, author
        self._max_bytes = max_bytes
        self._session: _Session | None = None
        self._next: _Session | None = None  # GNU Radio does not keep the Python part of its sink
        self._begun: list[_Begun] = []
        """Of all graphs that have started."""
        self._earlier: list[StationRecorder] = []
        """Of graphs that have ended, as long as there are parts of theirs that may have to go."""
        self._ended: dict[str, Account] = {}
        self._settling, self._tidying = threading.Lock(), threading.Lock()

    def attach(self, graph: StationGraph, outputs: list[tuple[Any, int]]) -> None:
        """Connect to the receivers' streams.

        Raises PublishError where the folder cannot be written, ConfigError for limits too small for so many receivers.
        """
        station = graph.station
        table = station.station
        limits = shares(self._limits, self._max_bytes, len(station.receiver))
        number = len(self._begun) + 1
        first = number == 1
        folder = self.folder if first else self.folder / f"run-{number:04d}"
        sink = localize.sigmf_sink(
            folder,
            [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver],
            table.sample_rate_hz,
            table.frequency_hz,
            datatype=self._datatype,
            max_part_bytes=limits.max_part_bytes,
            max_part_s=limits.max_part_s or 0.0,
            max_bytes=limits.max_bytes or 0,
            max_parts=limits.max_parts or 0,
            min_free_bytes=limits.min_free_bytes,
            live=self._live,
            collection=table.name,
            hardware=", ".join(dict.fromkeys(_hardware(receiver) for receiver in station.receiver)),
            description=f"{table.name}, {table.frequency_hz / 1e6:g} MHz",
            author=self._author,
        )
        for index, output in enumerate(outputs):
            graph.connect(output, (sink, index))
        session = _Session(folder, graph, outputs, sink, FileFixSink(folder / FIXES_FILE))
        graph.localizer.engine.observe("recorder", self.report)
        if first:  # what is wrong with the folder is said before anything starts
            self._begin(session)
        else:  # the graph before it may still be running
            self._next = session
            sink.recorder.on_open = lambda: self._begin(session)

    def _begin(self, session: _Session) -> None:
        self.close()
        recorder = session.sink.recorder
        recorder.on_open = _nothing
        recorder.earlier = self._held(recorder.names)
        recorder.on_part = self._tidy
        is_new = not session.folder.exists()
        self._begun.append(_Begun(session.folder, [recorder.name, *recorder.names], is_new))
        engine, station = session.graph.localizer.engine, session.graph.station
        write_twin(
            session.folder,
            station,
            recorder.names,
            contract=engine.contract,
            frames=station_frames(station, engine.contract),
            model=engine.model_file,
            fallback=engine.fallback_file,
        )
        session.fix_file.open()
        self._session, self._next = session, None

    def _held(self, names: Sequence[str]) -> dict[str, list[Path]]:
        """Whole parts of earlier graphs, by name; the first receiver has those of receivers that are no more."""
        held: dict[str, list[Path]] = {}
        for recorder in self._earlier:
            for name, parts in recorder.whole.items():
                held.setdefault(name if name in names else names[0], []).extend(parts)
        return held

    def _tidy(self) -> None:
        """A part has come or gone: see to the folders of earlier graphs. From any receiver's thread."""
        with self._tidying:
            for recorder in list(self._earlier):
                if not recorder.tidy():
                    remove_twin(recorder.folder)
                    self._earlier.remove(recorder)

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
        with self._settling:
            session, self._session = self._session, None
            if session is None:
                return
            recorder = session.sink.recorder
            for name, account in recorder.accounts.items():
                self._ended[name] = self._ended.get(name, Account()) + account
        session.fix_file.close()
        self.failure = self.failure or session.sink.failure
        if self._max_bytes is not None or self._limits.max_parts is not None:
            recorder.on_part = _nothing
            self._earlier.append(recorder)

    def undo(self) -> None:
        """Take away what was begun, where nothing came of it: the next try wants an empty folder."""
        if self.recorded or self.fixes:
            return
        for begun in reversed(self._begun):
            with contextlib.suppress(OSError):  # what cannot be taken away is said by the next try
                remove_twin(begun.folder)
                (begun.folder / FIXES_FILE).unlink(missing_ok=True)
                for name in begun.names:
                    for file in [*begun.folder.glob(f"{name}.sigmf-*"), *begun.folder.glob(f"{name}-[0-9]*.sigmf-*")]:
                        file.unlink()
                if begun.is_new:
                    begun.folder.rmdir()

    def report(self) -> dict[str, Any]:
        """For a status: what has become of each receiver's samples in all graphs, how recording goes, and the disk."""
        with self._settling:
            accounts, phases = dict(self._ended), dict.fromkeys(self._ended, ("stopped", ""))
            if self._session is not None:
                recorder = self._session.sink.recorder
                for name, account in recorder.accounts.items():
                    accounts[name] = accounts.get(name, Account()) + account
                phases.update(recorder.phases)
        receivers: dict[str, Any] = {}
        for name, (phase, why) in phases.items():
            reason = {"reason": why} if phase in ("paused", "failed") else {}
            receivers[name] = {"state": phase, **reason, **asdict(accounts[name])}
        disk = shutil.disk_usage(self.folder) if self.folder.exists() else None
        return {"receivers": receivers, **({} if disk is None else {"free_bytes": disk.free})}

    @property
    def recorded(self) -> int:
        """Samples in files, once all is settled."""
        return sum(account.samples for account in self._ended.values())

    @property
    def lost(self) -> int:
        """Samples that were not kept, once all is settled."""
        return sum(account.lost_queue + account.lost_disk for account in self._ended.values())

    def summary(self) -> str:
        """What was recorded, in one line."""
        parts = [f"{self.recorded} samples and {self.fixes} fixes in {self.folder}"]
        if self.lost:
            parts.append(f"{self.lost} samples were not kept")
        if self.dropped_windows:
            parts.append(f"{self.dropped_windows} windows were dropped, a replay answers them too")
        return "; ".join(parts)


def shares(limits: Limits, max_bytes: int | None, receivers: int) -> Limits:
    """Limits of each receiver, where `max_bytes` are for all together. Raises ConfigError where that is too little."""
    if max_bytes is None:
        return limits
    least = LEAST_PARTS * MIN_PART_BYTES * receivers
    if max_bytes < least:
        raise ConfigError(f"--max-bytes {max_bytes}: wanted at least {least} for {receivers} receivers")
    share = max_bytes // receivers
    return replace(limits, max_bytes=share, max_part_bytes=min(limits.max_part_bytes, share // LEAST_PARTS))


def _nothing() -> None:
    pass


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
@click.option(
    "--max-bytes", type=Size(), help="Of all recordings in the folder; the oldest parts go when there are more."
)
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
    limits = Limits(max_part_bytes, max_part_s, None, max_parts, min_free_bytes)
    live = not (fast or station.is_recorded)
    recorder = FolderRecorder(output, datatype=datatype, live=live, limits=limits, max_bytes=max_bytes, author=author)

    def keep(fix: Fix) -> None:
        recorder.keep(fix)
        print(fix_to_json(fix) if as_json else fix_line(fix), flush=True)

    try:
        code = carry_out(load, on_fix=keep, duration_s=duration_s, live=not fast, recorder=recorder)
    finally:
        recorder.close()
        recorder.undo()
    logs.say(recorder.summary())
    why: object = recorder.failure
    if why is None and recorder.lost > 0 and recorder.recorded == 0:
        why = f"nothing could be written into {output}"
    if why is not None:
        logs.complain(why)
    return code or int(why is not None)
