"""What can be seen of a receiver's health in its samples alone: level, and flags for what is wrong."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from localize_core.features.kernels import fast_kernels

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
    ABSENT = 32

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
    parts = samples.view(np.float32)
    # Most often all are usable, which is told without a copy; NaN is below no limit.
    kernels = fast_kernels()
    if parts.size == 0:
        return samples
    if kernels is not None:
        all_usable = all(kernels.largest(row) <= USABLE_LIMIT for row in parts.reshape(-1, parts.shape[-1]))
    else:
        all_usable = parts.max() <= USABLE_LIMIT and parts.min() >= -USABLE_LIMIT
    if all_usable:
        return samples
    usable = np.abs(parts) <= USABLE_LIMIT
    return np.where(usable[..., 0::2] & usable[..., 1::2], samples, np.complex64(0))


def sample_quality(samples: NDArray[np.complex64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Level and flags of every receiver in every frame.

    `samples`: complex64, (receivers, n_frames, hop): each frame's new samples.
    Returns levels, float32, (n_frames, receivers): mean |x|^2 in dB, |x| = 1 being 0 dBFS, at least `FLOOR_DBFS`,
    unusable samples counted as zeros; and flags, int32, (n_frames, receivers): INVALID (a sample is NaN or infinite),
    SILENT (every sample is zero), SATURATED (1 % of the samples or more have a part at full scale).
    """
    parts = np.ascontiguousarray(samples).view(np.float32)
    power, flags = (_plain_quality if fast_kernels() is None else _compiled_quality)(parts)
    power = power / np.float32(samples.shape[-1])
    levels = 10.0 * np.log10(np.maximum(power, np.float32(10.0 ** (FLOOR_DBFS / 10.0))))
    return np.ascontiguousarray(levels.T, np.float32), np.ascontiguousarray(flags.T)


def _plain_quality(parts: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Summed power and flags of every frame, whose real and imaginary parts are in the last axis."""
    magnitude = np.abs(parts)
    largest = magnitude.max(axis=-1)
    with np.errstate(over="ignore"):
        power = np.square(magnitude, out=magnitude).sum(axis=-1)
    flags = np.zeros(largest.shape, np.int32)
    suspect = ~((largest < FULL_SCALE) & (largest > 0.0))
    if suspect.any():
        magnitude = np.abs(parts[suspect])
        bad = ~(magnitude <= USABLE_LIMIT)
        magnitude[np.repeat(bad[..., 0::2] | bad[..., 1::2], 2, axis=-1)] = 0.0
        clipped = magnitude >= np.float32(FULL_SCALE)
        saturated = (clipped[..., 0::2] | clipped[..., 1::2]).mean(axis=-1) >= SATURATED_FRACTION
        flags[suspect] = (
            bad.any(axis=-1) * int(SampleFlag.INVALID)
            + (largest[suspect] == 0.0) * int(SampleFlag.SILENT)
            + saturated * int(SampleFlag.SATURATED)
        )
        power[suspect] = np.square(magnitude, out=magnitude).sum(axis=-1)
    return power, flags


LIMIT_BITS, FULL_SCALE_BITS = np.array([USABLE_LIMIT, FULL_SCALE], np.float32).view(np.int32).tolist()


def _compiled_quality(parts: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The same."""
    kernels = fast_kernels()
    assert kernels is not None
    flat = parts.reshape(-1, parts.shape[-1])
    power, flags = np.empty(len(flat), np.float32), np.empty(len(flat), np.int32)
    kernels.frame_quality(
        flat,
        flat.view(np.int32),
        LIMIT_BITS,
        FULL_SCALE_BITS,
        SATURATED_FRACTION * (parts.shape[-1] // 2),
        int(SampleFlag.INVALID),
        int(SampleFlag.SILENT),
        int(SampleFlag.SATURATED),
        power,
        flags,
    )
    return power.reshape(parts.shape[:-1]), flags.reshape(parts.shape[:-1])
