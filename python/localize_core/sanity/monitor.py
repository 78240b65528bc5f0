"""A station's sanity while it runs: pair residuals, receivers' biases, faults and geometry, window by window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from localize_core.engine.masking import ChannelMask
from localize_core.engine.windows import Window
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.contract import Contract
from localize_core.sanity.arrivals import ArrivalReader, Arrivals
from localize_core.sanity.faults import Block, Diagnosis, Fault, FaultFinder, Kind
from localize_core.sanity.geometry import POOR_HDOP, ArrivalGeometry
from localize_core.sanity.raim import solve
from localize_core.types.fix import Fix, Position

LEAST_APART_S = 0.5
"""Between windows that are looked at: more tell little more, and cost."""
BLOCK_WINDOWS = 8
BLOCK_PLACE_PART = 0.02
"""Of the distance to the nearest receiver: windows of a block lie closer together, but for the noise of their fixes."""
OUTLIER = 6.0
"""Median absolute deviations from a block's median beyond which a window does not count."""
REMEMBERED = 64
"""Windows that mean and deviation of the pairs' residuals are taken over, and HDOP."""
APPEAR, CLEAR = 2, 4
"""Looks in a row that find a fault before it is reported, or do not before it is over."""
POOR_SHARE, FINE_SHARE = 0.5, 0.25
"""Of the latest windows with poor geometry, from which on it is reported, and below which it is over."""
LEAST_WINDOWS = 8
LOOK_S = 2.0
"""At least, from one look for faults to the next."""
TOGETHER_S = 1.0
"""Windows of this time are worked out together: one by one they cost several times as much."""
NS_PER_M = 1e9 / SPEED_OF_LIGHT_MPS
CONDITIONS = ("geometry_poor", "clock_offset", "clock_jump", "clock_drift", "position_suspect")
"""Those of serving.health that this says."""


@dataclass(frozen=True)
class _Seen:
    """One window as it came: its fix, which receivers were usable, and its arrivals if they say anything."""

    time_s: float
    position: Position | None
    used: np.ndarray
    arrivals: Arrivals | None


@dataclass(frozen=True)
class Sample:
    """One window worked out: least-squares place and residuals there, as a block's. `spread_m`: noise of the place."""

    time_s: float
    place_m: np.ndarray
    residual_m: np.ndarray
    noise_m2: np.ndarray
    spread_m: float


class SanityMonitor:
    """Watches the windows of one station and their fixes. Used by one thread, but for `report` and `conditions`.

    `geometry`: of the receivers of `contract`, in its order. Raises nothing on data: windows that say nothing of times
    are passed over.
    """

    def __init__(self, contract: Contract, geometry: ArrivalGeometry) -> None:
        config = contract.correlation_config
        assert config is not None  # or there would be no geometry
        self._geometry = geometry
        self._mask = ChannelMask(contract)
        self._first = len(contract.channels) - len(config.pairs)
        self._reader = ArrivalReader(config, geometry.incidence)
        self._finder = FaultFinder(geometry)
        self.conditions: Mapping[str, str] = {}
        self.forget()

    def forget(self) -> None:
        """Begin anew, with another stream or frequency. Conditions stay until they are looked at again."""
        self._finder.forget()
        self._seen: list[_Seen] = []
        self._place_m = self._geometry.receivers_m[:, :2].mean(axis=0)
        self._block: list[Sample] = []
        self._pairs: deque[np.ndarray] = deque(maxlen=REMEMBERED)
        self._hdop: deque[float] = deque(maxlen=REMEMBERED)
        self._windows = 0
        self._last_s = self._looked_s = -math.inf
        self._diagnosis: Diagnosis | None = None
        self._stream: tuple[str, float | None] = ("", None)
        self._found, self._missed = 0, 0
        self._kind: Kind | None = None
        self._shown: Fault | None = None

    def wants(self, fix: Fix) -> bool:
        """Whether the window of this fix is to be looked at: it comes long enough after the last.

        One without a position may be: it is what a model makes of receivers that disagree.
        """
        if fix.id is not None or fix.reason not in (None, "no_emitter"):
            return False
        passed_s = fix.timestamp.timestamp() - self._last_s
        return passed_s >= 0.999 * LEAST_APART_S or passed_s < 0.0 or self._stream != (fix.stream, fix.frequency_hz)

    def add(self, window: Window, fix: Fix) -> bool:
        """Look at a window. Returns whether `conditions` have changed."""
        moment_s = fix.timestamp.timestamp()
        stream = (fix.stream, fix.frequency_hz)
        if stream != self._stream or moment_s < self._last_s:
            self.forget()
            self._stream = stream
        self._last_s = moment_s
        sound = self._mask.sound(window)
        arrivals = self._reader.read(window.features[self._first :], sound[self._first :])
        seen = self._seen
        seen.append(_Seen(moment_s, fix.position, self._mask.usable(sound), arrivals))
        if len(seen) == BLOCK_WINDOWS or moment_s - seen[0].time_s >= TOGETHER_S:
            return self.flush()
        return False

    def flush(self) -> bool:
        """Work out what has been seen so far. Returns whether `conditions` have changed."""
        seen, self._seen = self._seen, []
        if not seen:
            return False
        places_m, placed = self._places(seen), np.array([each.position is not None for each in seen])
        hdop = self._geometry.hdop(places_m, np.stack([each.used for each in seen]))
        self._hdop.extend(hdop[placed].tolist())
        telling = np.array([each.arrivals is not None for each in seen])
        closed = False
        if telling.any():
            arrivals = [each.arrivals for each in seen if each.arrivals is not None]
            self._windows += len(arrivals)
            times_s = [each.time_s for each in seen if each.arrivals is not None]
            samples = self._samples(arrivals, places_m[telling], times_s, hdop[telling])
            solved_m = np.stack([sample.place_m for sample in samples])
            self._note_pairs(arrivals, np.where(placed[telling, None], places_m[telling], solved_m))
            for sample in samples:
                closed |= self._collect(sample)
            self._place_m = solved_m[-1]
        return self._settle(closed)

    def _places(self, seen: Sequence[_Seen]) -> np.ndarray:
        """Where the fixes are in the plane, (n, 2), or where the emitter was last for those without a position."""
        places = np.tile(self._place_m, (len(seen), 1))
        known = [(k, each.position) for k, each in enumerate(seen) if each.position is not None]
        if known:
            frame = self._geometry.frame
            latitudes = np.array([position.latitude for _, position in known])
            longitudes = np.array([position.longitude for _, position in known])
            places[[k for k, _ in known]] = frame.to_enu_m(latitudes, longitudes, frame.altitude_m)[:, :2]
        return places

    def _note_pairs(self, arrivals: Sequence[Arrivals], places_m: np.ndarray) -> None:
        expected_m = self._geometry.expected_m(places_m) @ self._geometry.incidence.T
        for each, expected in zip(arrivals, expected_m, strict=True):
            self._pairs.append(np.stack([each.lag_m - expected, each.lag_sigma_m]) * NS_PER_M)

    def _samples(
        self, arrivals: Sequence[Arrivals], places_m: np.ndarray, times_s: Sequence[float], hdop: np.ndarray
    ) -> list[Sample]:
        """Residuals at the places of least squares: a model's own answer may be drawn elsewhere."""
        allowed_m2 = np.square(self._geometry.sigma_m) + self._geometry.path_m2(places_m)
        noise_m2 = np.stack([each.covariance_m2 for each in arrivals])
        covariance_m2 = noise_m2 + allowed_m2[:, :, None] * np.eye(allowed_m2.shape[1])
        arrival_m = np.stack([each.arrival_m for each in arrivals])
        solved = solve(self._geometry, arrival_m, covariance_m2, places_m)
        spread_m = np.sqrt(np.trace(noise_m2, axis1=1, axis2=2)) * np.minimum(hdop, 100.0)
        return [
            Sample(times_s[k], solved.places_m[k], solved.residuals_m[k], noise_m2[k], float(spread_m[k]))
            for k in range(len(arrivals))
        ]

    def _collect(self, sample: Sample) -> bool:
        """Put a window to the block, or begin another. Returns whether a block has been closed."""
        block = self._block
        closed = bool(block) and (len(block) == BLOCK_WINDOWS or not self._belongs(block[0], sample))
        if closed:
            self._finder.add(mean_block(block))
            self._block = block = []
        block.append(sample)
        return closed

    def _belongs(self, first: Sample, sample: Sample) -> bool:
        if (np.isfinite(first.residual_m) != np.isfinite(sample.residual_m)).any():
            return False
        nearest_m = float(self._geometry.lengths_m(first.place_m).min())
        apart_m = float(np.linalg.norm(sample.place_m - first.place_m))
        return apart_m < BLOCK_PLACE_PART * nearest_m + 6.0 * (first.spread_m + sample.spread_m)

    def _settle(self, closed: bool) -> bool:
        """Diagnose where a block has been closed, and say whether conditions are others now."""
        if closed and not 0.0 <= self._last_s - self._looked_s < LOOK_S:
            self._looked_s = self._last_s
            self._diagnosis = self._finder.diagnose()
            self._weigh(self._diagnosis.fault)
        conditions: dict[str, str] = {}
        if self._shown is not None:
            conditions[self._shown.kind] = self._words(self._shown)
        poor = self._geometry_poor()
        if poor is not None:
            conditions["geometry_poor"] = poor
        changed = conditions != self.conditions
        self.conditions = conditions
        return changed

    def _weigh(self, fault: Fault | None) -> None:
        """A fault is shown when its kind was found some times in a row, and over when none was."""
        if fault is None:
            self._missed, self._found = self._missed + 1, 0
            if self._missed >= CLEAR:
                self._shown = None
            return
        self._found = self._found + 1 if fault.kind == self._kind else 1
        self._missed, self._kind = 0, fault.kind
        if self._found >= APPEAR and (self._shown is None or not _alike(fault, self._shown)):
            self._shown = fault

    def _geometry_poor(self) -> str | None:
        if len(self._hdop) < LEAST_WINDOWS:
            return self.conditions.get("geometry_poor")
        values = np.array(self._hdop)
        share = float((values > POOR_HDOP).mean())
        if share < FINE_SHARE or (share < POOR_SHARE and "geometry_poor" not in self.conditions):
            return None
        middle = float(np.median(values))
        figure = "without bound" if math.isinf(middle) else f"about {middle:.1g}"
        return f"HDOP of the fixes is {figure}, above {POOR_HDOP:g}: small errors of time move them far"

    def _words(self, fault: Fault) -> str:
        names = [self._geometry.names[k] for k in fault.receivers]
        whose = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        if fault.kind == "position_suspect":
            east, north = fault.size
            azimuth = math.degrees(math.atan2(east, north)) % 360.0
            told = (
                f"{whose}: stands {fault.magnitude:.2g} ± {fault.sigma:.1g} m from where the station file says, "
                f"towards {azimuth:.0f}°"
            )
        elif fault.kind == "clock_drift":
            told = f"{whose}: its times run away by {fault.size[0]:+.2g} ± {fault.sigma:.1g} ns/s"
        elif fault.kind == "clock_jump":
            assert fault.since_s is not None
            since = datetime.fromtimestamp(fault.since_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
            told = f"{whose}: its times jumped by {fault.size[0]:+.3g} ± {fault.sigma:.1g} ns about {since}"
        else:
            told = (
                f"{whose}: its times are off by {fault.size[0]:+.3g} ± {fault.sigma:.1g} ns, by clock, cable or place"
            )
        if len(names) > 1:
            told += " (figures for the first; which of them it is, and whether clock, cable or place, cannot be told)"
        return f"{told}; more is wrong than that" if fault.rest else told

    def report(self) -> dict[str, Any]:
        """Geometry, pairs' residuals and receivers' biases as they are now, for a status; empty before the first."""
        if not self._hdop:
            return {}
        names, hdop, diagnosis = self._geometry.names, list(self._hdop), self._diagnosis
        middle = float(np.median(hdop)) if hdop else math.inf
        told: dict[str, Any] = {
            "windows": self._windows,
            "geometry": {
                "hdop": round(middle, 2) if math.isfinite(middle) else None,
                "limit": POOR_HDOP,
                "poor": "geometry_poor" in self.conditions,
                "redundancy": 0 if diagnosis is None else diagnosis.freedom,
            },
            "pairs": [],
            "receivers": [],
        }
        recent = np.array(list(self._pairs))
        if len(recent):
            for pair, (i, j) in enumerate(self._geometry.pairs):
                residual, sigma = recent[:, 0, pair], recent[:, 1, pair]
                known = np.isfinite(residual)
                if known.any():
                    told["pairs"].append(
                        {
                            "receivers": [names[i], names[j]],
                            "residual_ns": round(float(residual[known].mean()), 1),
                            "deviation_ns": round(float(residual[known].std()), 1),
                            "noise_ns": round(float(np.sqrt(np.square(sigma[known]).mean())), 1),
                            "n": int(known.sum()),
                        }
                    )
        if diagnosis is not None:
            told["probability"] = float(f"{diagnosis.probability:.2g}")
            told["receivers"] = [
                {"name": name, "bias_ns": round(bias.bias_ns, 1), "sigma_ns": round(bias.sigma_ns, 1)}
                for name, bias in zip(names, diagnosis.biases, strict=True)
                if bias is not None
            ]
        return told


def mean_block(samples: list[Sample]) -> Block:
    """Their mean, without those that lie far off in a receiver."""
    residual = np.stack([sample.residual_m for sample in samples])
    noise = np.mean([sample.noise_m2 for sample in samples], axis=0)
    if len(samples) >= 5:
        off = np.abs(residual - np.median(residual, axis=0))
        typical = np.maximum(1.4826 * np.median(off, axis=0), np.sqrt(np.diagonal(noise)))
        fine = ~(np.nan_to_num(off) > OUTLIER * typical).any(axis=1)
        if fine.sum() >= 3:
            samples = [sample for sample, keep in zip(samples, fine, strict=True) if keep]
            residual = residual[fine]
    scatter = np.nan_to_num(residual - residual.mean(axis=0))
    count = len(samples)
    # What windows scatter more than their own noise does not average out as fast: clocks that wander, echoes.
    measured = scatter.T @ scatter / max(count - 1, 1)
    larger = max(float(np.trace(measured) / max(np.trace(noise), 1e-30)), 1.0) if count >= 5 else 1.0
    return Block(
        time_s=float(np.mean([sample.time_s for sample in samples])),
        place_m=np.mean([sample.place_m for sample in samples], axis=0),
        residual_m=residual.mean(axis=0),
        noise_m2=noise * larger / count,
        windows=count,
    )


def _alike(fault: Fault, shown: Fault) -> bool:
    """Whether a fault is the one that is shown, but for its last digits."""
    if fault.kind != shown.kind or set(fault.receivers) != set(shown.receivers) or fault.rest != shown.rest:
        return False
    apart = math.dist(fault.size, shown.size)
    return apart < 0.2 * shown.magnitude + 2.0 * fault.sigma
