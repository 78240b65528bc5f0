"""How much later than light a signal arrives, and how sure that is, by carrier frequency and distance.

Above 30 MHz the path is the straight line. Below, a ground wave follows the surface and a sky wave bounces off the
ionosphere; what a receiver sees is a mixture whose sky share grows with distance. The mixture's mean and variance
are all that a likelihood over arrival times needs. Heights follow ITU-R P.684 (70 km by day to 90 km by night at
LF) and P.533 (E and F layers at MF and HF). The crossover at LF is the middle of the 600 to 1100 km in which
PTB finds ground and sky wave of DCF77 equally strong; the others are round figures for average ground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PathDelay:
    """Excess path length over straight travel, in metres, as a function of distance.

    `crossover_m`: distance of equal ground and sky share (0: no sky wave). `height_m`, `height_sigma_m`: the
    reflecting layer. `floor_sigma_m`: standard deviation that is there at any distance.
    """

    floor_sigma_m: float
    crossover_m: float = 0.0
    height_m: float = 0.0
    height_sigma_m: float = 0.0

    def moments(self, distance_m: Any, sqrt: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Mean (m) and variance (m²) of the excess at `distance_m`.

        Written for NumPy arrays and for graph variables alike: `sqrt` is the square root of their kind.
        """
        if self.crossover_m == 0.0:
            return distance_m * 0.0, distance_m * 0.0 + self.floor_sigma_m**2
        ratio = distance_m * (1.0 / self.crossover_m)
        fourth_power = (ratio * ratio) * (ratio * ratio)
        sky = fourth_power / (fourth_power + 1.0)
        slant = sqrt(distance_m * distance_m * 0.25 + self.height_m**2)
        excess = slant * 2.0 - distance_m
        height_effect = (2.0 * self.height_m * self.height_sigma_m) / slant
        mean = sky * excess
        variance = sky * (1.0 - sky) * excess * excess + (sky * height_effect) * (sky * height_effect)
        return mean, variance + self.floor_sigma_m**2


def along_surface(frequency_hz: float) -> bool:
    """Whether waves of this frequency follow the ground rather than the straight line."""
    return frequency_hz < 30e6


def path_delay(frequency_hz: float) -> PathDelay:
    """The default for a carrier frequency."""
    if frequency_hz < 30e3:  # waveguide between ground and D layer
        return PathDelay(floor_sigma_m=600.0, crossover_m=2_000e3, height_m=75e3, height_sigma_m=10e3)
    if frequency_hz < 500e3:
        return PathDelay(floor_sigma_m=300.0, crossover_m=850e3, height_m=80e3, height_sigma_m=10e3)
    if frequency_hz < 3e6:
        return PathDelay(floor_sigma_m=150.0, crossover_m=200e3, height_m=105e3, height_sigma_m=10e3)
    if frequency_hz < 30e6:
        return PathDelay(floor_sigma_m=60.0, crossover_m=80e3, height_m=250e3, height_sigma_m=60e3)
    # Reflections and blocked lines of sight of an open site; streets need a learned model.
    return PathDelay(floor_sigma_m=15.0)
