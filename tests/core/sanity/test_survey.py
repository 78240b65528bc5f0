"""What is said of a station's geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from localize_core.model.compiled.spec import Area
from localize_core.sanity.survey import remarks, survey

AREA = Area(south=44.98, west=6.975, north=45.02, east=7.025)
RING = [(0.0, 5000.0), (5000.0, 0.0), (0.0, -5000.0), (-5000.0, 0.0)]


def kinds(geometry, area: Area = AREA, altitudes=None) -> dict[str, str]:
    told = remarks(geometry, area, np.zeros(len(geometry.names)) if altitudes is None else np.array(altitudes))
    return {remark.kind: remark.message for remark in told}


def test_a_sound_station(make_geometry) -> None:
    (only,) = remarks(make_geometry(RING), AREA, np.zeros(4))
    assert (only.kind, only.fix) == ("geometry", None)
    found = survey(make_geometry(RING), AREA)
    assert 1.0 <= found.median <= found.p90 < 1.5
    assert (found.poor, found.mirrored) == (0.0, 0.0)
    assert found.error_m == pytest.approx(3.0 * found.median, rel=0.02)  # 3 m is what each receiver is off


def test_a_line_has_mirror_images(make_geometry) -> None:
    told = kinds(make_geometry([(-4000.0, 0.0), (0.0, 50.0), (4000.0, 0.0), (7000.0, -40.0)]))
    assert {"collinear", "ambiguous"} <= told.keys()
    assert "mirror image" in told["collinear"]


def test_a_line_beside_the_area_has_none(make_geometry) -> None:
    told = kinds(make_geometry([(-4000.0, -4000.0), (0.0, -4000.0), (4000.0, -4000.0)]))
    assert "collinear" in told
    assert "ambiguous" not in told


def test_an_area_outside(make_geometry) -> None:
    told = kinds(make_geometry(RING), Area(south=45.5, west=6.9, north=45.7, east=7.1))
    assert {"outside", "hdop"} <= told.keys()


def test_two_receivers_at_nearly_the_same_place(make_geometry) -> None:
    told = kinds(make_geometry([*RING, (5010.0, 20.0)]))
    assert "east and middle stand 22 m apart" in told["close"]


def test_a_cluster(make_geometry) -> None:
    told = kinds(make_geometry([(0.0, 600.0), (600.0, 0.0), (-500.0, -500.0), (6000.0, 3000.0)]))
    assert "all receivers but west" in told["clustered"]


def test_a_height_that_was_forgotten(make_geometry) -> None:
    told = kinds(make_geometry(RING), altitudes=[500.0, 0.0, 520.0, 540.0])
    assert told["altitude"].startswith("east has altitude_m = 0")
    assert "altitude" not in kinds(make_geometry(RING), altitudes=[50.0, 0.0, 20.0, 40.0])


@pytest.mark.parametrize(("receivers", "kind"), [(2, "receivers"), (3, "geometry")])
def test_few_receivers(make_geometry, receivers: int, kind: str) -> None:
    told = kinds(make_geometry([(0.0, 5000.0), (5000.0, -3000.0), (-5000.0, -3000.0)][:receivers]))
    assert list(told)[-1] == kind
    assert "fourth" in told[kind] or receivers == 2


def test_figures_without_bound(make_geometry) -> None:
    found = survey(make_geometry([(-4000.0, 0.0), (0.0, 0.0), (4000.0, 0.0)]), AREA)
    assert math.isfinite(found.median)
    assert found.mirrored > 0.3
