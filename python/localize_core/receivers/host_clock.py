"""A time line for streams whose hardware tells no time: from when their samples arrive at this computer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from localize_core.receivers.stream_buffer import Mark
from localize_core.types.time import shift_time

SETTLE_S = 0.5
"""Arrivals that are watched before the line begins: drivers start with what they have kept, or late."""
BIN_S = 1.0
"""Of each such piece of the stream, the arrival with the least delay counts."""
WINDOW_BINS = 600
MARK_S = 10.0
"""From one mark to the next."""
SLOPE_S = 30.0
"""A shorter line says nothing of its rate."""
HORIZON_S = 60.0
"""What the line is off is made good over this time or the window's length, whichever is longer."""
MOST_STEER = 500e-6
"""The largest relative change of the rate: oscillators are off by less than half of it."""
LEVEL_BINS = 3
"""Samples are lost where the delay of so many pieces is larger than before, and does not fall."""
STEP_S, STEP_SPREADS = 0.02, 10.0
"""Larger by this, or by so many times the spread of delays, whichever is more."""
LEVEL_S, LEVEL_SPREADS = 0.002, 2.0
"""It does not fall where it stays within this, or so many spreads."""
EARLY_S = 0.02
"""Samples cannot arrive before they are taken: a line that says so by more than this begins anew."""
WALL_STEP_S = 0.5
"""The system's clock was set where it moves by more than this against the monotonic one."""


class WallClock:
    """How far the system's clock is ahead of the monotonic one: the same for all who ask, until somebody sets it.

    Threads may share it; the streams of a station must.
    """

    def __init__(
        self, wall_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_s, self._monotonic_s = wall_s, monotonic_s
        self._lock = threading.Lock()
        self._ahead_s = wall_s() - monotonic_s()

    def ahead_s(self) -> float:
        now_s = self._wall_s() - self._monotonic_s()
        with self._lock:
            if abs(now_s - self._ahead_s) > WALL_STEP_S:
                self._ahead_s = now_s
            return self._ahead_s


@dataclass(frozen=True)
class _Arrival:
    """`at_s`: of the stream at its nominal rate. `delay_s`: arrival minus that."""

    at_s: float
    delay_s: float


class HostClock:
    """When samples were taken, from when they arrive.

    The arrivals with the least delay lie on a line: delays only add to it. Its slope is the rate of the device's clock
    against this computer's monotonic one, which nothing sets. What is told as the time of a sample goes on from the
    mark before at the rate told there; errors are made good by other rates, slowly. Delay that never varies is not
    seen: it stays in all times.

    It begins anew, with a restart, where delays have grown for good (samples were lost on the way), where samples would
    have arrived before they were taken, and where the system's clock is set.
    """

    def __init__(self, rate_hz: float, wall: WallClock) -> None:
        self.rate_hz = rate_hz
        self._wall = wall
        self._count = 0
        self._first_arrival_s: float | None = None
        self._bin: _Arrival | None = None
        self._bins: deque[_Arrival] = deque(maxlen=WINDOW_BINS)
        self._running = False
        self._ahead_s = 0.0
        # The line: at sample `_marked` it is `_time`, with this delay, which grows by `_steer` seconds a second.
        self._marked = 0
        self._time = (0, 0.0)
        self._delay_s = self._steer = 0.0

    @property
    def running(self) -> bool:
        """Whether samples have a time yet."""
        return self._running

    def observe(self, count: int, arrived_s: float) -> Mark | None:
        """`count` samples have arrived, all by the monotonic time `arrived_s`. Returns a mark on the first, or None.

        While `running` is False afterwards, they have no time.
        """
        first = self._count
        self._count += count
        arrival = _Arrival(self._count / self.rate_hz, arrived_s - self._count / self.rate_hz)
        if self._first_arrival_s is None:
            self._first_arrival_s = arrived_s
        if not self._running:
            self._bin = _earlier(self._bin, arrival)
            if arrived_s - self._first_arrival_s < SETTLE_S:
                return None
            return self._begin(first, self._bin.delay_s, lost=None, restart=False)
        if arrival.delay_s < self._line_s(arrival.at_s) - EARLY_S:
            return self._begin(first, arrival.delay_s, lost=0)
        if self._wall.ahead_s() != self._ahead_s:
            return self._begin(first, self._line_s(first / self.rate_hz), lost=0)
        if self._bin is not None and int(self._bin.at_s / BIN_S) != int(arrival.at_s / BIN_S):
            self._bins.append(self._bin)
            self._bin = arrival
            step_s = self._step_s()
            if step_s is not None:
                lost = round(step_s * self.rate_hz)
                return self._begin(first, self._line_s(first / self.rate_hz) + step_s, lost=lost)
        else:
            self._bin = _earlier(self._bin, arrival)
        if first - self._marked >= MARK_S * self.rate_hz:
            return self._steered(first)
        return None

    def _line_s(self, at_s: float) -> float:
        """The delay that the line stands for."""
        return self._delay_s + self._steer * (at_s - self._marked / self.rate_hz)

    def _begin(self, first: int, delay_s: float, *, lost: int | None, restart: bool = True) -> Mark:
        self._running = True
        self._ahead_s = self._wall.ahead_s()
        self._bins.clear()
        self._bin = None
        self._marked, self._delay_s, self._steer = first, delay_s, 0.0
        self._time = shift_time(0, 0.0, self._ahead_s + delay_s + first / self.rate_hz)
        return self._mark(restart=restart, lost=lost)

    def _steered(self, first: int) -> Mark:
        rate_hz = self.rate_hz / (1.0 + self._steer)
        self._delay_s = self._line_s(first / self.rate_hz)
        self._time = shift_time(*self._time, (first - self._marked) / rate_hz)
        self._marked = first
        span_s = self._bins[-1].at_s - self._bins[0].at_s if self._bins else 0.0
        if span_s >= SLOPE_S:
            slope, delay_s = _support(self._bins, first / self.rate_hz)
            steer = slope + (delay_s - self._delay_s) / max(HORIZON_S, span_s)
            self._steer = min(max(steer, -MOST_STEER), MOST_STEER)
        return self._mark(restart=False, lost=None)

    def _mark(self, *, restart: bool, lost: int | None) -> Mark:
        rate_hz = self.rate_hz / (1.0 + self._steer)
        return Mark(0, time=self._time, rate_hz=rate_hz, time_source="host", restart=restart, lost=lost)

    def _step_s(self) -> float | None:
        """By how much delays have grown for good; None where they have not, or may yet fall."""
        latest = [self._bins[-k] for k in range(1, min(LEVEL_BINS, len(self._bins)) + 1)]
        if len(self._bins) <= LEVEL_BINS or any(each.delay_s - self._line_s(each.at_s) < STEP_S for each in latest):
            return None  # as it is nearly always
        above = np.array([each.delay_s - self._line_s(each.at_s) for each in self._bins])
        before, now = above[:-LEVEL_BINS], above[-LEVEL_BINS:]
        step_s = float(now.min() - min(np.median(before), 0.0))
        spread_s = float(np.percentile(before, 90.0) - np.percentile(before, 10.0))
        grown = now.min() > max(STEP_S, STEP_SPREADS * spread_s)
        return step_s if grown and np.ptp(now) < max(LEVEL_S, LEVEL_SPREADS * spread_s) else None


def _earlier(one: _Arrival | None, other: _Arrival) -> _Arrival:
    return other if one is None or other.delay_s < one.delay_s else one


def _support(arrivals: deque[_Arrival], at_s: float) -> tuple[float, float]:
    """Slope, and value at `at_s`, of the line below all arrivals that is nearest to them on the whole.

    It holds the edge of their convex hull below their mean. Source: Moon, Skelly & Towsley, INFOCOM 1999.
    """
    hull: list[_Arrival] = []
    for point in arrivals:
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    middle = sum(each.at_s for each in arrivals) / len(arrivals)
    end = next((k for k, each in enumerate(hull) if each.at_s >= middle and k), len(hull) - 1)
    one, other = hull[end - 1], hull[end]
    slope = (other.delay_s - one.delay_s) / (other.at_s - one.at_s)
    return slope, one.delay_s + slope * (at_s - one.at_s)


def _turns_down(one: _Arrival, middle: _Arrival, other: _Arrival) -> bool:
    """Whether the middle point lies on or above the line from one to the other."""
    return (middle.delay_s - one.delay_s) * (other.at_s - one.at_s) >= (other.delay_s - one.delay_s) * (
        middle.at_s - one.at_s
    )
