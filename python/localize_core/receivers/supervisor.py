"""A device that comes and goes: opened, watched, closed and opened again, for as long as the station runs."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, Protocol

from localize_core.errors import ConfigError, LocalizeError

log = logging.getLogger(__name__)

State = Literal["connecting", "streaming", "absent", "failed"]

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
"""Between two tries: the first pause, and the longest. A device that streamed for longer begins anew."""
LOOK_S = 0.1
"""A device is looked at so often."""
CLOSE_S = 5.0
"""A device that takes longer to close hangs, and is left to itself."""
MOST_HANGING = 3
"""While so many hang, no other try is made: each holds a thread, and most likely the device."""


class OpenDevice(Protocol):
    """A device that was opened, whose samples go where they should by themselves."""

    @property
    def streaming(self) -> bool:
        """Whether samples have come."""

    def trouble(self) -> str | None:
        """Why nothing more is to be had of it; None while all is well."""

    def close(self) -> None:
        """Let go of it. May hang."""


@dataclass(frozen=True)
class DeviceState:
    """`connecting`: not heard of yet; `streaming`; `absent`: tried again; `failed`: trying again is no use.

    `restarts`: how often it has streamed anew. `error`: the last, empty if there was none. `hanging`: attempts to close
    it that have not come to an end.
    """

    state: State
    since: datetime
    restarts: int = 0
    error: str = ""
    hanging: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "since": self.since.isoformat(timespec="seconds"),
            "restarts": self.restarts,
            "error": self.error,
            "hanging": self.hanging,
        }


class Supervisor:
    """Keeps one device open, in a thread of its own between `start` and `stop`.

    `open_device`: may take its time, and raises ConfigError where another try is no use, anything else where it is.
    `on_change`: called from that thread when the state has changed.
    """

    def __init__(
        self,
        name: str,
        open_device: Callable[[], OpenDevice],
        on_change: Callable[[], None] = lambda: None,
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        last_pause_s: float = LAST_PAUSE_S,
        close_s: float = CLOSE_S,
    ) -> None:
        self.name = name
        self.fatal: ConfigError | None = None
        self._open_device, self._on_change = open_device, on_change
        self._first_pause_s, self._last_pause_s, self._close_s = first_pause_s, last_pause_s, close_s
        self._stopping = threading.Event()
        self._state = DeviceState("connecting", _now())
        self._has_streamed = False
        self._streaming_since_s: float | None = None
        self._hanging: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name=f"localize-device {name}", daemon=True)

    @property
    def state(self) -> DeviceState:
        return replace(self._state, hanging=sum(thread.is_alive() for thread in self._hanging))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin to close the device; `join` waits for it."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Returns whether the device is closed. A driver that hangs is left behind in its thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self.state.hanging

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while not self._stopping.is_set():
            self._streaming_since_s = None
            try:
                device = self._open_device()
            except ConfigError as error:
                if not self._has_streamed:
                    self.fatal = error
                    self._enter("failed", str(error))
                    return
                self._enter("absent", str(error))
            except Exception as error:  # besides RadioError, whatever a driver raises
                self._lost(error)
            else:
                trouble = self._watch(device)
                self._close(device)
                if self._stopping.is_set():
                    return
                self._enter("absent", trouble)
            since_s = self._streaming_since_s  # not from when it was opened: to fail may take its time, too
            if since_s is not None and time.monotonic() - since_s > self._last_pause_s:
                pause_s = self._first_pause_s
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2.0 * pause_s, self._last_pause_s)
            while self.state.hanging >= MOST_HANGING and not self._stopping.wait(LOOK_S):
                self._enter("absent", f"{MOST_HANGING} attempts to close it hang in its driver")

    def _watch(self, device: OpenDevice) -> str:
        """Wait for trouble. Returns what it is, empty where the end has come first."""
        while not self._stopping.wait(LOOK_S):
            trouble = device.trouble()
            if trouble is not None:
                return trouble
            if device.streaming and self._streaming_since_s is None:
                self._streaming_since_s = time.monotonic()
                restarts = self._state.restarts + self._has_streamed
                self._has_streamed = True
                self._enter("streaming", self._state.error, restarts)
        return ""

    def _close(self, device: OpenDevice) -> None:
        closer = threading.Thread(target=self._closed, args=(device,), name=f"close {self.name}", daemon=True)
        closer.start()
        closer.join(self._close_s)
        if closer.is_alive():
            log.error("%s: does not close; its driver hangs", self.name)
            self._hanging = [thread for thread in self._hanging if thread.is_alive()] + [closer]

    def _closed(self, device: OpenDevice) -> None:
        try:
            device.close()
        except Exception:  # whatever a driver raises: the next try shows whether it is well
            log.exception("%s: closing it failed", self.name)

    def _lost(self, error: Exception) -> None:
        if isinstance(error, LocalizeError):
            self._enter("absent", str(error))
            return
        what = f"{type(error).__name__}: {error}"
        if what != self._state.error:
            log.warning("%s: cannot be opened", self.name, exc_info=error)
        self._enter("absent", what)

    def _enter(self, state: State, error: str, restarts: int | None = None) -> None:
        before = self._state
        changed = state != before.state
        self._state = replace(
            before,
            state=state,
            since=_now() if changed else before.since,
            restarts=before.restarts if restarts is None else restarts,
            error=error,
        )
        why = error.removeprefix(f"{self.name}: ")
        if state == "streaming":
            log.info("%s: streaming", self.name)
        elif changed:
            log.warning("%s: %s%s: %s", self.name, state, ", trying again" if state == "absent" else "", why)
        elif error != before.error:
            log.info("%s: still %s: %s", self.name, state, why)
        if changed or error != before.error:
            try:
                self._on_change()
            except Exception:  # the device goes on; whoever wants to know has to see to it
                log.exception("%s: who is told of its state failed", self.name)


def _now() -> datetime:
    return datetime.now(timezone.utc)
