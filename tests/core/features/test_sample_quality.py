from __future__ import annotations

import numpy as np
import pytest
from localize_core.features.quality import FLOOR_DBFS, SampleFlag, sample_quality, zero_unusable
from localize_core.types.fix import RECEIVER_FLAGS

QUIET = 0.1


def frames(*receivers: np.ndarray) -> np.ndarray:
    return np.stack(receivers).astype(np.complex64)[:, None, :]


def test_words_are_those_of_a_fix():
    assert tuple(flag.words[0] for flag in SampleFlag) == tuple(RECEIVER_FLAGS)
    assert (SampleFlag.GAP | SampleFlag.INVALID).words == ("invalid", "gap")
    assert SampleFlag(0).words == ()


def test_levels():
    tone = np.exp(2j * np.pi * np.arange(128) / 16)
    levels, flags = sample_quality(frames(0.5 * tone, 0.01 * tone, np.full(128, 0.1j)))
    assert levels.dtype == np.float32
    assert flags.dtype == np.int32
    assert levels.shape == flags.shape == (1, 3)
    np.testing.assert_allclose(levels[0], [-6.0206, -40.0, -20.0], atol=1e-3)
    assert not flags.any()


def test_frames_and_receivers_keep_their_places():
    amplitude = np.array([[1e-1, 1e-2], [1e-3, 1e-4], [0.0, 1e-5]])
    levels, flags = sample_quality((amplitude[..., None] * np.ones(50)).astype(np.complex64))
    np.testing.assert_allclose(levels, [[-20, -60, FLOOR_DBFS], [-40, -80, -100]], atol=1e-3)
    assert flags.tolist() == [[0, 0, SampleFlag.SILENT], [0, 0, 0]]


@pytest.mark.parametrize("bad", [np.nan, complex(0.0, np.nan), np.inf, complex(0.0, -np.inf), 1e30])
def test_an_unusable_sample_is_flagged_and_counts_as_zero(bad):
    samples = np.full(100, QUIET, np.complex64)
    samples[3] = bad
    levels, flags = sample_quality(frames(samples))
    assert flags[0, 0] == SampleFlag.INVALID
    assert levels[0, 0] == pytest.approx(10 * np.log10(QUIET**2 * 0.99), abs=1e-3)


def test_all_unusable():
    levels, flags = sample_quality(frames(np.full(64, np.nan)))
    assert (levels[0, 0], flags[0, 0]) == (FLOOR_DBFS, SampleFlag.INVALID)


@pytest.mark.parametrize("clipped", [1.0, -1.0, 1.0j, -1.0j, 0.9991])
@pytest.mark.parametrize(("count", "flagged"), [(1, False), (2, True)])
def test_saturation_begins_at_one_percent(clipped, count, flagged):
    samples = np.full(200, QUIET, np.complex64)
    samples[:count] = clipped
    expected = SampleFlag.SATURATED if flagged else 0
    assert sample_quality(frames(samples))[1][0, 0] == expected
    samples[-1] = np.nan
    assert sample_quality(frames(samples))[1][0, 0] == expected | SampleFlag.INVALID


def test_almost_full_scale_is_not_saturated():
    assert sample_quality(frames(np.full(100, 0.99 + 0.99j)))[1][0, 0] == 0


def test_zero_unusable_leaves_good_samples_alone():
    good = np.arange(6, dtype=np.complex64).reshape(2, 3)
    assert zero_unusable(good) is good
    bad = good.copy()
    bad[0, 1], bad[1, 2] = complex(np.nan, 1.0), complex(1.0, np.inf)
    np.testing.assert_array_equal(zero_unusable(bad), [[0, 0, 2], [3, 4, 0]])
    assert np.isnan(bad[0, 1])  # the caller's samples stay as they are


def test_a_frame_does_not_depend_on_the_call():
    samples = np.random.default_rng(0).standard_normal((3, 40, 97, 2), np.float32).view(np.complex64)[..., 0]
    levels, flags = sample_quality(samples)
    for index in range(40):
        one_level, one_flag = sample_quality(samples[:, index : index + 1])
        np.testing.assert_array_equal(one_level[0], levels[index])
        np.testing.assert_array_equal(one_flag[0], flags[index])
