"""Whether an engine lives, is ready, and what is not as it should be: one state, derived from what is known."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

State = Literal["starting", "ready", "degraded", "failed", "stopped"]

CONDITIONS: dict[str, str] = {
    "model_unreachable": "the source does not answer, or lacks what is asked for; the version that serves goes on",
    "model_rejected": "the version that the source names did not pass its checks; the one before it goes on",
    "model_unavailable": "the inference server does not answer; the fallback does, or windows have no position",
    "model_error": "the last inference failed or returned values that are not finite",
    "challenger_unreachable": "the challenger's source does not answer",
    "challenger_rejected": "the challenger did not pass its checks",
    "challenger_unavailable": "the challenger's inference server does not answer; the champion does",
    "challenger_error": "the challenger's last inference failed or returned values that are not finite",
    "experiment_rolled_back": "the challenger missed a gate and serves no stream any more",
    "receiver_lost": "a receiver does not stream; the station goes on without it, and tries again",
    "reference_lost": "a receiver's clock is not known, for it does not hear the reference; the others go on",
    "geometry_poor": "the emitter stands where the receivers' geometry hardly tells its place",
    "clock_offset": "a receiver's times are off by more than its station says: clock, cable or coordinates",
    "clock_jump": "a receiver's clock has jumped",
    "clock_drift": "a receiver's clock runs away from the others",
    "position_suspect": "a receiver does not stand where its station says",
}
"""What makes an engine degraded, and what it means."""


@dataclass(frozen=True)
class Condition:
    """Something that is not as it should be."""

    name: str
    detail: str
    since: datetime


class Health:
    """What is known of an engine. `live`: it does something; `ready`: it answers windows with a model.

    starting → ready ⇄ degraded → stopped, and → failed from anywhere. Degraded is ready, with conditions that say why
    it is not well. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase: Literal["starting", "running", "failed", "stopped"] = "starting"
        self._failure = ""
        self._conditions: dict[str, Condition] = {}

    @property
    def state(self) -> State:
        with self._lock:
            if self._phase == "running":
                return "degraded" if self._conditions else "ready"
            return self._phase

    @property
    def live(self) -> bool:
        return self.state in ("starting", "ready", "degraded")

    @property
    def ready(self) -> bool:
        return self.state in ("ready", "degraded")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(self._conditions.values())

    def run(self) -> None:
        """It answers windows from now on."""
        with self._lock:
            self._phase = "running"

    def stop(self) -> None:
        """It has ended as it should; a failure stays one."""
        with self._lock:
            if self._phase != "failed":
                self._phase = "stopped"

    def fail(self, why: str) -> None:
        """It answers no more windows."""
        with self._lock:
            self._phase, self._failure = "failed", why

    def report(self, name: str, detail: str) -> bool:
        """Note a condition of CONDITIONS. Returns whether that is news."""
        assert name in CONDITIONS, name
        with self._lock:
            before = self._conditions.get(name)
            if before is not None and before.detail == detail:
                return False
            since = datetime.now(timezone.utc) if before is None else before.since
            self._conditions[name] = Condition(name, detail, since)
            return True

    def clear(self, *names: str) -> bool:
        """Conditions that are over. Returns whether that is news."""
        if not self._conditions:  # as it is after nearly every window
            return False
        with self._lock:
            over = [self._conditions.pop(name, None) for name in names]
        return any(condition is not None for condition in over)

    def as_dict(self) -> dict[str, Any]:
        """`state`, `live`, `ready`, `reasons`: a list of `reason`, `detail` and `since`."""
        reasons = [
            {"reason": each.name, "detail": each.detail, "since": each.since.isoformat(timespec="seconds")}
            for each in self.conditions
        ]
        found: dict[str, Any] = {"state": self.state, "live": self.live, "ready": self.ready, "reasons": reasons}
        if self._failure:
            found["failure"] = self._failure
        return found
