"""The line of time against sample, under everything that real stamps do wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.alignment.clock import fit_clock
from localize_core.errors import ConfigError

RATE = 12001.0862
INDEX = np.arange(0, 700 * 512, 512)
TRUE = 38.25 + INDEX / RATE
END = float(INDEX[-1])


def line_error_s(fit, index=INDEX, true=TRUE) -> float:
    return float(np.max(np.abs(fit.time_s(index) - true)))


def jittered(rms_s: float, seed: int = 1) -> np.ndarray:
    return TRUE + np.random.default_rng(seed).normal(0.0, rms_s, len(TRUE))


def test_exact_stamps_give_the_exact_line():
    fit = fit_clock(INDEX, TRUE, 12000.0)
    assert fit.rate_hz == pytest.approx(RATE, rel=1e-12)
    assert line_error_s(fit) < 1e-13
    assert (fit.used, fit.rejected, fit.steps) == (700, 0, ())


def test_jitter_averages_out_and_the_standard_error_says_how_far():
    errors, claimed = [], []
    for seed in range(40):
        fit = fit_clock(INDEX, jittered(100e-9, seed), 12001.0)
        errors.append(float(fit.time_s(END)) - TRUE[-1])
        claimed.append(fit.standard_error_s)
    assert fit.scatter_s == pytest.approx(100e-9, rel=0.1)
    # White noise: the line's standard error at its end is 2 sigma / sqrt(n).
    assert np.mean(claimed) == pytest.approx(2 * 100e-9 / np.sqrt(700), rel=0.1)
    assert np.std(errors) == pytest.approx(np.mean(claimed), rel=0.35)


def test_correlated_stamps_claim_a_larger_standard_error():
    """Stamps that follow a slowly corrected clock err together: seven hundred of them are not as good as white ones."""
    wander = np.repeat(np.random.default_rng(3).normal(0.0, 100e-9, 35), 20)
    fit = fit_clock(INDEX, TRUE + wander, 12001.0)
    assert fit.standard_error_s > 3 * 2 * 100e-9 / np.sqrt(700)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.0, 0.45),
    spread=st.sampled_from([1e-3, 0.5, 30.0, 1e5]),
    ppm=st.floats(-90.0, 90.0),
)
def test_up_to_45_percent_scattered_wrong_stamps(seed, share, spread, ppm):
    rng = np.random.default_rng(seed)
    rate = 12000.0 * (1 + ppm * 1e-6)
    true = 38.25 + INDEX / rate
    stamps = true + rng.normal(0.0, 50e-9, len(true))
    wrong = rng.permutation(len(true))[: int(share * len(true))]
    stamps[wrong] += rng.uniform(0.01, 1.0, len(wrong)) * spread * rng.choice([-1, 1], len(wrong))
    fit = fit_clock(INDEX, stamps, 12000.0)
    assert fit.steps == ()
    assert line_error_s(fit, true=true) < 40e-9
    far_off = np.abs(stamps - true) > 25e-6
    assert not (fit.inliers & far_off).any()


@pytest.mark.parametrize("offset_s", [-11646.0, -0.3, 0.123456, 7.7, 11646.0])
@pytest.mark.parametrize("place", ["start", "end"])
def test_long_wrong_run_with_the_right_rate(offset_s, place):
    """Stamps of a clock that was set later on run on evenly, but off; lost blocks would be a whole number of them."""
    stamps = jittered(50e-9)
    run = slice(0, 315) if place == "start" else slice(-315, None)
    stamps[run] += offset_s
    fit = fit_clock(INDEX, stamps, 12001.0, step_unit=512)
    assert fit.steps == ()
    assert line_error_s(fit) < 40e-9
    assert fit.rejected >= 315


def test_frozen_stamps_are_no_consensus():
    stamps = jittered(50e-9)
    stamps[:300] = stamps[0]
    fit = fit_clock(INDEX, stamps, 12001.0)
    assert line_error_s(fit) < 40e-9


def test_whole_seconds_wrong_here_and_there():
    """The wrong ones agree with each other, but lie between the right ones: fewer, so they lose."""
    stamps = jittered(50e-9)
    stamps[np.random.default_rng(5).permutation(700)[:300]] += 1.0
    fit = fit_clock(INDEX, stamps, 12001.0)
    assert fit.steps == ()
    assert line_error_s(fit) < 40e-9


@pytest.mark.parametrize("wrong_share", [0.0, 0.3])
def test_lost_blocks_are_steps_of_the_same_line(wrong_share):
    rng = np.random.default_rng(7)
    lost = np.where(np.arange(700) >= 200, 3 * 512, 0) + np.where(np.arange(700) >= 450, 40 * 512, 0)
    true = 38.25 + (INDEX + lost) / RATE
    stamps = true + rng.normal(0.0, 50e-9, 700)
    wrong = rng.choice([k for k in range(700) if k not in (199, 200, 449, 450)], int(wrong_share * 700), replace=False)
    stamps[wrong] += rng.uniform(0.01, 5.0, len(wrong))
    fit = fit_clock(INDEX, stamps, 12001.0, step_unit=512)
    assert [step.index for step in fit.steps] == [200 * 512, 450 * 512]
    assert [step.seconds * RATE for step in fit.steps] == pytest.approx([3 * 512, 40 * 512], abs=1e-3)
    assert line_error_s(fit, true=true) < 60e-9


def test_a_step_that_is_no_whole_number_of_blocks_is_a_wrong_run_unless_single_samples_can_be_lost():
    stamps = jittered(50e-9)
    stamps[400:] += 100 / RATE
    whole = fit_clock(INDEX, stamps, 12001.0, step_unit=512)
    assert (whole.steps, whole.rejected >= 300) == ((), True)
    single = fit_clock(INDEX, stamps, 12001.0, step_unit=1)
    assert [step.index for step in single.steps] == [400 * 512]


def test_a_step_beyond_the_limit_is_no_loss():
    stamps = jittered(50e-9)
    stamps[400:] += 512 * 3000 / RATE
    assert fit_clock(INDEX, stamps, 12001.0, step_unit=512, max_step_s=100.0).steps == ()
    assert len(fit_clock(INDEX, stamps, 12001.0, step_unit=512, max_step_s=600.0).steps) == 1


def test_a_step_back_is_never_a_loss():
    stamps = jittered(50e-9)
    stamps[400:] -= 512 * 5 / RATE
    fit = fit_clock(INDEX, stamps, 12001.0, step_unit=512)
    assert fit.steps == ()
    assert fit.used >= 390


def test_few_stamps():
    assert fit_clock(INDEX[:0], TRUE[:0], RATE) is None
    one = fit_clock(INDEX[3:4], TRUE[3:4], RATE)
    assert line_error_s(one) < 1e-12
    two = fit_clock(INDEX[:2], TRUE[:2], 12001.0)
    assert two.rate_hz == pytest.approx(RATE, rel=1e-9)
    assert two.standard_error_s == 0.0


def test_two_stamps_far_apart_are_a_loss_or_the_later_one_counts():
    lost = fit_clock(np.array([0, 700_000]), np.array([5.0, 6.2]), 1e6)
    assert [(step.index, round(step.seconds, 9)) for step in lost.steps] == [(700_000, 0.5)]
    stale = fit_clock(np.array([0, 512]), np.array([5.0, 20000.0]), 12000.0)
    assert float(stale.time_s(512)) == pytest.approx(20000.0)


def test_stamps_of_a_host_clock_are_no_time():
    stamps = TRUE + np.random.default_rng(9).uniform(0.0, 0.02, len(TRUE))
    assert fit_clock(INDEX, stamps, 12001.0) is None


def test_many_stamps_do_not_need_all_pairs():
    index = np.arange(100_000) * 512
    true = 1.5 + index / RATE
    stamps = true + np.random.default_rng(2).normal(0.0, 50e-9, len(true))
    stamps[::3] += 5.0
    fit = fit_clock(index, stamps, 12001.0)
    assert line_error_s(fit, index, true) < 10e-9


def test_the_same_stamps_give_the_same_fit():
    assert fit_clock(INDEX, jittered(1e-6), 12001.0).offset_s == fit_clock(INDEX, jittered(1e-6), 12001.0).offset_s


def test_arguments_that_do_not_fit_together():
    with pytest.raises(ConfigError, match="as many"):
        fit_clock(INDEX, TRUE[:-1], 12000.0)
    with pytest.raises(ConfigError, match="nominal_rate_hz=0"):
        fit_clock(INDEX, TRUE, 0.0)
