from __future__ import annotations

import math

import numpy as np
import pytest
from localize_core.errors import ConfigError
from localize_core.evaluation.bound import (
    area_box_m,
    delay_information,
    level_deviation_db,
    position_bound,
    rmse_bound_m,
    squared_bound_m2,
)
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.propagation import PathDelay
from scipy.integrate import trapezoid
from scipy.optimize import minimize

RATE_HZ = 2e6
SQUARE_M = np.array([[-2000.0, -2000.0], [2000.0, -2000.0], [2000.0, 2000.0], [-2000.0, 2000.0]])


def test_two_receivers_are_knapp_and_carter():
    snr, bandwidth_hz, duration_s = np.array([3.0, 0.4]), 80e3, 0.02
    coherence = snr.prod() / (1.0 + snr).prod()
    # eq. 30 of Knapp & Carter 1976 for a complex signal: 1/var = 2 T ∫ (2πf)² C/(1−C) df over the band
    frequency = np.linspace(-bandwidth_hz / 2.0, bandwidth_hz / 2.0, 20_001)
    turning = trapezoid((2.0 * np.pi * frequency) ** 2, frequency)
    expected = 2.0 * duration_s * turning * coherence / (1.0 - coherence)
    found = delay_information(snr[None], np.array([bandwidth_hz]), duration_s)[0]
    assert found == pytest.approx(expected * np.array([[1.0, -1.0], [-1.0, 1.0]]), rel=1e-6)


def test_any_number_of_receivers_is_the_general_formula_of_gaussian_signals():
    snr, bandwidth_hz, duration_s = np.array([3.0, 0.4, 12.0, 0.0, 1.0]), 80e3, 0.02
    delay_s = np.array([0.0, 3e-6, -5e-6, 1e-6, 7e-6])
    bins = np.linspace(-bandwidth_hz / 2.0, bandwidth_hz / 2.0, 2001)
    per_bin = np.zeros((len(bins), 5, 5))
    for index, omega in enumerate(2.0 * np.pi * bins):
        steering = np.sqrt(snr) * np.exp(-1j * omega * delay_s)
        inverse = np.linalg.inv(np.eye(5) + np.outer(steering, steering.conj()))
        slopes = []
        for receiver in range(5):
            change = np.zeros(5, complex)
            change[receiver] = -1j * omega * steering[receiver]
            slopes.append(inverse @ (np.outer(change, steering.conj()) + np.outer(steering, change.conj())))
        per_bin[index] = [[np.trace(a @ b).real for b in slopes] for a in slopes]
    expected = duration_s * trapezoid(per_bin, bins, axis=0)
    found = delay_information(snr[None], np.array([bandwidth_hz]), duration_s)[0]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9 * expected.max())
    assert found.sum(axis=1) == pytest.approx(0.0, abs=1e-9 * found.max())  # a common delay shows nowhere


def test_maximum_likelihood_reaches_the_bound():
    """Three receivers with unknown phases, bins of a flat Gaussian spectrum: delays by likelihood, 300 times."""
    rng = np.random.default_rng(8)
    snr, bins = np.array([2.0, 1.0, 0.5]), 500
    omega = 2.0 * np.pi * (np.arange(bins) - (bins - 1) / 2.0) / bins  # a band of 1 Hz over 500 s
    amplitude = np.sqrt(snr)

    def cost(parameters, spectra):
        turn = np.zeros((3, bins))
        turn[1:] = omega * parameters[:2, None] + parameters[2:, None]
        return -np.sum(np.abs(amplitude @ (spectra * np.exp(1j * turn))) ** 2) / (1.0 + snr.sum())

    found = []
    for _ in range(300):
        draw = rng.standard_normal((4, bins, 2)) @ [1.0, 1j] / np.sqrt(2.0)
        spectra = amplitude[:, None] * draw[0] + draw[1:]
        found.append(minimize(cost, np.zeros(4), args=(spectra,), method="BFGS").x[:2])
    information = delay_information(snr[None], np.array([1.0]), float(bins))[0]
    bound = np.linalg.inv(information[1:, 1:])  # delays against the first receiver's
    ratio = np.diag(np.cov(np.array(found).T)) / np.diag(bound)
    assert ratio == pytest.approx([1.0, 1.0], abs=0.25)  # three deviations of a variance from 300


def noiseless(spec, emitter_m, **changes):
    """The bound with so much signal that only clocks, paths and shadowing are left."""
    fields = {"snr_db": np.full((len(emitter_m), len(spec.receivers)), 120.0), "duration_s": 10.0} | changes
    return position_bound(spec, np.asarray(emitter_m, float), bandwidth_hz=np.full(len(emitter_m), 1e6), **fields)


def test_centre_of_a_square_has_a_closed_form(make_spec):
    # Unit vectors to the corners: Σ uu' = 2 I, Σ u = 0, so that the bound is σ²/2 each way.
    bound = noiseless(make_spec(SQUARE_M, clock_m=7.0), np.zeros((1, 2))).covariance_m2
    assert bound[0] == pytest.approx(np.eye(2) * 49.0 / 2.0, rel=1e-4, abs=0.01)
    path = noiseless(make_spec(SQUARE_M, clock_m=7.0, path=PathDelay(24.0)), np.zeros((1, 2))).covariance_m2
    assert path[0] == pytest.approx(np.eye(2) * 625.0 / 2.0, rel=1e-4, abs=0.1)


def test_noise_alone_has_a_closed_form(make_spec):
    # Equal SNR s at four receivers: information 2Tω²·4s²/(1 + 4s) on each delay's deviation from their mean.
    spec = make_spec(SQUARE_M, clock_m=0.0)
    bandwidth_hz, duration_s, snr = 5e5, 0.04, 10.0
    found = position_bound(
        spec, np.zeros((1, 2)), np.full((1, 4), 10.0 * math.log10(snr / 4.0)), np.array([bandwidth_hz]), duration_s=0.04
    ).covariance_m2
    turning = (2.0 * math.pi) ** 2 * bandwidth_hz**3 / 12.0
    per_length = 2.0 * duration_s * turning * 4.0 * snr**2 / (1.0 + 4.0 * snr) / SPEED_OF_LIGHT_MPS**2
    assert found[0] == pytest.approx(np.eye(2) / (2.0 * per_length), rel=1e-4, abs=1e-4 / per_length)


def test_clocks_are_nuisance_with_a_prior(make_spec):
    """Against the information of place and clock errors together, inverted as a whole; one receiver's clock is true."""
    clocks = (5.0, 12.0, 1e-3, 30.0)
    spec, emitter = make_spec(clock_m=clocks), np.array([[700.0, -400.0]])
    snr_db, bandwidth_hz = np.array([[3.0, -12.0, 9.0, -2.0]]), np.array([2e5])
    found = position_bound(spec, emitter, snr_db, bandwidth_hz, duration_s=0.01).covariance_m2[0]
    snr = 10.0 ** (snr_db / 10.0) * RATE_HZ / bandwidth_hz
    of_length = delay_information(snr, bandwidth_hz, 0.01)[0] / SPEED_OF_LIGHT_MPS**2
    offset = emitter[0] - spec.receivers_enu_m[:, :2]
    slope = np.hstack([offset / np.linalg.norm(offset, axis=1)[:, None], np.eye(4)])
    whole = slope.T @ of_length @ slope + np.diag([0.0, 0.0, *(1.0 / np.square(clocks))])
    assert found == pytest.approx(np.linalg.inv(whole)[:2, :2], rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "prior"),
    [
        ({"exponent_sigma": 0.3}, [0.0, 0.3**-2]),
        ({"exponent_sigma": 0.3, "level_dbfs_at_1km": -40.0, "level_sigma_db": 2.0}, [0.25, 0.3**-2]),
        ({"exponent_sigma": 0.0}, [0.0, 1e12]),
        ({"exponent_sigma": 0.3, "gain_sigma_db": (2.0,) * 5, "shadowing_db": 3.0}, [0.0, 0.3**-2]),
    ],
)
def test_levels_are_the_information_of_all_parameters(make_spec, fields, prior):
    places_m = np.array([[-3000, -2500], [3000, -2800], [2600, 3100], [-2900, 2700], [200, -3500.0]])
    spec = make_spec(places_m, timing=False, level=True, **fields)
    emitter = np.array([500.0, 900.0])
    found = noiseless(spec, emitter[None]).covariance_m2[0]
    offset = emitter - spec.receivers_enu_m[:, :2]
    distance = np.linalg.norm(offset, axis=1)
    # level = power − 10 n log10(d / 1 km), in dB
    slope = np.column_stack(
        [
            -10.0 * 2.7 / math.log(10.0) * offset / distance[:, None] ** 2,
            np.ones(5),
            -10.0 * np.log10(distance / 1000.0),
        ]
    )
    variance = spec.level.shadowing_db**2 + spec.level.gain_sigma_db[0] ** 2
    whole = slope.T @ slope / variance + np.diag([0.0, 0.0, *prior])
    assert found == pytest.approx(np.linalg.inv(whole)[:2, :2], rel=1e-3)


def test_deviation_of_a_measured_level():
    """Against the scatter of simulated levels over noise of known power."""
    rng = np.random.default_rng(2)
    snr, looks = 4.0, 2000
    power = rng.exponential(1.0 + snr, (2000, looks)).mean(axis=1) - 1.0
    assert level_deviation_db(np.array(snr), np.array(float(looks))) == pytest.approx(
        np.std(10.0 * np.log10(power)), rel=0.06
    )


def test_features_add_up(make_spec):
    emitter = np.array([[400.0, 1500.0], [-900.0, 100.0]])
    both, time, level = (
        noiseless(make_spec(timing=t, level=v, clock_m=500.0), emitter).information
        for t, v in ((True, True), (True, False), (False, True))
    )
    assert both == pytest.approx(time + level)
    assert (np.linalg.eigvalsh(level) > 0.0).all()


def test_what_cannot_be_located_has_no_finite_bound(make_spec):
    spec = make_spec(np.array([[-2000.0, 0.0], [2000.0, 0.0]]))
    bound = noiseless(spec, [[300.0, 400.0]])
    assert np.isinf(squared_bound_m2(bound.covariance_m2)).all()
    assert rmse_bound_m(bound.covariance_m2) is None
    # the area still holds it: across the hyperbola nothing is gained
    wide_m = np.ptp(area_box_m(spec.area), axis=0) / math.sqrt(12.0)
    assert rmse_bound_m(bound.with_area_m2) < np.hypot(*wide_m)


def test_a_receiver_that_hears_nothing_is_as_if_it_were_not_there(make_spec):
    places_m = np.vstack([SQUARE_M, [[300.0, 900.0]]])
    snr_db = np.array([[10.0, 5.0, 0.0, 20.0, -np.inf]])
    for features in ({"clock_m": 4.0}, {"timing": False, "level": True}):
        five, four = make_spec(places_m, **features), make_spec(SQUARE_M, **features)
        emitter, bandwidth_hz = np.array([[250.0, -600.0]]), np.array([1e5])
        with_it = position_bound(five, emitter, snr_db, bandwidth_hz, duration_s=0.04).covariance_m2
        without = position_bound(four, emitter, snr_db[:, :4], bandwidth_hz, duration_s=0.04).covariance_m2
        assert with_it == pytest.approx(without, rel=1e-6)


def test_nothing_heard_leaves_the_area(make_spec):
    spec = make_spec(level=True)
    bound = position_bound(spec, np.zeros((1, 2)), np.full((1, 4), -np.inf), np.array([1e5]), duration_s=0.04)
    width_m = np.ptp(area_box_m(spec.area), axis=0)
    assert bound.with_area_m2[0] == pytest.approx(np.diag(width_m**2 / 12.0))


def test_unknown_bandwidth_is_an_unknown_bound(make_spec):
    bandwidth_hz = np.array([np.nan, 1e5])
    found = position_bound(make_spec(level=True), np.zeros((2, 2)), np.full((2, 4), 3.0), bandwidth_hz, duration_s=0.04)
    assert np.isfinite(squared_bound_m2(found.covariance_m2)).tolist() == [False, True]


def test_receiver_heights_count(make_spec):
    flat, high = (
        noiseless(make_spec(SQUARE_M, clock_m=7.0, height_m=h), np.zeros((1, 2))).covariance_m2[0]
        for h in (0.0, 2828.4)
    )
    # 45 degrees up: a metre on the ground is 0.71 m of path
    assert high == pytest.approx(2.0 * flat, rel=1e-2, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_db": np.zeros((2, 3))}, r"snr_db: shape \(2, 4\) is expected, found \(2, 3\)"),
        ({"bandwidth_hz": np.zeros(3)}, r"bandwidth_hz: shape \(2,\)"),
        ({"emitter_m": np.zeros((2, 3))}, r"emitter_m: shape \(2, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(make_spec, changes, message):
    fields = {"emitter_m": np.zeros((2, 2)), "snr_db": np.zeros((2, 4)), "bandwidth_hz": np.ones(2)} | changes
    with pytest.raises(ConfigError, match=message):
        position_bound(make_spec(), duration_s=1.0, **fields)
