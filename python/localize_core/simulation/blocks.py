"""Signals as pure functions of the sample index: fixed-size blocks, each drawn from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", bound=np.generic)

INDEX_OFFSET = 1 << 62
"""Added to block indices: a propagation delay reaches before sample 0 and seeds cannot be negative."""


class Purpose(IntEnum):
    """What random numbers are for. Two purposes never share a stream."""

    NOISE = 0
    WAVEFORM = 1
    VOICE = 2
    SHADOWING = 3
    TIMING = 4


def generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """A generator of its own for every (seed, purpose, indices)."""
    entropy = [seed, int(purpose), *(INDEX_OFFSET + index for index in indices)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


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
