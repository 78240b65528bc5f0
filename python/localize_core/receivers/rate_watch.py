"""Whether a receiver's samples come at the rate that was asked for, from when they arrive."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

PIECE_S, PIECES = 2.0, 5
"""A rate is plain where it shows from each such piece of time to the next, so often in a row."""
TOO_FAST, TOO_SLOW = 0.01, 0.2
"""Off by more, of the rate. A computer or a cable under load loses samples, and never makes any."""
SPREAD = 0.02
"""Of the rate: a slower clock is as slow in all pieces, and load is not."""


class RateWatch:
    """The rate of a stream that should have `rate_hz`.

    Of each piece of time the arrival with the least delay counts. What was held up and comes at once, and what is lost
    once, shows in one piece only. What was held up and comes little by little is owed: samples are too many where they
    are ahead of all that came before. Of those held up before the first came nothing is known.
    """

    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self._count = 0
        self._piece_end_s: float | None = None
        self._earliest: tuple[int, float] | None = None  # samples until then, and when
        self._points: deque[tuple[int, float]] = deque(maxlen=PIECES + 1)
        self._least_s = float("inf")  # delay before these points

    def observe(self, count: int, arrived_s: float) -> float | None:
        """`count` samples have arrived, all by the monotonic time `arrived_s`. Returns their rate where it is plainly
        another, else None.
        """
        if self._piece_end_s is None:
            self._piece_end_s = arrived_s + PIECE_S
        self._count += count
        arrival = (self._count, arrived_s)
        if arrived_s < self._piece_end_s or self._earliest is None:
            if self._earliest is None or self._delay_s(arrival) < self._delay_s(self._earliest):
                self._earliest = arrival
            return None
        if len(self._points) > PIECES:
            self._least_s = min(self._least_s, self._delay_s(self._points[0]))
        self._points.append(self._earliest)
        self._earliest, self._piece_end_s = arrival, arrived_s + PIECE_S
        return self._plain_hz()

    def _delay_s(self, arrival: tuple[int, float]) -> float:
        return arrival[1] - arrival[0] / self.rate_hz

    def _plain_hz(self) -> float | None:
        points = self._points
        if len(points) <= PIECES:
            return None
        off = [_rate_hz(earlier, later) / self.rate_hz - 1.0 for earlier, later in pairwise(points)]
        ahead = self._delay_s(points[0]) <= self._least_s
        if (ahead and min(off) > TOO_FAST) or (max(off) < -TOO_SLOW and max(off) - min(off) < SPREAD):
            return _rate_hz(points[0], points[-1])
        return None


def _rate_hz(earlier: tuple[int, float], later: tuple[int, float]) -> float:
    return (later[0] - earlier[0]) / (later[1] - earlier[1])
