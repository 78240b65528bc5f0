"""Who is told how long things take, while windows are answered."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = Literal["preprocessing", "queue", "inference", "model_run"]
"""What takes time.

`preprocessing`: a request's samples or features become a window. `queue`: a stream's window is complete, and waits
until the engine takes it. `inference`: from there on, or from the request on, until there is a fix. `model_run`: the
model itself runs, here or at a server, for one window or a batch; also where it fails.
"""


class Instruments(Protocol):
    """Something that measures. It is told of every window, from any thread: it has to be quick, and must not raise."""

    def observe(self, stage: Stage, seconds: float, *, count: int = 1, backend: str = "") -> None:
        """`count` windows have been through a stage, each in so many seconds. `backend`: what ran the model."""
        ...


class NoInstruments:
    """Nobody measures."""

    def observe(self, stage: Stage, seconds: float, *, count: int = 1, backend: str = "") -> None:
        """It is not kept."""
