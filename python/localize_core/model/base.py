"""What every model is to those who use it, wherever it runs; and where definite versions of models come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from localize_core.model.contract import Contract
from localize_core.types.fix import ModelIdentity


@dataclass(frozen=True)
class ModelOutput:
    """Answers to a batch: `position` (batch, 2), `uncertainty` (batch, 3), `confidence` (batch, 1), float32."""

    position: np.ndarray
    uncertainty: np.ndarray
    confidence: np.ndarray


class Model(Protocol):
    """A model that is ready to run. Threads may share it."""

    @property
    def label(self) -> str:
        """Where it comes from, for error messages."""
        ...

    @property
    def contract(self) -> Contract: ...

    @property
    def identity(self) -> ModelIdentity: ...

    def run(self, features: np.ndarray) -> ModelOutput:
        """Answer a batch of normalised windows, float32 (batch, channels, rows, time_steps).

        Raises UnavailableError where nothing answers in time, EngineError where inference fails or the answer has the
        wrong shape.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds. It is not run again."""
        ...


@runtime_checkable
class LikelihoodModel(Protocol):
    """A model that can tell more than its answer: how probable each part of its area is."""

    def likelihood(self, features: np.ndarray) -> np.ndarray | None:
        """Probability of the cells of the contract's grid: float32 (batch, rows, columns), of a window summing to one.

        None where the contract has no grid. Raises EngineError where inference fails.
        """
        ...


@dataclass(frozen=True)
class Release:
    """A definite version of what a source names.

    `key`: differs between any two releases, of whatever sources. `version`: what the source calls it. `open()` loads
    it, which may take seconds; it raises ModelError for one that is no good, RegistryError where it cannot be fetched.
    """

    key: str
    version: str
    open: Callable[[], Model]


class ModelSource(Protocol):
    """What a model's source string names. Its methods may wait for a disk or a network."""

    @property
    def uri(self) -> str: ...

    def latest(self) -> Release:
        """What the string stands for now. Raises ModelError or RegistryError."""
        ...

    def release(self, version: str) -> Release:
        """Another version of the same model. Raises ConfigError where the source has none to choose from."""
        ...

    def remember(self, release: Release) -> None:
        """This release serves now: keep it at hand for a start when the source cannot be asked."""
        ...

    def remembered(self) -> Release | None:
        """The release that served last, found without asking the source; None where nothing has to be kept."""
        ...
