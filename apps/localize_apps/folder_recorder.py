"""The recordings of a station in a folder: of each graph that it runs, beside what plays them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gnuradio import localize
from localize_core.errors import ConfigError
from localize_core.recorder.sigmf_writer import MIN_PART_BYTES, Limits
from localize_core.recorder.station_recorder import StationRecorder
from localize_core.recorder.stream_recorder import Account
from localize_core.recorder.twin import FIXES_FILE, remove_twin, write_twin
from localize_core.sinks.file_sink import FileFixSink
from localize_core.station.engine import station_frames
from localize_core.station.sources import RadioSource
from localize_core.types.fix import Fix

from localize_apps.graph import StationGraph

LEAST_PARTS = 4
"""That a receiver's share of --max-bytes holds: the oldest goes before the next begins."""


@dataclass
class _Session:
    """Of one graph that records: its receivers' streams, the sink, and the file of its fixes."""

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
        self._begun: list[_Begun] = []
        """Of all graphs that have started."""
        self._earlier: list[StationRecorder] = []
        """Of graphs that have ended, as long as there are parts of theirs that may have to go."""
        self._ended: dict[str, Account] = {}
        self._free_bytes: int | None = None
        self._settling, self._tidying = threading.Lock(), threading.Lock()

    def attach(self, graph: StationGraph, outputs: list[tuple[Any, int]]) -> Any:
        """Connect to the receivers' streams. Returns the sink, for GNU Radio does not keep its Python part.

        Raises PublishError where the folder cannot be written, ConfigError for limits too small for so many receivers.
        """
        station = graph.station
        table = station.station
        limits = shares(self._limits, self._max_bytes, len(station.receiver))
        sink = localize.sigmf_sink(
            self.folder,
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
        graph.localizer.engine.observe("recorder", self.report)
        if not self._begun:  # what is wrong with the folder is said before anything starts
            self._begin(graph, outputs, sink)
        else:  # the graph before it may still be running, or this one never begin
            sink.recorder.on_open = lambda: self._begin(graph, outputs, sink)
        return sink

    def _begin(self, graph: StationGraph, outputs: list[tuple[Any, int]], sink: Any) -> None:
        self.close()
        number = len(self._begun) + 1
        folder = self.folder if number == 1 else self.folder / f"run-{number:04d}"
        recorder = sink.recorder
        recorder.folder = folder
        recorder.on_open = _nothing
        recorder.earlier = self._held(recorder.names)
        recorder.on_part = self._tidy
        is_new = not folder.exists()
        self._begun.append(_Begun(folder, [recorder.name, *recorder.names], is_new))
        engine, station = graph.localizer.engine, graph.station
        write_twin(
            folder,
            station,
            recorder.names,
            contract=engine.contract,
            frames=station_frames(station, engine.contract),
            model=engine.model_file,
            fallback=engine.fallback_file,
        )
        fix_file = FileFixSink(folder / FIXES_FILE)
        fix_file.open()
        self._session = _Session(outputs, sink, fix_file)

    def _held(self, names: Sequence[str]) -> dict[str, list[Path]]:
        """Whole parts of earlier graphs, by name, oldest first. Parts of receivers that are no more come before those
        of the first one that there is.
        """
        held: dict[str, list[Path]] = {name: [] for name in names}
        gone: list[Path] = []
        for recorder in self._earlier:
            for name, parts in recorder.whole.items():
                held.get(name, gone).extend(parts)
        held[names[0]][:0] = gone
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
            self._free_bytes = self._free_bytes if recorder.free_bytes is None else recorder.free_bytes
        session.fix_file.close()
        self.failure = self.failure or session.sink.failure
        if self._max_bytes is not None or self._limits.max_parts is not None:
            recorder.on_part = _nothing
            self._earlier.append(recorder)

    def undo(self) -> bool:
        """Take away what was begun, where nothing came of it: the next try wants an empty folder. Returns whether."""
        if self.recorded or self.fixes:
            return False
        for begun in reversed(self._begun):
            with contextlib.suppress(OSError):  # what cannot be taken away is said by the next try
                remove_twin(begun.folder)
                (begun.folder / FIXES_FILE).unlink(missing_ok=True)
                for name in begun.names:
                    for file in [*begun.folder.glob(f"{name}.sigmf-*"), *begun.folder.glob(f"{name}-[0-9]*.sigmf-*")]:
                        file.unlink()
                if begun.is_new:
                    begun.folder.rmdir()
        return True

    def report(self) -> dict[str, Any]:
        """For a status: what has become of each receiver's samples in all graphs, how recording goes, and the disk.

        Asks no disk, for whoever wants a status does not wait for one: its free bytes are those of the last write.
        """
        with self._settling:
            accounts, phases = dict(self._ended), dict.fromkeys(self._ended, ("stopped", ""))
            free_bytes = self._free_bytes
            if self._session is not None:
                recorder = self._session.sink.recorder
                free_bytes = free_bytes if recorder.free_bytes is None else recorder.free_bytes
                for name, account in recorder.accounts.items():
                    accounts[name] = accounts.get(name, Account()) + account
                phases.update(recorder.phases)
        receivers: dict[str, Any] = {}
        for name, (phase, why) in phases.items():
            reason = {"reason": why} if phase in ("paused", "failed") else {}
            receivers[name] = {"state": phase, **reason, **asdict(accounts[name])}
        return {"receivers": receivers, **({} if free_bytes is None else {"free_bytes": free_bytes})}

    @property
    def recorded(self) -> int:
        """Samples in files, once all is settled."""
        return sum(account.samples for account in self._ended.values())

    @property
    def lost(self) -> int:
        """Samples that were not kept, once all is settled."""
        return sum(account.lost for account in self._ended.values())

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
