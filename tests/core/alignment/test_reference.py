"""Clocks told by a reference, against streams whose clocks are known because the test made them.

The signals are made here and not by the simulator: band-limited noise or FM, read between its samples at the times that
each receiver's clock gives.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from localize_core.alignment.reference import ReferenceClock
from localize_core.alignment.reference_delay import measure, search
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.reference_stream import Mark, Seat
from localize_core.alignment.resample import interpolate
from localize_core.errors import ConfigError
from localize_core.receivers.stream_buffer import BufferGroup, StreamBuffer
from localize_core.receivers.stream_buffer import Mark as BufferMark

RATE_HZ, TUNED_HZ, OFFSET_HZ, BANDWIDTH_HZ = 250e3, 144.5e6, 70e3, 60e3
DELAYS_S = np.array([3.1e-6, 11.7e-6, 20.2e-6, 8.4e-6])
DRIFT = np.array([-16.2e-6, 21.7e-6, 38.9e-6, -27.3e-6])
START_S = np.array([1.6e-6, -0.9e-6, 2.4e-6, -3.3e-6])
MARGIN_S = 1.0
SETTINGS = {
    "latitude": 45.0,
    "longitude": 7.0,
    "frequency_hz": TUNED_HZ + OFFSET_HZ,
    "bandwidth_hz": BANDWIDTH_HZ,
    "max_ppm": 60.0,
}


def band_noise(rng: np.random.Generator, count: int, bandwidth_hz: float, centre_hz: float = 0.0) -> np.ndarray:
    spectrum = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    spectrum[np.abs(np.fft.fftfreq(count, 1.0 / RATE_HZ) - centre_hz) > bandwidth_hz / 2.0] = 0.0
    samples = np.fft.ifft(spectrum)
    return (samples / np.sqrt(np.mean(np.abs(samples) ** 2))).astype(np.complex64)


def fm(rng: np.random.Generator, count: int) -> np.ndarray:
    """Voice-like noise to 3 kHz, its largest deviation within the band."""
    message = band_noise(rng, count, 6e3).real
    return np.exp(2j * np.pi * np.cumsum(9e3 * message) / RATE_HZ).astype(np.complex64)


@dataclass
class Air:
    """What four receivers hear: `streams` (4, n), and the true time of each of their samples, `times_s` (4, n)."""

    seconds: float = 2.4
    seed: int = 1
    wave: str = "noise"
    start_s: np.ndarray = field(default_factory=lambda: START_S)
    carriers_hz: np.ndarray = field(default_factory=lambda: np.zeros(4))
    wander_s: float = 0.0
    noise: float = 0.1
    neighbour: float = 0.0
    silent_s: tuple[float, float] = (0.0, 0.0)
    target: float = 0.0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        count = round(self.seconds * RATE_HZ)
        total = round((self.seconds + 2 * MARGIN_S) * RATE_HZ)
        sent = fm(rng, total) if self.wave == "fm" else band_noise(rng, total, 0.95 * BANDWIDTH_HZ)
        others = self.target * band_noise(rng, total, 30e3, -20e3) if self.target else np.zeros(total, np.complex64)
        others += self.neighbour * band_noise(rng, total, 15e3, 15e3)
        nominal_s = np.arange(count) / RATE_HZ
        late_s = DRIFT[:, None] * nominal_s
        late_s = late_s + self.wander_s * np.sin(2 * np.pi * (nominal_s / 60.0 + np.arange(4)[:, None] / 4.0))
        self.times_s = nominal_s + late_s + self.start_s[:, None]
        self.streams = np.empty((4, count), np.complex64)
        for stream in range(4):
            heard_s = self.times_s[stream] - DELAYS_S[stream]
            reference = interpolate(sent, 0, (heard_s + MARGIN_S) * RATE_HZ)
            reference[(heard_s > self.silent_s[0]) & (heard_s < self.silent_s[1])] = 0.0
            cycles = OFFSET_HZ * heard_s
            samples = reference * np.exp(2j * np.pi * (cycles % 1.0))
            if self.target or self.neighbour:
                samples += interpolate(others, 0, (heard_s + MARGIN_S) * RATE_HZ)
            turned = TUNED_HZ * late_s[stream] + self.carriers_hz[stream] * nominal_s
            samples *= np.exp(2j * np.pi * ((turned + rng.uniform()) % 1.0))
            samples += self.noise * (rng.standard_normal(count) + 1j * rng.standard_normal(count))
            self.streams[stream] = samples


@dataclass
class Told:
    """What came out."""

    clock: ReferenceClock
    seats: list[list[Seat]]
    samples: list[np.ndarray]

    def errors_ns(self, air: Air, stream: int, base: int) -> np.ndarray:
        """How far a stream's seats are off, against those of another: of the same true time."""
        off = []
        for one in (stream, base):
            source = np.array([seat.source for seat in self.seats[one]])
            told_s = np.array([seat.time[0] + seat.time[1] for seat in self.seats[one]])
            off.append((air.times_s[one][source], told_s - air.times_s[one][source]))
        (times_s, own_s), (base_times_s, base_s) = off
        inside = (times_s >= base_times_s[0]) & (times_s <= base_times_s[-1])
        return 1e9 * (own_s - np.interp(times_s, base_times_s, base_s))[inside]


def told(
    air: Air, *, cuts: list[int] | None = None, marks: dict[tuple[int, int], Mark] | None = None, **settings
) -> Told:
    """Push everything, in pieces; `cuts`: their lengths, in turn."""
    delays_s = settings.pop("delays_s", DELAYS_S)
    max_wait_s = settings.pop("max_wait_s", None)
    clock = ReferenceClock(
        4, RATE_HZ, TUNED_HZ, ReferenceSettings(**(SETTINGS | settings)), delays_s, max_wait_s=max_wait_s
    )
    seats: list[list[Seat]] = [[] for _ in range(4)]
    out: list[list[np.ndarray]] = [[] for _ in range(4)]
    count, at, turn = air.streams.shape[1], [0] * 4, 0
    known = {(stream, 0): Mark(0, (0, 0.0), RATE_HZ) for stream in range(4)} | (marks or {})
    idle = 0
    while min(at) < count and idle < 8:
        before = list(at)
        for stream in range(4):
            size = (cuts or [12_500])[turn % len(cuts or [0])]
            turn += 1
            piece = air.streams[stream, at[stream] : at[stream] + size]
            here = [mark for (s, i), mark in known.items() if s == stream and at[stream] <= i < at[stream] + len(piece)]
            at[stream] += clock.push(stream, piece, here)
        clock.advance()
        for stream in range(4):
            samples, found = clock.pull(stream, 1 << 30)
            out[stream].append(samples)
            seats[stream] += found
        idle = idle + 1 if at == before else 0
    return Told(clock, seats, [np.concatenate(parts) for parts in out])


@functools.lru_cache(maxsize=1)
def usual() -> tuple[Air, Told]:
    """Nobody changes them."""
    air = Air()
    return air, told(air)


def base_of(result: Told) -> int:
    return next(index for index, status in enumerate(result.clock.status) if status.base)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize(
    ("air", "settings", "limit_ns"),
    [
        ({}, {}, 8.0),
        ({"wave": "fm"}, {}, 25.0),
        ({"start_s": np.array([0.31, -0.28, 0.02, -0.44]), "seconds": 3.8}, {}, 9.0),
        ({"carriers_hz": np.array([900.0, -2500.0, 300.0, 1700.0])}, {"carrier": "independent"}, 12.0),
        ({"wave": "fm", "carriers_hz": np.array([900.0, -2500.0, 0.0, 9.0])}, {"carrier": "independent"}, 40.0),
        ({"wander_s": 4e-7}, {}, 9.0),
        ({"neighbour": 5.0}, {}, 10.0),
    ],
    ids=["noise", "fm", "apart", "independent", "independent-fm", "wander", "neighbour"],
)
def test_clocks_are_found_and_followed(air, settings, limit_ns):
    heard, result = (Air(**air), None) if air or settings else usual()
    result = result or told(heard, **settings)
    base = base_of(result)
    for stream, status in enumerate(result.clock.status):
        assert status.locked
        assert status.losses == 0
        if stream == base:
            continue
        errors_ns = result.errors_ns(heard, stream, base)
        assert len(errors_ns) > 10
        assert rms(errors_ns[8:]) < limit_ns
        assert rms(errors_ns[8:]) < 3.0 * max(seat.error_s for seat in result.seats[stream][8:]) * 1e9
        true = (np.diff(heard.times_s[stream, -2500:]).mean() / np.diff(heard.times_s[base, -2500:]).mean() - 1.0) * 1e6
        if heard.wander_s == 0.0:
            assert status.drift_ppm - result.clock.status[base].drift_ppm == pytest.approx(true, abs=0.1)
        assert status.residual_ns < 12.0 * limit_ns
        stamped_s = (heard.times_s.shape[1] - 1) / RATE_HZ  # all stamps begin at 0
        behind_s = heard.times_s[:, -1] - stamped_s
        known_s = status.offset_s - result.clock.status[base].offset_s
        assert known_s == pytest.approx(behind_s[stream] - behind_s[base], abs=4e-5)


def test_lines_are_continuous_and_rates_theirs():
    """A time stamp never lies off the line of the one before by more than what is no jump for whoever reads it."""
    _, result = usual()
    for seats in result.seats:
        assert not any(seat.restart for seat in seats)
        for one, after in itertools.pairwise(seats):
            led_s = one.time[0] + one.time[1] + (after.index - one.index) / one.rate_hz
            assert abs(after.time[0] + after.time[1] - led_s) * RATE_HZ < 0.01


def test_the_output_does_not_depend_on_how_streams_come():
    air = Air(seconds=1.1)
    whole, chopped = told(air, cuts=[50_000]), told(air, cuts=[7, 9_001, 333, 41_000, 1_234])
    for stream in range(4):
        count = min(len(whole.samples[stream]), len(chopped.samples[stream]))
        assert count > 0.4 * RATE_HZ
        np.testing.assert_array_equal(whole.samples[stream][:count], chopped.samples[stream][:count])
        shared = min(len(whole.seats[stream]), len(chopped.seats[stream]))
        assert whole.seats[stream][:shared] == chopped.seats[stream][:shared]


def test_carriers_are_turned_back_and_the_reference_is_gone():
    """Another emitter beside it is left as it was: the same in all streams, on the times they are told."""
    air = Air(target=1.0, noise=0.01)
    result = told(air)
    base, span = base_of(result), round(0.5 * RATE_HZ)
    aligned = []
    for stream in range(4):
        seats = result.seats[stream]
        told_s = np.concatenate(
            [
                seat.time[0] + seat.time[1] + np.arange(after.index - seat.index) / seat.rate_hz
                for seat, after in itertools.pairwise(seats)
            ]
        )
        first = seats[0].index
        wanted_s = 1.1 + np.arange(span) / RATE_HZ + DELAYS_S[stream]
        position = np.interp(wanted_s, told_s, first + np.arange(len(told_s)))
        aligned.append(interpolate(result.samples[stream], 0, position))
        spectrum = np.abs(np.fft.fft(result.samples[stream][first : first + span] * np.hanning(span))) ** 2
        frequency_hz = np.fft.fftfreq(span, 1.0 / RATE_HZ)
        beside = spectrum[np.abs(frequency_hz + 20e3) < 10e3].mean()
        gone = spectrum[np.abs(frequency_hz - OFFSET_HZ) < 0.45 * BANDWIDTH_HZ].mean()
        assert 10 * np.log10(beside / gone) > 45.0  # the noise of 0.01 is filtered too
    for stream in range(4):
        product = aligned[stream] * aligned[base].conj()
        assert abs(product.mean()) > 0.98 * np.mean(np.abs(aligned[base]) ** 2)  # half a second, coherent


def test_without_the_reference_for_a_while_clocks_go_on():
    air = Air(seconds=3.2, silent_s=(1.2, 2.5))
    result = told(air)
    base = base_of(result)
    for stream in range(4):
        assert result.clock.status[stream].losses == 0
        if stream != base:
            assert np.abs(result.errors_ns(air, stream, base)[5:]).max() < 40.0
            told_ns = [1e9 * seat.error_s for seat in result.seats[stream]]
            assert max(told_ns[10:24]) > 1.2 * min(told_ns[5:9])  # less sure, and says so


@pytest.mark.parametrize("which", ["another", "base"])
def test_a_stream_that_is_interrupted_comes_back_alone(which):
    """Samples of one stream are lost, nobody knows how many: the others never stop."""
    air = Air(seconds=3.4)
    base = base_of(usual()[1])
    stream = base if which == "base" else (base + 1) % 4
    at, lost = round(1.73 * RATE_HZ), 31_415
    air.streams[stream] = np.concatenate([air.streams[stream, :at], np.roll(air.streams[stream], -lost)[at:]])
    air.times_s[stream, at:] = np.roll(air.times_s[stream], -lost)[at:]
    keep = air.streams.shape[1] - lost
    air.streams, air.times_s = air.streams[:, :keep], air.times_s[:, :keep]
    stamp = float(air.times_s[stream, at]) + 0.05  # not even that is known well
    result = told(air, marks={(stream, at): Mark(at, (int(stamp), stamp % 1.0), RATE_HZ, restart=True)})
    assert result.clock.status[stream].locked
    assert result.clock.status[stream].losses == 1
    for other in range(4):
        restarts = [seat for seat in result.seats[other] if seat.restart]
        assert len(restarts) == (other == stream)
        if other == stream:
            assert restarts[0].source > at
            assert restarts[0].source < at + 1.2 * RATE_HZ
            assert all(seat.source < at or seat.source >= restarts[0].source for seat in result.seats[other])
        else:
            sources = np.diff([seat.source for seat in result.seats[other]])
            assert sources.max() < 1.01 * 0.1 * RATE_HZ
    anchor = next(index for index in range(4) if index != stream)
    for other in range(4):
        if other != anchor:
            assert np.abs(result.errors_ns(air, other, anchor)[5:]).max() < 30.0


def test_a_stream_that_falls_silent_is_done_without():
    air = Air(seconds=2.5)
    clock = ReferenceClock(4, RATE_HZ, TUNED_HZ, ReferenceSettings(**SETTINGS), DELAYS_S, max_wait_s=0.3)
    ends, at = [0] * 4, [0] * 4
    for first in range(0, air.streams.shape[1], 12_500):
        for stream in range(4):
            if stream == 2 and first > RATE_HZ:
                continue
            marks = [Mark(0, (0, 0.0), RATE_HZ)] if first == 0 else []
            at[stream] += clock.push(stream, air.streams[stream, first : first + 12_500], marks)
        clock.advance()
        for stream in range(4):
            ends[stream] += len(clock.pull(stream, 1 << 30)[0])
    assert [status.locked for status in clock.status] == [True, True, False, True]
    assert min(ends[0], ends[1], ends[3]) > 1.7 * RATE_HZ
    assert ends[2] < 1.1 * RATE_HZ


@dataclass
class Radio:
    """What one receiver brings: samples, when each was taken, and its marks."""

    samples: np.ndarray
    times_s: np.ndarray
    marks: list[Mark]


def radios(air: Air, rng: np.random.Generator, away_s: list[tuple[float, float]]) -> list[Radio]:
    """Each is away from one time to another; stamps are off by milliseconds and jump about a little."""
    found = []
    for stream, (gone_s, back_s) in enumerate(away_s):
        nominal_s = np.arange(air.streams.shape[1]) / RATE_HZ
        kept = (nominal_s < gone_s) | (nominal_s >= back_s)
        cut = int(np.sum(nominal_s < gone_s))
        times_s, count = air.times_s[stream][kept], int(np.sum(kept))
        marks, off_s = [], rng.uniform(0.0, 5e-3)
        for index in sorted({*range(0, count, 9_000), cut}):
            off_s = rng.uniform(0.0, 5e-3) if index == cut else off_s
            stamp_s = 5.0 + times_s[index] + off_s + rng.uniform(-3e-7, 3e-7)
            marks.append(Mark(index, (int(stamp_s), stamp_s % 1.0), RATE_HZ, restart=index == cut > 0))
        found.append(Radio(air.streams[stream][kept], times_s, marks))
    return found


def heard_of(heard: list[Radio], come: Callable[[int, float], int], **options) -> Told:
    """`come`: how many samples of a stream there are at a time."""
    settings = ReferenceSettings(**(SETTINGS | {"search_s": 0.1}))
    clock = ReferenceClock(4, RATE_HZ, TUNED_HZ, settings, DELAYS_S, **options)
    seats: list[list[Seat]] = [[] for _ in range(4)]
    out: list[list[np.ndarray]] = [[] for _ in range(4)]
    at = [0] * 4
    for now_s in np.arange(0.0, 6.0, 0.03):
        for stream, radio in enumerate(heard):
            end = come(stream, now_s)
            marks = [mark for mark in radio.marks if at[stream] <= mark.index < end]
            at[stream] += clock.push(stream, radio.samples[at[stream] : end], marks)
        clock.advance()
        for stream in range(4):
            samples, found = clock.pull(stream, 1 << 30)
            out[stream].append(samples)
            seats[stream] += found
    return Told(clock, seats, [np.concatenate(parts) for parts in out])


@pytest.mark.parametrize(
    "away_s",
    [
        [(0.0, 0.0), (0.0, 0.52), (1.31, 1.87), (2.05, 2.6)],
        [(1.31, 1.62), (1.27, 1.71), (1.3, 2.13), (1.33, 1.9)],
    ],
    ids=["some", "all"],
)
def test_a_replay_gives_what_live_gave(away_s):
    rng = np.random.default_rng(1)
    heard = radios(Air(seconds=3.6), rng, away_s)
    lags_s = rng.uniform(0.0, 0.25, (4, 200))

    def as_it_came(stream: int, now_s: float) -> int:
        return int(np.searchsorted(heard[stream].times_s, now_s - lags_s[stream, round(now_s / 0.03)]))

    def at_once(stream: int, now_s: float) -> int:
        return len(heard[stream].samples)

    live = heard_of(heard, as_it_came, max_wait_s=0.3)
    again = heard_of(heard, at_once, max_wait_s=0.3, replay=True)
    for stream in range(4):
        assert sum(seat.restart for seat in live.seats[stream]) == (away_s[stream][0] > 0.0)
        count = min(len(live.samples[stream]), len(again.samples[stream]))
        shared = min(len(live.seats[stream]), len(again.seats[stream]))
        assert live.seats[stream][-1].time[0] + live.seats[stream][-1].time[1] > 5.0 + 3.2
        assert live.seats[stream][:shared] == again.seats[stream][:shared]
        np.testing.assert_array_equal(live.samples[stream][:count], again.samples[stream][:count])


def test_another_base_goes_on_with_the_same_time():
    """The base hears the reference no more; what the others are told runs on as fast as before."""
    air, old = Air(seconds=3.4), base_of(usual()[1])
    air.streams[old, round(1.6 * RATE_HZ) :] = band_noise(np.random.default_rng(7), round(1.8 * RATE_HZ), 100e3, 60e3)
    result = told(air)
    assert base_of(result) != old
    for stream in range(4):
        if stream == old:
            continue
        times_s = air.times_s[stream][[seat.source for seat in result.seats[stream]]]
        off_s = np.array([seat.time[0] + seat.time[1] for seat in result.seats[stream]]) - times_s
        spans = [(times_s > begin) & (times_s < end) for begin, end in ((0.8, 1.6), (2.3, 3.3))]
        before, after = (np.polyfit(times_s[inside], off_s[inside], 1)[0] for inside in spans)
        assert after == pytest.approx(before, abs=3e-6)


def test_a_station_that_is_too_slow_loses_its_clocks_together():
    """Its streams wait in buffers that are full to different degrees; each would overflow at another time."""
    air, chunk, group = Air(seconds=2.25), 12_500, BufferGroup()
    buffers = [StreamBuffer(round(0.45 * RATE_HZ), group) for _ in range(4)]
    clock = ReferenceClock(4, RATE_HZ, TUNED_HZ, ReferenceSettings(**SETTINGS), DELAYS_S)
    rest: list[tuple[np.ndarray, list[Mark]]] = [(np.zeros(0, np.complex64), [])] * 4
    taken, lost, out = [0] * 4, [0.0] * 4, np.zeros(chunk, np.complex64)
    for end in range(chunk, air.streams.shape[1] + 1, chunk):
        now_s = end / RATE_HZ
        for stream, buffer in enumerate(buffers):
            first = [BufferMark(0, time=(0, 0.0), rate_hz=RATE_HZ)] if end == chunk else []
            buffer.push(air.streams[stream, end - chunk : end], first)
            if now_s <= 0.1 * stream:
                continue
            samples, marks = rest[stream]
            pace = 0.5 if 0.7 < now_s < 1.7 else 1.0
            count, new = buffer.pull(out[: max(round(pace * chunk) - len(samples), 0)])
            known = taken[stream] + len(samples)
            marks = marks + [Mark(known + mark.index, mark.time, mark.rate_hz, mark.restart) for mark in new]
            samples = np.concatenate([samples, out[:count]])
            accepted = clock.push(stream, samples, marks)
            taken[stream] += accepted
            rest[stream] = samples[accepted:], [mark for mark in marks if mark.index >= taken[stream]]
        clock.advance()
        for stream, status in enumerate(clock.status):
            clock.pull(stream, 1 << 30)
            lost[stream] = lost[stream] or now_s * bool(status.losses)
    assert all(status.locked for status in clock.status)
    assert [status.losses for status in clock.status] == [1] * 4
    assert max(lost) - min(lost) < 0.21  # by themselves, 0.3 s apart


def test_all_clocks_lost_at_once_are_looked_for_against_the_same_base():
    """Without the reference all become unsure in one block: that says nothing against whoever was the measure."""
    result = told(Air(seconds=2.8, silent_s=(1.2, 1.9)), search_s=0.05, wander_ppb=20.0, max_error_ns=11.0)
    status, base = result.clock.status, base_of(result)
    assert all(one.locked for one in status)
    assert [one.losses for one in status] == [int(stream != base) for stream in range(4)]


def test_a_stream_that_stalls_comes_back_by_the_stamp_that_it_had():
    """Nothing of it is lost, it only comes later than anybody waits for."""
    air = Air(seconds=3.2)
    clock = ReferenceClock(4, RATE_HZ, TUNED_HZ, ReferenceSettings(**SETTINGS), DELAYS_S, max_wait_s=0.3)
    at = [0] * 4
    for end in range(12_500, air.streams.shape[1] + 1, 12_500):
        for stream in range(4):
            if stream == 2 and RATE_HZ < end < 1.6 * RATE_HZ:
                continue
            marks = [Mark(0, (0, 0.0), RATE_HZ)] if at[stream] == 0 else []
            at[stream] += clock.push(stream, air.streams[stream, at[stream] : end], marks)
        clock.advance()
        for stream in range(4):
            clock.pull(stream, 1 << 30)
    assert [status.losses for status in clock.status] == [0, 0, 1, 0]
    assert all(status.locked for status in clock.status)


def test_a_clock_that_has_run_away_from_its_stamps_is_found_again():
    """Its only stamp says a rate that is wrong, as the stamps of a clock do that has drifted for hours."""
    air = Air(seconds=4.4, silent_s=(1.2, 2.9))
    stream = (base_of(usual()[1]) - 1) % 4  # the last to be tried as another base
    wrong = {(stream, 0): Mark(0, (0, 0.0), 1.009 * RATE_HZ)}
    result = told(air, marks=wrong, search_s=0.02, wander_ppb=100.0)
    status = result.clock.status
    assert status[stream].losses == 1
    assert abs(status[stream].offset_s) > 0.03
    assert all(one.locked for one in status)


def test_a_wrong_place_is_seen_in_no_residual_but_shifts_clocks():
    """What only other emitters, or true time, can tell."""
    wrong_s = np.array([0.0, 80e-9, -50e-9, 120e-9])
    air, right = usual()
    wrong = told(air, delays_s=DELAYS_S + wrong_s)
    base = base_of(right)
    assert base == base_of(wrong)
    for stream in range(4):
        if stream != base:
            shift_ns = np.median(wrong.errors_ns(air, stream, base)) - np.median(right.errors_ns(air, stream, base))
            assert shift_ns == pytest.approx(1e9 * (wrong_s[stream] - wrong_s[base]), abs=3.0)
            same = pytest.approx(right.clock.status[stream].residual_ns, rel=0.1)
            assert wrong.clock.status[stream].residual_ns == same


def test_noise_alone_is_no_reference():
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(60):
        one, other = (band_noise(rng, 40_000, 80e3) for _ in range(2))
        values = {"rate_hz": RATE_HZ, "bandwidth_hz": BANDWIDTH_HZ, "max_carrier_hz": 15e3}
        found += search(one, other[:8_000], **values) is not None
    assert found == 0  # one in ten thousand passes
    air = Air(seconds=1.5)
    air.streams = np.stack([band_noise(rng, air.streams.shape[1], 100e3, 60e3) for _ in range(4)])
    result = told(air)
    assert not any(status.locked for status in result.clock.status)
    assert all(len(samples) == 0 for samples in result.samples)


def test_a_beacon_that_repeats_itself_is_refused():
    rng = np.random.default_rng(4)
    once = band_noise(rng, 5_000, 0.9 * BANDWIDTH_HZ)
    sent = np.tile(once, 12)
    noise = 0.05 * band_noise(rng, len(sent), 100e3)
    values = {"rate_hz": RATE_HZ, "bandwidth_hz": BANDWIDTH_HZ, "max_carrier_hz": 15e3}
    assert search(sent + noise, sent[:8_000], **values) is None
    changing = band_noise(rng, len(sent), 0.9 * BANDWIDTH_HZ)
    found = search(changing + noise, changing[20_000:28_000], **values)
    assert found is not None
    assert found.lag == 20_000


def test_a_lock_that_is_seen_no_more_before_its_stream_comes_out_is_given_up():
    """The stream jumps, and no stamp says so, while its clock is not well known yet."""
    air, stream, at, lost = Air(seconds=4.4), (base_of(usual()[1]) + 1) % 4, round(0.9 * RATE_HZ), 5_000
    for whole in (air.streams, air.times_s):
        whole[stream, at:-lost] = whole[stream, at + lost :].copy()
    result = told(air, max_error_ns=5.5, search_s=0.3)
    seats = result.seats[stream]
    assert result.clock.status[stream].locked
    assert seats[0].source > at  # before that it was less sure than wanted


def test_a_clock_that_is_less_sure_than_wanted_is_not_known():
    result = told(Air(seconds=1.5), max_error_ns=0.01)
    assert not any(status.locked or status.losses for status in result.clock.status)
    assert all(len(samples) == 0 for samples in result.samples)


def test_a_narrow_reference_is_enough_whatever_the_sample_rate():
    """A clock cannot be known to a part of a sample where the reference tells no more than 70 ns."""
    rate_hz, bandwidth_hz, count, rng = 1e6, 12.5e3, 2_500_000, np.random.default_rng(1)
    spectrum = np.zeros(count, np.complex128)
    lines = np.arange(-14_000, 14_000) + count // 5
    spectrum[lines] = rng.standard_normal(len(lines)) + 1j * rng.standard_normal(len(lines))
    sent = np.fft.ifft(spectrum)
    sent /= np.sqrt(np.mean(np.square(np.abs(sent))))
    settings = SETTINGS | {"frequency_hz": TUNED_HZ + 0.2 * rate_hz, "bandwidth_hz": bandwidth_hz, "search_s": 0.2}
    clock = ReferenceClock(2, rate_hz, TUNED_HZ, ReferenceSettings(**settings), [0.0, 0.0])
    noise = 0.25 * np.sqrt(rate_hz / bandwidth_hz / 2.0)
    came_out = 0
    for first in range(0, count, 50_000):
        for stream in range(2):
            own = noise * (rng.standard_normal(50_000) + 1j * rng.standard_normal(50_000))
            samples = (sent[first : first + 50_000] + own).astype(np.complex64)
            assert clock.push(stream, samples, [Mark(0, (0, 0.0))] if first == 0 else []) == 50_000
        clock.advance()
        came_out += len(clock.pull(1, count)[0]) + len(clock.pull(0, count)[0])
    assert all(status.locked for status in clock.status)
    assert max(status.error_ns for status in clock.status) > 50.0
    assert came_out > 0.2 * count


@pytest.mark.parametrize("max_wait_s", [None, 0.3])
def test_a_stream_that_comes_back_without_a_stamp_is_found(max_wait_s):
    """Its clock is looked for about now, not where all streams began."""
    air = Air(seconds=4.0)
    stream, at = (base_of(usual()[1]) + 1) % 4, round(2.1 * RATE_HZ)
    result = told(air, marks={(stream, at): Mark(at, restart=True)}, search_s=0.2, max_wait_s=max_wait_s)
    status = result.clock.status[stream]
    assert status.locked
    assert status.losses == 1


def test_an_echo_that_is_not_there_any_more_leads_no_search_astray():
    """It makes a stream seem late; from there the true place would be out of reach."""
    air, rng, late = Air(seconds=3.2), np.random.default_rng(5), round(0.4 * RATE_HZ)
    time_s = np.arange(air.streams.shape[1]) / RATE_HZ
    echo = np.where((time_s > 0.4) & (time_s % 0.3 < 0.075), np.roll(air.streams[0], late), 0.0)
    noise = 0.15 * (rng.standard_normal(len(time_s)) + 1j * rng.standard_normal(len(time_s)))
    air.streams[0] = np.where(time_s < 1.5, echo + noise, air.streams[0])
    early = {(stream, 0): Mark(0, (10, 0.15 if stream else 0.0), RATE_HZ) for stream in range(4)}
    result = told(air, marks=early, search_s=0.3)
    assert [status.losses for status in result.clock.status] == [0] * 4
    assert all(status.locked for status in result.clock.status)
    assert result.clock.status[0].offset_s - result.clock.status[1].offset_s == pytest.approx(0.15, abs=1e-3)


def test_a_bare_carrier_tells_no_delay():
    frequency_hz, times_s = np.linspace(-20e3, 20e3, 17), np.arange(10) * 5e-3
    for line in range(17):
        tone = np.zeros((10, 17), np.complex64)
        tone[:, line] = 1.0
        found = measure(tone, tone, times_s, frequency_hz=frequency_hz, max_delay_s=4e-5)
        assert found.coherence > 0.99
        assert not found.seen


def test_a_short_template_tells_the_carrier_between_lines():
    rng = np.random.default_rng(6)
    sent, values = band_noise(rng, 20_000, 0.9 * BANDWIDTH_HZ), {"rate_hz": RATE_HZ, "bandwidth_hz": BANDWIDTH_HZ}
    length = 1_000
    for lines in (0.3, 0.5, 0.7):  # of an FFT four times as long
        carrier_hz = (8 + lines) * RATE_HZ / (4 * length)
        heard = sent * np.exp(2j * np.pi * carrier_hz * np.arange(len(sent)) / RATE_HZ)
        found = search(heard.astype(np.complex64), sent[9_000 : 9_000 + length], max_carrier_hz=15e3, **values)
        assert found is not None
        assert found.lag == 9_000
        assert found.carrier_hz == pytest.approx(carrier_hz, abs=0.1 * RATE_HZ / (4 * length))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_streams": 1, "path_delays_s": [0.0]}, "two or more"),
        ({"path_delays_s": [0.0]}, "for 4 streams"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz"),
        ({"frequency_hz": -1.0}, "frequency_hz"),
        ({"max_wait_s": 0.0}, "max_wait_s"),
        ({"replay": True}, "replay=True"),
        ({"sample_rate_hz": 100e3}, "at most 0.45"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    values = {
        "n_streams": 4,
        "sample_rate_hz": RATE_HZ,
        "frequency_hz": TUNED_HZ,
        "settings": ReferenceSettings(**SETTINGS),
        "path_delays_s": DELAYS_S,
    }
    with pytest.raises(ConfigError, match=message):
        ReferenceClock(**(values | change))
    narrow = ReferenceSettings(**(SETTINGS | {"bandwidth_hz": 50.0}))
    with pytest.raises(ConfigError, match="block_s"):
        ReferenceClock(**(values | {"settings": narrow}))
