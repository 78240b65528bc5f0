from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation, peak_lag
from scipy.signal import detrend

N = 256


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


def delayed(signal: np.ndarray, samples: float) -> np.ndarray:
    """Circular delay by a phase ramp; what happens at the ends does not concern the frames in the middle."""
    ramp = np.exp(-2j * np.pi * np.fft.fftfreq(signal.size) * samples)
    return np.fft.ifft(np.fft.fft(signal) * ramp)


def band_limited(count: int, bandwidth: float, seed: int = 0) -> np.ndarray:
    spectrum = noise(count, seed=seed).astype(np.complex128)
    return np.fft.ifft(np.where(np.abs(np.fft.fftfreq(count)) <= bandwidth / 2, spectrum, 0.0)) * np.sqrt(count)


def correlate(samples: np.ndarray, **options) -> np.ndarray:
    config = CorrelationConfig(1.0, len(samples), **({"n_fft": samples.shape[1]} | options))
    return CrossCorrelation(config)(np.ascontiguousarray(samples, np.complex64))


def quadrature_phase_shift_keying(count: int, seed: int) -> np.ndarray:
    """QPSK of root-raised-cosine pulses, five samples a symbol: it fills a fifth of the band."""
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (-(-count // 5), 2))
    impulses = np.zeros(count, complex)
    impulses[::5] = sign @ [1.0, 1.0j]
    frequency = np.abs(np.fft.fftfreq(count)) * 5
    pulse = np.cos(np.pi / 2 * np.clip((frequency - 0.375) / 0.25, 0.0, 1.0))
    return np.fft.ifft(np.fft.fft(impulses) * pulse)


def narrow_band_fm(count: int, seed: int) -> np.ndarray:
    """A voice's worth of noise, deviating a carrier by 2.5 % of the sample rate."""
    message = band_limited(count, 0.06, seed).real
    return np.exp(2j * np.pi * 0.025 * np.cumsum(message / message.std()))


def reference(first: np.ndarray, second: np.ndarray, lags: np.ndarray, trend: str = "constant") -> np.ndarray:
    """Coefficient of the core of `first` and what of `second` is `lags` earlier, sinc interpolated, both detrended."""
    margin = int(np.ceil(np.abs(lags).max()))
    core = np.arange(margin, first.size - margin)
    ours = detrend(first[core], type=trend)
    rows = []
    for lag in lags:
        theirs = detrend(np.sinc(core[:, None] - lag - np.arange(first.size)) @ second, type=trend)
        rows.append(np.vdot(theirs, ours) / np.linalg.norm(theirs) / np.linalg.norm(ours))
    return np.array(rows)


def correlated(samples: np.ndarray, signal: str) -> np.ndarray:
    if signal == "phase":
        return np.unwrap(np.angle(samples))
    return np.abs(samples) if signal == "envelope" else samples


@pytest.mark.parametrize("lag_step", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("signal", "trend"), [("iq", "constant"), ("envelope", "constant"), ("phase", "linear")])
def test_whole_lags_equal_the_sum_over_time(lag_step, signal, trend):
    samples = noise(3, N).astype(np.complex128)
    samples[1] += 2.0 * np.roll(samples[0], 7)
    samples += 0.5
    config = CorrelationConfig(1.0, 3, n_fft=N, n_lags=32, lag_step=lag_step)
    ours = correlate(samples, n_lags=32, lag_step=lag_step, signal=signal)
    for pair, (i, j) in enumerate(itertools.combinations(range(3), 2)):
        expected = reference(*(correlated(samples[each], signal) for each in (i, j)), config.lags_s, trend)
        np.testing.assert_allclose(ours[pair, 0], np.abs(expected) if signal == "iq" else expected, atol=2e-6)


@pytest.mark.parametrize("lag_step", [0.5, 0.3, 0.25, 1.7, np.pi / 4])
@pytest.mark.parametrize("signal", ["iq", "envelope"])
def test_lags_between_samples_are_interpolated(lag_step, signal):
    samples = np.stack([band_limited(512, 0.4), delayed(band_limited(512, 0.4), 2.3)])
    # Tapered, so that the frame itself is band-limited and sinc interpolation of it is exact.
    samples = samples * np.hanning(512) ** 2
    config = CorrelationConfig(1.0, 2, n_fft=512, n_lags=40, lag_step=lag_step)
    expected = reference(*correlated(samples, signal), config.lags_s)
    ours = correlate(samples, n_lags=40, lag_step=lag_step, signal=signal)[0, 0]
    np.testing.assert_allclose(ours, np.abs(expected) if signal == "iq" else expected, atol=1e-4)


WAVEFORMS = {
    "qpsk": quadrature_phase_shift_keying,
    "nbfm": narrow_band_fm,
    **{
        f"noise-{part}": partial(lambda count, seed, part: band_limited(count, part, seed), part=part)
        for part in (0.1, 0.25, 0.5, 0.8, 1.0)
    },
}


@pytest.mark.parametrize("n_fft", [256, 1024])
@pytest.mark.parametrize("delay", [0.0, 3.4, -14.7])
@pytest.mark.parametrize("waveform", WAVEFORMS)
def test_a_noise_free_delay_is_found_without_bias(waveform, delay, n_fft):
    source = WAVEFORMS[waveform](40 * n_fft, seed=5)
    samples = np.stack([delayed(source, delay), source])
    wide = waveform in ("noise-0.8", "noise-1.0")
    lag_step = 0.3 if wide else 1.0 if waveform in ("qpsk", "nbfm", "noise-0.1", "noise-0.25") else 0.5
    rows = correlate(samples, n_fft=n_fft, lag_step=lag_step)[0, 1:-1]
    lag, coefficient = peak_lag(rows, lag_step)
    assert abs((lag - delay).mean()) <= 0.01
    assert np.abs(lag - delay).max() <= 0.05
    assert coefficient.mean() == pytest.approx(1.0, abs=0.02 if waveform == "noise-1.0" else 2e-3)


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
@pytest.mark.parametrize("weighting", ["plain", "phat"])
def test_finer_lags_hold_the_coarser_ones(signal, weighting):
    samples = noise(2, N)
    coarse, fine, odd = (
        correlate(samples, n_lags=n, lag_step=step, signal=signal, weighting=weighting)[0, 0]
        for n, step in ((40, 1.0), (80, 0.5), (120, 1.0 / 3.0))
    )
    np.testing.assert_allclose(fine[::2], coarse, atol=2e-6)
    np.testing.assert_allclose(odd[::3], coarse, atol=2e-6)


@pytest.mark.parametrize("signal", ["iq", "envelope"])
@pytest.mark.parametrize("weighting", ["plain", "phat"])
@pytest.mark.parametrize("lag", [5, -5])
def test_the_peak_is_at_the_difference_of_arrival_times(signal, weighting, lag):
    late = np.roll(noise(4 * N), lag)  # reaches receiver 0 `lag` samples after receiver 1
    samples = np.stack([late, noise(4 * N)])
    config = CorrelationConfig(1e6, 2, n_fft=4 * N, n_lags=33, signal=signal, weighting=weighting)
    row = CrossCorrelation(config)(samples)[0, 0]
    assert config.lags_s[row.argmax()] == pytest.approx(lag * 1e-6)
    assert config.lags_s[16] == 0.0
    assert row.max() > 0.9


def test_pairs_are_ordered_and_each_has_its_lag():
    source = noise(2048)
    samples = np.stack([np.roll(source, lag) for lag in (0, 3, -4, 10)])
    config = CorrelationConfig(1.0, 4, n_fft=1024, n_lags=64)
    assert config.pairs == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    rows = CrossCorrelation(config)(samples)
    assert rows.shape == (6, 2, 64)
    assert (config.lags_s[rows[:, 1].argmax(axis=-1)]).tolist() == [-3, 4, -10, 7, -7, -14]


def test_amplitude_phase_and_frequency_stay_out():
    samples = noise(2, N)
    turned = samples * np.array([[3e-4], [50.0j]], np.complex64)
    np.testing.assert_allclose(correlate(turned), correlate(samples), atol=1e-6)


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
@pytest.mark.parametrize("waveform", ["qpsk", "nbfm", "noise-1.0"])
def test_a_delayed_copy_is_as_correlated_as_an_undelayed_one(waveform, signal):
    source = WAVEFORMS[waveform](20 * N, seed=6)
    samples = np.stack([source[60:], source[:-60]])
    rows = correlate(samples, n_fft=N, signal=signal)[0]
    if waveform == "nbfm" and signal == "envelope":
        assert not rows.any()
        return
    np.testing.assert_allclose(rows[:, 64 - 60], 1.0, atol=1e-5)
    assert (rows.argmax(axis=-1) == 64 - 60).all()


@pytest.mark.parametrize("lag_step", [1.0, 0.3])
@pytest.mark.parametrize("weighting", ["plain", "phat"])
@pytest.mark.parametrize("waveform", ["qpsk", "noise-0.8"])
def test_a_direct_current_far_above_the_signal_does_not_matter(waveform, weighting, lag_step):
    source = WAVEFORMS[waveform](8 * N, seed=7)
    samples = np.stack([delayed(source, 3.4), source]) + 0.01 * noise(2, 8 * N)
    leak = 10.0 * np.sqrt(np.square(np.abs(source)).mean()) * np.exp([[0.3j], [2.0j]])
    clean, leaky = (
        correlate(each, n_fft=N, lag_step=lag_step, weighting=weighting)[0] for each in (samples, samples + leak)
    )
    np.testing.assert_allclose(leaky, clean, atol=2e-5)
    if weighting == "plain" and waveform == "qpsk":
        assert abs((peak_lag(leaky, lag_step)[0] - 3.4).mean()) < 0.02


def test_level_of_an_envelope_and_slope_of_a_phase_do_not_matter():
    message = np.stack([modulation(8), np.roll(modulation(8), 5)])[:, :N]
    rows = correlate(1.5 + message, signal="envelope")
    np.testing.assert_allclose(
        correlate([[1.0], [4.0]] * (1.5 + message + [[0.0], [9.0]]), signal="envelope"), rows, atol=1e-5
    )
    turned = message + [[0.2], [-0.1]] * np.arange(N) + [[1.0], [2.0]]
    rows = correlate(np.exp(1j * message), signal="phase")
    np.testing.assert_allclose(correlate(np.exp(1j * turned), signal="phase"), rows, atol=1e-5)


def test_lags_at_which_a_receiver_is_silent_are_zero():
    samples = noise(2, N)
    samples[1, 30:] = 0.0  # multiplied where the window of receiver 1 begins before it: at lags above 64 - 30
    row = correlate(samples)[0, 0]
    assert not row[: 64 + 35].any()
    assert (row[64 + 35 :] > 0.0).all()
    assert not correlate(samples[::-1]).any()


@pytest.mark.parametrize("lag_step", [1.0, 0.3])
@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
def test_phat_of_identical_inputs_is_almost_one(lag_step, signal):
    source = noise(4096)
    row = correlate(np.stack([source, source]), lag_step=lag_step, signal=signal, weighting="phat")[0, 0]
    assert 0.85 < row[64] < 1.0
    assert row[64] == row.max()


def test_phat_sharpens_a_coloured_signal():
    source = band_limited(4096, 0.05) + 0.01 * noise(4096)
    samples = np.stack([source, np.roll(source, 9)])
    plain, phat = (correlate(samples, weighting=weighting)[0, 0] for weighting in ("plain", "phat"))
    assert phat.argmax() == plain.argmax() == 64 - 9
    assert plain[64 - 11] > 0.9
    assert phat[64 - 11] < 0.1 * phat.max()


def test_phat_leaves_alone_what_leaks_into_empty_bins():
    source = band_limited(30 * 4096, 0.4)  # leakage of the frames' ends would agree on a lag of zero
    samples = np.stack([delayed(source, 3.3), source])
    lag, _ = peak_lag(correlate(samples, n_fft=4096, lag_step=0.3, weighting="phat")[0, 1:-1], 0.3)
    assert np.abs(lag - 3.3).max() < 0.3
    assert abs((lag - 3.3).mean()) < 0.03


def modulation(seed: int) -> np.ndarray:
    slow = band_limited(8192, 0.1, seed=seed).real
    return slow / np.abs(slow).max()


def test_envelope_finds_amplitude_modulation_on_unrelated_carriers():
    message = modulation(1)
    time = np.arange(8192)
    first = (1.0 + 0.8 * np.roll(message, 12)) * np.exp(0.3j * time)
    second = (1.0 + 0.8 * message) * np.exp(-0.11j * time + 2.0j)
    row = correlate(np.stack([first, second]), signal="envelope")[0, 0]
    assert row.argmax() - 64 == 12
    assert row.max() > 0.98
    assert row.min() < -0.1  # signed


def test_an_inverted_envelope_correlates_negatively():
    message = modulation(2)
    row = correlate(np.stack([1.0 + 0.8 * message, 1.0 - 0.8 * message]), signal="envelope")[0, 0]
    assert row[64] == pytest.approx(-1.0, abs=1e-3)


def test_phase_finds_phase_modulation_under_fading_and_frequency_offset():
    message = modulation(3)
    time = np.arange(8192)
    fading = 1.0 + 0.3 * modulation(4)
    first = fading * np.exp(1j * (4.0 * np.roll(message, -8) + 0.2 * time))
    second = np.exp(1j * (4.0 * message - 0.05 * time + 1.0))
    row = correlate(np.stack([first, second]), signal="phase")[0, 0]
    assert row.argmax() - 64 == -8
    assert row.max() > 0.98


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
@pytest.mark.parametrize("weighting", ["plain", "phat"])
@pytest.mark.parametrize("lag_step", [1.0, 0.3])
def test_silence_and_constants_give_zeros(signal, weighting, lag_step):
    samples = noise(2, N)
    samples[1] = 0.0
    assert not correlate(samples, signal=signal, weighting=weighting, lag_step=lag_step).any()
    carriers = np.exp((0.0 if signal == "iq" else 0.7j) * np.arange(N)) * np.array([[1.0], [0.02]])
    assert not correlate(carriers, signal=signal, weighting=weighting, lag_step=lag_step).any()


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
def test_unusable_samples_count_as_zeros(signal):
    samples = noise(2, N)
    zeroed = samples.copy()
    samples[0, 10], samples[1, 20], samples[1, 21] = np.nan, np.inf, 1e25
    zeroed[0, 10] = zeroed[1, 20] = zeroed[1, 21] = 0.0
    np.testing.assert_array_equal(correlate(samples, signal=signal), correlate(zeroed, signal=signal))


@pytest.mark.parametrize("scale", [1e-9, 1e11])
def test_coefficients_do_not_depend_on_the_level(scale):
    samples = noise(2, N)
    np.testing.assert_allclose(correlate(samples * np.float32(scale)), correlate(samples), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    signal=st.sampled_from(["iq", "envelope", "phase"]),
    weighting=st.sampled_from(["plain", "phat"]),
    lag_step=st.sampled_from([1.0, 0.5, 0.3]),
    n_receivers=st.integers(2, 4),
    hop=st.integers(1, 150),
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=8),
)
def test_a_frame_does_not_depend_on_the_call(signal, weighting, lag_step, n_receivers, hop, pieces):
    n_fft = 100
    config = CorrelationConfig(1.0, n_receivers, n_fft, hop, 30, lag_step, weighting, signal)
    feature = CrossCorrelation(config)
    samples = noise(n_receivers, (sum(pieces) - 1) * hop + n_fft)
    whole, parts, first = feature(samples), [], 0
    for count in pieces:
        parts.append(feature(samples[:, first * hop : (first + count - 1) * hop + n_fft]))
        first += count
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert whole.shape == (len(config.pairs), sum(pieces), 30)
    assert (np.abs(whole) <= 1.0).all()


@pytest.mark.parametrize("n_fft", [256, 4096])
def test_batches_join_without_a_seam(n_fft):
    feature = CrossCorrelation(CorrelationConfig(1.0, 3, n_fft, n_lags=16))
    samples = noise(3, 90 * n_fft)
    whole = feature(samples)
    for first in (0, 1, 6, 84, 85, 89):
        single = feature(samples[:, first * n_fft : (first + 1) * n_fft])
        np.testing.assert_array_equal(single[:, 0], whole[:, first])


def test_fewer_samples_than_a_frame_give_none():
    assert CrossCorrelation(CorrelationConfig(1.0, 3, N))(noise(3, N - 1)).shape == (3, 0, 128)


def test_the_wrong_number_of_receivers_is_refused():
    with pytest.raises(ConfigError, match=r"samples of shape \(2, 256\): must be \(3, m\)"):
        CrossCorrelation(CorrelationConfig(1.0, 3, N))(noise(2, N))


def test_lags():
    config = CorrelationConfig(2e6, 2, n_lags=5, lag_step=0.5)
    np.testing.assert_allclose(config.lags_s, np.array([-2, -1, 0, 1, 2]) * 0.25e-6)
    assert CorrelationConfig(1.0, 2, n_lags=4).lags_s.tolist() == [-2, -1, 0, 1]
    assert config.rows == 5


@pytest.mark.parametrize(
    ("n_lags", "lag_step", "n_core"), [(1, 1.0, 100), (74, 1.0, 26), (40, 0.3, 88), (40, 0.32, 86), (3, 37.0, 26)]
)
def test_the_largest_lag_leaves_a_core(n_lags, lag_step, n_core):
    config = CorrelationConfig(1.0, 2, 100, n_lags=n_lags, lag_step=lag_step)
    assert config.n_core == n_core
    source = noise(100)
    row = CrossCorrelation(config)(np.stack([source, source]))[0, 0]
    assert row[n_lags // 2] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("n_lags", "lag_step"), [(76, 1.0), (3, 37.1)])
def test_too_small_a_core_is_refused(n_lags, lag_step):
    with pytest.raises(
        ConfigError, match="leaves a quarter of n_fft=100 to correlate; take fewer lags, a smaller step"
    ):
        CorrelationConfig(1.0, 2, 100, n_lags=n_lags, lag_step=lag_step)


@pytest.mark.parametrize(("n_fft", "hop", "warmup"), [(4096, None, 0), (4096, 1024, 3), (4096, 1000, 4), (64, 100, 0)])
def test_warmup_frames(n_fft, hop, warmup):
    assert CorrelationConfig(1.0, 2, n_fft, hop, n_lags=32).warmup_frames == warmup


def test_dictionary_is_plain_and_comes_back():
    config = CorrelationConfig(np.float64(12e3), np.int32(3), lag_step=np.float32(0.5), signal="envelope")
    mapping = config.as_dict()
    assert mapping["feature"] == "cross_correlation"
    assert mapping["hop"] == 4096
    assert {type(value) for value in mapping.values()} <= {str, int, float}
    assert CorrelationConfig.from_dict(mapping) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate_hz": -1.0}, "sample_rate_hz=-1.0: must be above 0"),
        ({"n_receivers": 1}, "n_receivers=1: must be a whole number of at least 2"),
        ({"n_fft": 0}, "n_fft=0"),
        ({"hop": 0}, "hop=0"),
        ({"n_lags": 0}, "n_lags=0"),
        ({"n_lags": 16.0}, "n_lags=16.0"),
        ({"lag_step": 0.0}, "lag_step=0.0: must be above 0"),
        ({"lag_step": float("inf")}, "lag_step=inf: must be a finite number"),
        ({"n_fft": 100}, "lags reach 64 samples, must be at most 37"),
        ({"weighting": "roth"}, "weighting='roth': must be one of 'plain', 'phat'"),
        ({"signal": "power"}, "signal='power': must be one of 'iq', 'envelope', 'phase'"),
        ({"feature": "log_mel"}, "feature='log_mel': must be 'cross_correlation'"),
        ({"lags": 3}, "unknown key 'lags'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ConfigError) as caught:
        CorrelationConfig.from_dict({"sample_rate_hz": 1.0, "n_receivers": 2} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("lag_step", [1.0, 0.3])
@pytest.mark.parametrize("truth", [-7.0, 0.0, 0.123, 5.5, 11.9])
def test_peak_between_lags(truth, lag_step):
    lags = (np.arange(128) - 64) * lag_step
    bandwidth = 0.45
    rows = np.sinc(bandwidth * (lags - truth))
    lag, value = peak_lag(np.stack([0.9 * np.abs(rows), 0.5 * np.abs(rows)])[:, None], lag_step)
    assert lag.shape == value.shape == (2, 1)
    np.testing.assert_allclose(lag, truth, atol=0.002)
    np.testing.assert_allclose(value[:, 0], [0.9, 0.5], atol=0.002)
    signed_lag, signed_value = peak_lag(rows - 0.2, lag_step, signed=True)
    assert signed_lag == pytest.approx(truth, abs=0.002)
    assert signed_value == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("index", [0, 1, 126, 127])
def test_a_peak_at_the_last_lags_stays_there(index):
    row = np.exp(-np.square(np.arange(128) - index) / 8.0)
    assert peak_lag(row, 1.0)[0] == pytest.approx(index - 64, abs=1.0)


def test_a_flat_row_has_value_zero():
    lag, value = peak_lag(np.zeros((3, 128), np.float32), 1.0)
    assert np.isfinite(lag).all()
    assert not value.any()
