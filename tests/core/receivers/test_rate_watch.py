"""A stream's rate by the arrival of its samples: plain where it is another, and never of what load does to a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from localize_core.receivers.rate_watch import RateWatch

RATE_HZ = 250e3


def chunks(true_hz: float, duration_s: float, *, chunk: int = 10_000) -> Iterator[tuple[int, float]]:
    """Samples that arrive, and when, up to 5 ms late."""
    rng = np.random.default_rng(1)
    for number in range(int(duration_s * true_hz / chunk)):
        yield chunk, 100.0 + (number + 1) * chunk / true_hz + rng.uniform(0.0, 0.005)


def watched(arrivals: Iterable[tuple[int, float]]) -> tuple[float | None, float]:
    """What a watch first says, and when, in seconds after the first arrival."""
    watch, first_s = RateWatch(RATE_HZ), None
    for count, arrived_s in arrivals:
        first_s = arrived_s if first_s is None else first_s
        if (found := watch.observe(count, arrived_s)) is not None:
            return found, arrived_s - first_s
    return None, 0.0


@pytest.mark.parametrize(
    ("true_hz", "chunk"),
    [
        (2.048e6, 10_000),
        (2.048e6, 131_072),  # rtl_tcp's own
        (300e3, 131_072),
        (1.015 * RATE_HZ, 10_000),
        (1.015 * RATE_HZ, 131_072),
        (0.75 * RATE_HZ, 10_000),
        (20e3, 2_000),
    ],
)
def test_another_rate(true_hz, chunk):
    found, after_s = watched(chunks(true_hz, 30.0, chunk=chunk))
    assert found == pytest.approx(true_hz, rel=2e-3)
    assert 10.0 <= after_s < 15.0


@pytest.mark.parametrize("off", [0.0, 150e-6, -150e-6, 0.008, -0.05])
@pytest.mark.parametrize("chunk", [2_000, 131_072])
def test_a_clock_that_is_a_little_off(off, chunk):
    assert watched(chunks((1.0 + off) * RATE_HZ, 120.0, chunk=chunk))[0] is None


def test_what_was_held_up_comes_at_once():
    """Twice a minute nothing comes for 1.9 s, and then all of it."""

    def held() -> Iterator[tuple[int, float]]:
        for count, arrived_s in chunks(RATE_HZ, 300.0):
            yield count, max(arrived_s, arrived_s // 30.0 * 30.0 + 1.9)

    assert watched(held())[0] is None


@pytest.mark.parametrize("drained_in_s", [10.0, 20.0])
@pytest.mark.parametrize("faster", [0.02, 0.05, 0.2])
def test_what_was_held_up_comes_little_by_little(faster, drained_in_s):
    """Every 50 s nothing comes for a while, and then all of it that much faster than it was sent."""
    owed_per_s = faster / (1.0 + faster)

    def held() -> Iterator[tuple[int, float]]:
        for count, sent_s in chunks(RATE_HZ, 150.0):
            after_s = (sent_s - 130.0) % 50.0
            yield count, sent_s + owed_per_s * max(drained_in_s - after_s, 0.0)

    assert watched(held())[0] is None


def test_another_rate_after_what_was_held_up():
    """The samples that are owed are no sign of it; those that come once they are in are."""
    early = list(chunks(RATE_HZ, 60.0))
    begun_s = early[-1][1] + 0.5
    late = [(count, begun_s + arrived_s - 100.0) for count, arrived_s in chunks(1.05 * RATE_HZ, 60.0)]
    found, after_s = watched([*early, *late])
    assert found == pytest.approx(1.05 * RATE_HZ, rel=2e-3)
    assert 60.0 + 0.5 / 0.05 + 10.0 <= after_s < 60.0 + 0.5 / 0.05 + 16.0


def test_lost_samples():
    """Every 7 s, 2 s of them."""
    assert watched(each for each in chunks(RATE_HZ, 300.0) if each[1] % 7.0 > 2.0)[0] is None


def test_a_computer_under_load():
    """Of each second, up to a half of the samples are lost."""
    rng = np.random.default_rng(2)
    lost = rng.uniform(0.0, 0.5, 1000)
    assert watched(each for each in chunks(RATE_HZ, 600.0) if rng.random() > lost[int(each[1])])[0] is None
