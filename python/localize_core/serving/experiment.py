"""Two models on the same streams: who answers which, how their fixes compare, and when a canary goes on or back."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from localize_core.geodesy import GEOD
from localize_core.serving.settings import ChallengerSettings
from localize_core.types.fix import Fix

COMPARISONS_KEPT = 2000
FAILED = ("model_error", "model_unavailable")
"""Reasons that are the model's own fault."""
State = Literal["running", "complete", "rolled_back"]


@lru_cache(maxsize=4096)
def bucket_percent(stream: str, experiment: str) -> float:
    """Where in [0, 100) a stream lies in an experiment: always the same place, evenly spread over streams."""
    digest = hashlib.sha256(f"{experiment}\0{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64 * 100.0


class Comparison:
    """How the fixes of two models differ on the same windows."""

    def __init__(self) -> None:
        self.windows = 0
        """Those that tell something: at least one of the models has a position, or the challenger has failed."""
        self.errors = 0
        """Windows that the challenger failed on, or did not answer, and the champion did."""
        self.disagreements = 0
        """Windows to which only one of them has a position."""
        self._distance_m: deque[float] = deque(maxlen=COMPARISONS_KEPT)
        self._distance_sigma: deque[float] = deque(maxlen=COMPARISONS_KEPT)
        self._ellipse_ratio: deque[float] = deque(maxlen=COMPARISONS_KEPT)
        self._champion_ms: deque[float] = deque(maxlen=COMPARISONS_KEPT)
        self._challenger_ms: deque[float] = deque(maxlen=COMPARISONS_KEPT)

    def fail(self, count: int = 1) -> None:
        """The challenger has not answered so many windows."""
        self.windows += count
        self.errors += count

    def add(self, champion: Fix, challenger: Fix) -> None:
        """Both models' answers to one window."""
        if champion.reason in FAILED:
            return  # nothing to hold the challenger against
        if challenger.reason in FAILED:
            self.fail()
            return
        if champion.cache_hit or challenger.cache_hit:
            return  # compared when it was inferred, if ever: repeats are no evidence, and their times no inference's
        ours, theirs = champion.uncertainty, challenger.uncertainty
        if ours is None and theirs is None:
            return
        self.windows += 1
        self._champion_ms.append(champion.inference_time_ms)
        self._challenger_ms.append(challenger.inference_time_ms)
        if champion.position is None or challenger.position is None or ours is None or theirs is None:
            self.disagreements += 1
            return
        azimuth_deg, _, distance_m = GEOD.inv(
            champion.position.longitude,
            champion.position.latitude,
            challenger.position.longitude,
            challenger.position.latitude,
        )
        apart = distance_m * np.array([math.sin(math.radians(azimuth_deg)), math.cos(math.radians(azimuth_deg))])
        # A millimetre keeps ellipses without width apart from ones that have no inverse.
        spread = ours.covariance_m2 + theirs.covariance_m2 + 1e-6 * np.eye(2)
        self._distance_m.append(float(distance_m))
        self._distance_sigma.append(math.sqrt(max(float(apart @ np.linalg.solve(spread, apart)), 0.0)))
        self._ellipse_ratio.append(math.sqrt(theirs.sigma_x * theirs.sigma_y / (ours.sigma_x * ours.sigma_y)))

    def p95_ms(self) -> tuple[float, float] | None:
        """Inference time of champion and challenger; None before there is any."""
        if not self._champion_ms:
            return None
        return float(np.percentile(self._champion_ms, 95)), float(np.percentile(self._challenger_ms, 95))

    def as_dict(self) -> dict[str, Any]:
        """Counts, and medians of the distance and of the ellipses' ratio, challenger to champion."""
        return {
            "windows": self.windows,
            "errors": self.errors,
            "disagreements": self.disagreements,
            "distance_m": _median(self._distance_m),
            "distance_sigma": _median(self._distance_sigma),
            "ellipse_ratio": _median(self._ellipse_ratio),
        }


class Experiment:
    """A challenger's share of the streams, and for a canary what it takes to raise it. Threads may share it."""

    def __init__(self, settings: ChallengerSettings) -> None:
        self.settings = settings
        self.name = settings.experiment or settings.uri
        self.state: State = "running"
        self.reason = ""
        self._lock = threading.Lock()
        self._step = 0
        self._share_percent = settings.share_percent
        self._comparison = Comparison()

    @property
    def share_percent(self) -> float:
        """Of the streams that the challenger answers."""
        if self.settings.mode == "shadow" or self.state == "rolled_back":
            return 0.0
        return self.settings.steps_percent[self._step] if self.settings.mode == "canary" else self._share_percent

    def set_share_percent(self, percent: float) -> None:
        """For split: streams between the old share and the new one change their arm, the others stay."""
        self._share_percent = percent

    def serves(self, stream: str) -> bool:
        """Whether the challenger answers this stream."""
        share = self.share_percent
        return share > 0.0 and bucket_percent(stream, self.name) < share

    @property
    def compares(self) -> bool:
        """Whether the other arm answers each window too, for comparison only."""
        return self.settings.mode != "split" and self.state != "rolled_back"

    def compare(self, champion: Fix, challenger: Fix) -> bool:
        """Take both answers to a window in, then go a step further or back. Returns whether the state has changed."""
        return self._weigh(lambda comparison: comparison.add(champion, challenger))

    def fail(self, count: int) -> bool:
        """The challenger has not answered so many windows of its own. Returns as `compare` does."""
        return self._weigh(lambda comparison: comparison.fail(count))

    def _weigh(self, take: Callable[[Comparison], None]) -> bool:
        with self._lock:
            take(self._comparison)
            if self.settings.mode != "canary" or self.state != "running":
                return False
            if self._comparison.windows < self.settings.gates.min_windows:
                return False
            missed = self._missed()
            if missed:
                self.state, self.reason = "rolled_back", f"at {self.share_percent:g} %: {missed}"
            elif self._step + 1 < len(self.settings.steps_percent):
                self._step += 1
                self._comparison = Comparison()
            else:
                self.state = "complete"
            return True

    def abort(self, reason: str) -> None:
        """The challenger serves no stream any more."""
        with self._lock:
            self.state, self.reason = "rolled_back", reason

    def restart(self) -> None:
        """Another challenger: nothing is known of it yet."""
        with self._lock:
            self.state, self.reason, self._step = "running", "", 0
            self._comparison = Comparison()

    def _missed(self) -> str:
        """The first gate that the challenger misses, in words; empty where it passes all."""
        gates, seen = self.settings.gates, self._comparison
        if seen.errors / seen.windows > gates.max_error_share:
            return f"it fails on {seen.errors} of {seen.windows} windows that the champion answers"
        if (p95_ms := seen.p95_ms()) is not None:
            champion_ms, challenger_ms = p95_ms
            allowed_ms = max(champion_ms * gates.max_latency_ratio, gates.latency_floor_ms)
            if challenger_ms > allowed_ms:
                return f"its P95 is {challenger_ms:.1f} ms, {allowed_ms:.1f} ms are allowed"
        if seen.disagreements / seen.windows > gates.max_disagreement_share:
            return f"on {seen.disagreements} of {seen.windows} windows only one of the arms has a position"
        figures = seen.as_dict()
        distance, ratio = figures["distance_sigma"], figures["ellipse_ratio"]
        if distance is not None and distance > gates.max_distance_sigma:
            return f"its fixes lie {distance:.2f} sigma from the champion's, {gates.max_distance_sigma:g} are allowed"
        if ratio is not None and not 1.0 / gates.max_ellipse_ratio <= ratio <= gates.max_ellipse_ratio:
            return f"its ellipses are {ratio:.2f} times the champion's, {gates.max_ellipse_ratio:g} are allowed"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Name, mode, share, state, its reason and the comparison so far (of this step, for a canary)."""
        with self._lock:
            return {
                "name": self.name,
                "mode": self.settings.mode,
                "share_percent": self.share_percent,
                "state": self.state,
                "reason": self.reason or None,
                "comparison": self._comparison.as_dict(),
            }


def _median(values: deque[float]) -> float | None:
    return float(np.median(values)) if values else None
