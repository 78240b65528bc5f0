"""Faults of clocks and coordinates: how soon they are found, in whom, and how often where there are none.

    python benchmarks/sanity.py [--stations 20] [--windows 1200] [--seed 1] [--json]

Stations are drawn anew: receivers, clocks as good as they are said to be (half of the variance constant, half wandering
over half a minute), paths that add errors of their own at every place, and an emitter that stands or drives. Arrival
times are made here, the windows' noise is 10 ns, two windows a second; what follows is the station's own way from
arrival times to faults. `right`: the faulty receiver is the first that is named; `alone`: no other is named beside it;
`held`: it is among those that are named.

These errors are nearly those that sanity assumes. Those of sanity_iq.py are not; sanity_measured.py has measured ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
from localize_benchmarks.figures import row_line
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.compiled.propagation import PathDelay
from localize_core.sanity.faults import Diagnosis, FaultFinder
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.monitor import APPEAR, BLOCK_WINDOWS, Sample, mean_block
from localize_core.sanity.raim import solve

M_PER_NS = SPEED_OF_LIGHT_MPS * 1e-9
APART_S = 0.5
NOISE_NS = 10.0
CLOCK_NS = 20.0
PATH_M = 5.0
WANDER_S = 30.0
PATH_LENGTH_M = 300.0
FAULTS = ("none", "jump", "mended", "drift", "offset", "place")
KINDS = {
    "jump": "clock_jump",
    "mended": "clock_jump",
    "drift": "clock_drift",
    "offset": "clock_offset",
    "place": "position_suspect",
}


@dataclass(frozen=True)
class Run:
    """Diagnoses of one station, and the windows after which each was made; the faulty receiver is number `faulty`."""

    diagnoses: tuple[Diagnosis, ...]
    windows: tuple[int, ...]
    faulty: int

    @property
    def shown(self) -> list[int]:
        """Indices of diagnoses by which a fault has been there often enough to be reported."""
        found = [each.fault is not None for each in self.diagnoses]
        return [k for k in range(APPEAR - 1, len(found)) if all(found[k - APPEAR + 1 : k + 1])]


def random_station(rng: np.random.Generator, receivers: int) -> ArrivalGeometry:
    """Receivers round an area of about 10 km, none in the sector of another."""
    angle = np.linspace(0.0, 2.0 * np.pi, receivers, endpoint=False) + rng.uniform(
        0.0, 0.7 * 2.0 * np.pi / receivers, receivers
    )
    distance = rng.uniform(5e3, 9e3, receivers)
    places = np.column_stack([distance * np.cos(angle), distance * np.sin(angle), rng.uniform(0.0, 300.0, receivers)])
    return ArrivalGeometry(
        names=tuple(f"r{k}" for k in range(receivers)),
        receivers_m=places,
        sigma_m=np.full(receivers, CLOCK_NS * M_PER_NS),
        frame=LocalFrame(45.0, 7.0),
        along_surface=False,
        path=PathDelay(PATH_M),
    )


def emitter_m(rng: np.random.Generator, times_s: np.ndarray, *, moving: bool) -> np.ndarray:
    """Its places, (n, 2): one, or round a circle at 15 m/s."""
    middle = rng.uniform(-1500.0, 1500.0, 2)
    if not moving:
        return np.tile(middle, (len(times_s), 1))
    radius_m = rng.uniform(1000.0, 2500.0)
    angle = 15.0 / radius_m * times_s + rng.uniform(0.0, 2.0 * np.pi)
    return middle + radius_m * np.column_stack([np.cos(angle), np.sin(angle)])


def _smooth(rng: np.random.Generator, at: np.ndarray, length: float) -> np.ndarray:
    """A random function of unit variance that changes over `length`, at points (n, d): (n,)."""
    waves = rng.standard_normal((64, at.shape[1])) / length
    phase = rng.uniform(0.0, 2.0 * np.pi, 64)
    return np.sqrt(2.0 / 64.0) * np.cos(at @ waves.T + phase).sum(axis=1)


def watch(
    seed: Sequence[int],
    *,
    receivers: int,
    windows: int,
    fault: str,
    moving: bool,
    jump_ns: float = 1000.0,
    drift_ns_per_s: float = 5.0,
    place_m: float = 300.0,
    looks_every: int = 1,
) -> Run:
    """One station for so many windows, with a look after every so many blocks.

    A jump comes after half of the windows, one that is mended after a third, and goes after two; other faults are there
    from the first.
    """
    rng = np.random.default_rng(seed)
    geometry = random_station(rng, receivers)
    times_s = APART_S * np.arange(windows)
    places_m = emitter_m(rng, times_s, moving=moving)
    faulty = int(rng.integers(receivers))
    lengths_m = geometry.lengths_m(places_m)
    if fault == "place":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        moved = geometry.receivers_m.copy()
        moved[faulty, :2] += place_m * np.array([np.cos(angle), np.sin(angle)])
        up = np.zeros((windows, 1))
        lengths_m = np.linalg.norm(np.hstack([places_m, up])[:, None] - moved, axis=-1)
    arrivals_m = lengths_m + NOISE_NS * M_PER_NS * rng.standard_normal((windows, receivers))
    for receiver in range(receivers):
        constant, wander = np.sqrt(0.5) * rng.standard_normal(), np.sqrt(0.5) * _smooth(rng, times_s[:, None], WANDER_S)
        arrivals_m[:, receiver] += CLOCK_NS * M_PER_NS * (constant + wander)
        arrivals_m[:, receiver] += PATH_M * _smooth(rng, places_m, PATH_LENGTH_M)
    if fault == "jump":
        arrivals_m[windows // 2 :, faulty] += jump_ns * M_PER_NS
    elif fault == "mended":
        arrivals_m[windows // 3 : 2 * windows // 3, faulty] += jump_ns * M_PER_NS
    elif fault == "drift":
        arrivals_m[:, faulty] += drift_ns_per_s * M_PER_NS * times_s
    elif fault == "offset":
        arrivals_m[:, faulty] += jump_ns * M_PER_NS
    noise_m2 = (NOISE_NS * M_PER_NS) ** 2 * np.eye(receivers)
    allowed_m2 = noise_m2 + ((CLOCK_NS * M_PER_NS) ** 2 + PATH_M**2) * np.eye(receivers)
    solved = solve(geometry, arrivals_m, np.broadcast_to(allowed_m2, (windows, receivers, receivers)), places_m)
    samples = [
        Sample(float(times_s[k]), solved.places_m[k], solved.residuals_m[k], noise_m2, 0.0) for k in range(windows)
    ]
    finder = FaultFinder(geometry)
    diagnoses, after = [], []
    for first in range(0, windows - BLOCK_WINDOWS + 1, BLOCK_WINDOWS):
        finder.add(mean_block(samples[first : first + BLOCK_WINDOWS]))
        if (first // BLOCK_WINDOWS + 1) % looks_every == 0:
            diagnoses.append(finder.diagnose())
            after.append(first + BLOCK_WINDOWS)
    return Run(tuple(diagnoses), tuple(after), faulty)


def summarise(runs: Sequence[Run], fault: str, windows: int) -> dict[str, float | int | None]:
    """What became of all runs with one fault."""
    looks = sum(len(run.diagnoses) for run in runs)
    if fault == "none":
        return {"looks": looks, "false": sum(len(run.shown) for run in runs)}
    began = {"jump": windows // 2, "mended": windows // 3}.get(fault, 0)
    found = [(run, [k for k in run.shown if run.windows[k] > began]) for run in runs]
    after = [run.windows[shown[0]] - began for run, shown in found if shown]
    last = [(run, run.diagnoses[shown[-1]].fault) for run, shown in found if shown]
    return {
        "stations": len(runs),
        "at_end": sum(run.diagnoses[-1].fault is not None for run in runs),
        "found": len(after),
        "windows_median": float(np.median(after)) if after else None,
        "windows_p90": float(np.quantile(after, 0.9)) if after else None,
        "kind": sum(told.kind == KINDS[fault] for _, told in last if told) / max(len(last), 1),
        "right": sum(told.receivers[0] == run.faulty for run, told in last if told) / max(len(last), 1),
        "alone": sum(told.receivers == (run.faulty,) for run, told in last if told) / max(len(last), 1),
        "held": sum(run.faulty in told.receivers for run, told in last if told) / max(len(last), 1),
    }


@click.command()
@click.option(
    "--stations", default=20, show_default=True, help="For each fault, number of receivers and kind of emitter."
)
@click.option("--windows", default=1200, show_default=True, help="For each station, two a second.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(stations: int, windows: int, seed: int, as_json: bool) -> None:
    """Faults of clocks and coordinates: found when, in whom, and how often where there are none."""
    for receivers in (4, 6):
        for moving in (False, True):
            for fault in FAULTS:
                runs = [
                    watch(
                        [seed, receivers, moving, station],
                        receivers=receivers,
                        windows=windows,
                        fault=fault,
                        moving=moving,
                    )
                    for station in range(stations)
                ]
                row = {"receivers": receivers, "emitter": "moves" if moving else "stands", "fault": fault}
                row |= summarise(runs, fault, windows)
                print(row_line(row, as_json=as_json), flush=True)


if __name__ == "__main__":
    main()
