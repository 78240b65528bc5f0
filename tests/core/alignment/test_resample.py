"""Interpolation against signals whose value between samples is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.alignment.resample import HALF_TAPS, interpolate

RNG = np.random.default_rng(1)
NOISE = (RNG.normal(size=30_000) + 1j * RNG.normal(size=30_000)).astype(np.complex64)
POSITIONS = 50.3 + 1.00009 * np.arange(29_000)
WHOLE = interpolate(NOISE, 0, POSITIONS)


def db(value: float) -> float:
    return 20.0 * float(np.log10(value))


@pytest.mark.parametrize("frequency", [-0.9, -0.77, -0.5, -0.1, 0.0, 0.01, 0.33, 0.6, 0.8, 0.85, 0.9])
def test_tone_up_to_nine_tenths_of_nyquist(frequency):
    samples = np.exp(1j * np.pi * frequency * np.arange(3000)).astype(np.complex64)
    positions = np.sort(np.random.default_rng(2).uniform(100.0, 2900.0, 5000))
    error = interpolate(samples, 0, positions) - np.exp(1j * np.pi * frequency * positions)
    assert db(np.max(np.abs(error))) < -83.0


@pytest.mark.parametrize("delay", [1e-4, 0.25, 0.5, 0.73])
def test_band_limited_noise_delayed_by_phase_ramp(delay):
    """Periodic noise: a phase ramp on its spectrum delays it exactly."""
    n = 4096
    frequency = np.fft.fftfreq(n)
    spectrum = np.fft.fft(NOISE[:n]) * (np.abs(frequency) < 0.45)
    samples = np.fft.ifft(spectrum)
    delayed = np.fft.ifft(spectrum * np.exp(2j * np.pi * frequency * delay))
    inner = np.arange(HALF_TAPS, n - HALF_TAPS)
    output = interpolate(samples.astype(np.complex64), 0, inner + delay)
    assert db(np.linalg.norm(output - delayed[inner]) / np.linalg.norm(delayed[inner])) < -90.0


def test_positions_on_samples_give_the_samples():
    assert np.array_equal(interpolate(NOISE, 100, np.arange(200.0, 300.0)), NOISE[100:200])


def test_outside_counts_as_zero():
    padded = np.concatenate([np.zeros(100), NOISE[:50], np.zeros(100)]).astype(np.complex64)
    positions = np.arange(-60.0, 110.0, 0.7)
    expected = interpolate(padded, -100, positions)
    assert np.array_equal(interpolate(NOISE[:50], 0, positions), expected)
    assert not expected[positions < -HALF_TAPS].any()
    assert len(interpolate(NOISE[:50], 0, np.array([]))) == 0


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 28_000),
    count=st.sampled_from([1, 2, 3, 7, 100, 4095, 4096, 4097, 9000]),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
)
def test_output_depends_on_its_own_samples_alone(start, count, before, after):
    positions = POSITIONS[start : start + count]
    first = int(positions[0]) + 1 - HALF_TAPS - before
    last = int(positions[-1]) + HALF_TAPS + after
    first, last = max(first, 0), min(last, len(NOISE) - 1)
    assert np.array_equal(interpolate(NOISE[first : last + 1], first, positions), WHOLE[start : start + count])
