"""What a tracker makes of the demo's fixes, and how often two emitters are told apart in one window.

    python benchmarks/tracking.py [--seeds 1:31] [--lag 0.4] [--no-fix 0.2] [--wild 0.05] [--plot tracks.png] [--json]
    python benchmarks/tracking.py --pairs 25

The demo's scene is played for 30 s with one seed after the other, which draws clocks, shadowing, waveform and noise
anew. The tracker's parameters were chosen on seeds 100 to 123 and are used as they are on the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from localize_apps.demo import TRACKER, demo_station, scene_of
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.windows import Window, WindowAssembler
from localize_core.geodesy import GEOD, LocalFrame
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.store import compiled_model_path
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station
from localize_core.station.plan import Plan, plan_station
from localize_core.tracking.clocks import ClockShare
from localize_core.tracking.settings import TrackerSettings
from localize_core.tracking.tracker import Tracker
from localize_core.types.fix import Fix, Position
from scipy.stats import chi2

DURATION_S = 30.0
SETTLED = 10
"""Windows after which a track has to be there."""
CHUNK_S = 0.2
STEP_S = 0.05
FRAME = LocalFrame(47.37, 8.54, 455.0)
RIGHT_M = 100.0


@dataclass(frozen=True)
class Run:
    """One seed: errors (n, 2) of fixes; of tracks their errors (m, 4), covariances (m, 4, 4), numbers and windows.

    `lost`: windows without a track; `taken`: wild fixes that a track took for its own.
    """

    raw_m: np.ndarray
    raw_nees: np.ndarray
    error: np.ndarray
    covariance: np.ndarray
    window: np.ndarray
    ids: frozenset[int]
    lost: int
    taken: int

    @property
    def ratio(self) -> float:
        return float(np.sqrt(np.mean(self.error[:, :2] ** 2) / np.mean(self.raw_m**2)))

    def nees(self, size: int) -> np.ndarray:
        """(m,), of the first components of the state."""
        off = self.error[:, :size]
        return np.einsum("ni,ni->n", off, np.linalg.solve(self.covariance[:, :size, :size], off[..., None])[..., 0])


def windows(model: OnnxModel, plan: Plan, scene: Scene, duration_s: float) -> Iterator[Window]:
    """Those of a scene, as a station would have them."""
    contract = model.contract
    frames = FeatureFrames(contract)
    assembler = WindowAssembler(
        len(contract.channels),
        contract.rows,
        len(contract.receivers),
        time_steps=plan.time_steps,
        window_hop=plan.window_hop,
    )
    warmup, seen, size = warmup_frames(contract), 0, round(CHUNK_S * contract.sample_rate_hz)
    assembler.restart(warmup)
    for first in range(0, round(duration_s * contract.sample_rate_hz), size):
        features, level_db, flags = frames.push(scene.samples(first, size))
        skip = min(max(warmup - seen, 0), len(features))
        seen += len(features)
        yield from assembler.push(features[skip:], level_db[skip:], flags[skip:])


def fixes(station: Station, seed: int) -> tuple[list[Fix], Scene]:
    """The demo's, with another seed."""
    assert station.scene is not None
    station = station.model_copy(update={"scene": station.scene.model_copy(update={"seed": seed})})
    plan = plan_station(station)
    model = OnnxModel(compiled_model_path(plan.spec))
    locator, scene, found = Locator(model), scene_of(station), []
    for sequence, window in enumerate(windows(model, plan, scene, DURATION_S)):
        start = scene.time(window.first_frame * model.contract.hop)
        context = WindowContext(
            "demo", f"seed-{seed}", sequence, start, "rx_time", model.contract.frequency_hz, None, time.monotonic(), 0
        )
        found.append(locator.locate(window, context))
    return found, scene


def plane(position: Position) -> np.ndarray:
    return FRAME.to_enu_m(position.latitude, position.longitude, FRAME.altitude_m)[:2]


def truth(scene: Scene, time_s: float) -> np.ndarray:
    """East, north and their velocities."""
    before, there, after = (
        FRAME.to_enu_m(*scene.truth(time_s + step), FRAME.altitude_m)[:2] for step in (-STEP_S, 0.0, STEP_S)
    )
    return np.concatenate([there, (after - before) / (2.0 * STEP_S)])


def follow(
    found: list[Fix], scene: Scene, tracker: Tracker, station: Station, *, no_fix: float, wild: float, seed: int
) -> Run:
    """`no_fix`, `wild`: shares of fixes that are left out, and moved to anywhere in the area."""
    rng = np.random.default_rng([seed, 1])
    area = station.area
    raw, raw_nees, errors, covariances, numbers = [], [], [], [], []
    ids, lost, taken = set(), 0, 0
    for number, fix in enumerate(found):
        chance, place = rng.uniform(), rng.uniform(size=2)
        if fix.position is not None and fix.uncertainty is not None:
            off_m = plane(fix.position) - truth(scene, fix.timestamp.timestamp())[:2]
            raw.append(off_m)
            raw_nees.append(off_m @ np.linalg.solve(fix.uncertainty.covariance_m2, off_m))
        moved = no_fix <= chance < no_fix + wild
        if chance < no_fix:
            fix = replace(fix, position=None, uncertainty=None, status="no_fix", reason="no_emitter")
        elif moved and fix.position is not None:
            south_west, size = np.array([area.south, area.west]), [area.north - area.south, area.east - area.west]
            fix = replace(fix, position=Position(*(south_west + place * size).tolist()))
        tracks = tracker.follow(fix).tracks
        lost += number >= SETTLED and not tracks
        ids |= {track.id for track in tracks}
        for track in tracks:
            taken += moved and track.state == "confirmed"
            wanted = truth(scene, fix.timestamp.timestamp() - track.lag_s)
            errors.append(np.concatenate([plane(track.position), [track.east_mps, track.north_mps]]) - wanted)
            covariances.append(track.covariance)
            numbers.append(number)
    kept = np.array(numbers) >= SETTLED
    return Run(
        np.array(raw),
        np.array(raw_nees),
        np.array(errors)[kept],
        np.array(covariances)[kept],
        np.array(numbers)[kept],
        frozenset(ids),
        lost,
        taken,
    )


def summary(runs: list[Run]) -> dict[str, object]:
    """Figures of all runs. NEES are means over each run, then over runs; their bounds are those of as many independent
    trials as there are runs: windows of one share their clocks, and are no more."""
    count = len(runs)
    error_m2 = np.mean([np.mean(run.error[:, :2] ** 2) for run in runs])
    bounds = {size: (chi2.ppf([0.025, 0.975], size * count) / count).round(2).tolist() for size in (2, 4)}
    return {
        "runs": count,
        "raw_rmse_m": float(np.sqrt(2.0 * np.mean([np.mean(run.raw_m**2) for run in runs]))),
        "track_rmse_m": float(np.sqrt(2.0 * error_m2)),
        "ratio": float(np.sqrt(error_m2 / np.mean([np.mean(run.raw_m**2) for run in runs]))),
        "ratio_median": float(np.median([run.ratio for run in runs])),
        "runs_within_0.6": float(np.mean([run.ratio <= 0.6 for run in runs])),
        # What the whole run has in common: no filter can see it.
        "ratio_of_means": float(
            np.sqrt(
                np.mean([np.mean(smooth(run.raw_m) ** 2) for run in runs])
                / np.mean([np.mean(run.raw_m**2) for run in runs])
            )
        ),
        "raw_nees": float(np.mean([run.raw_nees.mean() for run in runs])),
        "nees_place": float(np.mean([run.nees(2).mean() for run in runs])),
        "nees_place_bounds": bounds[2],
        "nees": float(np.mean([run.nees(4).mean() for run in runs])),
        "nees_bounds": bounds[4],
        "velocity_rmse_mps": float(np.sqrt(2.0 * np.mean([np.mean(run.error[:, 2:] ** 2) for run in runs]))),
        "tracks": max(len(run.ids) for run in runs),
        "windows_without": sum(run.lost for run in runs),
        "wild_taken": sum(run.taken for run in runs),
    }


def smooth(raw_m: np.ndarray, width: int = 31) -> np.ndarray:
    """Moving mean of errors (n, 2)."""
    return np.stack([np.convolve(column, np.ones(width) / width, "valid") for column in raw_m.T], axis=1)


def pairs_of(receivers: int, level_db: float, trials: int, seed: int) -> dict[str, object]:
    """Two emitters anywhere in a field of 8 km, a window each: whether both were found, and what was found besides."""
    from localize_core.model.compiled.compile import compile_model

    angle = 2.0 * np.pi * (np.arange(receivers) + 0.3) / receivers
    field = LocalFrame(47.0, 8.0)
    latitude, longitude = field.to_wgs84(3000.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    (south, north), (west, east) = field.to_wgs84(np.array([[-4000.0, -4000.0], [4000.0, 4000.0]]))
    station = Station.model_validate(
        {
            "station": {"name": "field", "sample_rate_hz": 2e6, "frequency_hz": 433e6},
            "receiver": [
                {
                    "name": f"r{k}",
                    "latitude": float(lat),
                    "longitude": float(lon),
                    "altitude_m": 30.0,
                    "timing_sigma_ns": 20.0,
                    "source": {"kind": "scene"},
                }
                for k, (lat, lon) in enumerate(zip(latitude, longitude, strict=True))
            ],
            "area": {"south": float(south), "north": float(north), "west": float(west), "east": float(east)},
            "features": {"channels": ["cross_correlation"], "window_s": 0.02},
            "scene": {"bandwidth_hz": 1.5e6, "noise_dbfs": -65.0, "clock_offset_ns": 20.0, "track": [[47.0, 8.0]]},
        }
    )
    assert station.scene is not None
    plan = plan_station(station)
    path = Path(click.get_app_dir("gr-localize-benchmarks")) / f"field-{receivers}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    compile_model(plan.spec, path)
    locator = Locator(OnnxModel(path), peaks=3)
    rng = np.random.default_rng([seed, receivers])
    outcomes = []
    for trial in range(trials):
        places = rng.uniform(-2500.0, 2500.0, (2, 2))
        lat, lon = field.to_wgs84(places)
        first = station.scene.model_copy(update={"seed": trial, "track": ((lat[0], lon[0]),)})
        other = {"waveform": "noise", "bandwidth_hz": 1.5e6, "track": ((lat[1], lon[1]),)}
        other |= {"level_dbfs_at_1km": first.level_dbfs_at_1km + level_db}
        config = type(first).model_validate({**first.model_dump(), "also": [other]})
        scene = Scene(config, station.receiver, sample_rate_hz=2e6, frequency_hz=433e6)
        window = next(windows(locator.model, plan, scene, 0.4))  # type: ignore[arg-type]
        context = WindowContext("field", "", trial, (1_800_000_000, 0.0), "rx_time", 433e6, None, 0.0, 0)
        fix = locator.locate(window, context)
        found = [*([] if fix.position is None else [fix.position]), *(peak.position for peak in fix.peaks)]
        away_m = np.array(
            [[GEOD.inv(p.longitude, p.latitude, lon[k], lat[k])[2] for k in range(2)] for p in found]
        ).reshape(-1, 2)
        hit = (away_m < RIGHT_M).any(axis=0)
        outcomes.append((hit[0], hit[1], hit.all(), (away_m.min(axis=1) >= RIGHT_M).sum(), len(found)))
    stronger, weaker, both, ghosts, places_found = np.mean(np.array(outcomes, float), axis=0)
    return {
        "receivers": receivers,
        "second_db": level_db,
        "stronger": stronger,
        "weaker": weaker,
        "both": both,
        "ghosts_per_window": ghosts,
        "places_per_window": places_found,
    }


def draw(found: list[Fix], scene: Scene, settings: TrackerSettings, share: ClockShare, path: Path) -> None:
    """Fixes, track and truth of one run, with the track's ellipses now and then."""
    from matplotlib import pyplot
    from matplotlib.patches import Ellipse

    tracker = Tracker(settings, share=share)
    figure, axis = pyplot.subplots(figsize=(6.4, 5.6), dpi=100)
    way = np.array([FRAME.to_enu_m(*place, FRAME.altitude_m)[:2] for place in scene.lap(400)])
    axis.plot(*way.T, color="0.6", linewidth=4, alpha=0.5, label="truth")
    placed = [plane(fix.position) for fix in found if fix.position is not None]
    axis.plot(*np.array(placed).T, ".", color="C1", markersize=4, alpha=0.7, label="fixes")
    tracks = [track for fix in found for track in tracker.follow(fix).tracks]
    places = np.array([plane(track.position) for track in tracks])
    axis.plot(*places.T, color="C0", linewidth=1.5, label=f"track, {settings.lag_s:g} s behind")
    for place, track in [*zip(places, tracks, strict=True)][::12]:
        ellipse = track.uncertainty
        size = 2.0 * ellipse.semi_major_m, 2.0 * ellipse.semi_minor_m
        axis.add_patch(Ellipse(tuple(place), *size, angle=90.0 - ellipse.azimuth_deg, fill=False, color="C0", lw=0.7))
        axis.annotate("", place + np.array([track.east_mps, track.north_mps]), place, arrowprops={"arrowstyle": "->"})
    axis.set_aspect("equal")
    axis.set_xlabel("east, m")
    axis.set_ylabel("north, m")
    axis.legend(loc="upper right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


@click.command()
@click.option("--seeds", default="1:31", show_default=True, help="Of the scene, FIRST:END.")
@click.option("--lag", "lag_s", type=float, default=TRACKER.lag_s, show_default=True, help="Of the tracker, seconds.")
@click.option("--no-fix", type=click.FloatRange(0.0, 1.0), default=0.0, help="Share of fixes that are left out.")
@click.option("--wild", type=click.FloatRange(0.0, 1.0), default=0.0, help="Share of fixes that are anywhere.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Picture of the first seed.")
@click.option("--pairs", type=click.IntRange(min=1), help="Windows with two emitters, for each setting, instead.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def main(
    seeds: str, lag_s: float, no_fix: float, wild: float, plot: Path | None, pairs: int | None, as_json: bool
) -> None:
    """Tracks beside fixes on the demo's loop: RMSE and its ratio, consistency, and what was lost or doubled."""

    def show(row: dict[str, object]) -> None:
        shown = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(json.dumps(row) if as_json else "  ".join(shown), flush=True)

    if pairs is not None:
        for receivers in (4, 6):
            for level_db in (0.0, -3.0, -6.0, -10.0):
                show(pairs_of(receivers, level_db, pairs, 5))
        return
    first, _, end = seeds.partition(":")
    station = demo_station(None)
    share = ClockShare(plan_station(station).spec)
    settings = TRACKER.model_copy(update={"lag_s": lag_s})
    runs = []
    for seed in range(int(first), int(end or int(first) + 1)):
        found, scene = fixes(station, seed)
        if plot is not None and seed == int(first):
            draw(found, scene, settings, share, plot)
        tracker = Tracker(settings, share=share)
        runs.append(follow(found, scene, tracker, station, no_fix=no_fix, wild=wild, seed=seed))
    show(summary(runs))


if __name__ == "__main__":
    main()
