"""Engines with tiny models whose answer tells which of them it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import Contract
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings

STEPS = 4
WAIT_S = 30.0


@pytest.fixture
def make_window() -> Callable[..., Window]:
    """A maker of windows that hold `value` everywhere."""

    def make(contract: Contract, *, value: float = 0.5, steps: int = STEPS) -> Window:
        receivers = len(contract.receivers)
        return Window(
            first_frame=0,
            features=np.full((len(contract.channels), contract.rows, steps), value, np.float32),
            level_db=np.full(receivers, -20.0),
            flags=(SampleFlag(0),) * receivers,
            unusable=np.zeros(receivers, bool),
        )

    return make


@pytest.fixture
def make_context() -> Callable[..., WindowContext]:
    """A maker of contexts of stream `stream`, just completed."""

    def make(sequence: int = 0, *, stream: str = "t") -> WindowContext:
        return WindowContext("s", stream, sequence, (1_700_000_000, 0.0), "host", None, None, time.monotonic(), 0)

    return make


@pytest.fixture
def make_version(make_contract, make_model) -> Callable[..., Path]:
    """A writer of models of version n, which answer with latitude n. The file's name stays the same."""

    def make(version: int, *, receivers: int = 2, name: str = "model.onnx", **changes: Any) -> Path:
        contract = make_contract(receivers, model_version=str(version), **changes.pop("contract", {}))
        return make_model(contract, **{"position": (float(version), 8.0), "name": name, **changes})

    return make


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """A maker of engines that are started, and stopped after the test. What they say lies in `said`, `shadows`."""
    made: list[Engine] = []

    def make(
        uri: Path | str, *, started: bool = True, live: bool = False, options: Any = None, **settings: Any
    ) -> Engine:
        engine = Engine(ServingSettings(uri=str(uri), **{"poll_s": 0.0} | settings), **(options or {}))
        engine.prepare(STEPS)
        engine.said, engine.shadows = [], []  # type: ignore[attr-defined]
        if started:
            engine.start(on_status=engine.said.append, on_shadow=engine.shadows.append, live=live)  # type: ignore[attr-defined]
            made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop()
        engine.close()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "it has not come about"
            time.sleep(0.005)

    return wait
