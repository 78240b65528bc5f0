from __future__ import annotations

import subprocess
import sys

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.features.mel import AUDIO_CORNER_HZ, MelConfig, MelSpectrogram, mel_filterbank

RATE_HZ = 2e6


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2), np.float32).view(np.complex64)[:, 0]


def tone(frequency_hz: float, count: int = 2048) -> np.ndarray:
    return np.exp(2j * np.pi * frequency_hz / RATE_HZ * np.arange(count)).astype(np.complex64)


@pytest.mark.parametrize("norm", [None, "slaney"])
@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
@pytest.mark.parametrize(
    ("rate_hz", "n_fft", "n_mels", "f_min_hz", "f_max_hz"),
    [(8000.0, 256, 20, 0.0, None), (22050.0, 2048, 128, 0.0, None), (48000.0, 1024, 64, 300.0, 15000.0)],
)
def test_one_sided_equals_librosa(rate_hz, n_fft, n_mels, f_min_hz, f_max_hz, mel_scale, norm):
    corner_hz = AUDIO_CORNER_HZ[mel_scale]
    config = MelConfig(
        rate_hz,
        n_fft=n_fft,
        hop=n_fft // 4,
        n_mels=n_mels,
        two_sided=False,
        f_min_hz=f_min_hz,
        f_max_hz=f_max_hz,
        mel_scale=mel_scale,
        corner_hz=corner_hz,
        norm=norm,
    )
    options = {"n_fft": n_fft, "n_mels": n_mels, "fmin": f_min_hz, "fmax": f_max_hz, "norm": norm}
    filters = librosa.filters.mel(sr=rate_hz, htk=mel_scale == "htk", **options)
    np.testing.assert_allclose(mel_filterbank(config), filters, rtol=1e-6, atol=1e-7 * filters.max())

    samples = noise(20_000).real.copy()
    power = librosa.feature.melspectrogram(
        y=samples, sr=rate_hz, hop_length=config.hop, htk=mel_scale == "htk", center=False, **options
    ).T
    ours = np.exp(MelSpectrogram(config)(samples.astype(np.complex64)).astype(np.float64)) - config.log_offset
    np.testing.assert_allclose(ours, power, rtol=1e-5)


@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
def test_default_corner_is_the_audio_one_at_the_audio_rate(mel_scale):
    config = MelConfig(22050.0, two_sided=False, n_mels=64, mel_scale=mel_scale)
    reference = librosa.filters.mel(sr=22050, n_fft=512, n_mels=64, htk=mel_scale == "htk", norm=None)
    np.testing.assert_allclose(mel_filterbank(config), reference, atol=1e-6)


@pytest.mark.parametrize("mel_scale", ["htk", "slaney"])
@pytest.mark.parametrize("two_sided", [True, False])
def test_bank_does_not_depend_on_the_rate(mel_scale, two_sided):
    banks = [
        mel_filterbank(MelConfig(rate_hz, n_mels=64, mel_scale=mel_scale, two_sided=two_sided))
        for rate_hz in (12e3, 2.4e6, 61.44e6)
    ]
    np.testing.assert_allclose(banks[1], banks[0], atol=1e-6)
    np.testing.assert_allclose(banks[2], banks[0], atol=1e-6)


@pytest.mark.parametrize("f_min_hz", [0.0, 50e3])
def test_two_sided_bank_is_mirrored(f_min_hz):
    bank = np.fft.fftshift(mel_filterbank(MelConfig(RATE_HZ, f_min_hz=f_min_hz)), axes=1)[:, 1:]  # without -rate / 2
    np.testing.assert_array_equal(bank, bank[::-1, ::-1])
    centres = (bank * np.arange(-255, 256)).sum(axis=1) / bank.sum(axis=1)
    assert (np.diff(centres) > 0.0).all()
    assert (centres[64:] > 0.0).all()
    assert np.diff(centres)[-1] > 3.0 * np.diff(centres)[64]  # finer near the carrier


def test_two_sided_bands_share_every_bin_and_the_carrier_half_and_half():
    config = MelConfig(RATE_HZ)
    bank = mel_filterbank(config)
    assert bank[:, 0].nonzero()[0].tolist() == [63, 64]
    assert bank[63, 0] == bank[64, 0] == pytest.approx(0.5)
    weights = bank.sum(axis=0)
    edge = np.flatnonzero(bank[-1])[bank[-1][np.flatnonzero(bank[-1])].argmax()]
    np.testing.assert_allclose(weights[: edge + 1], 1.0, rtol=1e-6)


@pytest.mark.parametrize("frequency_hz", [-700e3, -3906.25, 3906.25, 700e3])
def test_a_tone_stands_on_its_side_of_the_carrier(frequency_hz):
    frame = MelSpectrogram(MelConfig(RATE_HZ))(tone(frequency_hz))[0]
    mirrored = MelSpectrogram(MelConfig(RATE_HZ))(tone(-frequency_hz))[0]
    assert (frame.argmax() >= 64) == (frequency_hz > 0.0)
    assert frame.argmax() == 127 - mirrored.argmax()
    assert frame.max() - frame[127 - frame.argmax()] > 0.5


def test_power_of_a_full_scale_carrier():
    frame = MelSpectrogram(MelConfig(RATE_HZ))(np.ones(512, np.complex64))[0]
    # The Hann window sums to 256; its transform has half of that in each bin beside the carrier.
    bank = mel_filterbank(MelConfig(RATE_HZ))[64]
    assert np.exp(frame[64]) == pytest.approx(256.0**2 * (bank[0] + 0.25 * (bank[1] + bank[-1])), rel=1e-5)


def test_silence_is_the_offset():
    assert MelSpectrogram(MelConfig(RATE_HZ, log_offset=1e-3))(np.zeros(512, np.complex64)) == pytest.approx(
        np.log(1e-3), rel=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, complex(0.0, -np.inf), 1e20])
def test_unusable_samples_count_as_zeros(bad):
    samples = noise(2048)
    zeroed = samples.copy()
    samples[700], zeroed[700] = bad, 0.0
    mel = MelSpectrogram(MelConfig(RATE_HZ))
    np.testing.assert_array_equal(mel(samples), mel(zeroed))


@settings(max_examples=40, deadline=None)
@given(
    n_fft=st.sampled_from([64, 100, 512]),
    hop=st.integers(1, 700),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_a_frame_does_not_depend_on_the_call(n_fft, hop, pieces):
    mel = MelSpectrogram(MelConfig(RATE_HZ, n_fft=n_fft, hop=hop, n_mels=20))
    samples = noise((sum(pieces) - 1) * hop + n_fft)
    whole, parts, first = mel(samples), [], 0
    for count in pieces:
        parts.append(mel(samples[first * hop : (first + count - 1) * hop + n_fft]))
        first += count
    assert len(whole) == sum(pieces)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_batches_join_without_a_seam():
    mel = MelSpectrogram(MelConfig(RATE_HZ))
    samples = noise(128 * 700)
    whole = mel(samples)
    for first in (0, 126, 127, 128, 129, 600):
        np.testing.assert_array_equal(mel(samples[128 * first :][:512])[0], whole[first])


def test_fewer_samples_than_a_frame_give_none():
    assert MelSpectrogram(MelConfig(RATE_HZ))(noise(511)).shape == (0, 128)


@pytest.mark.parametrize(("n_fft", "hop", "warmup"), [(512, 128, 3), (512, 512, 0), (512, 600, 0), (500, 128, 3)])
def test_warmup_frames(n_fft, hop, warmup):
    assert MelConfig(RATE_HZ, n_fft=n_fft, hop=hop, n_mels=64).warmup_frames == warmup


def test_dictionary_is_plain_and_comes_back():
    config = MelConfig(np.float32(48000.0), n_mels=np.int64(64), norm="slaney")
    mapping = config.as_dict()
    assert mapping["feature"] == "log_mel"
    assert (mapping["f_max_hz"], mapping["corner_hz"]) == (24000.0, pytest.approx(700.0 * 48000.0 / 22050.0))
    assert {type(value) for value in mapping.values()} <= {str, int, float, bool, type(None)}
    assert MelConfig.from_dict(mapping) == config
    assert config.rows == 64


@pytest.mark.parametrize(
    ("changes", "mends"),
    [
        ({"corner_hz": 700.0}, ("n_mels", "n_fft", "corner_hz")),
        ({"n_mels": 512}, ("n_mels", "n_fft", "corner_hz")),
        ({"n_fft": 64}, ("n_mels", "n_fft")),
        ({"two_sided": False, "n_mels": 150}, ("n_mels", "n_fft", "corner_hz")),
        ({"mel_scale": "slaney", "corner_hz": 1000.0}, ("n_mels", "n_fft", "corner_hz")),
    ],
)
def test_an_empty_filter_is_refused_with_remedies_that_work(changes, mends):
    with pytest.raises(ConfigError, match="a mel filter holds no FFT bin") as caught:
        MelConfig(RATE_HZ, **changes)
    remedies = dict(each.split("=") for each in str(caught.value).split("take ")[1].split(" or "))
    assert set(remedies) == set(mends)
    for name, value in remedies.items():
        number = float(value) if name == "corner_hz" else int(value)
        bank = mel_filterbank(MelConfig(RATE_HZ, **(changes | {name: number})))
        assert (bank.max(axis=1) > 0.0).all()
    fewer = int(remedies["n_mels"])
    with pytest.raises(ConfigError):
        MelConfig(RATE_HZ, **(changes | {"n_mels": fewer + (2 if changes.get("two_sided", True) else 1)}))


def test_a_range_without_bins_is_refused():
    with pytest.raises(ConfigError, match="a wider range"):
        MelConfig(RATE_HZ, f_min_hz=1.0, f_max_hz=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate_hz": 0.0}, "sample_rate_hz=0.0: must be above 0"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz=nan: must be a finite number"),
        ({"n_fft": 1}, "n_fft=1: must be a whole number of at least 2"),
        ({"n_fft": 512.5}, "n_fft=512.5"),
        ({"hop": 0}, "hop=0"),
        ({"hop": True}, "hop=True"),
        ({"n_mels": 0}, "n_mels=0"),
        ({"n_mels": 127}, "n_mels=127: must be even"),
        ({"window": "nonesuch"}, "window='nonesuch'"),
        ({"window": 4.0}, "window=4.0"),
        ({"two_sided": "yes"}, "two_sided='yes'"),
        ({"f_min_hz": -1.0}, "f_min_hz=-1.0"),
        ({"f_min_hz": 9e5, "f_max_hz": 8e5}, "f_min_hz < f_max_hz"),
        ({"f_max_hz": 1.1e6}, "half the sample rate"),
        ({"mel_scale": "bark"}, "mel_scale='bark': must be one of 'htk', 'slaney'"),
        ({"corner_hz": 0.0}, "corner_hz=0.0"),
        ({"norm": "l2"}, "norm='l2'"),
        ({"log_offset": 0.0}, "log_offset=0.0"),
        ({"feature": "cross_correlation"}, "feature='cross_correlation'"),
        ({"n_mel": 64}, "unknown key 'n_mel'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ConfigError) as caught:
        MelConfig.from_dict({"sample_rate_hz": RATE_HZ} | changes)
    assert message in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="sample_rate_hz"):
        MelConfig.from_dict({"feature": "log_mel"})


@pytest.mark.parametrize("module", ["mel", "correlation", "quality"])
def test_core_needs_no_gnuradio(module):
    script = f"import sys; sys.modules.update(gnuradio=None, pmt=None); import localize_core.features.{module}"
    subprocess.run([sys.executable, "-c", script], check=True)
