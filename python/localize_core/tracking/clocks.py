"""What of a fix's variance is the clocks' and the paths', which the next window has as well."""

from __future__ import annotations

import numpy as np

from localize_core.evaluation.bound import position_bound, squared_bound_m2
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.station.config import Station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position, Uncertainty

MOST = 0.98
"""Something in a fix is always new."""
CELLS = 32
SNR_DB = 80.0
DURATION_S = 1e6


class ClockShare:
    """The part of a fix's variance that would be left without noise, 0 to MOST, for a compiled model of `spec`.

    Windows see the same clocks, and emitters that stay nearby the same paths. The rest of a fix's variance is noise.
    What is left is worked out once, for a grid of the area.
    """

    def __init__(self, spec: LikelihoodSpec) -> None:
        frame = spec.area.frame
        self._area = spec.area
        latitude, longitude = spec.area.grid(CELLS)
        places_m = frame.to_enu_m(latitude, longitude, frame.altitude_m)[:, :2]
        bound = position_bound(
            spec,
            places_m,
            np.full((len(places_m), len(spec.receivers)), SNR_DB),
            np.full(len(places_m), spec.sample_rate_hz),
            duration_s=DURATION_S,
        )
        self._left_m2 = squared_bound_m2(bound.with_area_m2).reshape(CELLS, CELLS)

    def __call__(self, position: Position, uncertainty: Uncertainty) -> float:
        area = self._area
        north = (position.latitude - area.south) / (area.north - area.south)
        east = (position.longitude - area.west + 180.0) % 360.0 - 180.0
        row, column = (min(max(int(share * CELLS), 0), CELLS - 1) for share in (north, east / (area.east - area.west)))
        whole_m2 = uncertainty.sigma_x**2 + uncertainty.sigma_y**2
        return float(min(self._left_m2[row, column] / whole_m2, MOST))


def clock_share(station: Station) -> ClockShare | None:
    """That of a station whose model is compiled and measures arrival times; None of any other."""
    if station.model.uri != "compiled":
        return None
    spec = plan_station(station).spec
    return ClockShare(spec) if spec.timing is not None else None
