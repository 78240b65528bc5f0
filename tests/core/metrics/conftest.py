"""Engines with tiny models, metrics that watch them, and a reader of what a scrape gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.metrics.metrics import Metrics
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings
from localize_core.types.fix import Fix
from prometheus_client.parser import text_string_to_metric_families

STEPS = 4
WAIT_S = 30.0


class Scrape:
    """Samples of one scrape. `scrape("name", label="value")` is the sum of those that match, None where none does."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, /, **labels: str) -> float | None:
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"localize_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values by a label."""
        return {each.labels[label]: each.value for each in self.samples if each.name == f"localize_{name}"}


class Watched:
    """An engine and the metrics that watch it."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.metrics = engine, metrics
        self.sequence = 0

    def window(self, value: float = 0.5, *, silent: bool = False, steps: int = STEPS) -> Window:
        contract = self.engine.contract
        receivers = len(contract.receivers)
        return Window(
            first_frame=0,
            features=np.full((len(contract.channels), contract.rows, steps), value, np.float32),
            level_db=np.full(receivers, -20.0),
            flags=(SampleFlag.SILENT if silent else SampleFlag(0),) * receivers,
            unusable=np.full(receivers, silent),
        )

    def locate(self, window: Window | None = None) -> Fix:
        """The fix of one more window of a stream, which the metrics are told of."""
        window = window or self.window()
        context = WindowContext(
            self.engine.station, "t", self.sequence, (1_700_000_000, 0.0), "host", None, None, time.monotonic(), 0
        )
        self.sequence += 1
        fix = self.engine.locate(window, context)
        self.metrics.fix(fix)
        return fix

    def scrape(self) -> Scrape:
        return _scrape(self.metrics)


def _scrape(metrics: Metrics) -> Scrape:
    return Scrape(metrics.render()[0].decode())


@pytest.fixture
def scrape() -> Callable[[Metrics], Scrape]:
    """A reader of what a scrape of metrics gets."""
    return _scrape


@pytest.fixture
def make_version(make_contract, make_model) -> Callable[..., Path]:
    """A writer of models of version n, which answer with latitude n. The file's name stays the same."""

    def make(version: int, *, contract: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        made = make_contract(2, model_version=str(version), **(contract or {}))
        return make_model(made, **{"position": (float(version), 8.0), "name": "model.onnx", **changes})

    return make


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    """A maker of engines that run, and are watched by metrics of station `s`."""
    engines: list[Engine] = []

    def make(
        uri: Path | str, *, live: bool = False, options: Mapping[str, Any] | None = None, **settings: Any
    ) -> Watched:
        wanted = ServingSettings(uri=str(uri), **{"poll_s": 0.0} | settings)
        engine = Engine(wanted, station="s", **(options or {}))
        engine.prepare(STEPS)
        engine.start(live=live)
        engines.append(engine)
        metrics = Metrics("s")
        metrics.watch(engine)
        return Watched(engine, metrics)

    yield make
    for engine in engines:
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
