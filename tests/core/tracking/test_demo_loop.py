"""The demo's emitter, followed: seeds on which nothing was chosen."""

from __future__ import annotations

import pytest
from localize_apps.demo import TRACKER, demo_station
from localize_benchmarks.tracking import Run, fixes, follow, summary
from localize_core.station.plan import plan_station
from localize_core.tracking.clocks import ClockShare
from localize_core.tracking.tracker import Tracker
from scipy.stats import chi2

SEEDS = (1, 2, 3, 4)
CHANCE = 1e-3
"""Four runs, each with its own clocks, are few: the benchmark has more, and the usual bounds."""


@pytest.fixture(scope="module")
def loops(model_cache):
    station = demo_station(None)
    return station, ClockShare(plan_station(station).spec), [(seed, *fixes(station, seed)) for seed in SEEDS]


def runs(loops, *, no_fix: float = 0.0, wild: float = 0.0) -> list[Run]:
    station, share, found = loops
    return [
        follow(each, scene, Tracker(TRACKER, share=share), station, no_fix=no_fix, wild=wild, seed=seed)
        for seed, each, scene in found
    ]


def test_tracks_are_better_than_fixes_and_honest(loops):
    found = summary(runs(loops))
    assert found["tracks"] == 1
    assert found["windows_without"] == 0
    assert found["ratio"] < 0.75
    for name, size in (("nees", 4), ("nees_place", 2)):
        low, high = chi2.ppf([CHANCE / 2.0, 1.0 - CHANCE / 2.0], size * len(SEEDS)) / len(SEEDS)
        assert low < found[name] < high


def test_missing_and_wild_fixes_neither_lose_nor_double_it(loops):
    found = summary(runs(loops, no_fix=0.2, wild=0.05))
    assert found["tracks"] == 1
    assert found["windows_without"] == 0
    assert found["wild_taken"] <= 1
