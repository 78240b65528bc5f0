"""Times that keep their nanoseconds."""

from __future__ import annotations

import pytest
from localize_core.types.time import seconds_between, shift_time


@pytest.mark.parametrize(
    ("time", "offset_s", "later"),
    [
        ((10, 0.25), 0.5, (10, 0.75)),
        ((10, 0.25), 0.75, (11, 0.0)),
        ((10, 0.25), -0.5, (9, 0.75)),
        ((10, 0.25), -3.0, (7, 0.25)),
        ((0, 0.25), -0.5, (0, 0.0)),
        ((2**40, 0.0), 1e-9, (2**40, 1e-9)),
    ],
)
def test_shift_time(time, offset_s, later):
    assert shift_time(*time, offset_s) == later


def test_a_shift_by_less_than_rounding_leaves_the_fraction_below_one():
    seconds, fraction = shift_time(10, 0.0, -1e-18)
    assert 0.0 <= fraction < 1.0
    assert seconds + fraction == pytest.approx(10.0)


def test_seconds_between_keeps_what_float64_of_both_would_round():
    earlier, later = (1_700_000_000, 0.999_999_9), (1_700_000_001, 0.000_000_05)
    assert seconds_between(earlier, later) == pytest.approx(1.5e-7, abs=1e-15)
    assert seconds_between(later, earlier) == -seconds_between(earlier, later)
