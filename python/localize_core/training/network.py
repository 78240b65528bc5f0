"""The network that learns a site, in three stages.

`Summary` reduces a window to what its frames have in common: mean power in every band, mean correlation at every lag.
It has no weights, so training computes it once for each window. `Site` turns summaries into an answer. Spectra and
correlation profiles go through convolutions that all receivers, and all pairs, share; every pair tells its receivers
what it found; a head puts the receivers together. What is missing is masked out. Beside it stands the fix of a
first stage, the compiled model or a map of the site: the head states its own normal distribution of the place and how
much of that fix's precision to believe, and the answer is the product of both, as of independent measurements. The
confidence is a small network of its own. `Ensemble` is several of them, `Stacked` puts the first stage beside them once
more; `Calibrated` scales the ellipse and the confidence as a calibration on other windows found right.

Sources: Lakshminarayanan et al. 2017 (a network trained to state its own variance); Guo et al. 2017 (calibration of the
confidence as a step of its own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import get_window
from torch import Tensor, nn
from torch.nn import functional

from localize_core.features.mel import mel_filterbank
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.contract import Contract

DB = 10.0 / math.log(10.0)
NOISE_KNOWN_FLOOR = 0.02
"""Part of the noise power below which a signal's power says nothing."""
LEVEL_SCALE_DB = 20.0
HEARD_DB = -10.0
"""SNR from which a receiver hears an emitter."""
BELIEVED = 0.75
"""Height of a correlation peak, in the units of the profile, from which its lag is a delay;"""
NOISE_HEIGHT = 0.5
"""of what stands highest in noise, about."""
PEAK = 0.6
"""Part of a correlation peak's height above which lags belong to it."""
LEAST_WEIGHT = 1e-4
"""Of every lag, so that a silent pair has a middle. Optimisers of graphs take 1e-9 for nothing and drop it."""
PRIOR_WIDTH = 7
LOGIT_LIMIT = 9.0
TRUST_LIMIT = 8.0
LOG_SIGMA_LIMIT = 7.0
"""Standard deviations lie between exp(-7) and exp(7) half sizes of the area."""


@dataclass(frozen=True)
class Layout:
    """What a station's windows look like, as far as the network has to know.

    `centre_m` (2,), `half_sizes_m` (2,), `scale_m`: middle of the area, half its sides, and half the longer one.
    `receivers`, `rows`. `has_level`,
    `has_timing`: which channels there are. `noise_power` (receivers,): of all bands, NaN where it is read off the
    quiet ones. `bank_width` (rows,): sum of each band's weights. `log_offset`: the floor of the log-mel channels.
    `n_core`: samples that are correlated. `squared`: whether correlations are magnitudes. `lag_m`: path difference
    from one lag to the next. `receivers_enu_m` (receivers, 3). `has_prior`: whether a first stage gives a fix.
    """

    centre_m: tuple[float, float]
    half_sizes_m: tuple[float, float]
    scale_m: float
    receivers: int
    rows: int
    has_level: bool
    has_timing: bool
    noise_power: tuple[float, ...]
    bank_width: tuple[float, ...]
    log_offset: float
    n_core: int
    squared: bool
    lag_m: float
    receivers_enu_m: tuple[tuple[float, float, float], ...]
    has_prior: bool

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Receivers of each pair, none without correlations."""
        if not self.has_timing:
            return []
        return [(i, j) for i in range(self.receivers) for j in range(i + 1, self.receivers)]

    @classmethod
    def of(cls, contract: Contract, spec: LikelihoodSpec) -> Layout:
        """The layout of a station's windows."""
        frame, area = spec.area.frame, spec.area
        corners = frame.to_enu_m(
            np.array([area.south, area.north, area.south, area.north]),
            np.array([area.west, area.east, area.east, area.west]),
            area.altitude_m,
        )[:, :2]
        low, high = corners.min(axis=0), corners.max(axis=0)
        middle = (low + high) / 2.0
        mel, correlation = contract.mel_config, contract.correlation_config
        width = np.ones(contract.rows)
        noise = np.full(len(contract.receivers), math.nan)
        if mel is not None:
            width = mel_filterbank(mel).sum(axis=1).astype(float)
            if spec.level is not None:
                window = get_window(mel.window, mel.n_fft, fftbins=True)
                told = np.array([math.nan if v is None else v for v in spec.level.noise_dbfs])
                noise = 10.0 ** (told / 10.0) * float(np.sum(window**2)) * width.sum()
        return cls(
            centre_m=(float(middle[0]), float(middle[1])),
            half_sizes_m=(float(high[0] - low[0]) / 2.0, float(high[1] - low[1]) / 2.0),
            scale_m=float(np.max(high - low)) / 2.0,
            receivers=len(contract.receivers),
            rows=contract.rows,
            has_level=mel is not None,
            has_timing=correlation is not None,
            noise_power=tuple(noise.tolist()),
            bank_width=tuple(width.tolist()),
            log_offset=1e-10 if mel is None else mel.log_offset,
            n_core=1 if correlation is None else correlation.n_core,
            squared=correlation is not None and correlation.signal == "iq",
            lag_m=0.0 if correlation is None else SPEED_OF_LIGHT_MPS * correlation.lag_step / contract.sample_rate_hz,
            receivers_enu_m=tuple(tuple(place) for place in spec.receivers_enu_m.tolist()),
            has_prior=len(contract.receivers) >= 3,
        )


class Summary(nn.Module):
    """Windows (batch, channels, rows, time_steps), not normalised, to their summaries. Has no weights.

    Returns `spectrum` (batch, receivers, rows), power density of each band over the receiver's noise, log;
    `level` (batch, receivers, 2), signal over noise in all bands and its spread over the frames, both dB / 20;
    `profile` (batch, pairs, rows), correlation over its noise, compressed; `present` (batch, receivers) in {0, 1}.
    """

    told: Tensor
    is_told: Tensor
    width: Tensor
    members: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        told = torch.tensor(layout.noise_power)
        self.register_buffer("told", torch.nan_to_num(told, nan=0.0), persistent=False)
        self.register_buffer("is_told", (~torch.isnan(told)).float(), persistent=False)
        self.register_buffer("width", torch.tensor(layout.bank_width), persistent=False)
        members = torch.zeros(max(len(layout.pairs), 1), layout.receivers)
        for index, (i, j) in enumerate(layout.pairs):
            members[index, i] = members[index, j] = 1.0
        self.register_buffer("members", members, persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layout = self.layout
        batch, receivers, rows = features.shape[0], layout.receivers, layout.rows
        spectrum = features.new_zeros(batch, receivers, rows)
        level = features.new_zeros(batch, receivers, 2)
        profile = features.new_zeros(batch, len(layout.pairs), rows)
        present = features.new_ones(batch, receivers)
        if layout.has_level:
            power = torch.exp(features[:, :receivers])
            present = (power.amax(dim=(2, 3)) > 2.0 * layout.log_offset).float()
            band = power.mean(dim=3)
            quiet = torch.topk(band / self.width, max(rows // 4, 1), dim=2, largest=False).values.mean(dim=2)
            noise = self.told * self.is_told + quiet * self.width.sum() * (1.0 - self.is_told)
            noise = noise.clamp_min(1e-20)
            total = power.sum(dim=2)
            ratio = total.mean(dim=2) / noise
            signal = (ratio - 1.0).clamp_min(NOISE_KNOWN_FLOOR)
            frame_db = DB * torch.log((total / noise[..., None]).clamp_min(NOISE_KNOWN_FLOOR))
            spread = (frame_db * frame_db).mean(dim=2) - frame_db.mean(dim=2) ** 2
            level = torch.stack(
                [DB * torch.log(signal) / LEVEL_SCALE_DB, spread.clamp_min(0.0).sqrt() / LEVEL_SCALE_DB], dim=2
            )
            level = level * present[..., None] + (present[..., None] - 1.0)
            density = band / self.width * self.width.sum() / noise[..., None]
            spectrum = torch.log(density.clamp_min(1e-3)) * present[..., None] / 4.0
        if layout.has_timing:
            first = receivers if layout.has_level else 0
            correlation = features[:, first : first + len(layout.pairs)]
            power = correlation * correlation if layout.squared else correlation
            frames = features.shape[3]
            average = power.mean(dim=3)
            variance = (power * power).mean(dim=3) - average * average
            quarter = max(rows // 4, 1)
            background = torch.topk(average, quarter, dim=2, largest=False).values[..., -1:]
            scatter = torch.topk(variance, quarter, dim=2, largest=False).values[..., -1:].clamp_min(0.0).sqrt()
            white = 1.0 / layout.n_core if layout.squared else layout.n_core**-0.5
            deviation = (1.1 * scatter).clamp_min(0.3 * white) / torch.sqrt(torch.ones_like(scatter) * frames)
            profile = torch.asinh((average - background) / deviation / 4.0) / 2.0
            if not layout.has_level:
                alive = (power.amax(dim=(2, 3)) > 0.0).float()
                present = (torch.matmul(alive, self.members) > 0.0).float()
        return spectrum, level, profile, present


class Jitter(nn.Module):
    """Levels and profiles as another day would have them, while training; nothing else.

    `level_db`: standard deviation of what is added to each receiver's level; `profile`: to each lag of each pair.
    """

    def __init__(self, level_db: float = 0.0, profile: float = 0.0) -> None:
        super().__init__()
        self.level_db, self.profile = level_db, profile

    def forward(self, level: Tensor, profile: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return level, profile
        jitter = torch.randn_like(level[..., :1]) * (self.level_db / LEVEL_SCALE_DB)
        level = torch.cat([level[..., :1] + jitter * present[..., None], level[..., 1:]], dim=2)
        if profile.shape[1]:
            profile = profile + self.profile * torch.randn_like(profile) * (profile != 0.0)
        return level, profile


class Site(nn.Module):
    """Summaries and the compiled fix to the answer.

    `prior` (batch, 7): see `prior_features`. Returns the learned mean (batch, 2) in half sizes of the area, its
    precision's Cholesky factor as (batch, 3), and the logarithm of the trust in the compiled fix (batch, 1).
    """

    incidence: Tensor
    places: Tensor

    def __init__(
        self, layout: Layout, *, hidden: int = 128, dropout: float = 0.2, jitter: Jitter | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.jitter = jitter or Jitter()
        receivers, rows = layout.receivers, layout.rows
        pairs = layout.pairs
        self.first = [i for i, _ in pairs]
        self.second = [j for _, j in pairs]
        shape, found, token = 4, 6, 8
        self.spectrum = _encoder(rows, shape) if layout.has_level else None
        self.profile = _encoder(rows, found) if pairs else None
        incidence = torch.zeros(receivers, max(len(pairs), 1))
        for index, (i, j) in enumerate(pairs):
            incidence[i, index] = incidence[j, index] = 1.0
        self.register_buffer("incidence", incidence, persistent=False)
        places = torch.tensor(layout.receivers_enu_m) - torch.tensor([*layout.centre_m, 0.0])
        self.register_buffer("places", places / layout.scale_m, persistent=False)
        self.pair = _mlp(3 + found + 4 + 6, 32, token, dropout=0.0) if pairs else None
        own = (2 + shape if layout.has_level else 0) + 1 + 3
        self.receiver = _mlp(own + (token if pairs else 0), 32, token, dropout=0.0)
        width = receivers * (token + (2 if layout.has_level else 0) + 1) + token + 3 * len(pairs)
        self.trunk = nn.Sequential(
            nn.Linear(width + (PRIOR_WIDTH if layout.has_prior else 0), hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
        )
        self.place = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, 5))
        self.trust = nn.Sequential(nn.Linear(hidden, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(
        self, spectrum: Tensor, level: Tensor, profile: Tensor, present: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        level, profile = self.jitter(level, profile, present)
        batch = present.shape[0]
        seen = present[..., None]
        places = self.places.expand(batch, -1, -1)
        own = [seen, places]
        flat = [present]
        if self.spectrum is not None:
            own += [level, self.spectrum(spectrum) * seen]
            flat.append((level * seen).flatten(1))
        pooled = None
        if self.profile is not None and self.pair is not None:
            both = (present[:, self.first] * present[:, self.second])[..., None]
            height, lag = (part[..., None] for part in peaks(profile))
            centroid = lag / (self.layout.rows / 4.0)
            believed = torch.sigmoid((height - BELIEVED) * 8.0)
            scalars = torch.cat([height, believed, centroid * believed], dim=2) * both
            ends = torch.cat(
                [level[:, self.first], level[:, self.second], places[:, self.first], places[:, self.second]], dim=2
            )
            pair = self.pair(torch.cat([scalars, self.profile(profile), ends], dim=2)) * both
            flat.append(scalars.flatten(1))
            # Every receiver is told what its pairs have found, on average over those that there are.
            pooled = torch.matmul(self.incidence, pair) / torch.matmul(self.incidence, both).clamp_min(1.0)
            own.append(pooled)
        tokens = self.receiver(torch.cat(own, dim=2)) * seen
        flat += [tokens.flatten(1), tokens.sum(dim=1) / seen.sum(dim=1).clamp_min(1.0)]
        if self.layout.has_prior:
            flat.append(prior)
        hidden = self.trunk(torch.cat(flat, dim=1))
        place = self.place(hidden)
        log_diagonal = LOG_SIGMA_LIMIT * torch.tanh(place[:, 2:4] / LOG_SIGMA_LIMIT)
        factor = torch.cat([log_diagonal, place[:, 4:5]], dim=1)
        trust = TRUST_LIMIT * torch.tanh(self.trust(hidden) / TRUST_LIMIT)
        return place[:, :2], factor, trust


def peaks(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Height of the correlation profiles (batch, pairs, rows) and the lag of their peak's middle, in rows from zero."""
    height = profile.amax(dim=2, keepdim=True)
    lag = torch.arange(profile.shape[2], dtype=profile.dtype) - profile.shape[2] // 2
    weight = functional.relu(profile - PEAK * height) + LEAST_WEIGHT
    return height[..., 0], (weight * lag.to(profile.device)).sum(dim=2) / weight.sum(dim=2)


def axes(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Semi-axes of the 1-sigma ellipses of covariances (batch, 3) and the direction of the longer one, degrees
    from east towards north: (batch, 1) each."""
    xx, xy, yy = (covariance[:, k : k + 1] for k in range(3))
    middle, difference = (xx + yy) * 0.5, (xx - yy) * 0.5
    radius = torch.sqrt(difference * difference + xy * xy)
    major = torch.sqrt(middle + radius)
    minor = torch.sqrt(torch.maximum(middle - radius, middle * 1e-9))
    # atan2(xy, difference) / 2, by half angles from whichever axis is the nearer one.
    from_east = torch.atan(xy / torch.maximum(radius + difference, middle * 1e-9))
    from_north = torch.atan(xy / torch.maximum(radius - difference, middle * 1e-9))
    theta = torch.where(difference >= 0.0, from_east, math.pi / 2.0 - from_north) * (180.0 / math.pi)
    return major, minor, theta


def _encoder(rows: int, width: int) -> nn.Module:
    """Convolutions along the rows of each of (batch, n, rows), the same for all n: (batch, n, width)."""
    return _Shared(
        nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=4, padding=4),
            nn.SiLU(),
            nn.Conv1d(8, 12, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(12 * (((rows + 3) // 4 + 1) // 2), width),
            nn.Tanh(),
        ),
        width,
    )


class _Shared(nn.Module):
    """Applies a module to every channel of (batch, n, rows) alike."""

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__()
        self.module = module
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        n, rows = x.shape[1], x.shape[2]
        return self.module(x.reshape(-1, 1, rows)).reshape(-1, n, self.width)


def _mlp(inputs: int, hidden: int, outputs: int, *, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def prior_features(layout: Layout, fix: Tensor) -> Tensor:
    """A compiled fix (batch, 6), position, sigmas, theta in degrees, confidence, as inputs of a network: (batch, 7)."""
    centre = fix.new_tensor(layout.centre_m)
    place = ((fix[:, :2] - centre) / layout.scale_m).clamp(-2.0, 2.0)
    sigma = torch.log((fix[:, 2:4] / layout.scale_m).clamp(1e-6, 1e3)) / 4.0
    double = torch.deg2rad(fix[:, 4:5]) * 2.0
    certain = fix[:, 5:6].clamp(math.exp(-LOGIT_LIMIT), 1.0 - math.exp(-LOGIT_LIMIT))
    logit = (torch.log(certain) - torch.log(1.0 - certain)) / LOGIT_LIMIT
    return torch.cat([place, sigma, torch.cos(double), torch.sin(double), logit], dim=1)


def prior_precision(layout: Layout, fix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elements xx, xy, yy of a compiled fix's precision, in half sizes of the area: (batch, 1) each."""
    along, across = ((layout.scale_m / fix[:, k : k + 1].clamp_min(1e-6 * layout.scale_m)) ** 2 for k in (2, 3))
    return _turned(along, across, fix[:, 4:5])


def _turned(along: Tensor, across: Tensor, theta_deg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elements xx, xy, yy of a matrix with these eigenvalues, the first one's direction `theta_deg` from east."""
    theta = torch.deg2rad(theta_deg)
    cos, sin = torch.cos(theta), torch.sin(theta)
    return along * cos * cos + across * sin * sin, (along - across) * cos * sin, along * sin * sin + across * cos * cos


class Answer(nn.Module):
    """Summaries and compiled fix to position (batch, 2) and covariance xx, xy, yy (batch, 3), in half sizes of the
    area round its middle, and the logit of the confidence (batch, 1)."""

    def __init__(
        self, layout: Layout, *, hidden: int = 128, dropout: float = 0.2, jitter: Jitter | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.site = Site(layout, hidden=hidden, dropout=dropout, jitter=jitter)
        self.valid = _mlp(3 + 3 * (layout.has_level + bool(layout.pairs)), 16, 1, dropout=0.0)

    def forward(
        self, spectrum: Tensor, level: Tensor, profile: Tensor, present: Tensor, fix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        layout = self.layout
        prior = prior_features(layout, fix)
        mean, factor, trust = self.site(spectrum, level, profile, present, prior)
        # The learned precision is U'U with U = [[a, c], [0, b]]: positive definite whatever the network says.
        a, b = torch.exp(factor[:, 0:1]), torch.exp(factor[:, 1:2])
        c = factor[:, 2:3] * a
        xx, xy, yy = a * a, a * c, c * c + b * b
        start = torch.zeros_like(mean)
        own_xx, own_xy, own_yy = xx, xy, yy
        if layout.has_prior:
            share = torch.exp(trust)
            prior_xx, prior_xy, prior_yy = (share * value for value in prior_precision(layout, fix))
            start = (fix[:, :2] - fix.new_tensor(layout.centre_m)) / layout.scale_m
            xx, xy, yy = xx + prior_xx, xy + prior_xy, yy + prior_yy
        # As a step away from the compiled fix: its precision may be so large that sums of both lose the other's digits.
        x, y = (mean - start)[:, 0:1], (mean - start)[:, 1:2]
        pull_x, pull_y = own_xx * x + own_xy * y, own_xy * x + own_yy * y
        determinant = (xx * yy - xy * xy).clamp_min(1e-12)
        position = start + torch.cat([yy * pull_x - xy * pull_y, xx * pull_y - xy * pull_x], dim=1) / determinant
        covariance = torch.cat([yy, -xy, xx], dim=1) / determinant
        return position, covariance, self.valid(self.evidence(level, profile, present, fix))

    def evidence(self, level: Tensor, profile: Tensor, present: Tensor, fix: Tensor) -> Tensor:
        """What the confidence rests on, (batch, n): how large the first stage's ellipse is and how sure of itself, and
        the strongest and the mean level and correlation peak, and how many stand out. Not the place, for it is learned
        from few; nothing of the network's trunk, whose jitter would hide weak emitters."""
        prior = prior_features(self.layout, fix)
        parts = [prior[:, 2:4], prior[:, 6:7]]
        if self.layout.has_level:
            own = level[..., 0] * present + present - 1.0
            heard = torch.sigmoid((own * LEVEL_SCALE_DB - HEARD_DB) * 2.0)
            parts += [own.amax(dim=1, keepdim=True), own.mean(dim=1, keepdim=True), heard.mean(dim=1, keepdim=True)]
        if self.layout.pairs:
            height = profile.amax(dim=2) * present[:, self.site.first] * present[:, self.site.second]
            clear = torch.sigmoid((height - BELIEVED) * 8.0)
            parts += [height.amax(dim=1, keepdim=True), height.mean(dim=1, keepdim=True), clear.mean(1, keepdim=True)]
        return torch.cat(parts, dim=1)

    def silence(self, evidence: Tensor) -> Tensor:
        """The same with nothing to hear: a first stage that is sure of nothing, levels of noise alone, no peak."""
        row = [-1.0]
        if self.layout.has_level:
            floor = DB * math.log(NOISE_KNOWN_FLOOR) / LEVEL_SCALE_DB
            row += [floor, floor, 0.0]
        if self.layout.pairs:
            row += [NOISE_HEIGHT, NOISE_HEIGHT, 0.0]
        return torch.cat([evidence[:, :2], evidence.new_tensor([row]).expand(len(evidence), -1)], dim=1)


class Ensemble(nn.Module):
    """Several `Answer`s as one: mean and covariance of the mixture of their normal distributions, and their mean logit.

    Source: Lakshminarayanan et al. 2017.
    """

    def __init__(self, members: list[Answer]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(
        self, spectrum: Tensor, level: Tensor, profile: Tensor, present: Tensor, fix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = [member(spectrum, level, profile, present, fix) for member in self.members]
        positions, covariances, logits = (torch.stack(part) for part in zip(*found, strict=True))
        position = positions.mean(dim=0)
        e, n = (positions - position).unbind(dim=2)
        spread = torch.stack([e * e, e * n, n * n], dim=2)
        return position, (covariances + spread).mean(dim=0), logits.mean(dim=0)


class Stacked(nn.Module):
    """A network and the first stage itself, as a mixture in which the network has the weight `share`.

    What a network learned of a few places it believes too readily; how far it deserves it shows on others.
    Source: Breiman 1996 (stacked regressions).
    """

    def __init__(self, layout: Layout, answer: nn.Module, share: float) -> None:
        super().__init__()
        self.layout = layout
        self.answer = answer
        self.share = share

    def forward(
        self, spectrum: Tensor, level: Tensor, profile: Tensor, present: Tensor, fix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        position, covariance, logit = self.answer(spectrum, level, profile, present, fix)
        return *mixture(self.layout, position, covariance, fix, self.share), logit


def mixture(layout: Layout, position: Tensor, covariance: Tensor, fix: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a network's answer, of weight `share`, and the first stage's fix, of the rest."""
    start = (fix[:, :2] - fix.new_tensor(layout.centre_m)) / layout.scale_m
    step = position - start
    e, n = step[:, 0], step[:, 1]
    along, across = (torch.square(fix[:, k] / layout.scale_m) for k in (2, 3))
    own = torch.stack(_turned(along, across, fix[:, 4]), dim=1)
    apart = torch.stack([e * e, e * n, n * n], dim=1)
    return start + share * step, share * covariance + (1.0 - share) * own + share * (1.0 - share) * apart


class Calibrated(nn.Module):
    """Windows and first stage's fix to the tensors of the contract: position, uncertainty, confidence.

    `radio_map`: makes the fix of the summaries itself, whatever comes from elsewhere.

    Variances are multiplied by exp(ellipse[0] + ellipse[1] · (log det covariance − ellipse[2])), logits become
    logit · confidence[0] + confidence[1].
    """

    ellipse: Tensor
    confidence: Tensor

    def __init__(self, layout: Layout, answer: nn.Module, radio_map: nn.Module | None = None) -> None:
        super().__init__()
        self.layout = layout
        self.summary = Summary(layout)
        self.answer = answer
        self.radio_map = radio_map
        self.register_buffer("ellipse", torch.zeros(3))
        self.register_buffer("confidence", torch.tensor([1.0, 0.0]))

    def forward(self, features: Tensor, fix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spectrum, level, profile, present = self.summary(features)
        if self.radio_map is not None:
            # The fix given stays an input of the graph, which one without a use would not.
            fix = fix * 0.0 + self.radio_map(level, profile, present)
        position, covariance, logit = self.answer(spectrum, level, profile, present, fix)
        major, minor, theta = axes(self.scaled(covariance) * self.layout.scale_m**2)
        place = position * self.layout.scale_m + position.new_tensor(self.layout.centre_m)
        certain = torch.sigmoid(logit * self.confidence[0] + self.confidence[1])
        if self.radio_map is not None:
            certain = certain * (fix[:, 5:6] > 0.0).float()  # nobody hears anything: no emitter
        return place, torch.cat([major, minor, theta], dim=1), certain

    def scaled(self, covariance: Tensor) -> Tensor:
        """Covariances (batch, 3) as the calibration has them."""
        volume = torch.log((covariance[:, 0:1] * covariance[:, 2:3] - covariance[:, 1:2] ** 2).clamp_min(1e-20))
        return covariance * torch.exp(self.ellipse[0] + self.ellipse[1] * (volume - self.ellipse[2]))


def gaussian_nll(position: Tensor, covariance: Tensor, truth: Tensor) -> Tensor:
    """Negative log-likelihood of places under normal distributions, without its constant: (batch,)."""
    squared, volume = squared_distance(position, covariance, truth)
    return 0.5 * (squared + volume)


def squared_distance(position: Tensor, covariance: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Squared Mahalanobis distances of places, and the logarithms of the covariances' determinants: (batch,) each."""
    xx, xy, yy = covariance.unbind(dim=1)
    determinant = (xx * yy - xy * xy).clamp_min(1e-20)
    e, n = (truth - position).unbind(dim=1)
    return (yy * e * e - 2.0 * xy * e * n + xx * n * n) / determinant, torch.log(determinant)
