"""From log-mel channels to received levels, and the likelihood of a place given them, inside the graph.

Level in dB falls with the logarithm of distance; shadowing is log-normal. The emitter's power is unknown: it is
integrated out, and so is the path-loss exponent. A receiver that hears nothing is evidence too: its term is the
probability of staying below the detection threshold.

Source: Patwari et al. 2005, "Locating the nodes" (log-distance model); the censored term is Tobin's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import spox.opset.ai.onnx.v17 as op
from scipy.signal import get_window
from spox import Var

from localize_core.features.mel import mel_filterbank
from localize_core.model.compiled.algebra import at, clip, const, expand_dims, highest, mean, total
from localize_core.model.compiled.spec import LikelihoodSpec

DB = 10.0 / math.log(10.0)
DETECTION = 4.0  # standard deviations of the noise estimate above which a level is a level
NOISE_KNOWN = 0.01  # relative uncertainty of the noise power where the station says it
NOISE_ESTIMATED = 0.05  # and where it is read off the quiet bands
NODES = 5


@dataclass(frozen=True)
class Levels:
    """Received levels: `level_db`, its measurement `variance_db2`, `heard` in [0, 1], `threshold_db`: all (batch, R).
    `missed`: 1 - `heard`. A receiver whose channel is at its floor was left out, and says nothing: both are 0.

    `detection` (batch, 1): the third clearest receiver's level over its noise, standard deviations.
    """

    level_db: Var
    variance_db2: Var
    heard: Var
    missed: Var
    threshold_db: Var
    detection: Var


def levels(log_mel: Var, spec: LikelihoodSpec) -> Levels:
    """Levels out of log-mel channels (batch, R, rows, frames)."""
    model = spec.level
    assert model is not None
    config = model.config
    bank = mel_filterbank(config)
    width = bank.sum(axis=1)
    window = get_window(config.window, config.n_fft, fftbins=True)
    full_scale = config.n_fft * float(np.sum(window**2))

    power = op.exp(log_mel)
    frames = op.cast(op.slice(op.shape(log_mel), *(op.const(np.array([v], np.int64)) for v in (3, 4))), to=np.float32)
    # Noise power per FFT bin: told by the station, or the mean of the quietest quarter of the bands. Taking the
    # lowest of noisy values is biased low by 1.27 of their deviations (mean of a normal's lowest quarter).
    density = mean(power, 3) / const(width[None, None, :])
    count = max(config.rows // 4, 1)
    lowest, _ = op.top_k(density, op.const(np.array([count], np.int64)), axis=2, largest=0, sorted=0)
    looks = frames * (config.hop / config.n_fft) * float(np.median(width))
    estimated = mean(lowest, 2) * (1.27 / op.sqrt(op.max([looks, const(4.0)])) + 1.0)
    told = np.array([math.nan if value is None else value for value in model.noise_dbfs])
    is_told = ~np.isnan(told)
    told_density = 10.0 ** (np.where(is_told, told, -200.0) / 10.0) * full_scale / config.n_fft
    noise = op.where(op.const(is_told[None]), const(told_density[None]), estimated)
    doubt = const(np.where(is_told, NOISE_KNOWN, NOISE_ESTIMATED)[None])

    per_frame = total(power, 2) - expand_dims(noise, 2) * float(width.sum())  # (batch, R, frames)
    signal = mean(per_frame, 2)
    centred = per_frame - mean(per_frame, 2, keep=True)
    overlap = max(config.n_fft / config.hop, 1.0)
    fluctuation = mean(centred * centred, 2) * overlap / op.max([frames - 1.0, const(1.0)])
    noise_power = noise * float(width.sum())
    deviation = op.sqrt(fluctuation + noise_power * noise_power * doubt * doubt) + 1e-12
    # At its floor a channel is not flat where bands differ in width: what sticks out of the lowest is no signal.
    alive = op.cast(op.greater(highest(highest(power, 3), 2), const(2.0 * config.log_offset)), to=np.float32)
    ratio = alive * signal / deviation
    heard = alive * op.sigmoid((ratio - DETECTION) * 4.0)
    level_db = op.log(op.max([signal, deviation * DETECTION]) / full_scale) * DB
    relative = clip(deviation / op.max([signal, deviation]), 0.0, 1.0)
    threshold = op.log(deviation * (DETECTION / full_scale)) * DB
    rank = min(3, len(spec.receivers))
    best, _ = op.top_k(ratio, op.const(np.array([rank], np.int64)), axis=1, largest=1, sorted=1)
    return Levels(
        level_db,
        relative * relative * DB**2,
        heard,
        alive - heard,
        threshold,
        op.slice(best, *_last(rank)),
    )


def _last(rank: int) -> tuple[Var, Var, Var]:
    start, stop, axis = (op.const(np.array([v], np.int64)) for v in (rank - 1, rank, 1))
    return start, stop, axis


def level_log_likelihood(found: Levels, length_m: Var, spec: LikelihoodSpec) -> Var:
    """Log-likelihood of points with path lengths (batch, R, points), up to a constant: (batch, 1, points)."""
    model = spec.level
    assert model is not None
    constant = model.shadowing_db**2 + np.square(np.array(model.gain_sigma_db))
    precision = expand_dims(found.heard / (found.variance_db2 + const(constant)), 1, 2)  # (batch, 1, 1, R)
    known = model.level_dbfs_at_1km is not None
    prior_precision = model.level_sigma_db**-2 if known else 0.0
    prior_level = model.level_dbfs_at_1km or 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(3 if model.exponent_sigma > 0.0 else 1)
    exponents = np.maximum(model.exponent + model.exponent_sigma * nodes, 0.5)[:, None, None]
    # Of every exponent, receiver and point, (batch, exponents, R, points): the loss from 1 km on, and what the
    # receiver says of the level there.
    loss = expand_dims(op.log(op.max([length_m, const(1.0)]) * 1e-3), 1) * const(DB * exponents)
    source = expand_dims(found.level_db, 1, 3) + loss
    information = total(precision, 3, keep=True) + (prior_precision + 1e-6)
    centre = (op.matmul(precision, source) + prior_precision * prior_level) / information
    residual = source - centre
    misfit = op.matmul(precision, residual * residual)
    if prior_precision:
        misfit = misfit + (centre - prior_level) * (centre - prior_level) * prior_precision
    base = misfit * -0.5 + const(np.log(weights / np.sum(weights))[:, None, None])
    # Where nothing was heard: integrate the probability of staying below the threshold over the emitter's power.
    power_nodes, power_weights = np.polynomial.hermite_e.hermegauss(NODES)
    scale = const(np.sqrt(0.5 / constant)[:, None])
    margin = (expand_dims(found.threshold_db, 1, 3) - centre + loss) * scale
    spread = op.sqrt(const(1.0) / information) * scale  # (batch, 1, R, 1)
    below = op.erf(expand_dims(margin, 2) - expand_dims(spread, 2) * const(power_nodes[:, None, None]))
    silent = op.matmul(expand_dims(found.missed, 1, 2, 3), op.log(below + (1.0 + 2e-6)))
    values = expand_dims(base, 2) + silent + const(np.log(power_weights / np.sum(power_weights))[:, None, None])
    values = op.squeeze(values, op.const(np.array([3], np.int64)))  # (batch, exponents, powers, points)
    top = op.reduce_max(values, axes=[1, 2], keepdims=True)
    summed = op.reduce_sum(op.exp(values - top), op.const(np.array([1, 2], np.int64)), keepdims=False)
    return expand_dims(op.log(summed), 1) + at(top, 1, 0)
