"""The Cramér–Rao bound of a scene: the least error that any unbiased estimate of the emitter's place can have.

Arrival times: the emitter's signal is Gaussian noise of flat spectrum, known to nobody, with a phase of its own at each
receiver; receivers add independent white noise. With in-band signal-to-noise ratios s_i and s = Σ s_i, all
receivers together give the delays, over a band of B around the emitter's own carrier and T seconds, the information

    J = 2 T (2π)² B³/12 · (s diag(s_i) − s_i s_j') / (1 + s).

It follows from tr(K⁻¹ ∂K K⁻¹ ∂K), summed over frequencies, for K = I + v v^H with v_i = √s_i exp(−jωτ_i), and is that
of Hahn & Tretter 1973; Weinstein & Weiss 1984 tell when it is reached: not below the SNR where peaks are mistaken. For
two receivers it is Knapp & Carter 1976. The unknown phases cost nothing, as the band is symmetric about its carrier.

What is known of clocks and paths is their covariance: they are nuisance parameters with a prior (hybrid bound, Van
Trees & Bell 2007), and so are the emitter's power and the path-loss exponent of the levels, which follow Patwari et al.
2003. Amplitudes and delays of Gaussian signals have no information in common, so that arrival times and levels add up.

Not in it: that the variance of a path's delay depends on its length, what a receiver's silence tells, and structure of
the waveform that a model might have learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import helmert

from localize_core.errors import ConfigError
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, path_length_m, surface_up_m
from localize_core.model.compiled.spec import Area, LevelModel, LikelihoodSpec

DB = 10.0 / math.log(10.0)
STEP_M = 1.0
"""For derivatives of path lengths."""
FLATTEST = 1e-12
"""Ratio of a bound's axes, squared, from which on rounding is all that is left of the smaller information."""


@dataclass(frozen=True)
class PositionBound:
    """Information of n windows about the emitter's (east, north), (n, 2, 2) in 1/m²; NaN where unknown.

    `area_information` (2, 2): what is known before anything is received, for `with_area_m2`.
    """

    information: np.ndarray
    area_information: np.ndarray

    @property
    def covariance_m2(self) -> np.ndarray:
        """The classical bound, (n, 2, 2): for unbiased estimates. Infinite where one direction is unknown."""
        return _inverse(self.information)

    @property
    def with_area_m2(self) -> np.ndarray:
        """The bound for estimates that know the area, (n, 2, 2): the information of Van Trees' Bayesian bound at each
        place, with the area's box taken for a normal distribution of the same covariance.

        An approximation: exact where the signal says nothing and where it says all. It is the one to compare with
        where the classical bound is wider than the area.
        """
        return _inverse(self.information + self.area_information)


def rmse_bound_m(covariance_m2: np.ndarray) -> float | None:
    """Root of the mean squared error over the windows with a finite bound, (n, 2, 2); None where there is none."""
    squared = squared_bound_m2(covariance_m2)
    finite = np.isfinite(squared)
    return float(np.sqrt(squared[finite].mean())) if finite.any() else None


def squared_bound_m2(covariance_m2: np.ndarray) -> np.ndarray:
    """Least mean squared error of each window, (n, 2, 2) to (n,)."""
    return np.asarray(np.trace(covariance_m2, axis1=1, axis2=2))


def area_box_m(area: Area) -> np.ndarray:
    """South-west and north-east corner, (2, 2) metres, of the box in the area's plane that holds all of it."""
    frame = area.frame
    steps = np.linspace(0.0, 1.0, 33)
    latitude, longitude = np.meshgrid(
        area.south + steps * (area.north - area.south), area.west + steps * (area.east - area.west)
    )
    places = frame.to_enu_m(latitude.ravel(), longitude.ravel(), frame.altitude_m)[:, :2]
    return np.stack([places.min(axis=0), places.max(axis=0)])


def delay_information(snr: np.ndarray, bandwidth_hz: np.ndarray, duration_s: float) -> np.ndarray:
    """Fisher information of the receivers' delays, (n, R, R) in 1/s²; their common delay has none.

    `snr` (n, R): linear, within the bandwidth. `bandwidth_hz` (n,). `duration_s`: what is observed.
    """
    total = snr.sum(axis=1)[:, None, None]
    shape = total * _diagonal(snr) - snr[:, :, None] * snr[:, None, :]
    turning = (2.0 * math.pi) ** 2 * bandwidth_hz**3 / 12.0  # ∫ω² df over the band
    return np.asarray((2.0 * duration_s * turning)[:, None, None] * shape / (1.0 + total))


def position_bound(
    spec: LikelihoodSpec, emitter_m: np.ndarray, snr_db: np.ndarray, bandwidth_hz: np.ndarray, *, duration_s: float
) -> PositionBound:
    """What windows of one scene can tell of the emitter's place.

    `spec`: receivers, and what is known of clocks, paths, shadowing and exponent; it has to be what is so, not what a
    model assumes. `emitter_m` (n, 2): in the area's plane. `snr_db` (n, R): in the whole sample rate, -inf for a
    receiver that hears nothing or is missing. `bandwidth_hz` (n,). `duration_s`: of a window. NaN in gives NaN out.

    Raises ConfigError when shapes do not fit together.
    """
    count, receivers = len(emitter_m), len(spec.receivers)
    for name, value, shape in (
        ("emitter_m", emitter_m, (count, 2)),
        ("snr_db", snr_db, (count, receivers)),
        ("bandwidth_hz", bandwidth_hz, (count,)),
    ):
        if value.shape != shape:
            raise ConfigError(f"{name}: shape {shape} is expected, found {value.shape}")
    snr = 10.0 ** (snr_db / 10.0) * (spec.sample_rate_hz / bandwidth_hz)[:, None]
    length_m = _lengths_m(spec, emitter_m)
    information = np.zeros((count, 2, 2))
    if spec.timing is not None:
        of_delay = delay_information(snr, bandwidth_hz, duration_s) / SPEED_OF_LIGHT_MPS**2
        _, path_m2 = spec.timing.path.moments(length_m, np.sqrt)
        known = _diagonal(path_m2 + np.square(spec.timing.receiver_sigma_m))
        # Only differences of delays mean anything: in a basis of them no rounding makes information of the rest.
        basis = helmert(receivers)
        of_delay, known = basis @ of_delay @ basis.T, basis @ known @ basis.T
        # Information of a sum of the delays and a normal error, for information and covariance that may be singular.
        blurred = np.linalg.solve(np.eye(receivers - 1) + of_delay @ known, of_delay)
        slope = basis @ _slopes(spec, emitter_m)
        information += slope.transpose(0, 2, 1) @ blurred @ slope
    if spec.level is not None:
        information += _level_information(spec, spec.level, emitter_m, snr, bandwidth_hz * duration_s)
    box_m = area_box_m(spec.area)
    return PositionBound(information, np.diag(12.0 / (box_m[1] - box_m[0]) ** 2))


def level_deviation_db(snr: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Standard deviation of a received level over `looks` (time-bandwidth product) with the noise's power known."""
    with np.errstate(divide="ignore"):
        return np.asarray(DB * (1.0 + 1.0 / snr) / np.sqrt(looks))


def _level_information(
    spec: LikelihoodSpec, level: LevelModel, emitter_m: np.ndarray, snr: np.ndarray, looks: np.ndarray
) -> np.ndarray:
    """(n, 2, 2): of the levels, with the emitter's power and the exponent as nuisance."""
    constant = level.shadowing_db**2 + np.square(np.array(level.gain_sigma_db))
    precision = 1.0 / (constant + np.square(level_deviation_db(snr, looks[:, None])))
    length_m = np.maximum(_lengths_m(spec, emitter_m), 1.0)
    to_place = -DB * level.exponent * _slopes(spec, emitter_m, excess=False) / length_m[:, :, None]
    nuisance = np.stack([np.ones_like(length_m), -DB * np.log(length_m / 1000.0)], axis=-1)
    known = np.zeros((2, 2))
    if level.level_dbfs_at_1km is not None:
        known[0, 0] = level.level_sigma_db**-2
    if level.exponent_sigma > 0.0:
        known[1, 1] = level.exponent_sigma**-2
    else:
        nuisance = nuisance[..., :1]
        known = known[:1, :1]
    weighted = precision[:, :, None] * nuisance
    own = to_place.transpose(0, 2, 1) @ (precision[:, :, None] * to_place)
    shared = to_place.transpose(0, 2, 1) @ weighted
    other = nuisance.transpose(0, 2, 1) @ weighted + known
    # A window that nobody hears has no power to estimate, and no information to lose to it.
    other = other + 1e-12 * np.eye(len(known))
    return np.asarray(own - shared @ np.linalg.solve(other, shared.transpose(0, 2, 1)))


def _lengths_m(spec: LikelihoodSpec, emitter_m: np.ndarray) -> np.ndarray:
    """Path lengths from places in the plane, (n, 2), to the receivers: (n, R)."""
    up = surface_up_m(spec.area.frame, emitter_m)
    places = np.concatenate([emitter_m, up[:, None]], axis=1)
    return path_length_m(places, spec.receivers_enu_m, along_surface=spec.along_surface)


def _slopes(spec: LikelihoodSpec, emitter_m: np.ndarray, *, excess: bool = True) -> np.ndarray:
    """Derivative of path lengths by east and north, (n, R, 2); `excess`: with the mean of what the path adds."""
    columns = []
    for axis in range(2):
        step = STEP_M * np.eye(2)[axis]
        ahead, behind = (_lengths_m(spec, emitter_m + sign * step) for sign in (1.0, -1.0))
        if excess and spec.timing is not None:
            ahead, behind = (value + spec.timing.path.moments(value, np.sqrt)[0] for value in (ahead, behind))
        columns.append((ahead - behind) / (2.0 * STEP_M))
    return np.stack(columns, axis=-1)


def _diagonal(values: np.ndarray) -> np.ndarray:
    """(n, R) to (n, R, R)."""
    return values[:, :, None] * np.eye(values.shape[1])


def _inverse(information: np.ndarray) -> np.ndarray:
    """Inverse of (n, 2, 2), infinite on the diagonal where there is none, NaN where NaN."""
    xx, xy, yy = information[:, 0, 0], information[:, 0, 1], information[:, 1, 1]
    determinant = xx * yy - xy * xy
    singular = determinant <= FLATTEST * (xx + yy) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.stack([yy, -xy, -xy, xx], axis=-1).reshape(-1, 2, 2) / determinant[:, None, None]
    inverse[singular] = np.diag([np.inf, np.inf])
    return np.asarray(inverse)
