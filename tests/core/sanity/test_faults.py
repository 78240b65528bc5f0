"""Faults of simulated stations: found in time, in the right receiver, and not where there are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from localize_benchmarks.sanity import Run, watch
from localize_core.sanity.faults import Block, FaultFinder
from localize_core.sanity.geometry import ArrivalGeometry

STATIONS = 2
EVERY = 2
"""Blocks from one look to the next."""
MakeGeometry = Callable[..., ArrivalGeometry]


def runs(fault: str, receivers: int, *, moving: bool, windows: int = 480, stations: int = STATIONS) -> list[Run]:
    return [
        watch(
            [7, receivers, moving, station],
            receivers=receivers,
            windows=windows,
            fault=fault,
            moving=moving,
            looks_every=EVERY,
        )
        for station in range(stations)
    ]


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("receivers", [4, 6])
def test_no_false_alarm(receivers: int, moving: bool) -> None:
    for run in runs("none", receivers, moving=moving):
        assert len(run.diagnoses) == 30
        assert not run.shown
        assert all(each.fault is None for each in run.diagnoses)
        assert run.diagnoses[-1].probability > 1e-3


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("receivers", [4, 6])
def test_a_jump_of_a_microsecond(receivers: int, moving: bool) -> None:
    for run in runs("jump", receivers, moving=moving):
        assert run.windows[run.shown[0]] - 240 <= 48
        fault = run.diagnoses[-1].fault
        assert fault is not None
        assert (fault.kind, fault.receivers) == ("clock_jump", (run.faulty,))
        assert abs(fault.size[0] - 1000.0) < 5.0 * fault.sigma < 300.0
        assert fault.since_s == pytest.approx(120.0, abs=5.0)


@pytest.mark.parametrize("receivers", [4, 6])
def test_a_jump_that_is_mended_is_over(receivers: int) -> None:
    for run in runs("mended", receivers, moving=True):
        assert run.shown
        assert run.diagnoses[-1].fault is None


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("receivers", [4, 6])
def test_a_drift_of_five_nanoseconds_a_second(receivers: int, moving: bool) -> None:
    for run in runs("drift", receivers, moving=moving):
        assert run.windows[run.shown[0]] <= 320
        fault = run.diagnoses[-1].fault
        assert fault is not None
        assert fault.kind == "clock_drift"
        assert run.faulty in fault.receivers
        if receivers == 6:
            assert fault.receivers == (run.faulty,)
            assert fault.size[0] == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize("moving", [False, True])
def test_a_constant_offset(moving: bool) -> None:
    for run in runs("offset", 6, moving=moving):
        assert run.windows[run.shown[0]] <= 64
        fault = run.diagnoses[-1].fault
        assert fault is not None
        assert (fault.kind, fault.receivers) == ("clock_offset", (run.faulty,))
        assert abs(fault.size[0] - 1000.0) < 5.0 * fault.sigma
        bias = run.diagnoses[-1].biases[run.faulty]
        assert bias is not None
        assert abs(bias.bias_ns - 1000.0) < 5.0 * bias.sigma_ns


def test_four_receivers_and_an_emitter_that_stands_do_not_tell_whose_it_is() -> None:
    for run in runs("offset", 4, moving=False):
        fault = run.diagnoses[-1].fault
        assert fault is not None
        assert len(fault.receivers) > 1
        assert run.faulty in fault.receivers


def test_wrong_coordinates_of_300_metres() -> None:
    for run in runs("place", 6, moving=True, windows=960):
        fault = run.diagnoses[-1].fault
        assert fault is not None
        assert (fault.kind, fault.receivers) == ("position_suspect", (run.faulty,))
        assert abs(fault.magnitude - 300.0) < 5.0 * fault.sigma < 200.0


def test_wrong_coordinates_look_like_an_offset_where_the_emitter_stands() -> None:
    for run in runs("place", 6, moving=False):
        kinds = {each.fault.kind for each in run.diagnoses if each.fault is not None}
        assert kinds <= {"clock_offset"}


def test_three_receivers_tell_nothing(make_geometry: MakeGeometry) -> None:
    geometry = make_geometry([(0.0, 5000.0), (5000.0, -2000.0), (-5000.0, -2000.0)])
    finder = FaultFinder(geometry)
    for k in range(8):
        residual = np.array([500.0, 0.0, -500.0])
        finder.add(Block(float(k), np.zeros(2), residual, np.eye(3), 8))
    found = finder.diagnose()
    assert (found.fault, found.biases, found.freedom) == (None, (None,) * 3, 0)


def test_before_the_first_block_there_is_nothing_to_tell(make_geometry: MakeGeometry) -> None:
    finder = FaultFinder(make_geometry([(0.0, 5000.0), (5000.0, 0.0), (0.0, -5000.0), (-5000.0, 0.0)]))
    assert finder.diagnose().fault is None
    assert finder.diagnose().probability == 1.0
