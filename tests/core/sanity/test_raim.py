"""Least squares and its test of agreement, on arrival times that are known and on measured ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from localize_benchmarks.sanity_measured import message_of
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.raim import Solutions, solve
from scipy.stats import kstest

FIVE = [(0.0, 5000.0), (5000.0, 1000.0), (3000.0, -4000.0), (-4000.0, -3000.0), (-4500.0, 2500.0)]
PLACE = np.array([700.0, -400.0])
FAR_OFF = 1e-3
"""Probability below which receivers are said to disagree."""


def without_each(
    geometry: ArrivalGeometry, arrivals_m: np.ndarray, covariance_m2: np.ndarray, start_m: np.ndarray
) -> list[Solutions]:
    """The same without each receiver in turn. Residuals of the one left out are NaN."""
    found = []
    for receiver in range(arrivals_m.shape[1]):
        rest = arrivals_m.copy()
        rest[:, receiver] = np.nan
        found.append(solve(geometry, rest, covariance_m2, start_m))
    return found


def solved(geometry: ArrivalGeometry, arrivals_m: np.ndarray, sigma_m: float) -> tuple[Solutions, list[Solutions]]:
    count, receivers = arrivals_m.shape
    covariance = np.broadcast_to(sigma_m**2 * np.eye(receivers), (count, receivers, receivers))
    start = np.tile(geometry.receivers_m[:, :2].mean(axis=0), (count, 1))
    return solve(geometry, arrivals_m, covariance, start), without_each(geometry, arrivals_m, covariance, start)


def test_agreement_is_chi_square(make_geometry) -> None:
    geometry, rng = make_geometry(FIVE), np.random.default_rng(2)
    whole, without = solved(geometry, geometry.expected_m(PLACE) + 2.0 * rng.standard_normal((2000, 5)), 2.0)
    assert (whole.freedom == 2).all()
    assert kstest(whole.probability, "uniform").pvalue > 0.01
    for each in without:
        assert (each.freedom == 1).all()
        assert kstest(each.probability, "uniform").pvalue > 0.001


@pytest.mark.parametrize("faulty", range(5))
def test_the_set_without_the_faulty_receiver_agrees(make_geometry, faulty: int) -> None:
    geometry, rng = make_geometry(FIVE), np.random.default_rng(3)
    arrivals = geometry.expected_m(PLACE) + 2.0 * rng.standard_normal((50, 5))
    arrivals[:, faulty] += 300.0  # a microsecond
    whole, without = solved(geometry, arrivals, 2.0)
    assert (whole.probability < 1e-6).all()
    best = np.argmax([each.probability for each in without], axis=0)
    assert (best == faulty).mean() == 1.0
    error = np.linalg.norm(without[faulty].places_m - PLACE, axis=1)
    assert np.median(error) < 10.0 < np.median(np.linalg.norm(whole.places_m - PLACE, axis=1))


def test_three_receivers_agree_on_anything(make_geometry) -> None:
    geometry = make_geometry(FIVE)
    late = geometry.expected_m(PLACE) + np.array([300.0, 0.0, 0.0, 0.0, 0.0])
    arrivals = np.where(np.arange(5) < 3, late, np.nan)[None]
    whole, _ = solved(geometry, arrivals, 2.0)
    assert whole.freedom[0] == 0
    assert whole.probability[0] == 1.0
    assert np.isnan(whole.residuals_m[0, 3:]).all()
    assert np.abs(whole.residuals_m[0, :3]).max() < 0.1


def test_measured_arrival_times(data_dir: Path) -> None:
    folder = data_dir / "locards"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    with (folder / "sensors.csv").open() as file:
        sensors = {
            int(row["serial"]): [float(row[key]) for key in ("latitude", "longitude", "height")]
            for row in csv.DictReader(file)
        }
    with (folder / "set_1.csv").open() as file:
        rows = list(csv.DictReader(file))[:60]
    rng = np.random.default_rng(4)
    error, sound, broken, named, held = [], [], [], [], []
    for row in rows:
        geometry, arrivals_m, truth = message_of(row, sensors)
        arrivals = arrivals_m[None]
        whole, _ = solved(geometry, arrivals, 35.0)
        error.append(float(np.linalg.norm(whole.places_m[0] - truth)))
        sound.append(whole.probability[0])
        faulty = int(rng.integers(len(arrivals_m)))
        arrivals[0, faulty] += 5e-6 * SPEED_OF_LIGHT_MPS
        whole, without = solved(geometry, arrivals, 35.0)
        broken.append(whole.probability[0])
        agreement = np.array([each.probability[0] for each in without])
        named.append(int(agreement.argmax()) == faulty)
        held.append(agreement[faulty] > FAR_OFF)
    assert np.median(error) < 80.0
    assert np.mean(np.array(sound) < FAR_OFF) < 0.05
    assert np.mean(np.array(broken) < FAR_OFF) > 0.9
    assert np.mean(named) > 0.6
    assert np.mean(held) > 0.9
