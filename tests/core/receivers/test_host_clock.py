"""Times from arrivals: jitter, stalls, losses, drift and clocks that are set, all simulated, so that truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from localize_core.receivers.host_clock import HostClock, WallClock
from localize_core.receivers.stream_buffer import Mark

RATE_HZ = 2.4e6
EPOCH_S = 1_700_000_000.0
BOOT_S = 5_000.0
"""The monotonic clock when the stream begins."""


@dataclass
class Link:
    """A device whose samples arrive late: `ppm` of its clock, `jitter_s` of delays, which are exponential.

    `lost`: at a time of the stream, so many samples vanish. `stalls`: from a time on, for so long, nothing comes.
    """

    ppm: float = 0.0
    jitter_s: float = 0.5e-3
    chunk_s: float = 0.02
    duration_s: float = 100.0
    lost: dict[float, int] = field(default_factory=dict)
    stalls: dict[float, float] = field(default_factory=dict)
    latency_s: float = 0.005

    def arrivals(self, rng: np.random.Generator) -> Iterator[tuple[int, float, float]]:
        """Samples, monotonic time of arrival, and when the first of them was taken."""
        rate_hz = RATE_HZ * (1.0 + self.ppm * 1e-6)
        count, taken, latest_s = round(self.chunk_s * RATE_HZ), 0, 0.0
        lost, stalls = dict(self.lost), dict(self.stalls)
        while taken < self.duration_s * rate_hz:
            first_s = taken / rate_hz
            for at_s in [at_s for at_s in lost if at_s <= first_s]:
                taken += lost.pop(at_s)
            first_s = taken / rate_hz
            taken += count
            arrived_s = taken / rate_hz + self.latency_s + rng.exponential(self.jitter_s)
            for at_s, length_s in stalls.items():
                if at_s <= arrived_s < at_s + length_s:
                    arrived_s = at_s + length_s
            latest_s = max(latest_s + 1e-4, arrived_s)  # in order, and not all at once
            yield count, BOOT_S + latest_s, BOOT_S + first_s


class Line:
    """What marks say, followed as whoever reads the stream does."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.restarts: list[tuple[float, int | None]] = []
        self.jumps: list[float] = []
        self.errors: list[tuple[float, float]] = []
        self._at = self._count = 0

    def follow(self, clock: HostClock, link: Link, *, seed: int = 1) -> Line:
        for count, arrived_s, taken_s in link.arrivals(np.random.default_rng(seed)):
            mark = clock.observe(count, arrived_s)
            if mark is not None:
                if mark.restart:
                    self.restarts.append((taken_s - BOOT_S, mark.lost))
                elif self.marks:
                    self.jumps.append((mark.time[0] - EPOCH_S + mark.time[1] - self._now()) * RATE_HZ)
                self.marks.append(mark)
                self._at = self._count
            if self.marks:
                self.errors.append((taken_s - BOOT_S, self._now() + BOOT_S - taken_s))
            else:
                assert not clock.running
            self._count += count
        return self

    def _now(self) -> float:
        mark = self.marks[-1]
        return (mark.time[0] - EPOCH_S) + mark.time[1] + (self._count - self._at) / mark.rate_hz

    def errors_after(self, from_s: float) -> np.ndarray:
        return np.array([error_s for at_s, error_s in self.errors if at_s >= from_s])


def wall() -> WallClock:
    return WallClock(lambda: EPOCH_S + BOOT_S, lambda: BOOT_S + BOOT_S)  # EPOCH_S is when the stream begins


@pytest.fixture
def clock() -> HostClock:
    return HostClock(RATE_HZ, wall())


def test_the_line_begins_at_the_arrival_with_the_least_delay(clock):
    line = Line().follow(clock, Link(duration_s=5.0, jitter_s=3e-3))
    assert not line.restarts
    assert line.marks[0].time_source == "host"
    assert line.errors[0][0] == pytest.approx(0.5, abs=0.05)
    assert np.all(np.abs(line.errors_after(0.0) - 0.005) < 1.5e-3)  # what never varies is not seen


@pytest.mark.parametrize("ppm", [0.0, 50.0, -80.0])
@pytest.mark.parametrize("jitter_s", [0.2e-3, 5e-3])
def test_drift_is_followed_and_the_line_never_jumps(clock, ppm, jitter_s):
    line = Line().follow(clock, Link(ppm=ppm, jitter_s=jitter_s, duration_s=1500.0, chunk_s=0.2))
    assert not line.restarts
    assert max(map(abs, line.jumps)) < 0.1
    assert np.diff([mark.time[0] for mark in line.marks]).max() <= 11
    late = line.errors_after(600.0) - 0.005
    assert np.abs(late).max() < max(1e-3, 0.5 * jitter_s)
    rates = np.array([mark.rate_hz for mark in line.marks if mark.time[0] - EPOCH_S > 1200.0])
    off = rates / (RATE_HZ * (1.0 + ppm * 1e-6)) - 1.0
    assert np.abs(off).max() < (0.5e-6 if jitter_s < 1e-3 else 5e-6)


def test_hours_of_stream(clock):
    line = Line().follow(clock, Link(ppm=50.0, jitter_s=1e-3, duration_s=4 * 3600.0, chunk_s=0.5))
    assert not line.restarts
    assert max(map(abs, line.jumps)) < 0.1
    assert np.abs(line.errors_after(3600.0) - 0.005).max() < 1e-3


@pytest.mark.parametrize("length_s", [0.3, 3.0, 20.0])
def test_a_stall_that_is_made_good_is_no_loss(clock, length_s):
    line = Line().follow(clock, Link(stalls={40.0: length_s}, duration_s=120.0))
    assert not line.restarts
    assert np.abs(line.errors_after(60.0) - 0.005).max() < 2e-3


def test_a_link_that_catches_up_slowly_is_no_loss(clock):
    """Ten per cent faster than the stream: three seconds take half a minute."""
    link = Link(duration_s=200.0)
    free_s = 0.0
    for count, arrived_s, _ in link.arrivals(np.random.default_rng(1)):
        if arrived_s - BOOT_S > 60.0:
            free_s = max(free_s, BOOT_S + 63.0) + link.chunk_s / 1.1
            arrived_s = max(arrived_s, free_s)
            free_s = arrived_s
        mark = clock.observe(count, arrived_s)
        assert mark is None or not mark.restart


@pytest.mark.parametrize("lost_s", [0.03, 0.1, 5.0])
@pytest.mark.parametrize("ppm", [0.0, 50.0])
def test_a_loss_is_found_and_counted(clock, lost_s, ppm):
    lost = round(lost_s * RATE_HZ)
    line = Line().follow(clock, Link(ppm=ppm, lost={50.0: lost}, duration_s=100.0))
    ((at_s, found),) = line.restarts
    assert 50.0 + lost_s <= at_s < 56.0 + lost_s
    assert found == pytest.approx(lost, abs=5e-3 * RATE_HZ)
    assert np.abs(line.errors_after(at_s) - 0.005).max() < 5e-3


def test_a_stall_whose_samples_are_lost_is_a_loss(clock):
    line = Line().follow(clock, Link(stalls={40.0: 3.0}, lost={40.1: round(2.5 * RATE_HZ)}, duration_s=90.0))
    ((_, found),) = line.restarts
    assert found == pytest.approx(2.5 * RATE_HZ, abs=5e-3 * RATE_HZ)


def test_losses_one_after_the_other(clock):
    lost = {at_s: round(0.2 * RATE_HZ) for at_s in (20.0, 40.0, 60.0, 80.0)}
    line = Line().follow(clock, Link(lost=lost, duration_s=100.0))
    assert len(line.restarts) == 4


def test_a_start_that_was_late_begins_anew(clock):
    """The first second came with a delay that the rest does not have."""
    line = Line().follow(clock, Link(stalls={0.0: 0.9}, duration_s=20.0, chunk_s=0.01))
    assert len(line.restarts) <= 1
    assert np.abs(line.errors_after(2.0) - 0.005).max() < 2e-3


@pytest.mark.parametrize("by_s", [3600.0, -2.0])
def test_a_system_clock_that_is_set_begins_a_new_line(by_s):
    now = {"wall_s": EPOCH_S + BOOT_S}
    shared = WallClock(lambda: now["wall_s"], lambda: BOOT_S + BOOT_S)
    clocks = [HostClock(RATE_HZ, shared), HostClock(RATE_HZ, shared)]
    marks: list[list[Mark]] = [[], []]
    for number, (count, arrived_s, _) in enumerate(Link(duration_s=30.0).arrivals(np.random.default_rng(1))):
        if number == 750:
            now["wall_s"] += by_s
        for told, clock in zip(marks, clocks, strict=True):
            mark = clock.observe(count, arrived_s)
            if mark is not None:
                told.append(mark)
    for told in marks:
        (restart,) = [mark for mark in told if mark.restart]
        assert restart.lost == 0
        assert restart.time[0] - EPOCH_S == pytest.approx(15.0 + by_s, abs=1.0)
    assert marks[0] == marks[1]


def test_small_steps_of_the_system_clock_move_nobody():
    now = {"wall_s": 100.0}
    shared = WallClock(lambda: now["wall_s"], lambda: 0.0)
    for _ in range(4):
        now["wall_s"] += 0.1
        assert shared.ahead_s() == 100.0
    now["wall_s"] += 0.2
    assert shared.ahead_s() == pytest.approx(100.6)
