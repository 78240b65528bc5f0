"""Stations of simple shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from localize_core.geodesy import LocalFrame
from localize_core.model.compiled.propagation import PathDelay
from localize_core.sanity.geometry import ArrivalGeometry


@pytest.fixture
def make_geometry() -> Callable[..., ArrivalGeometry]:
    """A maker of geometries of receivers at (east, north) or (east, north, up)."""

    def make(places: Sequence[Sequence[float]], *, sigma_m: float = 3.0, path_m: float = 0.0) -> ArrivalGeometry:
        xyz = np.array([(*place, 0.0)[:3] for place in places], float)
        return ArrivalGeometry(
            names=("north", "east", "south", "west", "middle", "far")[: len(places)],
            receivers_m=xyz,
            sigma_m=np.full(len(places), sigma_m),
            frame=LocalFrame(45.0, 7.0),
            along_surface=False,
            path=PathDelay(path_m),
        )

    return make
