"""A model in service: what it has done so far, and how it goes when another takes over."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from localize_core.engine.locator import Locator
from localize_core.types.fix import Fix

LATENCIES_KEPT = 2000
QUANTILES = (50, 95, 99)


class Statistics:
    """Windows answered, those that failed, and how long the model took for the last ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self.windows = 0
        self.errors = 0

    def add(self, fixes: Sequence[Fix]) -> bool:
        """Answers that came out of one inference. Returns whether it failed on any."""
        failed = sum(fix.reason == "model_error" for fix in fixes)
        with self._lock:
            self.windows += len(fixes)
            self.errors += failed
            # What a cache answered says nothing of how long the model takes.
            self._latency_ms += [fix.inference_time_ms for fix in fixes if fix.inference_time_ms and not fix.cache_hit]
        return failed > 0

    def quantile_ms(self, percent: float) -> float | None:
        """Of the last inferences, None before the first."""
        with self._lock:
            values = list(self._latency_ms)
        return float(np.percentile(values, percent)) if values else None

    def as_dict(self) -> dict[str, Any]:
        latency_ms = {f"p{percent}": self.quantile_ms(percent) for percent in QUANTILES}
        return {"windows": self.windows, "errors": self.errors, "inference_time_ms": latency_ms}


class Version:
    """One loaded model. It is closed when it is retired and no window uses it any more."""

    def __init__(self, key: str, locator: Locator) -> None:
        self.key, self.locator = key, locator
        self.statistics = Statistics()
        self.loaded_at = datetime.now(timezone.utc)
        self._idle = threading.Condition()
        self._users = 0
        self._retired = False

    def acquire(self) -> bool:
        """Begin to use it. False where it is retired: the arm has another one by then."""
        with self._idle:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        with self._idle:
            self._users -= 1
            self._idle.notify_all()

    def retire(self) -> None:
        """Let nobody begin any more, wait for those who have, and close the model."""
        with self._idle:
            self._retired = True
            self._idle.wait_for(lambda: self._users == 0)
        self.locator.model.close()

    def as_dict(self) -> dict[str, Any]:
        """What it is, since when it is loaded, what it has done, and what its evaluation found."""
        model = self.locator.model
        contract, identity = model.contract, model.identity
        return {
            "name": identity.name,
            "version": identity.version,
            "sha256": identity.sha256,
            "backend": identity.backend,
            "loaded_since": self.loaded_at.isoformat(timespec="seconds"),
            **self.statistics.as_dict(),
            "contract": {
                "sample_rate_hz": contract.sample_rate_hz,
                "frequency_hz": contract.frequency_hz,
                "rows": contract.rows,
                "time_steps": contract.time_steps,
                "receivers": [receiver.name for receiver in contract.receivers],
                "min_receivers": contract.min_receivers,
                "channels": [f"{channel.feature} {'-'.join(channel.receivers)}" for channel in contract.channels],
                "frame": contract.frame.kind,
            },
            "accuracy": contract.accuracy,
        }
