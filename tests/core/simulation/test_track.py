from __future__ import annotations

import numpy as np
import pytest
from localize_core.simulation.track import Track, distance_m
from pyproj import Geod, Transformer

GEOD = Geod(ellps="WGS84")
SQUARE = [(47.0, 8.0), (47.01, 8.0), (47.01, 8.02), (47.0, 8.02)]


def test_constant_speed_on_every_leg():
    track = Track(SQUARE, speed_mps=20.0, loop=True)
    time_s = np.arange(0.0, 2.0 * track.length_m / 20.0, 1.0)
    latitude, longitude = track.position(time_s)
    steps_m = GEOD.inv(longitude[:-1], latitude[:-1], longitude[1:], latitude[1:])[2]
    straight = steps_m > 19.9  # a step round a corner is shorter
    np.testing.assert_allclose(steps_m[straight], 20.0, atol=0.02)
    assert (~straight).sum() <= 8


def test_loop_returns_and_repeats():
    track = Track(SQUARE, speed_mps=20.0, loop=True)
    lap_s = track.length_m / 20.0
    np.testing.assert_allclose(
        track.position(np.array([0.0, lap_s + 33.0])),
        [[47.0, track.position(33.0)[0]], [8.0, track.position(33.0)[1]]],
        atol=1e-9,
    )


def test_without_loop_it_stops_at_the_end():
    track = Track(SQUARE, speed_mps=20.0, loop=False)
    np.testing.assert_allclose(np.ravel(track.position(np.array([-5.0, 1e6]))), [47.0, 47.0, 8.0, 8.02])


def test_one_point_stands_still():
    track = Track([(1.0, 2.0)], speed_mps=20.0, loop=True)
    assert not track.moving
    assert [float(value) for value in track.position(np.float64(77.0))] == [1.0, 2.0]


def test_across_the_antimeridian():
    track = Track([(0.0, 179.99), (0.0, -179.99)], speed_mps=GEOD.inv(179.99, 0, -179.99, 0)[2], loop=False)
    assert track.position(np.float64(0.75))[1] == pytest.approx(-179.995)


def test_distance_is_the_straight_line_nearby():
    to_ecef = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    far_latitude = np.array([47.0, 47.05, 47.2])
    far_longitude = np.array([8.0001, 8.1, 8.2])
    here = np.array(to_ecef.transform(8.0, 47.0, 1200.0))
    there = np.array(to_ecef.transform(far_longitude, far_latitude, np.full(3, 400.0)))
    straight_m = np.linalg.norm(there - here[:, None], axis=0)
    measured_m = distance_m(far_latitude, far_longitude, 400.0, tuple(np.array([47.0, 8.0, 1200.0])))
    np.testing.assert_allclose(measured_m, straight_m, atol=0.1)


def test_distance_is_the_geodesic_far_away():
    path_m = distance_m(np.array([50.0152]), np.array([9.0112]), 0.0, tuple(np.array([46.499351, 8.798828, 0.0])))
    assert path_m[0] == pytest.approx(GEOD.inv(9.0112, 50.0152, 8.798828, 46.499351)[2])
