"""What an engine has done since it was made, whichever models came and went meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from localize_core.types.fix import Fix

Outcome = Literal["served", "rejected", "unreachable"]
"""Of a change of models: another version serves, it did not pass its checks, or its source did not answer."""
FALLBACK = "fallback"
"""In place of an arm, for what a fallback has answered."""


class Tally:
    """Counts that only grow. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fixes: Counter[str | None] = Counter()
        self._inferences: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._changes: Counter[tuple[str, Outcome]] = Counter()

    def answered(self, fixes: Sequence[Fix]) -> None:
        """Fixes that went to whoever asked: a stream or a request, but no comparison."""
        with self._lock:
            for fix in fixes:
                self._fixes[fix.reason] += 1

    def inferred(self, arm: str, fixes: Sequence[Fix]) -> None:
        """What came out of an arm, its comparisons included."""
        asked = sum(fix.inference_time_ms > 0.0 and not fix.cache_hit for fix in fixes)
        failed = sum(fix.reason == "model_error" for fix in fixes)
        with self._lock:
            self._inferences[arm] += asked
            self._failures[arm] += failed

    def unanswered(self, arm: str, windows: int) -> None:
        """An arm's inference server has not answered in time."""
        with self._lock:
            self._failures[arm] += windows

    def changed(self, arm: str, outcome: Outcome) -> None:
        """An arm was to serve another version."""
        with self._lock:
            self._changes[arm, outcome] += 1

    @property
    def fixes(self) -> dict[str | None, int]:
        """By reason, None for those with a position."""
        with self._lock:
            return dict(self._fixes)

    @property
    def inferences(self) -> dict[str, int]:
        """Windows that a model was asked about and nothing else, by arm."""
        with self._lock:
            return dict(self._inferences)

    @property
    def failures(self) -> dict[str, int]:
        """Windows that a model failed on, or did not answer in time, by arm."""
        with self._lock:
            return dict(self._failures)

    @property
    def changes(self) -> dict[tuple[str, Outcome], int]:
        """By arm and outcome."""
        with self._lock:
            return dict(self._changes)
