from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.features import kernels
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.features.lags import LagGrid, grid_step
from localize_core.features.mel import MelConfig, MelSpectrogram, mel_filterbank
from localize_core.features.pair_sums import CompiledSums, PlainSums
from localize_core.features.quality import sample_quality
from scipy.signal import get_window

RATE_HZ = 2.4e6


def noise(receivers: int, count: int, seed: int = 0) -> np.ndarray:
    parts = np.random.default_rng(seed).standard_normal((receivers, count, 2), np.float32)
    return parts.view(np.complex64)[..., 0]


@pytest.fixture
def numpy_only(monkeypatch):
    """Make something as it would be where nothing is compiled."""

    def make(factory):
        with monkeypatch.context() as patch:
            patch.setenv(kernels.VARIABLE, "numpy")
            kernels.fast_kernels.cache_clear()
            try:
                return factory()
            finally:
                kernels.fast_kernels.cache_clear()

    return make


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(RATE_HZ),
        MelConfig(RATE_HZ, n_fft=500, hop=77, n_mels=40, f_min_hz=20e3, norm="slaney", mel_scale="slaney"),
        MelConfig(RATE_HZ, n_fft=501, hop=600, n_mels=32, window="blackmanharris"),
        MelConfig(RATE_HZ, n_fft=1024, n_mels=64, two_sided=False, corner_hz=700e3),
        MelConfig(RATE_HZ, n_fft=16384, hop=4096),
    ],
)
def test_compiled_log_mel_equals_numpys(numpy_only, config):
    samples = noise(1, 300 * config.hop + config.n_fft)[0]
    samples[config.n_fft :] *= 1e-4  # a range of levels
    ours, plain = MelSpectrogram(config), numpy_only(lambda: MelSpectrogram(config))
    assert type(ours._powers) is not type(plain._powers)
    np.testing.assert_allclose(ours(samples), plain(samples), rtol=0.0, atol=2e-4)
    # In double precision there is one right answer: neither may be farther from it than single precision is.
    bank = mel_filterbank(config).astype(np.float64)
    frame = samples[: config.n_fft] * get_window(config.window, config.n_fft)
    exact = np.log(bank @ np.abs(np.fft.fft(frame)[: bank.shape[1]]) ** 2 + config.log_offset)
    for values in (ours(samples)[0], plain(samples)[0]):
        np.testing.assert_allclose(values, exact, atol=2e-4)


def test_strong_carrier_leaves_weak_bands_alone(numpy_only):
    # A band 100 dB below a carrier elsewhere: sums of the whole spectrum would lose it.
    config = MelConfig(RATE_HZ, window="blackmanharris")
    time_s = np.arange(4096) / RATE_HZ
    samples = (np.exp(2j * np.pi * 300e3 * time_s) + 1e-5 * np.exp(-2j * np.pi * 600e3 * time_s)).astype(np.complex64)
    difference = MelSpectrogram(config)(samples) - numpy_only(lambda: MelSpectrogram(config))(samples)
    weak = np.abs(np.linspace(-1.2e6, 1.2e6, 128) + 600e3).argmin()
    assert np.abs(difference[:, weak - 1 : weak + 2]).max() < 0.05


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
@pytest.mark.parametrize("weighting", ["plain", "phat"])
@pytest.mark.parametrize(("n_fft", "n_lags", "lag_step"), [(1024, 32, 1.0), (1000, 31, 0.37), (4096, 128, 0.125)])
def test_compiled_correlation_equals_numpys(numpy_only, n_fft, n_lags, lag_step, weighting, signal):
    config = CorrelationConfig(
        RATE_HZ, 4, n_fft, n_fft // 2, n_lags=n_lags, lag_step=lag_step, weighting=weighting, signal=signal
    )
    common = noise(1, 6 * n_fft)[0]
    samples = noise(4, 5 * n_fft, seed=1) + np.stack([common[shift : shift + 5 * n_fft] for shift in (0, 1, 3, 7)])
    ours, plain = CrossCorrelation(config), numpy_only(lambda: CrossCorrelation(config))
    assert isinstance(ours._sums, CompiledSums)
    assert isinstance(plain._sums, PlainSums)
    np.testing.assert_allclose(ours(samples), plain(samples), atol=1e-5)


def test_lags_that_reach_far_are_left_to_inverse_transforms():
    config = CorrelationConfig(RATE_HZ, 2, n_fft=1024, n_lags=512)
    assert isinstance(CrossCorrelation(config)._sums, PlainSums)


@pytest.mark.parametrize("two_sided", [True, False])
def test_gathered_bins_give_the_sum_over_all_of_them(two_sided):
    # The closed form: a sum of exponentials, in double precision.
    half, lags = 2048, (np.arange(101) - 50) * 0.73
    grid = LagGrid(half, lags, two_sided=two_sided)
    bins = np.arange(-half, half + 1) if two_sided else np.arange(half + 1)
    rng = np.random.default_rng(3)
    spectrum = rng.standard_normal(bins.size) + 1j * rng.standard_normal(bins.size)
    exact = np.exp(2j * np.pi * np.outer(lags, bins) / (2 * half)) @ spectrum
    padded = np.zeros(grid.n_padded, complex)
    padded[grid.before : grid.before + bins.size] = spectrum
    taps = grid.taps.astype(np.float64)
    sums = [taps @ padded[q * grid.step : q * grid.step + taps.size] for q in range(grid.n_sums)]
    chirped = np.fft.fft(np.array(sums) * grid.chirp.astype(complex), grid.size) * grid.response.astype(complex)
    found = (np.fft.ifft(chirped) * grid.size)[: lags.size] * grid.finish.astype(complex)
    assert np.abs(found - exact).max() < 3e-6 * np.sqrt(bins.size)


def test_grid_grows_coarser_as_lags_reach_less():
    steps = [grid_step(4096, np.array([-reach, reach])) for reach in (7.0, 63.0, 1023.0, 4000.0)]
    assert steps == [256, 32, 2, 0]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_frame_is_the_same_in_whatever_company(data):
    mel = MelSpectrogram(MelConfig(RATE_HZ, n_mels=64))
    correlation = CrossCorrelation(CorrelationConfig(RATE_HZ, 3, n_fft=512, hop=128, n_lags=16, lag_step=0.5))
    first = data.draw(st.integers(0, 150))
    count = data.draw(st.integers(1, 160 - first))
    samples = noise(3, 512 + 159 * 128)
    part = samples[:, first * 128 : (first + count - 1) * 128 + 512]
    np.testing.assert_array_equal(mel(part[0]), mel(samples[0])[first : first + count])
    np.testing.assert_array_equal(correlation(part), correlation(samples)[:, first : first + count])


def test_compiled_quality_equals_numpys(numpy_only):
    samples = noise(3, 4000).reshape(3, 40, 100)
    samples[0, 3, 7] = np.nan
    samples[0, 4, 7] = complex(0.0, np.inf)
    samples[1, 5] = 0.0
    samples[2, 6, :3] = 1.0
    samples[2, 7, :1] = -1e20j
    ours, plain = sample_quality(samples), numpy_only(lambda: sample_quality(samples))
    np.testing.assert_allclose(ours[0], plain[0], atol=1e-5)
    np.testing.assert_array_equal(ours[1], plain[1])
    assert ours[1].any(axis=0).all()


PROGRAM = """
import hashlib, numpy as np
from localize_core.features.mel import MelConfig, MelSpectrogram
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
samples = np.random.default_rng(5).standard_normal((3, 40000, 2), np.float32).view(np.complex64)[..., 0]
mel = MelSpectrogram(MelConfig(2.4e6))(samples[0])
correlation = CrossCorrelation(CorrelationConfig(2.4e6, 3))(samples)
print(hashlib.sha256(mel.tobytes() + correlation.tobytes()).hexdigest())
"""


def test_every_process_gives_the_same_bits():
    # A recording that is played again must give the same fixes, and find the cached ones.
    digests = {subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stdout for _ in range(3)}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize(
    "feature", [MelSpectrogram(MelConfig(RATE_HZ)), CrossCorrelation(CorrelationConfig(RATE_HZ, 2, n_lags=32))]
)
def test_features_go_to_other_processes(feature):
    samples = noise(2, 5000)
    samples = samples[0] if isinstance(feature, MelSpectrogram) else samples
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(feature))(samples), feature(samples))


@pytest.mark.parametrize("signal", ["iq", "envelope", "phase"])
def test_nothing_is_left_to_compile_when_samples_come(signal):
    from localize_core.features import compiled

    def signatures() -> dict[str, int]:
        return {name: len(each.signatures) for name, each in vars(compiled).items() if hasattr(each, "signatures")}

    mel = MelSpectrogram(MelConfig(RATE_HZ))
    correlation = CrossCorrelation(CorrelationConfig(RATE_HZ, 3, n_lags=32, signal=signal))
    before = signatures()
    mel(noise(1, 20_000)[0])
    mel.into_each(noise(3, 1000), [np.empty((4, 128), np.float32) for _ in range(3)])
    correlation(noise(3, 20_000))
    assert signatures() == before


def run_with(choice: str, *, without: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules['{without}'] = None\n" if without else ""
    program += "from localize_core.features.kernels import fast_kernels; print(fast_kernels())"
    environment = {**os.environ, kernels.VARIABLE: choice}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("package", ["numba", "pyfftw"])
def test_numpy_takes_over_where_a_package_is_missing(package):
    assert run_with("auto", without=package).stdout.strip() == "None"


def test_insisting_on_compiled_loops_says_what_is_missing():
    stderr = run_with("compiled", without="numba").stderr
    assert "ConfigError: LOCALIZE_KERNELS=compiled" in stderr
    assert "gr-localize[fast]" in stderr


def test_unknown_choice_is_an_error(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "gpu")
    kernels.fast_kernels.cache_clear()
    with pytest.raises(ConfigError, match="LOCALIZE_KERNELS='gpu': must be one of auto, numpy, compiled"):
        kernels.fast_kernels()


def test_read_only_installations_compile_all_the_same(monkeypatch):
    from localize_core.features import compiled

    def no_place(function=None, **options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    real = compiled.numba.njit
    monkeypatch.setattr(compiled.numba, "njit", no_place)
    twice = compiled._jit(lambda x: 2 * x)
    assert twice(21) == 42
