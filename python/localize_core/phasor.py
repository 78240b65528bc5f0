"""Turning carriers: complex exponentials in single precision, of phases in double."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Samples = NDArray[np.complex64]


def phasor(cycles: Floats) -> Samples:
    """exp(2 pi j cycles): complex64, reduced to half a turn in double precision first."""
    turn = (cycles - np.rint(cycles)).astype(np.float32)
    turn *= np.float32(2.0 * math.pi)
    return polar(np.float32(1.0), turn)


def polar(magnitude: NDArray[np.float32] | np.float32, angle: NDArray[np.float32]) -> Samples:
    """magnitude exp(j angle): complex64, `angle` in radians, small."""
    result = np.empty(angle.shape, np.complex64)
    part = np.cos(angle)
    np.multiply(magnitude, part, out=result.real)
    np.multiply(magnitude, np.sin(angle, out=part), out=result.imag)
    return result
