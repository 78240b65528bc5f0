"""Sanity on measured signals: LocaRDS' arrival times, with and without a fault put in, and the station of DCF77.

    python benchmarks/sanity_measured.py --data FOLDER [--seed 4] [--json]

FOLDER, or what GR_LOCALIZE_DATA names in its place, holds `locards/` and `kiwi-dcf77/`; what is not there is left out,
and said.
LocaRDS: one row for each set, of messages that five sensors heard each. `error` and `hdop`: of least squares with
NOISE_M. With DOUBT_M, `disagree` is the share of messages whose receivers disagree at a probability of FAR_OFF, and
`from_truth` the same where the search starts at the true place; the others ended in another minimum. `fault` is
`disagree` with FAULT_NS added to a sensor drawn at random; `held`: the rest agrees without that one; `likeliest`: best
of all.
DCF77: one row for each pair of the receivers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from localize_benchmarks.figures import row_line
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.compiled.propagation import PathDelay
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.raim import Solutions, solve
from localize_core.station.config import load_station

ROOT = Path(__file__).resolve().parent.parent
NOISE_M, DOUBT_M = 30.0, 35.0
FAR_OFF = 1e-3
FAULT_NS = 5000.0


def locards(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Figures of each set in `folder`."""
    with (folder / "sensors.csv").open() as file:
        sensors = {
            int(row["serial"]): [float(row[key]) for key in ("latitude", "longitude", "height")]
            for row in csv.DictReader(file)
        }
    rng = np.random.default_rng(seed)
    for path in sorted(folder.glob("set_*.csv")):
        with path.open() as file:
            messages = [_judged(row, sensors, rng) for row in csv.DictReader(file)]
        table = {key: np.array([message[key] for message in messages]) for key in messages[0]}
        yield {
            "set": path.stem,
            "messages": len(messages),
            "error_m_median": float(np.median(table["error_m"])),
            "error_m_p90": float(np.quantile(table["error_m"], 0.9)),
            "hdop_median": float(np.median(table["hdop"])),
            **{key: float(table[key].mean()) for key in ("disagree", "from_truth", "fault", "held", "likeliest")},
        }


def message_of(row: dict[str, str], sensors: dict[int, list[float]]) -> tuple[ArrivalGeometry, np.ndarray, np.ndarray]:
    """Of a message: its sensors, when they heard it against the first (n,), metres, and the true place (2,), metres."""
    heard = json.loads(row["measurements"])
    frame = LocalFrame(*np.mean([sensors[serial][:2] for serial, _, _ in heard], axis=0), float(row["geoAltitude"]))
    geometry = ArrivalGeometry(
        names=tuple(str(serial) for serial, _, _ in heard),
        receivers_m=frame.to_enu_m(*np.array([sensors[serial] for serial, _, _ in heard]).T),
        sigma_m=np.zeros(len(heard)),
        frame=frame,
        along_surface=False,
        path=PathDelay(0.0),
    )
    arrivals_m = np.array([(ns - heard[0][1]) * 1e-9 * SPEED_OF_LIGHT_MPS for _, ns, _ in heard])
    return geometry, arrivals_m, frame.to_enu_m(float(row["latitude"]), float(row["longitude"]), frame.altitude_m)[:2]


def _judged(row: dict[str, str], sensors: dict[int, list[float]], rng: np.random.Generator) -> dict[str, float]:
    """What least squares makes of one message."""
    geometry, arrivals_m, truth_m = message_of(row, sensors)
    count = len(arrivals_m)
    middle_m = geometry.receivers_m[:, :2].mean(axis=0)

    def solved(arrivals: np.ndarray, sigma_m: float, start_m: np.ndarray = middle_m) -> Solutions:
        return solve(geometry, arrivals[None], sigma_m**2 * np.eye(count)[None], start_m[None])

    place_m = solved(arrivals_m, NOISE_M).places_m
    faulty = int(rng.integers(count))
    late_m = arrivals_m.copy()
    late_m[faulty] += FAULT_NS * 1e-9 * SPEED_OF_LIGHT_MPS
    without = []
    for receiver in range(count):
        rest = late_m.copy()
        rest[receiver] = np.nan
        without.append(solved(rest, DOUBT_M).probability[0])
    return {
        "error_m": float(np.linalg.norm(place_m[0] - truth_m)),
        "hdop": float(geometry.hdop(place_m)[0]),
        "disagree": solved(arrivals_m, DOUBT_M).probability[0] < FAR_OFF,
        "from_truth": solved(arrivals_m, DOUBT_M, truth_m).probability[0] < FAR_OFF,
        "fault": solved(late_m, DOUBT_M).probability[0] < FAR_OFF,
        "held": without[faulty] > FAR_OFF,
        "likeliest": int(np.argmax(without)) == faulty,
    }


def dcf77(folder: Path) -> Iterator[dict[str, Any]]:
    """What the station of examples/dcf77.toml says of its pairs after the recordings in `folder`."""
    from localize_apps.graph import Listener, StationGraph

    station = load_station(ROOT / "examples" / "dcf77.toml", folder=folder)
    station = station.model_copy(update={"publish": type(station.publish)()})
    graph = StationGraph(
        station, Listener(lambda fix: None, lambda status: None, lambda: None), duration_s=None, live=False
    )
    graph.run()
    told = graph.localizer.engine.sanity
    for pair in told.get("pairs", ()):
        yield {"pair": " ".join(pair["receivers"]), **{key: pair[key] for key in pair if key != "receivers"}}


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="GR_LOCALIZE_DATA",
    show_envvar=True,
    required=True,
    help="Where locards/ and kiwi-dcf77/ are.",
)
@click.option("--seed", default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(data: Path, seed: int, as_json: bool) -> None:
    """Sanity on measured signals."""
    for name, rows in (("locards", lambda folder: locards(folder, seed)), ("kiwi-dcf77", dcf77)):
        folder = data / name
        if not folder.is_dir():
            click.echo(f"left out: no {folder}", err=True)
            continue
        for row in rows(folder):
            print(row_line(row, as_json=as_json), flush=True)


if __name__ == "__main__":
    main()
