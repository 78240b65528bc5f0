"""Windows of features with their truth, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Protocol

import numpy as np

from localize_core.model.contract import Contract


class Label(IntEnum):
    """What a window holds."""

    NONE = 0
    """No emitter: receiver noise alone."""
    INSIDE = 1
    """An emitter in the area."""
    OUTSIDE = 2
    """An emitter that is not in the area: no position is right."""


@dataclass(frozen=True)
class Windows:
    """n labelled windows of one station.

    `features` (n, channels, rows, time_steps) float32: not normalised, channels of missing receivers emptied as the
    engine does it. `level_db` (n, R): mean power, dB re full scale. `truth_m` (n, 2): east and north in the frame of
    the contract, NaN without emitter. `label` (n,): `Label`. `snr_db` (n, R): of each receiver in the whole sample
    rate, -inf where it hears nothing, NaN where unknown. `bandwidth_hz` (n,): occupied by the emitter, NaN where
    unknown. `group` (n,): block of places or of time that the window belongs to; a split never divides one.
    `source` (n,): row of the data set or number of the recording that it comes from. `usable` (n, R) bool: False for
    receivers that are missing.
    """

    features: np.ndarray
    level_db: np.ndarray
    truth_m: np.ndarray
    label: np.ndarray
    snr_db: np.ndarray
    bandwidth_hz: np.ndarray
    group: np.ndarray
    source: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def select(self, which: np.ndarray) -> Windows:
        """The windows of a mask or of indices."""
        return Windows(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Windows]) -> Windows:
        """All windows of `parts`, in order."""
        return Windows(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Windows)}
        )


class WindowSource(Protocol):
    """Where labelled windows come from. The same batches every time it is asked."""

    @property
    def contract(self) -> Contract:
        """Channels, receivers and frame of the windows; it names no model yet."""
        ...

    @property
    def time_steps(self) -> int:
        """Frames in a window."""
        ...

    def __len__(self) -> int:
        """Windows in all."""
        ...

    def batches(self, size: int) -> Iterator[Windows]:
        """The windows in order, up to `size` at a time."""
        ...
