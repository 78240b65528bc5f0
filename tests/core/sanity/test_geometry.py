"""Dilution of precision, against closed forms and against what errors really do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.propagation import path_delay
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.raim import solve

SQUARE = [(0.0, 5000.0), (5000.0, 0.0), (0.0, -5000.0), (-5000.0, 0.0)]


@pytest.mark.parametrize("receivers", [3, 4, 6])
def test_hdop_in_the_middle_of_a_ring(make_geometry, receivers: int) -> None:
    # Unit vectors round a circle: G'G = n/2 I without common part, so that HDOP² = 2 · 2/n.
    angle = 2.0 * np.pi * np.arange(receivers) / receivers
    geometry = make_geometry(np.column_stack([np.cos(angle), np.sin(angle)]) * 5000.0)
    assert geometry.hdop(np.zeros(2)) == pytest.approx(math.sqrt(4.0 / receivers), rel=1e-4)


def test_hdop_is_that_of_differences(make_geometry) -> None:
    geometry = make_geometry([(0.0, 4000.0), (5000.0, 100.0), (-300.0, -5000.0), (-4500.0, 700.0)])
    place = np.array([1200.0, -800.0])
    slopes = geometry.slopes(place)
    for reference in range(4):
        difference = np.delete(np.eye(4), reference, axis=0)
        difference[:, reference] = -1.0
        jacobian = difference @ slopes
        expected = np.linalg.inv(jacobian.T @ np.linalg.inv(difference @ difference.T) @ jacobian)
        assert geometry.hdop(place) == pytest.approx(math.sqrt(np.trace(expected)), rel=1e-9)


def test_hdop_and_bound_are_what_errors_do(make_geometry) -> None:
    geometry = make_geometry([(0.0, 4000.0), (5000.0, 100.0), (-300.0, -5000.0), (-4500.0, 700.0)], sigma_m=2.0)
    place, rng = np.array([1200.0, -800.0]), np.random.default_rng(1)
    arrivals = geometry.expected_m(place) + 2.0 * rng.standard_normal((4000, 4))
    covariance = np.broadcast_to(4.0 * np.eye(4), (4000, 4, 4))
    error = solve(geometry, arrivals, covariance, np.tile(place, (4000, 1))).places_m - place
    assert np.sqrt(np.square(error).sum(axis=1).mean()) == pytest.approx(2.0 * geometry.hdop(place), rel=0.03)
    assert np.cov(error.T) == pytest.approx(geometry.covariance_m2(place), rel=0.1, abs=0.2)


def test_receivers_that_are_not_used_do_not_count(make_geometry) -> None:
    geometry, three = make_geometry(SQUARE), make_geometry(SQUARE[:3])
    place = np.array([500.0, 900.0])
    assert geometry.hdop(place, np.array([True, True, True, False])) == pytest.approx(three.hdop(place), rel=1e-12)
    assert math.isinf(geometry.hdop(place, np.array([True, True, False, False])))


def test_receivers_in_a_line_know_no_distance_on_it(make_geometry) -> None:
    line = make_geometry([(-5000.0, 0.0), (0.0, 0.0), (5000.0, 0.0)])
    assert line.hdop(np.array([20_000.0, 0.0])) > 1e3


def test_far_away_it_grows_with_the_square_of_the_distance(make_geometry) -> None:
    geometry = make_geometry(SQUARE)
    near, far = geometry.hdop(np.array([[100e3, 0.0], [200e3, 0.0]]))
    assert far / near == pytest.approx(4.0, rel=0.05)


def test_geometry_of_a_contract(make_contract) -> None:
    contract = make_contract(3)
    geometry = ArrivalGeometry.of_contract(contract)
    assert geometry is not None
    assert geometry.names == tuple(receiver.name for receiver in contract.receivers)
    assert geometry.sigma_m == pytest.approx(np.full(3, 100e-9 * SPEED_OF_LIGHT_MPS))
    assert geometry.path == path_delay(contract.frequency_hz or 1e9)
    latitude = [receiver.latitude for receiver in contract.receivers]
    longitude = [receiver.longitude for receiver in contract.receivers]
    back = geometry.frame.to_geodetic(geometry.receivers_m)
    assert back[0] == pytest.approx(latitude, abs=1e-9)
    assert back[1] == pytest.approx(longitude, abs=1e-9)
