"""Streams with gaps, and a station that loses a receiver: what windows span, how well streams stand side by side after
each gap, and what three receivers are worth.

    python benchmarks/gaps.py [--gaps 1000] [--scenes 1500] [--cuts 20] [--seed 1]

Gaps: four streams hear one white noise, each at its own fraction of a sample, and lose 1 to 10⁶ samples at a time. What
a window has seen is told from where the gaps were made, not from what the aligner says of them.

Receivers: scenes of examples/four_receivers.toml, each with clock errors of its own; in each, one receiver's stream
ends. Samples go through the real aligner, features, compiled model and locator, without GNU Radio.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from localize_core.alignment.aligner import AlignedBlock, Aligner
from localize_core.alignment.resample import HALF_TAPS
from localize_core.alignment.timeline import TimeTag
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.windows import FrameCount, Window, WindowAssembler, frames_across
from localize_core.evaluation.bound import position_bound
from localize_core.features.quality import SampleFlag
from localize_core.geodesy import GEOD
from localize_core.model.compiled.compile import compile_model
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import OnnxModel
from localize_core.resources import shared_file
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station, load_station
from localize_core.station.plan import Plan, plan_station
from localize_core.types.fix import Fix

RATE_HZ = 2000.0
BASE_S = 1_700_000_000
WAIT_S = 1.0
PERIOD = 1 << 15
FRACTIONS = (0.05, 0.3, 0.55, 0.8)
CHUNK = 500
N_FFT, HOP, STEPS = 192, 128, 4
MEASURED = 1024
"""Samples after a gap from which a stream's delay is told."""


# Gaps


@dataclass
class GapsFound:
    """`error_samples`: delay of each stream after each of its gaps. `windows`: complete ones, of which `spanning` have
    seen both sides of a gap. `boundaries`: how many there were.
    """

    error_samples: np.ndarray
    spanning: int
    windows: int
    boundaries: int
    frames: FrameCount
    expected_frames: int


@dataclass
class _Lossy:
    """A stream that hears `noise` at its own fraction of a sample; `edges`: grid steps where a gap begins or ends."""

    samples: np.ndarray
    fraction: float
    firsts: np.ndarray  # position, in whole steps, of the first sample of each stretch
    counts: np.ndarray
    index: int = 0
    edges: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        begin, end = self.firsts, self.firsts + self.counts
        # Sample n stands at n + fraction. The step after the last one before a gap is still made of those alone.
        self.edges = np.sort(np.concatenate([begin[1:] + 1, end[:-1] + 1]))

    def chunks(self, size: int) -> Iterator[tuple[int, np.ndarray, list[TimeTag]]]:
        """When each chunk's last sample was received, in steps; samples; tags."""
        for first, count in zip(self.firsts.tolist(), self.counts.tolist(), strict=True):
            whole, rest = divmod(first, int(RATE_HZ))
            tags = [TimeTag(self.index, BASE_S + whole, (rest + self.fraction) / RATE_HZ)]
            for at in range(0, count, size):
                part = np.arange(first + at, first + min(at + size, count))
                yield int(part[-1]), self.samples[part % PERIOD], tags
                self.index += len(part)
                tags = []


def _noise(rng: np.random.Generator) -> np.ndarray:
    """A period of white noise, but for the tenth of the band next to Nyquist."""
    spectrum = rng.standard_normal(PERIOD) + 1j * rng.standard_normal(PERIOD)
    return np.where(np.abs(np.fft.fftfreq(PERIOD)) < 0.45, spectrum, 0.0) / math.sqrt(PERIOD)


def _later(spectrum: np.ndarray, fraction: float) -> np.ndarray:
    """The noise at n + fraction."""
    return np.fft.ifft(spectrum * np.exp(2j * np.pi * np.fft.fftfreq(PERIOD) * fraction) * math.sqrt(PERIOD)).astype(
        np.complex64
    )


def _delay(found: np.ndarray, spectrum: np.ndarray, truth: np.ndarray, first: int) -> float:
    """By how many samples `found`, from step `first` on, is late: the peak of its correlation, then least squares."""
    at = np.arange(first, first + len(found)) % PERIOD
    size = 4 * len(found)
    product = np.fft.fft(found, size) * np.conj(np.fft.fft(truth[at], size))
    lag = int(np.argmax(np.abs(np.fft.ifft(product))))
    lag = lag - size if lag > size // 2 else lag
    if lag:
        return float(lag)
    late = (_later(spectrum, -1e-3)[at] - truth[at]) / 1e-3
    return float(np.vdot(late, found - truth[at]).real / np.vdot(late, late).real)


def measure_gaps(gaps: int, seed: int = 1) -> GapsFound:
    """`gaps` random gaps of 1 to 10⁶ samples, over four streams."""
    rng = np.random.default_rng(seed)
    spectrum = _noise(rng)
    truth = _later(spectrum, 0.0)
    owner = rng.integers(0, len(FRACTIONS), gaps)
    streams = []
    for k, fraction in enumerate(FRACTIONS):
        own = int(np.count_nonzero(owner == k))
        lost = np.round(10.0 ** rng.uniform(0.0, 6.0, own)).astype(np.int64)
        counts = np.round(RATE_HZ * (2.5 + rng.exponential(1.5, own + 1))).astype(np.int64)
        firsts = np.concatenate([[0], np.cumsum(counts[:-1] + lost)])
        streams.append(_Lossy(_later(spectrum, fraction), fraction, firsts, counts))
    seen = _Seen(streams)
    errors: list[float] = []
    after: list[list[np.ndarray] | None] = [None] * len(streams)
    since = [0] * len(streams)
    for block in _aligned(streams):
        first = seen.take(block)
        for stream, here in enumerate(block.present):
            if here and block.boundary is not None and seen.returns(stream, first):
                after[stream], since[stream] = [], first
            parts = after[stream]
            if not here:
                after[stream] = None
            elif parts is not None:
                parts.append(block.samples[stream])
                if sum(map(len, parts)) >= HALF_TAPS + MEASURED:
                    whole = np.concatenate(parts)[HALF_TAPS : HALF_TAPS + MEASURED]
                    errors.append(_delay(whole, spectrum, truth, since[stream] + HALF_TAPS))
                    after[stream] = None
    return GapsFound(
        np.array(errors), seen.spanning, seen.windows, seen.boundaries, seen.assembler.count, seen.samples // HOP
    )


def _aligned(streams: list[_Lossy]) -> Iterator[AlignedBlock]:
    """What comes out while the streams arrive, each sample when it was received."""
    aligner = Aligner(len(streams), RATE_HZ, clocks="trusted", max_wait_s=WAIT_S, max_fill_s=0.0)
    queues = [stream.chunks(CHUNK) for stream in streams]
    pending = [(when, k, samples, tags) for k, queue in enumerate(queues) for when, samples, tags in [next(queue)]]
    heapq.heapify(pending)
    while pending:
        _, k, samples, tags = heapq.heappop(pending)
        aligner.push(k, samples, tags)
        following = next(queues[k], None)
        if following is None:
            aligner.end(k)
        else:
            heapq.heappush(pending, (following[0], k, *following[1:]))
        while (block := aligner.pull(1 << 16)) is not None:
            yield block
    assert aligner.finished


class _Seen:
    """Frames whose values say between which gaps each stream's samples were, and the windows of them."""

    def __init__(self, streams: list[_Lossy]) -> None:
        self.streams = streams
        self.samples = self.spanning = self.windows = self.boundaries = 0
        self.assembler = WindowAssembler(len(streams), 2, len(streams), time_steps=STEPS, window_hop=STEPS)
        self._held = np.zeros((len(streams), N_FFT - HOP), np.int64)
        self._rest = np.zeros((len(streams), 0), np.int64)
        self._flags = np.zeros((0, len(streams)), np.int32)
        self._inside: dict[int, int] = {}
        self._last = [0] * len(streams)

    def returns(self, stream: int, step: int) -> bool:
        """Whether another stretch of the stream is the one present from here on."""
        stretch = int(np.searchsorted(self.streams[stream].edges, step, side="right"))
        before, self._last[stream] = self._last[stream], stretch
        return stretch != before

    def take(self, block: AlignedBlock) -> int:
        """Note a block; returns its first grid step."""
        assert block.time is not None
        first = round((block.time[0] - BASE_S) * RATE_HZ + block.time[1] * RATE_HZ)
        count = len(block.samples[0])
        if block.boundary is not None:
            self.boundaries += 1
            frame, sample = divmod(self.samples, HOP)
            self._inside[frame] = max(frames_across(sample, N_FFT, HOP), self._inside.get(frame, 0))
        steps = np.arange(first, first + count)
        numbers = np.array([np.searchsorted(stream.edges, steps, side="right") for stream in self.streams])
        absent = np.where(block.present, 0, int(SampleFlag.ABSENT)).astype(np.int32)
        self.samples += count
        self._rest = np.concatenate([self._rest, numbers], axis=1)
        self._flags = np.concatenate([self._flags, np.tile(absent, (count, 1))])
        whole = self._rest.shape[1] // HOP
        if whole:
            held = np.concatenate([self._held, self._rest[:, : whole * HOP]], axis=1)
            spans = np.lib.stride_tricks.sliding_window_view(held, N_FFT, axis=1)[:, ::HOP]
            features = np.stack([spans.min(axis=2).T, spans.max(axis=2).T], axis=2).astype(np.float32)
            flags = np.bitwise_or.reduce(self._flags[: whole * HOP].reshape(whole, HOP, -1), axis=1)
            # A frame across a boundary has flags of both sides, and is in no window.
            for window in self.assembler.push(
                features,
                np.zeros((whole, len(self.streams)), np.float32),
                flags,
                {
                    frame: reaching
                    for frame, reaching in self._inside.items()
                    if frame < self.assembler.next_frame + whole
                },
            ):
                self._judge(window)
            self._inside = {k: v for k, v in self._inside.items() if k >= self.assembler.next_frame}
            self._held = held[:, whole * HOP :]
            self._rest, self._flags = self._rest[:, whole * HOP :], self._flags[whole * HOP :]
        return first

    def _judge(self, window: Window) -> None:
        self.windows += 1
        used = [not flag & SampleFlag.ABSENT for flag in window.flags]
        lowest, highest = window.features[:, 0].min(axis=1), window.features[:, 1].max(axis=1)
        # The first frames reach before the first sample, where the number is 0 as well.
        self.spanning += bool((highest != lowest)[used].any())


# Receivers


@dataclass(frozen=True)
class Side:
    """Windows with all receivers, or without one: `squared` Mahalanobis distances (n,), `major_m` semi-axes and
    `bound_m`, those of the bound, scaled alike.
    """

    squared: np.ndarray
    major_m: np.ndarray
    bound_m: np.ndarray
    missing: int

    def containment(self, probability: float) -> float:
        return float(np.mean(self.squared <= -2.0 * math.log1p(-probability)))


class Chain:
    """Aligned samples to fixes: features, windows, compiled model and locator."""

    def __init__(self, contract: Contract, plan: Plan, locator: Locator) -> None:
        self.contract, self.plan, self.locator = contract, plan, locator
        self.frames = FeatureFrames(contract)
        self.assembler = WindowAssembler(
            len(contract.channels),
            contract.rows,
            len(contract.receivers),
            time_steps=plan.time_steps,
            window_hop=plan.window_hop,
        )
        self.assembler.skip(warmup_frames(contract))
        self._samples = 0
        self._rest = np.zeros((len(contract.receivers), 0), np.complex64)
        self._states: list[tuple[int, np.ndarray]] = []
        self._inside: dict[int, int] = {}
        self._start: tuple[int, float] = (0, 0.0)
        self.sequence = 0

    def push(self, block: AlignedBlock) -> list[tuple[Fix, float]]:
        """Fixes of the windows that a block completes, and when their middle was, s after the first sample."""
        assert block.time is not None
        hop, reach = self.contract.hop, self.contract.n_fft
        if self._samples == 0:
            self._start = block.time
        if block.boundary is not None:
            frame, sample = divmod(self._samples, hop)
            self._inside[frame] = max(frames_across(sample, reach, hop), self._inside.get(frame, 0))
        self._states.append((self._samples, np.where(block.present, 0, int(SampleFlag.ABSENT)).astype(np.int32)))
        self._samples += len(block.samples[0])
        first = self.assembler.next_frame
        features, level_db, flags = self.frames.push(np.stack(block.samples))
        for number in range(len(features)):
            end = (first + number + 1) * hop - 1
            flags[number] |= next(state for at, state in reversed(self._states) if at <= end)
        self._states = self._states[-2:] if len(self._states) > 64 else self._states
        inside = {frame: reaching for frame, reaching in self._inside.items() if frame < first + len(features)}
        self._inside = {frame: reaching for frame, reaching in self._inside.items() if frame not in inside}
        found = []
        for window in self.assembler.push(features, level_db, flags, inside):
            context = WindowContext(
                station="gaps",
                stream="gaps",
                sequence=self.sequence,
                start=self._start,
                time_source="rx_time",
                frequency_hz=self.contract.frequency_hz,
                alignment=block.alignment,
                completed_s=0.0,
                dropped=0,
            )
            self.sequence += 1
            half = (self.plan.time_steps * hop - (reach - hop)) / 2.0
            middle_s = (window.first_frame * hop + half) / self.contract.sample_rate_hz
            found.append((self.locator.locate(window, context), middle_s))
        return found


def example() -> tuple[Station, Plan]:
    station = load_station(shared_file("examples/four_receivers.toml"))
    return station, plan_station(station)


def locator_of(plan: Plan, folder: Path) -> tuple[Contract, Locator]:
    compile_model(plan.spec, folder / "model.onnx")
    model = OnnxModel(folder / "model.onnx")
    return model.contract, Locator(model, min_confidence=0.0)


def scene_of(station: Station, seed: int) -> Scene:
    """The example's scene with other noise and clock errors, somewhere else on its track."""
    assert station.scene is not None
    rng = np.random.default_rng(seed)
    config = station.scene.model_copy(
        update={"seed": seed, "track": _from(station.scene.track, rng.uniform()), "speed_mps": 1.0}
    )
    rates = {"sample_rate_hz": station.station.sample_rate_hz, "frequency_hz": station.station.frequency_hz}
    return Scene(config, station.receiver, **rates)


def _from(track: list[tuple[float, float]], share: float) -> list[tuple[float, float]]:
    """A short leg that begins at this share of the track."""
    places = np.array(track)
    at = share * (len(places) - 1.001)
    leg, part = int(at), at - int(at)
    start = places[leg] * (1.0 - part) + places[leg + 1] * part
    latitude, longitude = start.tolist()
    return [(latitude, longitude), (latitude + 1e-4, longitude + 1e-4)]


def judge(fix: Fix, scene: Scene, plan: Plan, middle_s: float, cut: int | None) -> tuple[float, float, float] | None:
    """Squared Mahalanobis distance, semi-major axis and that of the bound in metres; None for no fix."""
    if fix.position is None or fix.uncertainty is None:
        return None
    second, fraction = scene.time(0)
    latitude, longitude = scene.truth(second, fraction + middle_s)
    azimuth, _, far_m = GEOD.inv(longitude, latitude, fix.position.longitude, fix.position.latitude)
    error = far_m * np.array([math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))])
    squared = float(error @ np.linalg.solve(fix.uncertainty.covariance_m2, error))
    area = plan.spec.area
    east, north, _ = area.frame.to_enu_m(np.array([latitude]), np.array([longitude]), area.altitude_m)[0]
    snr_db = scene.level_dbfs(np.array([middle_s]))[:, 0] - scene.config.noise_dbfs
    if cut is not None:
        snr_db[cut] = -np.inf
    bound = position_bound(
        plan.spec,
        np.array([[east, north]]),
        snr_db[None],
        np.array([scene.config.bandwidth_hz]),
        duration_s=fix.window_duration_s,
    )
    largest = math.sqrt(float(np.linalg.eigvalsh(bound.covariance_m2[0])[-1]))
    return squared, fix.uncertainty.semi_major_m, fix.uncertainty.scale * largest


def measure_receivers(scenes: int, seed: int = 1) -> tuple[Side, Side]:
    """A window with all four receivers and one with three, of each of many scenes."""
    station, plan = example()
    four: list[tuple[float, float, float]] = []
    three: list[tuple[float, float, float]] = []
    missing = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        contract, locator = locator_of(plan, Path(folder))
        hop = contract.hop
        length = (warmup_frames(contract) + plan.time_steps) * hop
        for number in range(scenes):
            scene, cut = scene_of(station, seed * 100_000 + number), number % 4
            chain = Chain(contract, plan, locator)
            samples = scene.samples(0, 2 * length + contract.n_fft)
            for fix, middle_s in _played(samples, {cut: [(0, length + hop // 3)]}, chain, scene):
                present = sum(receiver.used for receiver in fix.receivers)
                judged = judge(fix, scene, plan, middle_s, cut if present == 3 else None)
                if judged is None:
                    missing[present == 3] += 1
                else:
                    (three if present == 3 else four).append(judged)
    return tuple(  # type: ignore[return-value]
        Side(*np.array(found).T, missing=lost) for found, lost in zip((four, three), missing, strict=True)
    )


def _played(
    samples: np.ndarray, spans: dict[int, list[tuple[int, int]]], chain: Chain, scene: Scene
) -> list[tuple[Fix, float]]:
    """Fixes of a scene's samples, of which some receivers deliver `spans` only."""
    rate_hz = scene.sample_rate_hz
    aligner = Aligner(len(samples), rate_hz, clocks="trusted", max_wait_s=WAIT_S, max_fill_s=0.0)
    size = 2000
    events = []
    index = [0] * len(samples)
    for at in range(0, samples.shape[1], size):
        for k in range(len(samples)):
            for first, end in spans.get(k, [(0, samples.shape[1])]):
                low, high = max(first, at), min(end, at + size)
                if low >= high:
                    continue
                tags = [TimeTag(index[k], *scene.time(low))] if low == first else []
                events.append((k, samples[k, low:high], tags))
                index[k] += high - low
    last = {k: n for n, (k, _, _) in enumerate(events)}
    found: list[tuple[Fix, float]] = []
    for number, (k, part, tags) in enumerate(events):
        aligner.push(k, part, tags)
        if last[k] == number:
            aligner.end(k)
        while (block := aligner.pull(1 << 16)) is not None:
            found += chain.push(block)
    return found


def measure_cuts(cuts: int, seed: int = 1) -> list[tuple[float, int, str]]:
    """One receiver cut and restored again and again: middle of each window in s, receivers used, status."""
    station, plan = example()
    rate_hz = station.station.sample_rate_hz
    period, away = round(4.0 * rate_hz), round(1.5 * rate_hz)
    spans = [(k * period, (k + 1) * period - away) for k in range(cuts + 1)]
    with tempfile.TemporaryDirectory() as folder:
        contract, locator = locator_of(plan, Path(folder))
        scene = scene_of(station, seed)
        locator.min_confidence = station.model.min_confidence
        chain = Chain(contract, plan, locator)
        samples = scene.samples(0, spans[-1][1])
        found = _played(samples, {1: spans}, chain, scene)
    return [(middle_s, sum(receiver.used for receiver in fix.receivers), fix.status) for fix, middle_s in found]


@click.command()
@click.option("--gaps", default=1000, show_default=True)
@click.option("--scenes", default=1500, show_default=True)
@click.option("--cuts", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(gaps: int, scenes: int, cuts: int, seed: int) -> None:
    if gaps:
        found = measure_gaps(gaps, seed)
        worst = np.abs(found.error_samples).max()
        click.echo(
            f"{gaps} gaps: {found.boundaries} boundaries, {found.windows} windows, {found.spanning} span a gap; after "
            f"{len(found.error_samples)} returns streams are {worst:.2g} samples off at most; frames {found.frames}, "
            f"{found.expected_frames} in all"
        )
    if scenes:
        for name, side in zip(("four", "three"), measure_receivers(scenes, seed), strict=True):
            click.echo(
                f"{name} receivers: {len(side.squared)} fixes, {side.missing} without position, the 95 % ellipse holds "
                f"{side.containment(0.95):.1%}, semi-major axis {side.major_m.mean():.1f} m, bound "
                f"{side.bound_m.mean():.1f} m"
            )
    if cuts:
        windows = measure_cuts(cuts, seed)
        used = [count for _, count, _ in windows]
        click.echo(
            f"{cuts} cuts: {len(windows)} windows, {used.count(4)} of four receivers, {used.count(3)} of three, "
            f"{sum(status != 'ok' for _, _, status in windows)} without position"
        )


if __name__ == "__main__":
    main()
