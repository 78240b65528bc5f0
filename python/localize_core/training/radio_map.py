"""What a site does to levels and delays, learned as a map: Gaussian processes over what geometry leaves unexplained.

Every receiver's level over its path-loss line, and every pair's delay over that of the straight paths, vary from place
to place: walls shadow, reflections arrive later. Neighbouring places see much the same. A Gaussian process with an
exponential kernel (Gudmundson 1991 found it for shadowing) says what to expect at every place of a grid, and how
surely: near training places what was met there, far from them geometry alone. A window is then compared with all
places at once, with Student's t for what no map foresees; the posterior's mean and covariance are a fix, made in the
graph. The same comparison with places round the area, met by such paths as the area's or by straight ones, tells
emitters that are not in it.

Sources: Gudmundson 1991 (correlation of shadowing); Rasmussen & Williams 2006, chapters 2 and 5 (Gaussian processes and
their marginal likelihood); Ferris, Hähnel & Fox 2006 (location from signal strength by Gaussian processes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from localize_core.training.network import BELIEVED, HEARD_DB, LEVEL_SCALE_DB, Layout, axes, peaks
from localize_core.training.summaries import Summaries

SIDE = 48
"""Places along the longer side of the grid."""
BORDER = 0.05
"""By which the grid reaches beyond the area, in half sizes."""
BEYOND, COARSER = 2.0, 2
"""Half sizes of the area that its surroundings reach to, and how much farther apart their places lie."""
FREEDOM = 4.0
"""Degrees of freedom of Student's t."""
LEAST_ODDS = -12.0
"""Logarithm of the odds that an emitter is in the area: 0 is left to windows in which nothing is heard, and runtimes
round what is smaller differently."""
LEAST_DISTANCE_M = 20.0
FEWEST = 30
"""Places in which a receiver or pair must have been met for a map of its own; fewer leave it geometry."""
MOST = 2000
"""Places that a map is made from, drawn at random beyond; the cost grows with their cube."""
FOR_SCALES = 200
"""Places of each map from which its scales are found."""
SHARPNESS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""Powers of the likelihood that are tried,"""
TRIED = 1500
"""on so many windows."""
OUTLIER = 3.0
"""Residuals count no more than this many robust standard deviations."""


@dataclass(frozen=True)
class _Met:
    """What training met at `places_m` (n, 2): residuals of f levels or delays over geometry, and where known."""

    places_m: np.ndarray
    residual: np.ndarray
    known: np.ndarray


class RadioMap(nn.Module):
    """Summaries to a fix (batch, 6) as a compiled model gives it: east and north in metres, axes of the ellipse in
    metres and its direction in degrees, and how well the window fits there, 1 perfectly, 0 not at all or no better
    than to the surroundings.

    `place_m` (g, 2): of the grid, of which the first `inside` are the area's and the others its surroundings'. `mean`,
    `variance` (f, g): of levels in dB over noise, then of lags in rows. `straight`: mean (f, g - inside) and variance
    (f, 1) in the surroundings of what comes by straight paths. `sharpness`: power of the likelihood.
    """

    place: Tensor
    mean: Tensor
    variance: Tensor
    straight_mean: Tensor
    straight_variance: Tensor

    def __init__(
        self,
        layout: Layout,
        place_m: np.ndarray,
        inside: int,
        mean: np.ndarray,
        variance: np.ndarray,
        straight: tuple[np.ndarray, np.ndarray],
    ) -> None:
        super().__init__()
        self.layout = layout
        self.inside = inside
        self.sharpness = 1.0
        own_m = place_m[:inside]
        cell_m = math.sqrt(float(np.ptp(own_m[:, 0]) * np.ptp(own_m[:, 1])) / inside)
        self.cell_variance = (cell_m / layout.scale_m) ** 2 / 12.0
        # Of the surroundings' two ways to be heard each is as likely; their cells stand for several places.
        self.log_prior = math.log(COARSER**2 / 2.0)
        scaled = (own_m - np.array(layout.centre_m)) / layout.scale_m
        for name, values in (
            ("place", scaled),
            ("mean", mean),
            ("variance", variance),
            ("straight_mean", straight[0]),
            ("straight_variance", straight[1]),
        ):
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, level: Tensor, profile: Tensor, present: Tensor) -> Tensor:
        value, known = observed(self.layout, level, profile, present)
        surprise, likelihood = self._against(value, known, self.mean, self.variance)
        _, straight = self._against(value, known, self.straight_mean, self.straight_variance)
        own = likelihood[:, : self.inside]
        elsewhere = torch.cat([likelihood[:, self.inside :], straight], dim=1) + self.log_prior
        odds = torch.logsumexp(own, dim=1) - torch.logsumexp(elsewhere, dim=1)
        here = torch.sigmoid(odds.clamp_min(LEAST_ODDS))[:, None]
        share = torch.softmax(own, dim=1)
        middle = torch.matmul(share, self.place)
        offset = self.place - middle[:, None]
        e, n = offset[..., 0], offset[..., 1]
        covariance = torch.stack([(share * e * e).sum(1), (share * e * n).sum(1), (share * n * n).sum(1)], dim=1)
        covariance = covariance + covariance.new_tensor([self.cell_variance, 0.0, self.cell_variance])
        count = known.sum(dim=1, keepdim=True)
        expected = (surprise[:, : self.inside] * share).sum(dim=1, keepdim=True)
        fit = torch.exp(-expected / count.clamp_min(1.0)) * torch.tanh(count) * here
        place_m = middle * self.layout.scale_m + middle.new_tensor(self.layout.centre_m)
        major, minor, theta = axes(covariance)
        return torch.cat([place_m, major * self.layout.scale_m, minor * self.layout.scale_m, theta, fit], dim=1)

    def _against(self, value: Tensor, known: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """What is observed against what is expected at n places: the sum of how surprising it is, and the tempered
        log-likelihood, (batch, n) each."""
        off = (value[..., None] - mean) ** 2 / (FREEDOM * variance)
        surprise = torch.matmul(known[:, None], 0.5 * (FREEDOM + 1.0) * torch.log(1.0 + off))[:, 0]
        return surprise, -self.sharpness * (surprise + torch.matmul(known, 0.5 * torch.log(variance).expand_as(mean)))


def observed(layout: Layout, level: Tensor, profile: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared with a map: levels in dB over noise and lags in rows (batch, f), and which are known, 0 or 1."""
    values, known = [], []
    if layout.has_level:
        level_db = level[..., 0] * LEVEL_SCALE_DB
        values.append(level_db)
        known.append(present * (level_db > HEARD_DB).float())
    if layout.pairs:
        height, lag = peaks(profile)
        first, second = (present[:, list(each)] for each in zip(*layout.pairs, strict=True))
        values.append(lag)
        known.append(first * second * (height > BELIEVED).float())
    return torch.cat(values, dim=1), torch.cat(known, dim=1)


def fit_radio_map(layout: Layout, summaries: Summaries, *, seed: int) -> RadioMap:
    """The map of a site from windows with their places. Same data and seed, same map."""
    rng = np.random.default_rng([seed, len(summaries)])
    own_m, around_m = _grid(layout), _surroundings(layout)
    place_m = np.concatenate([own_m, around_m])
    mean, variance, straight_mean, straight_variance = [], [], [], []
    for kind, base in (("level", _level_base), ("lag", _lag_base)):
        if not (layout.has_level if kind == "level" else layout.pairs):
            continue
        met, of_grid, within = base(layout, summaries, place_m)
        scales = _scales(met, rng)
        residual, spread = _maps(met, place_m, scales, rng)
        mean.append(of_grid + residual)
        variance.append(spread + within)
        straight_mean.append(of_grid[:, len(own_m) :])
        # Levels scatter on straight paths, too; lags are exact but for the grid.
        own = scales[0] + scales[2] if kind == "level" else (COARSER * _spacing_m(layout) / layout.lag_m) ** 2 / 6.0
        straight_variance.append(within + own)
    straight = np.concatenate(straight_mean), np.concatenate(straight_variance)
    return RadioMap(layout, place_m, len(own_m), np.concatenate(mean), np.concatenate(variance), straight)


def map_fixes(radio_map: RadioMap, summaries: Summaries, batch: int = 64) -> Summaries:
    """`summaries` with the fixes of a map."""
    fixes = []
    with torch.no_grad():
        for start in range(0, len(summaries), batch):
            _, level, profile, present, _ = summaries.select(
                np.arange(start, min(start + batch, len(summaries)))
            ).tensors()
            fixes.append(radio_map(level, profile, present).numpy())
    return replace(summaries, fix=np.concatenate(fixes))


def cross_fitted(layout: Layout, summaries: Summaries, fold: np.ndarray, *, seed: int) -> tuple[Summaries, float]:
    """`summaries` with the fix of each from a map that has seen nothing of its fold: what maps are like on new places.

    A map knows the places that it was made from; a network trained on such fixes would learn to trust them blindly.
    Returns the sharpness, too, with which fixes of new places lie nearest to the truth: the maps of neighbouring
    receivers and pairs are not independent, and what is left over is not distributed as Student says.
    """
    rng = np.random.default_rng([seed, len(summaries)])
    maps = [fit_radio_map(layout, summaries.select(fold != number), seed=seed) for number in range(int(fold.max()) + 1)]
    parts = [np.flatnonzero(fold == number) for number in range(len(maps))]
    tried = [rng.permutation(part[summaries.inside[part]])[: TRIED // len(maps)] for part in parts]
    errors_m = {}
    for sharpness in SHARPNESS:
        found = []
        for radio_map, part in zip(maps, tried, strict=True):
            radio_map.sharpness = sharpness
            known = map_fixes(radio_map, summaries.select(part))
            found.append(np.linalg.norm(known.fix[:, :2] - known.truth_m, axis=1))
        errors_m[sharpness] = float(np.mean(np.concatenate(found)))
    best = min(errors_m, key=errors_m.__getitem__)
    fix = np.zeros_like(summaries.fix)
    for radio_map, part in zip(maps, parts, strict=True):
        radio_map.sharpness = best
        fix[part] = map_fixes(radio_map, summaries.select(part)).fix
    return replace(summaries, fix=fix), best


def _spacing_m(layout: Layout) -> float:
    return 2.0 * (1.0 + BORDER) * max(layout.half_sizes_m) / (SIDE - 1)


def _grid(layout: Layout, reach: float = 1.0 + BORDER, coarser: int = 1) -> np.ndarray:
    """Places (g, 2) over `reach` half sizes of the area, about equally far apart in both directions."""
    spacing = _spacing_m(layout) * coarser
    axis = [
        centre + np.linspace(-reach * half, reach * half, max(round(2.0 * reach * half / spacing) + 1, 2))
        for centre, half in zip(layout.centre_m, layout.half_sizes_m, strict=True)
    ]
    return np.stack(np.meshgrid(*axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _surroundings(layout: Layout) -> np.ndarray:
    """Places (g, 2) round the grid of the area."""
    place_m = _grid(layout, BEYOND, COARSER)
    off = np.abs(place_m - np.array(layout.centre_m)) / np.array(layout.half_sizes_m)
    return np.asarray(place_m[(off > 1.0 + BORDER).any(axis=1)])


def _distance_m(layout: Layout, place_m: np.ndarray) -> np.ndarray:
    """From places (n, 2) at the emitters' height to each receiver, (n, r)."""
    receivers = np.array(layout.receivers_enu_m)
    flat = cdist(place_m, receivers[:, :2])
    return np.hypot(flat, np.maximum(np.abs(receivers[:, 2]), LEAST_DISTANCE_M))


def _level_base(layout: Layout, summaries: Summaries, grid_m: np.ndarray) -> tuple[_Met, np.ndarray, np.ndarray]:
    """Levels over a path-loss line, whose slope is common and whose height is each receiver's own."""
    value, known, places_m, within = _by_source(layout, summaries, slice(0, layout.receivers))
    log_distance = np.log10(_distance_m(layout, places_m))
    height, slope = np.zeros(layout.receivers), 0.0
    for _ in range(20):  # by turns: each is a plain mean or regression
        for r in range(layout.receivers):
            met = known[:, r]
            height[r] = np.mean(value[met, r] - slope * log_distance[met, r]) if met.any() else np.nan
        height = np.where(np.isnan(height), np.nanmean(height) if known.any() else 0.0, height)
        centred = log_distance - log_distance[known].mean() if known.any() else log_distance
        slope = float(np.sum(((value - height) * centred)[known]) / max(np.sum((centred * centred)[known]), 1e-9))
        slope = float(np.clip(slope, -60.0, 0.0))
    line = height + slope * log_distance
    of_grid = (height + slope * np.log10(_distance_m(layout, grid_m))).T
    return _Met(places_m, value - line, known), of_grid, within


def _lag_base(layout: Layout, summaries: Summaries, grid_m: np.ndarray) -> tuple[_Met, np.ndarray, np.ndarray]:
    """Lags over those of straight paths, in rows."""
    first = layout.receivers if layout.has_level else 0
    value, known, places_m, within = _by_source(layout, summaries, slice(first, None))

    def straight(place_m: np.ndarray) -> np.ndarray:
        distance_m = _distance_m(layout, place_m)
        one, other = (distance_m[:, list(each)] for each in zip(*layout.pairs, strict=True))
        return np.asarray((one - other) / layout.lag_m)

    return _Met(places_m, value - straight(places_m), known), straight(grid_m).T, within


def _by_source(
    layout: Layout, summaries: Summaries, columns: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of what windows of one place and source hold (n, f), known (n, f), places (n, 2), and the variance of a
    window round them (f, 1)."""
    inside = summaries.select(summaries.inside)
    _, level, profile, present, _ = inside.tensors()
    both = (part.numpy().astype(float) for part in observed(layout, level, profile, present))
    value, weight = (part[:, columns] for part in both)
    key = np.concatenate([inside.source[:, None], inside.truth_m], axis=1)
    unique, number = np.unique(key, axis=0, return_inverse=True)
    number = np.asarray(number).reshape(-1)
    count, total = (np.zeros((len(unique), value.shape[1])) for _ in range(2))
    np.add.at(count, number, weight)
    np.add.at(total, number, weight * value)
    mean = total / np.maximum(count, 1.0)
    squared = (weight * (value - mean[number]) ** 2).sum(axis=0)
    free = (count - 1.0).clip(0.0).sum(axis=0)
    return mean, count > 0.0, unique[:, 1:], (squared / np.maximum(free, 1.0))[:, None]


def _winsorised(met: _Met) -> np.ndarray:
    """Residuals, those of all receivers or pairs on one scale, cut where they are outliers."""
    known = met.residual[met.known]
    robust = 1.4826 * float(np.median(np.abs(known))) if len(known) else 1.0
    limit = OUTLIER * max(robust, 1e-6)
    return np.clip(met.residual, -limit, limit)


def _scales(met: _Met, rng: np.random.Generator) -> tuple[float, float, float]:
    """Variance and correlation length of the site's part and variance of the rest, by marginal likelihood."""
    residual = _winsorised(met)
    sets = []
    for f in range(residual.shape[1]):
        where = np.flatnonzero(met.known[:, f])
        if len(where) >= FEWEST:
            where = rng.choice(where, min(FOR_SCALES, len(where)), replace=False)
            sets.append((cdist(met.places_m[where], met.places_m[where]), residual[where, f]))
    extent_m = float(np.ptp(met.places_m, axis=0).max())
    total = float(np.var(residual[met.known])) if met.known.any() else 1.0
    start = np.log([0.8 * max(total, 1e-6), max(extent_m / 10.0, 1.0), 0.2 * max(total, 1e-6)])
    if not sets:
        variance, length_m, rest = np.exp(start)
        return float(variance), float(length_m), float(rest)

    def surprise(logarithms: np.ndarray) -> float:
        variance, length_m, rest = np.exp(np.clip(logarithms, start - 6.0, start + 6.0))
        found = 0.0
        for distance_m, values in sets:
            factor = cho_factor(variance * np.exp(-distance_m / length_m) + rest * np.eye(len(values)), lower=True)
            found += 0.5 * float(values @ cho_solve(factor, values)) + float(np.log(np.diag(factor[0])).sum())
        return found

    options = {"maxiter": 80, "xatol": 0.05, "fatol": 0.5}
    best = minimize(surprise, start, method="Nelder-Mead", options=options).x
    variance, length_m, rest = np.exp(np.clip(best, start - 6.0, start + 6.0))
    return float(variance), float(length_m), float(rest)


def _maps(
    met: _Met, grid_m: np.ndarray, scales: tuple[float, float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of what will be observed at the places of a grid, (f, g) each."""
    variance, length_m, rest = scales
    residual = _winsorised(met)
    mean = np.zeros((residual.shape[1], len(grid_m)))
    spread = np.full_like(mean, variance + rest)
    order = rng.permutation(len(residual))
    solved: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # receivers that were on together share their kriging
    for f in range(residual.shape[1]):
        where = np.sort(order[met.known[order, f]][:MOST])
        if len(where) < FEWEST:
            continue
        if where.tobytes() not in solved:
            places_m = met.places_m[where]
            inner = variance * np.exp(-cdist(places_m, places_m) / length_m) + rest * np.eye(len(where))
            across = variance * np.exp(-cdist(places_m, grid_m) / length_m)
            weights = cho_solve(cho_factor(inner, lower=True), across)
            solved[where.tobytes()] = weights, np.einsum("ng,ng->g", weights, across)
        weights, explained = solved[where.tobytes()]
        mean[f] = weights.T @ residual[where, f]
        spread[f] -= explained
    return mean, spread
