"""From correlation channels to arrival times with their covariance, inside the graph.

Every pair's lag comes from the peak of its window-averaged correlation, and the pairs are combined into one arrival
time per receiver by weighted least squares. The weights are those of the maximum-likelihood estimator for a
Gaussian emitter: with the rank-one covariance S a a' + N, Sherman-Morrison turns the likelihood into a weighted sum
of pair correlations. The covariance is not taken from a formula that needs spectra and time-bandwidth products, but
from how much the correlations' slopes at the peak scatter between the frames of the window (the sandwich estimator
of an M-estimate): it holds for any waveform, bandwidth and weighting, and knows that pairs share receivers.

Sources: Knapp & Carter 1976 (generalised correlation), Huber 1967 (sandwich covariance).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.algebra import (
    at,
    clip,
    const,
    diagonal,
    double,
    expand_dims,
    highest,
    mean,
    single,
    smoothing_polynomials,
    spd_inverse,
    total,
    transpose_last,
)
from localize_core.model.compiled.spec import LikelihoodSpec

PEAK_SHAPES = ((3, 6), (4, 4), (6, 4), (8, 4), (12, 4), (16, 4), (24, 4), (32, 4))
"""Lags on either side of a peak that its polynomial is fitted to, and its order. The narrowest passes through all."""
ORDER = max(order for _, order in PEAK_SHAPES)
PAIR_THRESHOLD = 6.0  # standard deviations of the noise above which a pair's peak is believed
RECEIVER_THRESHOLD = 7.0
CLOSURE_SIGMAS = 5.0  # beside one lag, how far noise may keep the lags of a triangle from adding up
SEARCH_BIAS = 4.0  # a noise peak found by searching a gate stands about this many deviations high


@dataclass(frozen=True)
class ArrivalTimes:
    """Arrival times as path lengths, up to a common offset.

    `length_m` (batch, R, 1) float32; `covariance_m2` (batch, R, R) float64, clock and noise, without the path's share;
    `detection` (batch, 1): how far the pairs' peaks stand out together, standard deviations; `closure`
    (batch, 1): how far the pairs' lags are from adding up round triangles, squared, over what noise allows; `start`
    (batch,) int64: index of the best cell of the acquisition grid.
    """

    length_m: Var
    covariance_m2: Var
    detection: Var
    closure: Var
    start: Var


def _background(power: Var, average: Var, frames: Var, spec: LikelihoodSpec) -> tuple[Var, Var]:
    """Level and standard deviation of the averaged correlation away from a peak: (batch, P, 1) each.

    Both are read off the quiet lags. A carrier correlates at every lag and says nothing of time: only what stands
    out over the noise on top of it does. Front-end filters that colour the noise are taken in as well.
    """
    config = spec.timing.config  # type: ignore[union-attr]
    variance = mean(power * power, 3) - average * average
    white = 1.0 / config.n_core if config.signal == "iq" else config.n_core**-0.5
    # The lower quartile of variances estimated from few frames lies below their true value.
    deviation = op.sqrt(op.relu(_lower_quartile(variance, config.n_lags))) * 1.1
    return _lower_quartile(average, config.n_lags), op.max([deviation, const(0.3 * white)]) / op.sqrt(frames)


def _lower_quartile(values: Var, n_lags: int) -> Var:
    """Over the lags of (batch, P, lags): (batch, P, 1)."""
    count = max(n_lags // 4, 1)
    quiet, _ = op.top_k(values, const([count], np.int64), axis=2, largest=0, sorted=0)
    return highest(quiet, 2, keep=True)


def acquisition_tables(spec: LikelihoodSpec, lengths_m: np.ndarray) -> tuple[np.ndarray, int]:
    """For each acquisition cell the pairs' fractional lag index (cells, P), and the half width of the gate in lags.

    The gate covers what a cell's own extent and three standard deviations of clock and path can move a peak.
    """
    timing = spec.timing
    assert timing is not None
    config = timing.config
    step_m = config.lag_step / config.sample_rate_hz * SPEED_OF_LIGHT_MPS
    pairs = list(itertools.combinations(range(len(spec.receivers)), 2))
    expected = np.stack([lengths_m[:, i] - lengths_m[:, j] for i, j in pairs], axis=1)
    cells = round(np.sqrt(len(lengths_m)))
    square = expected.reshape(cells, cells, -1)
    extent = max(float(np.abs(np.diff(square, axis=axis)).max()) for axis in (0, 1))
    path_sigma = float(np.sqrt(timing.path.moments(lengths_m, np.sqrt)[1].max()))
    clock_sigma = max(timing.receiver_sigma_m)
    gate_m = extent + 3.0 * np.sqrt(2.0) * np.hypot(path_sigma, clock_sigma)
    half = int(np.ceil(gate_m / step_m)) + 1
    return expected / step_m + config.n_lags // 2, min(half, config.n_lags // 2)


def arrival_times(correlation: Var, spec: LikelihoodSpec, lengths_m: np.ndarray) -> ArrivalTimes:
    """Arrival times out of correlation channels (batch, P, lags, frames).

    `lengths_m`: path lengths from the cells of the acquisition grid to the receivers, (cells, R).
    """
    timing = spec.timing
    assert timing is not None
    config = timing.config
    n_lags, n_receivers = config.n_lags, len(spec.receivers)
    pairs = list(itertools.combinations(range(n_receivers), 2))
    step_m = config.lag_step / config.sample_rate_hz * SPEED_OF_LIGHT_MPS
    frames = op.cast(
        op.slice(op.shape(correlation), *(op.const(np.array([v], np.int64)) for v in (3, 4))), to=np.float32
    )

    power = correlation * correlation if config.signal == "iq" else correlation
    average = mean(power, 3)
    background, deviation = _background(power, average, frames, spec)
    contrast = (average - background) / deviation

    # Acquisition: the cell where the pairs agree best. The logarithm keeps one strong pair from outvoting the others.
    expected_index, gate = acquisition_tables(spec, lengths_m)
    support = op.log(op.relu(contrast - SEARCH_BIAS) + 1.0)
    pooled, _ = op.max_pool(support, kernel_shape=[2 * gate + 1], pads=[gate, gate], strides=[1])
    nearest = const(np.clip(np.rint(expected_index), 0, n_lags - 1).T[None], np.int32)  # (1, P, cells)
    every_window = op.concat([op.shape(pooled, start=0, end=1), const([1, 1], np.int64)], axis=0)
    score = total(op.gather_elements(pooled, op.expand(nearest, every_window), axis=2), 1)
    start = op.arg_max(score, axis=1, keepdims=False)

    # Each pair's peak within the gate round what that cell predicts.
    predicted = op.gather(const(expected_index), start, axis=0)
    distance = op.abs(const(np.arange(n_lags)) - expand_dims(predicted, 2))
    gated = average - op.relu(distance - float(gate + 1)) * 1e6
    peak = op.arg_max(gated, axis=2, keepdims=True)  # (batch, P, 1)

    # A polynomial over the peak's own width gives lag, curvature and slope. A narrow fit to the wide peak of a
    # narrow-band emitter would follow the ripple of wide-band noise on top of it.
    shapes = [shape for shape in PEAK_SHAPES if 2 * shape[0] < n_lags]
    widths = [half for half, _ in shapes]
    longest = max(widths)
    chosen = _width_index(average, background, peak, widths)
    basis = op.gather(const(smoothing_polynomials(shapes)), chosen, axis=0)  # (batch, P, order + 1, samples)
    half_width = expand_dims(op.gather(const(widths, np.int64), chosen, axis=0), 2)
    reach = expand_dims(op.cast(half_width, to=np.float32) * 0.5, 3)
    last = const(n_lags - 1, np.int64)
    for _ in range(2):
        peak = op.min([op.max([peak, half_width]), op.sub(last, half_width)])
        window = op.add(peak, const(np.arange(-longest, longest + 1), np.int64))
        window = op.clip(window, const(0, np.int64), last)  # beyond its half width a fit has no weight
        fitted = op.matmul(basis, expand_dims(op.gather_elements(average, window, axis=2), 3))
        offset = reach * 0.0  # (batch, P, 1, 1)
        for _ in range(5):
            _, slope, bend = op.split(op.matmul(_jet(offset), fitted), outputs_count=3, axis=2)
            offset = offset - slope / op.min([bend, const(-1e-12)])
            offset = op.max([op.min([offset, reach]), op.neg(reach)])
        settled = peak
        peak = op.add(peak, op.cast(op.round(at(offset, 3, 0)), to=np.int64))
    jet = _jet(offset)
    lag_m = at(op.cast(settled, to=np.float32) + at(offset, 3, 0) - float(n_lags // 2), 2, 0) * step_m
    height, _, bend = (at(at(op.matmul(jet, fitted), 3, 0), 2, k) for k in range(3))
    sharpness = op.relu(op.neg(bend)) / step_m**2  # 1/m²

    # Height and slope of every frame at the common peak: the slope's scatter is the noise that moves the peak. A fit
    # over many lags averages noise: the scatter of its own height then tells more than that of single lags.
    around = op.gather_nd(power, expand_dims(window, 3), batch_dims=2)  # (batch, P, samples, frames)
    by_frame = op.matmul(op.matmul(jet, basis), around)  # (batch, P, 3, frames)
    average_there = mean(by_frame, 3)
    scatter = mean(by_frame * by_frame, 3) - average_there * average_there
    frame_slope, slope_variance = at(by_frame, 2, 1) / step_m, at(scatter, 2, 1) / step_m**2
    own_deviation = op.sqrt(op.relu(at(scatter, 2, 0)) / op.max([frames - 3.0, const(1.0)]))
    deviation = at(deviation, 2, 0)
    deviation_at_peak = op.max([op.min([own_deviation, deviation]), deviation * 0.05])
    peak_contrast = (height - at(background, 2, 0)) / deviation_at_peak

    # Weights of the maximum-likelihood combination, from each receiver's share of common power.
    trusted = op.sigmoid((peak_contrast - PAIR_THRESHOLD) * 2.0)
    # |rho|² of independent noise has mean 1/N; a signed coefficient has none, and is squared here.
    common = height - 1.0 / config.n_core if config.signal == "iq" else height * op.relu(height)
    coherence = clip(common, 1e-8, 0.998)
    member = np.zeros((len(pairs), n_receivers))
    for index, (i, j) in enumerate(pairs):
        member[index, [i, j]] = 1.0
    snr = _receiver_snr(op.log(coherence), member)
    snr_first = op.gather(snr, op.const(np.array([i for i, _ in pairs])), axis=1)
    snr_second = op.gather(snr, op.const(np.array([j for _, j in pairs])), axis=1)
    product = (snr_first + 1.0) * (snr_second + 1.0)
    if config.signal != "iq":
        product = op.sqrt(product * snr_first * snr_second)
    weight = product / (total(snr, 1, keep=True) + 1.0) * trusted

    incidence = np.zeros((len(pairs), n_receivers))
    for index, (i, j) in enumerate(pairs):
        incidence[index, i], incidence[index, j] = 1.0, -1.0
    stiffness = double(weight * sharpness) + 1e-30
    scale = mean(stiffness, 1, keep=True)
    stiffness = stiffness / scale + 1e-6
    pull = const(incidence.T[None], np.float64)  # (1, R, P)
    laplacian = op.matmul(pull * expand_dims(stiffness, 1), const(incidence[None], np.float64))
    inverse = spd_inverse(laplacian + const(np.ones((1, n_receivers, n_receivers)), np.float64), n_receivers)
    solve = op.matmul(inverse, pull)  # (batch, R, P)
    length = op.squeeze(op.matmul(solve, expand_dims(stiffness * double(lag_m), 2)), _axis(2))

    jitter = op.matmul(solve, double(expand_dims(weight, 2) * frame_slope) / expand_dims(scale, 2))
    jitter = jitter - mean(jitter, 2, keep=True)
    count = double(frames)
    # Overlapping frames repeat noise. Few frames know their own scatter only as Student's t does; and weighting more
    # receivers than a place needs by that scatter fits it, which counts twice: in the estimate and in its variance.
    repeat = max(config.n_core / config.hop, 1.0)
    effective = count * (1.0 / repeat)
    noise = op.matmul(jitter, transpose_last(jitter)) / (
        count * op.max([effective - (3.0 + 2.0 * max(n_receivers - 3, 0)), const(1.0, np.float64)])
    )

    best = highest(
        expand_dims(peak_contrast, 2) * const(member[None]) - const((1.0 - member[None]) * 1e6), 1
    )  # (batch, R): each receiver's clearest pair
    # Falls to nothing: times the square of all lags, even a small rest would drown a good peak.
    unheard = double(clip((const(RECEIVER_THRESHOLD + 1.0) - best) * 0.5, 0.0, 1.0))
    span_m = n_lags * step_m
    own = const(np.square(np.array(timing.receiver_sigma_m))[None], np.float64) + unheard * span_m**2
    detection = total(clip(peak_contrast - SEARCH_BIAS, -1.0, 100.0), 1, keep=True) * float(len(pairs) ** -0.5)
    # Lags of true peaks add up round every triangle of receivers, whatever clocks and paths do to them.
    found = single(op.squeeze(op.matmul(const(incidence[None], np.float64), expand_dims(length, 2)), _axis(2)))
    open_m2 = (lag_m - found) * (lag_m - found)
    noise_m2 = slope_variance / (op.max([frames, const(1.0)]) * (sharpness * sharpness + 1e-30))
    share = weight * sharpness * clip((peak_contrast - PAIR_THRESHOLD) * 0.5, 0.0, 1.0) + 1e-30
    allowed = total(share * noise_m2, 1, keep=True) * CLOSURE_SIGMAS**2 + total(share, 1, keep=True) * step_m**2
    closure = total(share * open_m2, 1, keep=True) / allowed
    return ArrivalTimes(expand_dims(single(length), 2), noise + diagonal(own, n_receivers), detection, closure, start)


def _axis(number: int) -> Var:
    return op.const(np.array([number], np.int64))


def _jet(x: Var) -> Var:
    """What the coefficients of a polynomial count in its value, slope and curvature at x (..., 1, 1): (..., 3, n)."""
    exponents = np.maximum(np.arange(ORDER + 1) - np.arange(3)[:, None], 0)
    factors = [[math.perm(k, derivative) for k in range(ORDER + 1)] for derivative in range(3)]
    return op.pow(x, const(exponents)) * const(factors)


def _width_index(average: Var, background: Var, peak: Var, widths: list[int]) -> Var:
    """Which of the half widths suits each pair's peak (batch, P, 1): the largest within half height and the lags."""
    n_lags = int(average.unwrap_tensor().shape[2])
    summit = op.gather_elements(average, peak, axis=2)
    low = op.cast(op.less(average - background, (summit - background) * 0.5), to=np.float32)
    # Distance to the nearest lag below half height is the half width; the nearer side counts.
    far = op.abs(const(np.arange(n_lags)) - op.cast(peak, to=np.float32)) + (const(1.0) - low) * float(n_lags)
    room = op.cast(op.min([peak, op.sub(const(n_lags - 1, np.int64), peak)]), to=np.float32)
    half = op.min([op.reduce_min(far, axes=[2], keepdims=True), room])
    suits = op.cast(op.less_or_equal(const([*widths[1:], 2 * n_lags]), half), to=np.int64)
    return total(suits, 2)


def _receiver_snr(log_coherence: Var, member: np.ndarray) -> Var:
    """Signal-to-noise ratio per receiver, (batch, R), from the pairs' log coherence (batch, P) by least squares."""
    n_pairs, n_receivers = member.shape
    if n_receivers == 2:
        share = op.matmul(log_coherence, const(0.5 * member))
    else:
        everything = np.full((n_pairs, n_receivers), 1.0 / (n_receivers - 1))
        share = op.matmul(log_coherence, const((member - everything) / (n_receivers - 2)))
    fraction = op.exp(clip(share, -18.0, float(np.log(0.999))))
    return fraction / (1.0 - fraction)
