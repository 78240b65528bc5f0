"""Signals as pure functions of the sample index: fixed-size blocks, each drawn from a generator of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from localize_core.phasor import polar

Floats = NDArray[np.float64]
Samples = NDArray[np.complex64]
Item = TypeVar("Item", bound=np.generic)

INDEX_OFFSET = 1 << 62
"""Added to block indices: a propagation delay reaches before sample 0 and seeds cannot be negative."""

HALF_TURN = np.float32(math.pi * 2.0**-31)
UNIT = np.float32(2.0**-31)
NOT_ZERO = np.float32(2.0**-34)


class Purpose(IntEnum):
    """What random numbers are for. Two purposes never share a stream."""

    NOISE = 0
    WAVEFORM = 1
    VOICE = 2
    SHADOWING = 3
    CLOCK_OFFSET = 4
    CLOCK_DRIFT = 5
    TIMING_JITTER = 6
    GAIN = 7
    CARRIER_OFFSET = 8
    CARRIER_DRIFT = 9
    CARRIER_PHASE = 10


def generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """A generator of its own for every (seed, purpose, indices)."""
    entropy = [seed, int(purpose), *(INDEX_OFFSET + index for index in indices)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


def complex_normal(draw: np.random.Generator, count: int, rms: float) -> Samples:
    """Circular complex Gaussian numbers of the given rms magnitude, complex64 (count,), none beyond 4.9 times of it.

    Three times as fast as numpy's own, and simulated IQ is mostly noise. 64 random bits give magnitude and angle.
    Source: Box and Muller 1958.
    """
    parts = draw.bit_generator.random_raw(count).view(np.int32).astype(np.float32)
    power, angle = parts[:count], parts[count:]
    np.abs(power, out=power)
    power *= UNIT
    power += NOT_ZERO
    np.log(power, out=power)
    power *= np.float32(-rms * rms)
    angle *= HALF_TURN
    return polar(np.sqrt(power, out=power), angle)


def gather(block: Callable[[int], NDArray[Item]], size: int, first: int, count: int) -> NDArray[Item]:
    """Items [first, first + count) of a signal that `block(index)` gives in pieces of `size` along the last axis.

    The result is the caller's to write to.
    """
    last = (first + max(count, 1) - 1) // size
    pieces = [
        block(index)[..., max(first - index * size, 0) : max(min(first + count - index * size, size), 0)]
        for index in range(first // size, last + 1)
    ]
    return np.concatenate(pieces, axis=-1)
