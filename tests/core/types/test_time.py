"""Times that keep their nanoseconds."""

from __future__ import annotations

import pytest
from localize_core.types.time import shift_time


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
