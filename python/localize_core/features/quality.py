"""What can be seen of a receiver's health in its samples alone: level, and flags for what is wrong."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

FLOOR_DBFS = -200.0
"""Level of silence."""

USABLE_LIMIT = 1e12
"""A part of a sample beyond this counts as infinite: its power summed over a frame would leave float32."""

FULL_SCALE = 0.999
SATURATED_FRACTION = 0.01


class SampleFlag(IntFlag):
    """What is wrong with a receiver's samples. Names equal the words of `types.fix.RECEIVER_FLAGS`."""

    INVALID = 1
    SILENT = 2
    SATURATED = 4
    UNALIGNED = 8
    GAP = 16

    @property
    def words(self) -> tuple[str, ...]:
        """The single flags that are set, as words, lowest bit first."""
        if not self:  # as nearly always; iterating over flags is slow
            return ()
        return tuple(flag.name.lower() for flag in SampleFlag if flag in self and flag.name is not None)


def zero_unusable(samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """`samples` with every NaN, infinite or absurd (beyond `USABLE_LIMIT`) sample replaced by zero.

    Any shape, contiguous in its last axis. Returns the argument itself where there is nothing to replace.
    """
    usable = np.abs(samples.view(np.float32)) <= USABLE_LIMIT
    if usable.all():
        return samples
    return np.where(usable[..., 0::2] & usable[..., 1::2], samples, np.complex64(0))


def sample_quality(samples: NDArray[np.complex64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Level and flags of every receiver in every frame.

    `samples`: complex64, (receivers, n_frames, hop): each frame's new samples.
    Returns levels, float32, (n_frames, receivers): mean |x|^2 in dB, |x| = 1 being 0 dBFS, at least `FLOOR_DBFS`,
    unusable samples counted as zeros; and flags, int32, (n_frames, receivers): INVALID (a sample is NaN or infinite),
    SILENT (every sample is zero), SATURATED (1 % of the samples or more have a part at full scale).
    """
    magnitude = np.abs(np.ascontiguousarray(samples).view(np.float32))
    largest = magnitude.max(axis=-1)
    invalid = ~(largest <= USABLE_LIMIT)
    silent = largest == 0.0
    saturated = np.zeros_like(silent)
    if invalid.any():
        bad = ~(magnitude <= USABLE_LIMIT)
        magnitude[np.repeat(bad[..., 0::2] | bad[..., 1::2], 2, axis=-1)] = 0.0
    if (largest >= FULL_SCALE).any() or invalid.any():
        clipped = magnitude >= FULL_SCALE
        saturated = (clipped[..., 0::2] | clipped[..., 1::2]).mean(axis=-1) >= SATURATED_FRACTION
    power = np.square(magnitude, out=magnitude).sum(axis=-1) / np.float32(samples.shape[-1])
    levels = 10.0 * np.log10(np.maximum(power, np.float32(10.0 ** (FLOOR_DBFS / 10.0))))
    flags = invalid * SampleFlag.INVALID + silent * SampleFlag.SILENT + saturated * SampleFlag.SATURATED
    return np.ascontiguousarray(levels.T, np.float32), np.ascontiguousarray(flags.T, np.int32)
