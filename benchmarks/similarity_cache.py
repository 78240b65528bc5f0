#!/usr/bin/env python3
"""Whether answers for like windows are the right ones: steady, jumping, drifting, vanishing and changing emitters.

    python benchmarks/similarity_cache.py [--trials 1000] [--station tdoa] [--snr 15] [--seed 2027] [--json]

Simulated windows of 24 frames, one every 0.5 s, through the models as they serve: `tdoa` is
examples/four_receivers.toml, compiled; `levels` the same station with log-mel alone; `both` with both; `single` is
models/single_receiver.onnx and `road` models/access_road.onnx on its own simulated road. SNR is the median
receiver's, in the whole sample rate.

`steady`: share of hits, and the RMS error of the answers given out over that without a cache, both in the model's own
standard deviations. `jump`: after 8 to 20 windows the emitter moves by 3 of its fix's standard deviations, in a
random direction, on the road to the nearest place that far; share of trials that infer anew within 3 windows, and of
those that later give out an answer from before. `drift`: the farthest that the emitter ever was from where it was
when the answer given out was inferred, in standard deviations of that answer; by speed in standard deviations per
window. `vanish`, `quieter` (by 6 dB) and `narrower` (a quarter of the bandwidth): like `jump`, with the last answer
from before at the third window or later.
"""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from localize_core.cache.settings import SimilaritySettings
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.similarity import SimilarityCache
from localize_core.engine.windows import Window, WindowAssembler
from localize_core.model.base import ModelOutput
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.store import compiled_model_path
from localize_core.simulation.channels import ChannelSet, load_channels
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.station.config import Station, load_station
from localize_core.station.plan import plan_station
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
PERIOD_S = 0.5
JUMP_SIGMA = 3.0
WITHIN = 3
NOISE_DBFS = -60.0
KINDS = ("tdoa", "levels", "both", "single", "road")
SPEEDS = (0.02, 0.1, 0.3, 1.0, 2.0, 2.9)
KEY = "model"


@dataclass(frozen=True)
class Emitter:
    """Where an emitter is, east and north in the model's frame, and what it sends."""

    place_m: np.ndarray
    level_db: float
    seed: int
    waveform: str = "noise"
    bandwidth: float = 1.0


class Site:
    """A model, and windows of what its receivers would hear."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.channels: ChannelSet | None = None
        self.station: Station | None = None
        if kind == "road":
            self.model = OnnxModel(ROOT / "models" / "access_road.onnx")
            self.channels = _road()
        else:
            name = "single_receiver" if kind == "single" else "four_receivers"
            station = load_station(ROOT / "examples" / f"{name}.toml")
            if kind in ("levels", "both"):
                channels = ["log_mel"] if kind == "levels" else ["log_mel", "cross_correlation"]
                rows, n_fft, hop = (64, 256, 128) if kind == "levels" else (128, 1024, None)
                changes = {"channels": channels, "rows": rows, "n_fft": n_fft, "hop": hop, "window_s": 0.25}
                station = station.model_copy(update={"features": station.features.model_copy(update=changes)})
            self.station = station
            area = station.area
            self.extent_m = 111e3 * (area.north - area.south)
            path = ROOT / "models" / "single_receiver.onnx"
            self.model = OnnxModel(path if kind == "single" else compiled_model_path(plan_station(station).spec))
        self.contract = self.model.contract
        self.frame = self.contract.frame.local
        if self.channels is not None:
            places = self.channels.frame.to_wgs84(self.channels.transmitters_enu_m[:, :2])
            self.places_m = self.frame.to_enu_m(*places, self.frame.altitude_m)[:, :2]

    def draw(self, rng: np.random.Generator, snr_db: float, waveform: str = "noise") -> Emitter:
        """One that stands somewhere in the area."""
        if self.channels is not None:
            row = int(rng.integers(len(self.places_m)))
            place, level = self.places_m[row], snr_db - float(self.channels.level_db[row, 0])
        else:
            assert self.station is not None
            area = self.station.area
            latitude, longitude = rng.uniform((area.south, area.west), (area.north, area.east))
            place = self.frame.to_enu_m(latitude, longitude, self.frame.altitude_m)[:2]
            level = 0.0
        emitter = Emitter(place, level, int(rng.integers(2**40)), waveform)
        if self.channels is None:
            heard = float(np.median(self._scene(emitter).level_dbfs(np.zeros(1))))
            emitter = _changed(emitter, level_db=snr_db + NOISE_DBFS - heard)
        return emitter

    def windows(self, emitter: Emitter, first: int, count: int) -> list[Window]:
        """Windows number `first` to `first + count - 1`."""
        scene = self._scene(emitter)
        contract = self.contract
        hop, warmup = contract.hop, warmup_frames(contract)
        period = round(PERIOD_S * contract.sample_rate_hz / hop) * hop
        found = []
        for index in range(first, first + count):
            samples = scene.samples(index * period, (STEPS + warmup) * hop)
            frames, level_db, flags = FeatureFrames(contract).push(samples)
            assembler = WindowAssembler(
                len(contract.channels), contract.rows, len(contract.receivers), time_steps=STEPS, window_hop=STEPS
            )
            found += assembler.push(frames[warmup:], level_db[warmup:], flags[warmup:])
        return found

    def answer(self, window: Window) -> ModelOutput:
        return self.model.run(self.contract.normalisation.apply(window.features)[None])

    def moved(self, rng: np.random.Generator, emitter: Emitter, axes: np.ndarray) -> Emitter:
        """The same, JUMP_SIGMA away as `axes` (2, 2) say, columns of one standard deviation."""
        if self.channels is None:
            angle = rng.uniform(0.0, 2.0 * np.pi)
            step = axes @ (JUMP_SIGMA * np.array([math.cos(angle), math.sin(angle)]))
            return _changed(emitter, place_m=emitter.place_m + step)
        away = np.linalg.norm(np.linalg.solve(axes, (self.places_m - emitter.place_m).T), axis=0)
        away = np.where(away < JUMP_SIGMA, np.inf, away)
        return _changed(emitter, place_m=self.places_m[int(away.argmin())])

    def far_enough(self, emitter: Emitter, axes: np.ndarray) -> bool:
        """Whether there is a place that far away: the road ends somewhere."""
        if self.channels is None:
            return True
        away = np.linalg.norm(np.linalg.solve(axes, (self.places_m - emitter.place_m).T), axis=0)
        return bool(away.max() >= JUMP_SIGMA)

    def _scene(self, emitter: Emitter) -> Scene:
        contract, frequency_hz = self.contract, float(self.contract.frequency_hz or 433.92e6)
        if self.channels is not None:
            row = int(np.linalg.norm(self.places_m - emitter.place_m, axis=1).argmin())
            one = self.channels.select(np.array([row]))
            config = SceneConfig.of(
                seed=emitter.seed,
                waveform=emitter.waveform,
                bandwidth_hz=0.6 * contract.sample_rate_hz * emitter.bandwidth,
                noise_dbfs=NOISE_DBFS,
                channel_rows=(0,),
                emitter_gain_db=emitter.level_db,
            )
            rate_hz = contract.sample_rate_hz
            return Scene(config, one.receivers, sample_rate_hz=rate_hz, frequency_hz=one.frequency_hz, channels=one)
        assert self.station is not None
        assert self.station.scene is not None
        base = self.station.scene
        latitude, longitude = self.frame.to_wgs84(emitter.place_m)
        config = SceneConfig.of(
            **{
                **base.model_dump(),
                "seed": emitter.seed,
                "waveform": emitter.waveform,
                "bandwidth_hz": base.bandwidth_hz * emitter.bandwidth,
                "noise_dbfs": NOISE_DBFS,
                "level_dbfs_at_1km": emitter.level_db,
                "track": [(float(latitude), float(longitude))],
                "speed_mps": 0.0,
            }
        )
        return Scene(config, contract.receivers, sample_rate_hz=contract.sample_rate_hz, frequency_hz=frequency_hz)


def _changed(emitter: Emitter, **fields: Any) -> Emitter:
    return Emitter(**{**{name: getattr(emitter, name) for name in Emitter.__dataclass_fields__}, **fields})


def _road() -> ChannelSet:
    """The road that models/access_road.onnx knows."""
    spec = importlib.util.spec_from_file_location("access_road", ROOT / "models" / "access_road.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "road.npz"
        np.savez(path, **module.access_road())
        return load_channels(path)


def axes_of(output: ModelOutput) -> np.ndarray:
    """Columns of one standard deviation along an answer's axes, (2, 2) metres."""
    sigma_x, sigma_y, theta = output.uncertainty[0].astype(float)
    cos, sin = math.cos(math.radians(theta)), math.sin(math.radians(theta))
    return np.array([[cos * sigma_x, -sin * sigma_y], [sin * sigma_x, cos * sigma_y]])


class Stream:
    """Windows through a cache. `inferred`: of each window, the number of the one whose answer it got."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.cache = SimilarityCache(site.contract, SimilaritySettings(max_age_s=64 * PERIOD_S))
        self.inferred: list[int] = []
        self.given: list[ModelOutput] = []
        self.spent_s: list[float] = []

    def push(self, windows: Sequence[Window], fresh: Sequence[ModelOutput] | None = None) -> None:
        for index, window in enumerate(windows):
            moment_s = len(self.given) * PERIOD_S
            began_s = time.perf_counter()
            found = self.cache.match(window, KEY, moment_s)
            self.spent_s.append(time.perf_counter() - began_s)
            if found is not None:
                self.inferred.append(len(self.given) - found.age_windows)
                self.given.append(found.output)
                continue
            output = self.site.answer(window) if fresh is None else fresh[index]
            self.cache.keep(window, output, KEY, moment_s)
            self.inferred.append(len(self.given))
            self.given.append(output)

    @property
    def last_axes(self) -> np.ndarray:
        return axes_of(self.given[-1])


def steady(site: Site, snr_db: float, *, trials: int, seed: int, waveform: str = "noise") -> dict[str, Any]:
    """40 windows each."""
    counts: Counter[str] = Counter()
    errors, spent_s = [], []
    for trial in range(trials):
        rng = np.random.default_rng([seed, 1, trial])
        emitter = site.draw(rng, snr_db, waveform)
        windows = site.windows(emitter, 0, 40)
        fresh = [site.answer(window) for window in windows]
        stream = Stream(site)
        stream.push(windows, fresh)
        counts += Counter({"hit": stream.cache.hits, **stream.cache.misses}) + Counter(stream.cache.refused)
        spent_s += stream.spent_s
        away = [
            [
                float(np.mean(np.square(np.linalg.solve(axes_of(old), each.position[0] - emitter.place_m))))
                for each in both
            ]
            for both in zip(fresh, stream.given, strict=True)
            for old in both[:1]
        ]
        errors.append(np.mean(away, axis=0))
    by_trial = np.array(errors)
    without, given = np.sqrt(by_trial.mean(axis=0))
    draws = np.random.default_rng(seed).integers(trials, size=(500, trials))
    spread = np.diff(np.sqrt(by_trial[draws].mean(axis=1)), axis=1).std() if trials > 1 else math.nan
    return {
        "hits": counts["hit"] / (40 * trials),
        "error_sigma": float(without),
        "error_sigma_cached": float(given),
        "added_error": float(given - without),
        "added_error_se": float(spread),
        "match_us": 1e6 * float(np.median(spent_s)),
        "reasons": {name: count for name, count in counts.items() if name != "hit"},
    }


def change(site: Site, snr_db: float, what: str, *, trials: int, seed: int, waveform: str = "noise") -> dict[str, Any]:
    """8 to 20 windows of a steady emitter, then 6 after it has changed."""
    caught, stale, done = 0, 0, 0
    trial = 0
    while done < trials and trial < 4 * trials:
        rng = np.random.default_rng([seed, 2, trial])
        trial += 1
        emitter = site.draw(rng, snr_db, waveform)
        before = int(rng.integers(8, 21))
        stream = Stream(site)
        stream.push(site.windows(emitter, 0, before))
        axes = stream.last_axes
        if what == "jump":
            if not (np.isfinite(axes).all() and site.far_enough(emitter, axes)):
                continue
            emitter = site.moved(rng, emitter, axes)
        else:
            emitter = {
                "vanish": lambda e=emitter: _changed(e, waveform="none"),
                "quieter": lambda e=emitter: _changed(e, level_db=e.level_db - 6.0),
                "narrower": lambda e=emitter: _changed(e, bandwidth=0.25),
            }[what]()
        stream.push(site.windows(emitter, before, 6))
        after = np.array(stream.inferred[before:])
        caught += bool((after[:WITHIN] >= before).any())
        stale += bool((after[WITHIN - 1 :] < before).any())
        done += 1
    return {"trials": done, "caught": caught / max(done, 1), "stale": stale / max(done, 1)}


def drift(site: Site, snr_db: float, speed: float, *, trials: int, seed: int) -> dict[str, Any]:
    """An emitter that is `speed` standard deviations of its first fix farther in every window, across the middle.

    Up to 48 windows and 24 standard deviations, but not far out of the area.
    """
    farthest, hits, windows = [], 0, 0
    for trial in range(trials):
        rng = np.random.default_rng([seed, 3, trial])
        emitter = site.draw(rng, snr_db)
        emitter = _changed(emitter, place_m=emitter.place_m / 2.0)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        axes = axes_of(site.answer(site.windows(emitter, 0, 1)[0]))
        step_m = speed * (axes @ np.array([math.cos(angle), math.sin(angle)]))
        travel_m = min(24.0 / speed * float(np.linalg.norm(step_m)), site.extent_m)
        count = min(48, max(6, round(travel_m / float(np.linalg.norm(step_m)))))
        stream = Stream(site)
        for index in range(count):
            place_m = emitter.place_m + (index - count / 2.0) * step_m
            stream.push(site.windows(_changed(emitter, place_m=place_m), index, 1))
        age = np.arange(count) - np.array(stream.inferred)
        behind = [
            float(np.linalg.norm(np.linalg.solve(axes_of(given), step_m))) * late
            for given, late in zip(stream.given, age.tolist(), strict=True)
        ]
        farthest.append(max(behind))
        hits += int(np.count_nonzero(age))
        windows += count
    return {
        "farthest_sigma": max(farthest),
        "over_3_sigma": float(np.mean(np.array(farthest) > JUMP_SIGMA)),
        "hits": hits / windows,
    }


@dataclass(frozen=True)
class Result:
    station: str
    snr_db: float
    case: str
    figures: dict[str, Any]


def measure(kind: str, snr_db: float, trials: int, seed: int) -> Iterator[Result]:
    site = Site(kind)
    few = max(trials // 10, 1)
    options: dict[str, Any] = {"trials": few, "seed": seed}

    def result(case: str, figures: dict[str, Any]) -> Result:
        return Result(kind, snr_db, case, figures)

    yield result("steady", steady(site, snr_db, **options))
    yield result("jump", change(site, snr_db, "jump", trials=trials, seed=seed))
    for what in ("vanish", "quieter", "narrower"):
        yield result(what, change(site, snr_db, what, **options))
    if site.channels is None:
        for speed in SPEEDS:
            yield result(f"drift {speed:g}", drift(site, snr_db, speed, **options))
    for waveform in ("pulse", "nbfm", "am", "qpsk"):
        found = steady(site, snr_db, trials=max(few // 4, 1), seed=seed, waveform=waveform)
        yield result(f"steady {waveform}", found)


@click.command(help=__doc__)
@click.option("--trials", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--station", "kinds", type=click.Choice(KINDS), multiple=True, default=("tdoa",), show_default=True)
@click.option("--snr", "snrs_db", type=float, multiple=True, default=(15.0,), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=2027, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Lines of JSON on standard output.")
def main(trials: int, kinds: tuple[str, ...], snrs_db: tuple[float, ...], seed: int, as_json: bool) -> None:
    console = Console(stderr=as_json, width=160)
    table = Table("station", "SNR (dB)", "case", "figures")
    for kind in kinds:
        for snr_db in snrs_db:
            for result in measure(kind, snr_db, trials, seed):
                if as_json:
                    print(json.dumps(asdict(result)), flush=True)
                words = (
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in result.figures.items()
                )
                table.add_row(result.station, f"{result.snr_db:g}", result.case, ", ".join(words))
    if not as_json:
        console.print(table)


if __name__ == "__main__":
    main()
