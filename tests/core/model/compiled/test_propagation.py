"""Excess delays by frequency and distance."""

from __future__ import annotations

import numpy as np
import pytest
from localize_core.model.compiled.propagation import PathDelay, along_surface, path_delay


@pytest.mark.parametrize("frequency_hz", [20e3, 77.5e3, 1e6, 10e6, 100e6])
def test_moments_are_finite_and_grow_out_of_the_floor(frequency_hz: float) -> None:
    delay = path_delay(frequency_hz)
    mean_m, variance_m2 = delay.moments(np.array([1.0, 1e4, 1e5, 1e6, 3e6]), np.sqrt)
    assert np.all(np.isfinite(mean_m))
    assert np.all(mean_m >= 0.0)
    assert np.all(variance_m2 >= delay.floor_sigma_m**2)
    assert mean_m[0] == pytest.approx(0.0, abs=1.0)


def test_far_beyond_the_crossover_the_sky_wave_is_all() -> None:
    delay = PathDelay(floor_sigma_m=0.0, crossover_m=1e5, height_m=8e4)
    distance_m = np.array([1e7])
    mean_m, variance_m2 = delay.moments(distance_m, np.sqrt)
    hop_m = 2.0 * np.hypot(distance_m / 2.0, 8e4)
    assert mean_m == pytest.approx(hop_m - distance_m, rel=1e-3)
    assert variance_m2 == pytest.approx(0.0, abs=1.0)


def test_at_the_crossover_ground_and_sky_are_even() -> None:
    delay = PathDelay(floor_sigma_m=0.0, crossover_m=8.5e5, height_m=8e4)
    mean_m, variance_m2 = delay.moments(np.array([8.5e5]), np.sqrt)
    excess_m = 2.0 * np.hypot(4.25e5, 8e4) - 8.5e5
    assert mean_m[0] == pytest.approx(excess_m / 2.0)
    assert variance_m2[0] == pytest.approx(excess_m**2 / 4.0)


def test_line_of_sight_begins_at_30_mhz() -> None:
    assert along_surface(29.9e6)
    assert not along_surface(30e6)
