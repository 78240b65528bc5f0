from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.simulation.waveforms import root_raised_cosine, waveform

RATE_HZ = 200e3
BANDWIDTH_HZ = {"noise": 40e3, "nbfm": 12.5e3, "am": 8e3, "fsk": 30e3, "qpsk": 40e3}


@pytest.mark.parametrize("name", BANDWIDTH_HZ)
def test_unit_power_within_the_bandwidth(name):
    signal = waveform(name, bandwidth_hz=BANDWIDTH_HZ[name], sample_rate_hz=RATE_HZ, seed=3)(-1000, 400_000)
    assert signal.dtype == np.complex64
    assert np.mean(np.abs(signal) ** 2) == pytest.approx(1.0, rel=0.03)
    frequency_hz, density = scipy.signal.welch(signal, RATE_HZ, nperseg=4096, return_onesided=False, detrend=False)
    inside = np.abs(frequency_hz) <= BANDWIDTH_HZ[name] / 2.0 + 100.0
    assert density[inside].sum() / density.sum() > 0.98
    far = np.abs(frequency_hz) > 2.0 * BANDWIDTH_HZ[name]
    side_lobes = 1e-3 if name == "fsk" else 1e-5
    assert density[far].max() < side_lobes * density.max(), "no clicks where blocks meet"


@pytest.mark.parametrize("name", [*BANDWIDTH_HZ, "none"])
@settings(max_examples=15, deadline=None)
@given(first=st.integers(-70_000, 70_000), count=st.integers(1, 9000), cut=st.integers(0, 9000))
def test_same_numbers_wherever_reading_starts(name, first, count, cut):
    def fresh():
        return waveform(name, bandwidth_hz=BANDWIDTH_HZ.get(name, 1.0), sample_rate_hz=RATE_HZ, seed=5)

    whole = fresh()(first, count)
    cut = min(cut, count)
    reader = fresh()
    tail = reader(first + cut, count - cut)
    np.testing.assert_array_equal(np.concatenate([reader(first, cut), tail]), whole)


def test_noise_is_gaussian_flat_and_forgets():
    signal = waveform("noise", bandwidth_hz=100e3, sample_rate_hz=RATE_HZ, seed=1)(0, 400_000)
    power = np.abs(signal) ** 2
    assert np.mean(power**2) == pytest.approx(2.0, rel=0.03)  # a complex Gaussian's fourth moment
    frequency_hz, density = scipy.signal.welch(signal, RATE_HZ, nperseg=256, return_onesided=False, detrend=False)
    band = np.abs(frequency_hz) < 45e3
    assert 10.0 * np.log10(density[band].max() / density[band].min()) < 1.0
    spectrum = np.fft.fft(signal, 1 << 20)
    correlation = np.abs(np.fft.ifft(np.abs(spectrum) ** 2)) / np.sum(power)
    assert correlation[50:300_000].max() < 0.03, "no echo of itself at any lag"


def test_constant_envelopes():
    for name in ("nbfm", "fsk"):
        signal = waveform(name, bandwidth_hz=BANDWIDTH_HZ[name], sample_rate_hz=RATE_HZ, seed=2)(10_000, 30_000)
        np.testing.assert_allclose(np.abs(signal), 1.0, atol=1e-6)


def test_fsk_phase_never_jumps():
    signal = waveform("fsk", bandwidth_hz=BANDWIDTH_HZ["fsk"], sample_rate_hz=RATE_HZ, seed=2)(0, 100_000)
    step = np.abs(np.angle(signal[1:] * np.conj(signal[:-1])))
    symbols_per_sample = BANDWIDTH_HZ["fsk"] / 1.25 / RATE_HZ
    assert step.max() <= 0.5 * np.pi * symbols_per_sample * 1.001


def test_qpsk_symbols_after_the_matched_filter():
    symbol_rate_hz, per_symbol = 32e3, 8
    rate_hz = symbol_rate_hz * per_symbol
    signal = waveform("qpsk", bandwidth_hz=1.25 * symbol_rate_hz, sample_rate_hz=rate_hz, seed=2)(0, 8000)
    pulse = root_raised_cosine(np.arange(-8 * per_symbol, 8 * per_symbol + 1) / per_symbol, 0.25) / per_symbol
    symbols = np.convolve(signal, pulse, "same")[20 * per_symbol : -20 * per_symbol : per_symbol]
    np.testing.assert_allclose(np.abs(symbols.real), np.sqrt(0.5), atol=0.05)
    np.testing.assert_allclose(np.abs(symbols.imag), np.sqrt(0.5), atol=0.05)


def test_pulse_has_unit_energy_and_no_holes():
    time = np.arange(-64, 64, 1 / 16)  # holds 0 and the formula's other singular points, +-1
    pulse = root_raised_cosine(time, 0.25)
    assert np.sum(pulse**2) / 16 == pytest.approx(1.0, abs=1e-4)
    assert np.abs(np.diff(pulse, 2)).max() < 0.03


def test_none_is_silent():
    assert not waveform("none", bandwidth_hz=1.0, sample_rate_hz=RATE_HZ, seed=1)(0, 100).any()


@pytest.mark.parametrize("bandwidth_hz", [0.0, -1.0, 161e3, float("nan")])
def test_bandwidth_must_fit(bandwidth_hz):
    with pytest.raises(ConfigError, match=r"bandwidth_hz.*sample_rate_hz=200000"):
        waveform("noise", bandwidth_hz=bandwidth_hz, sample_rate_hz=RATE_HZ, seed=1)
