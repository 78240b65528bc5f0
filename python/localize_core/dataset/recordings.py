"""Recordings of a station with their truth, as labelled windows: what its flowgraph would have fed to a model.

Samples go through the aligner, the features, the assembler and the masking of the blocks; only the framing is
repeated here, where GNU Radio does it by history. Nothing is kept: every pass over the windows reads the files again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.aligner import Aligner
from localize_core.alignment.settings import MAX_FILL_S
from localize_core.alignment.timeline import TimeTag
from localize_core.dataset.truth import FixedTruth, TruthFile
from localize_core.dataset.windows import Label, Windows
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.history import History
from localize_core.engine.masking import ChannelMask
from localize_core.engine.windows import Framing, Window, WindowAssembler
from localize_core.errors import ConfigError, SourceError
from localize_core.features.quality import SampleFlag
from localize_core.model.compiled.compile import contract_of
from localize_core.model.contract import Contract
from localize_core.sources.recording import Recording, stamped_samples
from localize_core.station.config import Station
from localize_core.station.plan import fit_station, plan_station, read_recordings
from localize_core.types.fix import Position
from localize_core.types.time import shift_time

CHUNK = 1 << 16
"""Samples of each receiver that are worked on at once."""
BLOCKS = 10
"""Blocks of time that a recording is divided into, if that leaves each `MIN_BLOCK` windows' worth of time."""
MIN_BLOCK = 10

Time = tuple[int, float]
Truth = Position | Path


@dataclass(frozen=True)
class Dropped:
    """Windows that have no label, or would tell one block about another.

    `outside_truth`: the truth does not reach there. `switching`: the emitter is switched on or off meanwhile.
    `shared`: they hold frames of the block of time before theirs.
    """

    outside_truth: int = 0
    switching: int = 0
    shared: int = 0


def recording_windows(
    station: Station | Sequence[Station],
    truth: Truth | Sequence[Truth],
    *,
    contract: Contract | None = None,
    block_windows: int | None = None,
) -> RecordingWindows:
    """Labelled windows of a station's recordings.

    `station`: several are several recordings of the same receivers. `truth`: the emitter's fixed place, or a CSV file
    with its track, and maybe `emitter` 1 or 0 (`TruthFile`); one for all stations or one each. `contract`: of the model
    that the windows are for; left out, they are as the first station is planned. `block_windows`: windows in a block of
    time, which is a group that no split divides; left out, a tenth of a recording, and no less than ten windows' time.

    Raises ConfigError for stations without recordings, with other receivers, or that do not suit the contract, and for
    recordings that share no time; SourceError for what cannot be read, and where no window has a truth.
    """
    stations = [station] if isinstance(station, Station) else list(station)
    truths = [truth] if isinstance(truth, Position | Path) else list(truth)
    if not stations:
        raise ConfigError("no station, so no recordings")
    if len(truths) == 1:
        truths *= len(stations)
    if len(truths) != len(stations):
        raise ConfigError(f"{len(truths)} truths for {len(stations)} recordings of the station: one, or one each")
    if block_windows is not None and block_windows < 1:
        raise ConfigError(f"block_windows={block_windows}: must be at least 1")
    for each in stations:
        if not each.is_recorded:
            raise ConfigError(
                f"receiver {each.receiver[0].name}.source: labelled windows need recordings, of kind 'kiwi-wav' or "
                f"'sigmf', found '{each.source_kind}'"
            )
    hops: list[int] = []
    if contract is None:
        plan = plan_station(stations[0])
        contract, time_steps = contract_of(plan.spec), plan.time_steps
        hops.append(plan.window_hop)
    else:
        time_steps, window_hop = fit_station(stations[0], contract)
        hops.append(window_hop)
    if contract.frame.kind != "enu_m":
        raise ConfigError(
            f"the model {contract.name} answers in {contract.frame.kind}: windows are labelled in metres, enu_m"
        )
    fixed = contract.model_copy(update={"time_steps": time_steps})
    for each in stations[1:]:
        try:
            hops.append(fit_station(each, fixed)[1])
        except ConfigError as error:
            recording = getattr(each.receiver[0].source, "path", each.station.name)
            raise ConfigError(f"the station of {recording}, as the first one is planned: {error}") from error
    return RecordingWindows(
        [
            _Labelled(each, _truth(told), contract, time_steps, window_hop, block_windows)
            for each, told, window_hop in zip(stations, truths, hops, strict=True)
        ],
        contract,
        time_steps,
    )


def _truth(told: Truth) -> FixedTruth | TruthFile:
    return FixedTruth(told) if isinstance(told, Position) else TruthFile(told)


class RecordingWindows:
    """The windows of all recordings in order of time, a `WindowSource`. `dropped`: those that were left out."""

    def __init__(self, parts: list[_Labelled], contract: Contract, time_steps: int) -> None:
        self._parts, self._contract, self._time_steps = parts, contract, time_steps
        self.dropped = Dropped(
            outside_truth=sum(part.dropped.outside_truth for part in parts),
            switching=sum(part.dropped.switching for part in parts),
            shared=sum(part.dropped.shared for part in parts),
        )
        complete = sum(part.complete for part in parts)
        if complete == 0:
            raise SourceError(
                f"the recordings share too little time for a window of {time_steps} frames, "
                f"{(contract.n_fft + (time_steps - 1) * contract.hop) / contract.sample_rate_hz:.4g} s"
            )
        if len(self) == 0:
            raise SourceError(
                f"none of the {complete} windows of the recordings has a label: "
                f"{self.dropped.outside_truth} lie outside the truth's time ({parts[0].describe()}), the emitter is "
                f"switched during {self.dropped.switching}"
            )

    @property
    def contract(self) -> Contract:
        return self._contract

    @property
    def time_steps(self) -> int:
        """Frames in a window."""
        return self._time_steps

    @property
    def group(self) -> np.ndarray:
        """The block of time of every window, (n,), without reading any."""
        first = np.cumsum([0, *(part.blocks for part in self._parts)])
        return np.concatenate([part.block + start for part, start in zip(self._parts, first, strict=False)])

    @property
    def places_m(self) -> np.ndarray:
        """Places of the emitter in the area, in the frame of the contract, one for each window that has one: (n, 2)."""
        return np.concatenate([part.places_m for part in self._parts])

    def __len__(self) -> int:
        return sum(len(part.kept) for part in self._parts)

    def batches(self, size: int) -> Iterator[Windows]:
        """The windows in order, up to `size` at a time; those of two recordings may stand in one batch."""
        if size < 1:
            raise ConfigError(f"size={size}: must be at least 1")
        waiting: list[Windows] = []
        first_group = 0
        for number, part in enumerate(self._parts):
            for window in part.windows(number, first_group):
                waiting.append(window)
                if len(waiting) == size:
                    yield Windows.concatenate(waiting)
                    waiting = []
            first_group += part.blocks
        if waiting:
            yield Windows.concatenate(waiting)


class _Labelled:
    """The windows of one station's recordings, with the labels of those that are kept.

    `complete`: how many windows the recordings hold. `kept`: their numbers, increasing. `blocks`: of time, and `block`
    the one of each kept window.
    """

    def __init__(
        self,
        station: Station,
        truth: FixedTruth | TruthFile,
        contract: Contract,
        time_steps: int,
        window_hop: int,
        block_windows: int | None,
    ) -> None:
        self._station, self._truth, self._contract = station, truth, contract
        self._time_steps, self._window_hop = time_steps, window_hop
        recordings = read_recordings(station)
        if not any(recording.time_valid for recording in recordings):
            raise SourceError(
                f"{recordings[0].path}: like the others it does not say when it was made, so no truth belongs to it"
            )
        centre_s = np.array([time.timestamp() for time in self._centres(recordings)])
        self.complete = len(centre_s)
        self._span_s = centre_s[[0, -1]].tolist() if self.complete else None
        # All samples seen: frames reach before the window's first hop.
        half_s = (time_steps * contract.hop + max(contract.n_fft - contract.hop, 0)) / 2.0 / contract.sample_rate_hz
        known = truth.at(centre_s - half_s, centre_s, centre_s + half_s)
        # Windows overlap where they begin more often than they are long.
        overlap = -(-time_steps // window_hop)
        size = block_windows or max(-(-self.complete // BLOCKS), MIN_BLOCK * overlap)
        block, place = np.divmod(np.arange(self.complete), size)
        self.blocks = -(-self.complete // size)
        shared = (place < overlap - 1) & (block > 0)
        labelled = known.known & ~known.changes
        self.dropped = Dropped(
            outside_truth=int((~known.known).sum()),
            switching=int((known.known & known.changes).sum()),
            shared=int((labelled & shared).sum()),
        )
        kept = labelled & ~shared
        self.kept = np.flatnonzero(kept)
        self.block = block[kept]
        self._label = np.where(known.sends, Label.INSIDE, Label.NONE)[kept]
        latitude, longitude = known.latitude[kept], known.longitude[kept]
        self._label[(self._label == Label.INSIDE) & ~_in_area(station, latitude, longitude)] = Label.OUTSIDE
        self._truth_m = np.full((len(self.kept), 2), np.nan)
        sends = self._label != Label.NONE
        frame = contract.frame
        self._truth_m[sends] = frame.local.to_enu_m(latitude[sends], longitude[sends], frame.altitude_m)[:, :2]

    @property
    def places_m(self) -> np.ndarray:
        places: np.ndarray = self._truth_m[self._label == Label.INSIDE]
        return places

    def describe(self) -> str:
        """When the windows were recorded and what time the truth covers, for messages."""
        recorded = "too short" if self._span_s is None else "recorded from {:.3f} to {:.3f}".format(*self._span_s)
        return f"{recorded}, truth: {self._truth}"

    def windows(self, source: int, first_group: int) -> Iterator[Windows]:
        """The kept windows, one at a time."""
        mask = ChannelMask(self._contract)
        numbers = self.kept.tolist()
        index = 0
        for number, window in enumerate(self._complete_windows()):
            if index == len(numbers):
                return
            if number < numbers[index]:
                continue
            sound = mask.sound(window)
            yield Windows(
                features=mask.apply(window.features, sound)[None],
                level_db=window.level_db[None],
                truth_m=self._truth_m[index : index + 1],
                label=self._label[index : index + 1],
                snr_db=np.full((1, len(self._contract.receivers)), np.nan),
                bandwidth_hz=np.full(1, np.nan),
                group=self.block[index : index + 1] + first_group,
                source=np.full(1, source),
                usable=mask.usable(sound)[None],
            )
            index += 1

    def _centres(self, recordings: list[Recording]) -> list[datetime]:
        """Centre times of all complete windows; takes no features."""
        contract = self._contract
        times: History[Time] = History()
        count = 0
        for chunk in _chunks(recordings, contract.sample_rate_hz, dry=True):
            for index, time in chunk.times:
                frame, sample = divmod(count + index, contract.hop)
                times.add(frame, shift_time(*time, -sample / contract.sample_rate_hz))
            count += chunk.samples.shape[1]
        centres = []
        hop_s = contract.hop / contract.sample_rate_hz
        frames = count // contract.hop
        framing = Framing.of(contract)
        for first in range(warmup_frames(contract), frames - self._time_steps + 1, self._window_hop):
            told = times.at(first, first + self._time_steps - 1)
            if told is None:
                raise SourceError(
                    f"{recordings[0].path}: its times and those beside it lie on no line, so none is known"
                )
            start = shift_time(*told[1], (first - told[0]) * hop_s)
            centres.append(framing.centre(start, self._time_steps))
        return centres

    def _complete_windows(self) -> Iterator[Window]:
        """All windows in order, as onnx_inference assembles them."""
        contract = self._contract
        receivers = len(contract.receivers)
        assembler = WindowAssembler(
            len(contract.channels),
            contract.rows,
            receivers,
            time_steps=self._time_steps,
            window_hop=self._window_hop,
        )
        warmup, seen = warmup_frames(contract), 0
        features = FeatureFrames(contract)
        for chunk in _chunks(read_recordings(self._station), contract.sample_rate_hz):
            values, level_db, flags = features.push(chunk.samples)
            flags[:, ~np.array(chunk.timed)] |= int(SampleFlag.UNALIGNED)
            skipped = min(max(warmup - seen, 0), len(values))
            if skipped:
                assembler.restart(seen + skipped)
            seen += len(values)
            yield from assembler.push(values[skipped:], level_db[skipped:], flags[skipped:])


@dataclass(frozen=True)
class _Chunk:
    """Samples of all receivers side by side, (R, m) complex64, and the times of some of them.

    `timed`: of each receiver, whether its samples are where their times say.
    """

    samples: NDArray[np.complex64]
    times: list[tuple[int, Time]]
    timed: tuple[bool, ...]


def _chunks(recordings: list[Recording], sample_rate_hz: float, *, dry: bool = False) -> Iterator[_Chunk]:
    """The recordings on one time grid, as time_align puts them; a single one as it is.

    `dry`: for the times alone, which needs no samples: zeros stand for them.
    """
    if len(recordings) == 1:
        yield from _alone(recordings[0], dry)
        return
    aligner = Aligner(len(recordings), sample_rate_hz, max_fill_s=MAX_FILL_S)
    tags = [_tags(recording) for recording in recordings]
    pushed = [0] * len(recordings)
    for stream, recording in enumerate(recordings):
        aligner.describe(stream, rate_hz=recording.sample_rate_hz, length=len(recording))
        if recording.time_valid:
            aligner.doubt(stream, 0, recording.time_error_ns * 1e-9)
    while True:
        while (block := aligner.pull(CHUNK, dry=dry)) is not None:
            times = [(0, block.time)] if block.marked and block.time is not None else []
            yield _Chunk(np.stack(block.samples), times, aligner.timed)
        fed = 0
        for stream, starves in enumerate(aligner.starving()):
            if aligner.finished or not starves:
                continue
            first = pushed[stream]
            samples = _read(recordings[stream], first, min(CHUNK, aligner.room(stream)), dry)
            end = first + len(samples)
            begin, stop = np.searchsorted([tag.index for tag in tags[stream]], (first, end))
            pushed[stream] += aligner.push(stream, samples, tags[stream][begin:stop])
            fed += len(samples)
        if fed == 0:
            return


def _read(recording: Recording, first: int, count: int, dry: bool) -> NDArray[np.complex64]:
    return np.zeros(min(count, len(recording) - first), np.complex64) if dry else recording.read(first, count)


def _alone(recording: Recording, dry: bool) -> Iterator[_Chunk]:
    stamped = stamped_samples(recording)
    for first in range(0, len(recording), CHUNK):
        samples = _read(recording, first, CHUNK, dry)
        begin, stop = np.searchsorted(stamped, (first, first + len(samples)))
        times = [(index - first, recording.time(index)) for index in stamped[begin:stop].tolist()]
        yield _Chunk(samples[None], times, (True,))


def _tags(recording: Recording) -> list[TimeTag]:
    return [TimeTag(index, *recording.time(index)) for index in stamped_samples(recording).tolist()]


def _in_area(station: Station, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    area = station.area
    east_of_west = (longitude - area.west) % 360.0
    return (latitude >= area.south) & (latitude <= area.north) & (east_of_west <= area.east - area.west)
