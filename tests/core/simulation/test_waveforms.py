from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.simulation.blocks import Purpose, complex_normal, generator
from localize_core.simulation.waveforms import PulseTrain, root_raised_cosine, waveform

RATE_HZ = 200e3
BANDWIDTH_HZ = {
    "noise": 40e3,
    "nbfm": 12.5e3,
    "am": 8e3,
    "fsk": 30e3,
    "bpsk": 50e3,
    "qpsk": 40e3,
    "qam16": 40e3,
    "ofdm": 50e3,
    "chirp": 40e3,
    "pulse": 40e3,
}
SIDE_LOBES = {"fsk": 1e-3, "chirp": 1e-4}
"""Beyond twice the bandwidth; frequencies that jump leave more than pulses with smooth edges."""


@pytest.mark.parametrize("name", BANDWIDTH_HZ)
def test_unit_power_within_the_bandwidth(name):
    """Power of the whole record and its spectrum in a Hann-windowed average: 99 % of it within the bandwidth."""
    signal = waveform(name, bandwidth_hz=BANDWIDTH_HZ[name], sample_rate_hz=RATE_HZ, seed=3)(-1000, 800_000)
    assert signal.dtype == np.complex64
    assert np.mean(np.abs(signal) ** 2) == pytest.approx(1.0, rel=0.03)
    frequency_hz, density = scipy.signal.welch(signal, RATE_HZ, nperseg=8192, return_onesided=False, detrend=False)
    inside = np.abs(frequency_hz) <= BANDWIDTH_HZ[name] / 2.0
    assert density[inside].sum() / density.sum() >= 0.99
    far = np.abs(frequency_hz) > min(2.0 * BANDWIDTH_HZ[name], 0.45 * RATE_HZ)
    assert density[far].max() < SIDE_LOBES.get(name, 1e-5) * density.max(), "no clicks where blocks meet"


@pytest.mark.parametrize("name", sorted({*BANDWIDTH_HZ} - {"nbfm", "am"}))
@pytest.mark.parametrize("share", [0.001, 0.8])
def test_very_narrow_and_as_wide_as_may_be(name, share):
    signal = waveform(name, bandwidth_hz=share * RATE_HZ, sample_rate_hz=RATE_HZ, seed=3)(0, 800_000)
    frequency_hz, density = scipy.signal.welch(signal, RATE_HZ, nperseg=1 << 17, return_onesided=False, detrend=False)
    inside = np.abs(frequency_hz) <= share * RATE_HZ / 2.0
    assert density[inside].sum() / density.sum() >= 0.987  # at 200 Hz a bin of the estimate is 1 % of the band


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
    for name in ("nbfm", "fsk", "chirp"):
        signal = waveform(name, bandwidth_hz=BANDWIDTH_HZ[name], sample_rate_hz=RATE_HZ, seed=2)(10_000, 30_000)
        np.testing.assert_allclose(np.abs(signal), 1.0, atol=1e-6)


def test_fsk_phase_never_jumps():
    signal = waveform("fsk", bandwidth_hz=BANDWIDTH_HZ["fsk"], sample_rate_hz=RATE_HZ, seed=2)(0, 100_000)
    step = np.abs(np.angle(signal[1:] * np.conj(signal[:-1])))
    symbols_per_sample = BANDWIDTH_HZ["fsk"] / 1.25 / RATE_HZ
    assert step.max() <= 0.5 * np.pi * symbols_per_sample * 1.001


@pytest.mark.parametrize("name", ["bpsk", "qpsk", "qam16"])
def test_symbols_after_the_matched_filter(name):
    symbol_rate_hz, per_symbol = 32e3, 8
    rate_hz = symbol_rate_hz * per_symbol
    signal = waveform(name, bandwidth_hz=1.25 * symbol_rate_hz, sample_rate_hz=rate_hz, seed=2)(0, 16_000)
    pulse = root_raised_cosine(np.arange(-8 * per_symbol, 8 * per_symbol + 1) / per_symbol, 0.25) / per_symbol
    symbols = np.convolve(signal, pulse, "same")[20 * per_symbol : -20 * per_symbol : per_symbol]
    levels = {"bpsk": [-1.0, 1.0], "qpsk": [-(0.5**0.5), 0.5**0.5], "qam16": np.array([-3, -1, 1, 3]) / 10**0.5}[name]
    imaginary = [0.0] if name == "bpsk" else levels
    points = np.add.outer(levels, 1j * np.array(imaginary)).ravel()
    nearest = np.abs(symbols[:, None] - points).argmin(axis=1)
    assert np.abs(symbols - points[nearest]).max() < 0.05
    counts = np.bincount(nearest, minlength=len(points))
    assert counts.min() > 0.6 * len(symbols) / len(points), "every symbol is as likely as the others"


def test_pulses_against_the_sum_that_they_are():
    """Any sample rate: each sample against the sum over all symbols in double, which a low rate delivers."""
    step = 0.437
    drawn = np.random.default_rng(1).integers(0, 2, 4000) * 2.0 - 1.0
    symbols = drawn.astype(np.complex64)
    train = PulseTrain(lambda first, count: symbols[first : first + count], lambda t: root_raised_cosine(t, 0.25), step)
    signal = train(160, 4000)
    position = np.arange(160, 4160) * step
    expected = root_raised_cosine(position[:, None] - np.arange(4000), 0.25) @ drawn
    error = signal - expected
    assert np.sqrt(np.mean(np.abs(error) ** 2)) < 0.01, "what lies beyond the pulses' span is all that is missing"


def test_ofdm_subcarriers_after_a_fourier_transform():
    """A receiver's view at the symbols' own rate: 52 QPSK points of 64, nothing else, and prefixes that repeat."""
    spacing_hz = 1000.0
    signal = waveform("ofdm", bandwidth_hz=54 * spacing_hz, sample_rate_hz=128 * spacing_hz, seed=4)(0, 160 * 40)
    symbols = signal.reshape(40, 160)
    np.testing.assert_allclose(symbols[:, 8:32], symbols[:, 136:160], atol=0.02)
    carriers = np.fft.fft(symbols[:, 20:148], axis=1) * np.exp(2j * np.pi * np.fft.fftfreq(128) * 12)
    used = np.flatnonzero(np.mean(np.abs(carriers) ** 2, axis=0) > 1.0)
    assert sorted(np.where(used > 64, used - 128, used)) == [*range(-26, 0), *range(1, 27)]
    points = carriers[:, used] * np.sqrt(52) / 128
    np.testing.assert_allclose(np.abs(points.real), np.sqrt(0.5), atol=0.02)
    np.testing.assert_allclose(np.abs(points.imag), np.sqrt(0.5), atol=0.02)


def test_chirps_are_single_tones_after_the_reverse_chirp():
    """As a LoRa receiver demodulates: each symbol times a falling chirp is one bin of its Fourier transform."""
    band_hz = 128e3
    signal = waveform("chirp", bandwidth_hz=1.15 * band_hz, sample_rate_hz=2 * band_hz, seed=4)(0, 256 * 200)
    time = np.arange(256) / 256
    down = np.exp(-2j * np.pi * 64 * (time**2 - time))
    bins = np.abs(np.fft.fft(signal.reshape(200, 256) * down, axis=1))
    # The part after the wrap lies one bandwidth lower: at twice the bandwidth, 128 bins away.
    folded = bins[:, :128] + bins[:, 128:]
    assert (folded.max(axis=1) / 256).min() > 0.99
    assert len(np.unique(folded.argmax(axis=1))) > 80


def test_bursts_are_pulse_position_bits_a_quarter_of_the_time():
    chip = 60
    signal = waveform("pulse", bandwidth_hz=3.0 / chip, sample_rate_hz=1.0, seed=4)(0, chip * 256 * 400)
    active = np.abs(signal) > 1e-6
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(int), [0]])))
    lengths = edges[1::2] - edges[::2]
    assert set(np.round(lengths / chip).astype(int)) == {1, 2}  # a pulse alone, or one of either half side by side
    assert np.round(lengths / chip).sum() == 32 * 400
    arch = np.sort(np.abs(signal[active]))
    peak = np.sqrt(2 / 0.25 / 0.375)
    assert arch[-1] == pytest.approx(peak, rel=1e-3)
    assert np.median(arch) == pytest.approx(peak / 2, rel=0.02)  # of a Hann arch, half lies above half its height
    gaps = edges[2::2] - edges[1:-1:2]
    assert np.sum(gaps > 4 * chip) == pytest.approx(399, abs=8), "bursts stand apart"


@pytest.mark.parametrize("rms", [1.0, 0.02])
def test_noise_is_gaussian(rms):
    draw = generator(1, Purpose.NOISE, 0)
    parts = np.concatenate([complex_normal(draw, 1 << 18, rms) for _ in range(4)]).view(np.float32) / rms * np.sqrt(2)
    assert scipy.stats.kstest(parts[::7], "norm").pvalue > 0.01
    assert scipy.stats.kurtosis(parts) == pytest.approx(0.0, abs=0.02)
    beyond = scipy.stats.norm.sf(4.0) * 2 * len(parts)
    assert np.sum(np.abs(parts) > 4.0) == pytest.approx(beyond, abs=4 * np.sqrt(beyond))
    real, imaginary = parts[::2], parts[1::2]
    assert abs(np.corrcoef(real, imaginary)[0, 1]) < 0.004
    assert abs(np.corrcoef(real**2, imaginary**2)[0, 1]) < 0.004


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
