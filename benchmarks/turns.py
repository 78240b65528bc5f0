"""Comparing on a machine whose pace changes by a factor of two within seconds.

What is compared takes short turns, and ratios are taken within a round, where the pace was about the same. The median
over rounds counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Way = Callable[[], float]
"""Does some work and returns its rate: things a second."""


def per_second(work: Callable[[], int]) -> Way:
    """The rate of what returns how much it did."""

    def rate() -> float:
        began_s = time.perf_counter()
        count = work()
        return count / (time.perf_counter() - began_s)

    return rate


def repeated(work: Callable[[], int], turn_s: float) -> Way:
    """The rate of what returns how much it did, done again and again until `turn_s` is over."""

    def rate() -> float:
        count, began_s = 0, time.perf_counter()
        while True:
            count += work()
            taken_s = time.perf_counter() - began_s
            if taken_s >= turn_s:
                return count / taken_s

    return rate


def rates(ways: Mapping[str, Way], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Rates of each way, by round. Every other round goes backwards, so that a pace that drifts favours none."""
    found = {name: np.empty(rounds) for name in ways}
    names = list(ways)
    for name in names:  # warm: caches, plans, compilation
        ways[name]()
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            found[name][index] = ways[name]()
    return found


def ratio(found: Mapping[str, NDArray[np.float64]], name: str, peer: str) -> float:
    """Median over rounds of one rate over another."""
    return float(np.median(found[name] / found[peer]))


def quartiles(found: Mapping[str, NDArray[np.float64]], name: str, peer: str) -> list[float]:
    """Of the same ratios: how sure the median is."""
    return [float(value) for value in np.percentile(found[name] / found[peer], (25, 75))]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The power p of t ∝ size^p that fits best, and its standard error (nan for two sizes, which any line fits).

    Least squares of logarithms. Raises ValueError for fewer than two different sizes.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    x -= x.mean()
    spread = float(np.square(x).sum())
    if len(x) < 2 or spread == 0.0:
        raise ValueError(f"sizes={list(sizes)}: growth needs two different ones")
    slope = float((x * y).sum() / spread)
    rest = y - y.mean() - slope * x
    freedom = len(x) - 2
    error = math.sqrt(float(np.square(rest).sum()) / freedom / spread) if freedom else math.nan
    return slope, error


def times_over(ways: Mapping[float, Callable[[], object]], rounds: int) -> list[float]:
    """Seconds that each size takes: geometric mean over rounds of the machine's pace, times what the size adds to it.

    The medians are of what is left when each round's own pace has been taken out.
    """
    found = rates({str(size): per_second(lambda work=work: (work(), 1)[1]) for size, work in ways.items()}, rounds)
    logs = -np.log(np.array(list(found.values())))
    pace = logs.mean(axis=0)
    return [float(value) for value in np.exp(np.median(logs - pace, axis=1) + np.median(pace))]
