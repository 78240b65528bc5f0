"""Smooth Gaussian random functions of time or place."""

from __future__ import annotations

import math

import numpy as np

from localize_core.simulation.blocks import Floats, Purpose, generator

WAVES = 64


class SmoothField:
    """A Gaussian random function of unit variance, correlated as exp(-d^2) over the scaled distance d.

    A sum of plane waves with random directions and phases (spectral representation, Shinozuka & Deodatis 1991).
    """

    def __init__(self, seed: int, purpose: Purpose, index: int, dimensions: int) -> None:
        draw = generator(seed, purpose, index)
        self._waves = draw.standard_normal((WAVES, dimensions)) * math.sqrt(2.0)
        self._phases = draw.uniform(0.0, 2.0 * math.pi, WAVES)

    def __call__(self, place: Floats) -> Floats:
        """`place`: (..., dimensions). Returns (...)."""
        result: Floats = math.sqrt(2.0 / WAVES) * np.cos(place @ self._waves.T + self._phases).sum(axis=-1)
        return result
