from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.types.fix import Position, Uncertainty
from localize_core.wire.ellipse import cut_ring, ellipse_ring
from pyproj import Geod
from shapely.geometry import LinearRing, MultiPolygon, Polygon

GEOD = Geod(ellps="WGS84")
SCALE = math.sqrt(-2.0 * math.log(0.05))  # of semi-axes that hold 95 %

latitudes = st.sampled_from([-90.0, 90.0, 0.0, -89.9999, 89.99]) | st.floats(-90.0, 90.0)
longitudes = st.sampled_from([-180.0, 180.0, -179.9999, 179.99]) | st.floats(-180.0, 180.0)
positions = st.builds(Position, latitudes, longitudes)


@st.composite
def uncertainties(draw: st.DrawFn) -> Uncertainty:
    """Semi-major axes from 1 m to 2000 km."""
    sigma_m = 10.0 ** draw(st.floats(0.0, 6.3)) / SCALE
    ratio = 10.0 ** draw(st.floats(-3.0, 0.0))
    return Uncertainty(sigma_m, ratio * sigma_m, draw(st.sampled_from([0.0, 90.0]) | st.floats(-180.0, 180.0)))


def area(rings: list) -> MultiPolygon:
    return MultiPolygon([Polygon(ring) for ring in rings])


def places(position: Position, uncertainty: Uncertainty, radius: float, angles: np.ndarray) -> tuple:
    """Longitudes and latitudes on the ellipse that is `radius` times as large."""
    theta = math.radians(uncertainty.theta)
    x, y = radius * SCALE * uncertainty.sigma_x * np.cos(angles), radius * SCALE * uncertainty.sigma_y * np.sin(angles)
    east, north = x * math.cos(theta) - y * math.sin(theta), x * math.sin(theta) + y * math.cos(theta)
    return geodesics(position, east, north)


def geodesics(position: Position, east: np.ndarray, north: np.ndarray) -> tuple:
    start = np.full(east.shape, position.longitude), np.full(east.shape, position.latitude)
    return GEOD.fwd(*start, np.degrees(np.arctan2(east, north)), np.hypot(east, north))[:2]


@given(positions, uncertainties())
@settings(max_examples=60, deadline=None)
def test_places_are_as_far_as_the_ellipse_reaches_in_their_direction(position, uncertainty):
    ring = ellipse_ring(position, uncertainty)
    assert ring[0] == ring[-1]
    assert len(ring) >= 65
    longitude, latitude = np.array(ring).T
    start = np.full(longitude.shape, position.longitude), np.full(longitude.shape, position.latitude)
    azimuth, _, distance_m = GEOD.inv(*start, longitude, latitude)
    across = np.radians(azimuth - uncertainty.azimuth_deg)
    from_boundary = np.hypot(
        distance_m * np.cos(across) / (SCALE * uncertainty.sigma_x),
        distance_m * np.sin(across) / (SCALE * uncertainty.sigma_y),
    )
    assert from_boundary == pytest.approx(1.0, abs=2e-3)


@given(positions, uncertainties())
@settings(max_examples=60, deadline=None)
def test_longitudes_are_within_half_a_turn_of_the_centre(position, uncertainty):
    assert all(abs(x - position.longitude) < 180.01 for x, _ in ellipse_ring(position, uncertainty))  # they are rounded


@pytest.mark.parametrize("points", [3, 64, 200])
def test_number_of_places(points):
    ring = ellipse_ring(Position(47.0, 8.0), Uncertainty(100.0, 50.0, 20.0), points)
    assert len(ring) == points + 1
    assert len(set(ring)) == points


def test_fewer_than_three_places_are_refused():
    with pytest.raises(ConfigError, match="points=2"):
        ellipse_ring(Position(47.0, 8.0), Uncertainty(100.0, 50.0, 20.0), 2)


@given(positions, st.floats(3.0, 5.3), st.floats(0.01, 1.0), st.floats(-180.0, 180.0))
@settings(max_examples=60, deadline=None)
def test_encloses_the_area_of_the_ellipse_counter_clockwise(position, exponent, ratio, theta):
    major_m = 10.0**exponent
    ring = ellipse_ring(position, Uncertainty(major_m / SCALE, ratio * major_m / SCALE, theta))
    area_m2, _ = GEOD.polygon_area_perimeter(*np.array(ring).T)
    assert area_m2 == pytest.approx(math.pi * ratio * major_m**2, rel=5e-3)


@pytest.mark.parametrize("radius_m", [1e6, 3e6, 8e6])
@pytest.mark.parametrize("latitude", [0.0, 60.0, -90.0])
def test_area_of_large_circles_is_a_caps(radius_m, latitude):
    ring = ellipse_ring(Position(latitude, 12.0), Uncertainty(radius_m / SCALE, radius_m / SCALE, 0.0))
    area_m2, _ = GEOD.polygon_area_perimeter(*np.array(ring).T)
    earth_m = 6371008.8
    cap_m2 = 2.0 * math.pi * earth_m**2 * (1.0 - math.cos(radius_m / earth_m))
    assert area_m2 == pytest.approx(cap_m2, rel=0.01)  # the Earth is flattened by a 298th


@pytest.mark.parametrize("probability", [0.5, 0.95])
@pytest.mark.parametrize(
    ("latitude", "longitude", "sigma_m"),
    [(47.37, 8.54, 40.0), (-17.0, 179.9, 30e3), (89.9, -120.0, 20e3), (-89.0, 180.0, 200e3)],
)
def test_holds_its_probability(latitude, longitude, sigma_m, probability):
    position, uncertainty = Position(latitude, longitude), Uncertainty(sigma_m, 0.3 * sigma_m, 40.0, probability)
    rng = np.random.default_rng(7)
    east, north = rng.multivariate_normal([0.0, 0.0], uncertainty.covariance_m2, 20_000).T
    inside = shapely.contains_xy(area(cut_ring(ellipse_ring(position, uncertainty))), *geodesics(position, east, north))
    assert inside.mean() == pytest.approx(probability, abs=0.012)


@given(positions, uncertainties())
@settings(max_examples=100, deadline=None)
def test_cut_rings_are_valid_and_hold_what_the_ellipse_holds(position, uncertainty):
    rings = cut_ring(ellipse_ring(position, uncertainty))
    cut = area(rings)
    assert cut.is_valid, shapely.is_valid_reason(cut)
    for ring in rings:
        assert ring[0] == ring[-1]
        assert LinearRing(ring).is_ccw
        assert all(abs(x) <= 180.0 and abs(y) <= 90.0 for x, y in ring)
        assert all(abs(x1 - x0) <= 180.0 or abs(y0) == 90.0 for (x0, y0), (x1, _) in pairwise(ring))
    angles = np.linspace(0.0, 2.0 * math.pi, 50)
    assert shapely.covers(cut, shapely.points(position.longitude, position.latitude))
    assert shapely.intersects_xy(cut, *places(position, uncertainty, 0.95, angles)).all()
    assert not shapely.intersects_xy(cut, *places(position, uncertainty, 1.05, angles)).any()


def test_away_from_the_antimeridian_nothing_is_cut():
    ring = ellipse_ring(Position(47.0, 8.0), Uncertainty(100.0, 50.0, 20.0))
    assert cut_ring(ring) == [ring]


def test_across_the_antimeridian_there_are_two_parts():
    east, west = cut_ring(ellipse_ring(Position(-17.0, 180.0), Uncertainty(1000.0, 500.0, 20.0)))
    if east[0][0] < 0.0:
        east, west = west, east
    assert max(x for x, _ in east) == 180.0
    assert min(x for x, _ in west) == -180.0
    assert {y for x, y in east if x == 180.0} == {y for x, y in west if x == -180.0}
    assert Polygon(east).area == pytest.approx(Polygon(west).area, rel=0.02)


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_round_a_pole_the_ring_runs_along_the_edge_of_the_map(pole):
    (ring,) = cut_ring(ellipse_ring(Position(pole, 20.0), Uncertainty(1000.0, 1000.0, 0.0)))
    assert {(-180.0, pole), (180.0, pole)} < set(ring)
    west, south, east, north = Polygon(ring).bounds
    assert (west, east) == (-180.0, 180.0)
    assert (north if pole > 0.0 else south) == pole


@pytest.mark.parametrize("longitude", [-180.0, 180.0])
def test_ring_that_touches_the_antimeridian_is_not_cut(longitude):
    inwards = -math.copysign(1.0, longitude)
    ring = [(longitude, 10.0), (longitude + inwards, 11.0), (longitude + 2 * inwards, 10.0), (longitude + inwards, 9.0)]
    ring = ring if inwards < 0.0 else ring[::-1]
    (cut,) = cut_ring([*ring, ring[0]])
    assert Polygon(cut).equals(Polygon(ring))


def test_ring_that_bulges_over_the_antimeridian_twice_has_a_part_for_each_bulge():
    ring = [(170, 0), (185, 0), (185, 4), (175, 4), (175, 6), (185, 6), (185, 10), (170, 10), (170, 0)]
    cut = area(cut_ring([(float(x), float(y)) for x, y in ring]))
    assert cut.is_valid
    assert len(cut.geoms) == 3
    assert cut.area == Polygon(ring).area


def test_what_covers_more_than_half_the_earth_is_drawn_as_half():
    position = Position(47.0, 8.0)
    ring = ellipse_ring(position, Uncertainty(1e9, 1e8, 30.0))
    area_m2, _ = GEOD.polygon_area_perimeter(*np.array(ring).T)
    assert area_m2 == pytest.approx(2.55e14, rel=0.01)
    assert area(cut_ring(ring)).is_valid


def test_what_is_smaller_than_a_millimetre_is_drawn_as_one():
    ring = ellipse_ring(Position(47.0, 179.99999999), Uncertainty(1e-9, 1e-12, 30.0))
    assert [GEOD.inv(179.99999999, 47.0, *place)[2] for place in ring] == pytest.approx([1e-3] * 65, rel=0.01)
    assert area(cut_ring(ring)).is_valid


def test_places_have_no_more_digits_than_the_ellipse_needs():
    ring = ellipse_ring(Position(47.123456789012, 8.0), Uncertainty(5000.0, 4000.0, 0.0))  # 1e-4 of a degree is 11 m
    assert ring == [(round(x, 5), round(y, 5)) for x, y in ring]
