"""How near the compiled model comes to the Cramér-Rao bound in an open field, and whether its ellipse and its
confidence are honest there.

    python benchmarks/open_field.py [--windows 600] [--seed 1] [--setting NAME] [--json]

Stations, emitters, waveforms and signal-to-noise ratios are drawn anew; what a station's file states is what happens.
Errors are compared with two bounds, each over the windows it is for: the classical one where the signal alone locates
to within the area, and the one that knows the area (`PositionBound.with_area_m2`) everywhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from localize_core.dataset.drawn import Draws, SceneWindows
from localize_core.dataset.windows import Label, Windows
from localize_core.evaluation.baselines import ModelLocator
from localize_core.evaluation.bound import position_bound, squared_bound_m2
from localize_core.evaluation.evaluate import window_s
from localize_core.evaluation.metrics import accuracy, squared_mahalanobis
from localize_core.geodesy import LocalFrame
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station
from scipy.spatial import Delaunay

WINDOWS_PER_STATION = 20
WAVEFORMS = ("noise", "qpsk", "ofdm", "chirp", "fsk")
SNR_DB = (5.0, 30.0)
CLEAR, DOUBTFUL = 0.9, 0.1


@dataclass(frozen=True)
class Setting:
    """What stations of one kind have in common. `receivers`: fewest and most."""

    channels: tuple[str, ...]
    receivers: tuple[int, int]
    half_m: float
    clock_sigma_ns: float
    window_s: float
    waveforms: tuple[str, ...]


SETTINGS = {
    "both": Setting(("log_mel", "cross_correlation"), (4, 4), 4000.0, 20.0, 0.04, WAVEFORMS),
    "correlation": Setting(("cross_correlation",), (4, 4), 4000.0, 20.0, 0.04, WAVEFORMS),
    "level": Setting(("log_mel",), (6, 10), 2000.0, 20.0, 0.04, WAVEFORMS),
    "level_4": Setting(("log_mel",), (4, 4), 2000.0, 20.0, 0.04, WAVEFORMS),
}


@dataclass(frozen=True)
class Outcome:
    """Of n windows, each field (n,). `error_m`, `nees`, the bounds and `within_hull`, of the receivers, mean something
    where an emitter is in the area. `bound_m2`: the classical one, infinite where it is wider than the area.
    """

    label: np.ndarray
    error_m: np.ndarray
    nees: np.ndarray
    confidence: np.ndarray
    bound_m2: np.ndarray
    with_area_m2: np.ndarray
    within_hull: np.ndarray

    def ratio(self, bound_m2: np.ndarray, which: np.ndarray | bool = True) -> float | None:
        """RMSE over the bound, over the windows with an emitter in the area and a finite bound."""
        counted = (self.label == Label.INSIDE) & np.isfinite(bound_m2) & which
        if not counted.any():
            return None
        return float(np.sqrt(np.mean(self.error_m[counted] ** 2) / np.mean(bound_m2[counted])))

    def share(self, label: Label, *, doubtful: bool) -> float | None:
        """Windows of one kind whose confidence is below DOUBTFUL, or above CLEAR."""
        value = self.confidence[self.label == label]
        return float(np.mean(value < DOUBTFUL if doubtful else value > CLEAR)) if len(value) else None


def random_station(rng: np.random.Generator, setting: Setting) -> Station:
    """Receivers of an open field: spread over the area, or over the inner part of it, so that emitters often stand
    outside their hull.

    Receivers lie one in each equal sector round a point near the middle, as nobody puts them in a row.
    """
    frame = LocalFrame(float(rng.uniform(-60.0, 60.0)), float(rng.uniform(-179.0, 179.0)))
    count = int(rng.integers(setting.receivers[0], setting.receivers[1] + 1))
    reach_m = setting.half_m * (rng.uniform(0.8, 1.0) if rng.uniform() < 0.5 else rng.uniform(0.45, 0.6))
    angle = 2.0 * np.pi * (np.arange(count) + rng.uniform() + rng.uniform(-0.3, 0.3, count)) / count
    radius_m = reach_m * rng.uniform(0.5, 1.0, count)
    latitude, longitude = frame.to_wgs84(radius_m[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))
    (south, north), (west, east) = frame.to_wgs84(setting.half_m * np.array([[-1.0, -1.0], [1.0, 1.0]]))
    return Station.model_validate(
        {
            "station": {"name": "field", "sample_rate_hz": 500e3, "frequency_hz": 433e6, "common_clock": True},
            "receiver": [
                {
                    "name": f"r{index}",
                    "latitude": float(lat),
                    "longitude": float(lon),
                    "altitude_m": 20.0,
                    "timing_sigma_ns": setting.clock_sigma_ns,
                    "noise_dbfs": -60.0,
                }
                for index, (lat, lon) in enumerate(zip(latitude, longitude, strict=True))
            ],
            "area": {
                "south": float(south),
                "north": float(north),
                "west": float(west),
                "east": float(east),
            },
            "features": {"channels": list(setting.channels), "window_s": setting.window_s},
            "propagation": {"timing_sigma_ns": 0.0},
        }
    )


def run(name: str, *, windows: int, seed: int, none: float = 0.0, outside: float = 0.0) -> Outcome:
    """Draw stations and windows of a setting and locate them. `none`, `outside`: shares of windows of those kinds."""
    rng = np.random.default_rng([seed, sorted(SETTINGS).index(name)])
    parts = list(_stations(name, rng, windows, none, outside))
    return Outcome(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _stations(
    name: str, rng: np.random.Generator, windows: int, none: float, outside: float
) -> Iterator[tuple[np.ndarray, ...]]:
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, windows, WINDOWS_PER_STATION):
            station = random_station(rng, setting)
            draws = Draws(snr_db=SNR_DB, waveforms=setting.waveforms, none=none, outside=outside, missing=0.0)
            source = SceneWindows(
                station, count=min(WINDOWS_PER_STATION, windows - first), seed=int(rng.integers(2**31)), draws=draws
            )
            path = Path(folder) / "model.onnx"
            compile_model(source.spec, path)
            yield _located(OnnxModel(path), source, setting.half_m)


def _located(model: OnnxModel, source: SceneWindows, half_m: float) -> tuple[np.ndarray, ...]:
    """The fields of Outcome for the windows of one station."""
    windows = Windows.concatenate(list(source.batches(WINDOWS_PER_STATION)))
    found = ModelLocator(model, source).locate(windows)
    offset_m = found.position_m - windows.truth_m
    bound = position_bound(
        source.spec,
        windows.truth_m,
        windows.snr_db,
        windows.bandwidth_hz,
        duration_s=window_s(source.contract, source.time_steps),
    )
    classical_m2 = squared_bound_m2(bound.covariance_m2)
    hull = Delaunay(source.spec.receivers_enu_m[:, :2])
    return (
        windows.label,
        np.linalg.norm(offset_m, axis=1),
        squared_mahalanobis(offset_m, found.covariance_m2),
        found.confidence,
        np.where(classical_m2 < half_m**2, classical_m2, np.inf),
        squared_bound_m2(bound.with_area_m2),
        hull.find_simplex(np.nan_to_num(windows.truth_m)) >= 0,
    )


def summary(name: str, located: Outcome, doubted: Outcome) -> dict[str, object]:
    """Figures of a setting: `located` holds emitters in the area alone, `doubted` the other kinds of windows alone."""
    found = accuracy(located.error_m, located.nees)
    return {
        "setting": name,
        "windows": found.count,
        "rmse_m": found.rmse_m,
        "median_m": found.median_m,
        "located_by_signal": float(np.isfinite(located.bound_m2).mean()),
        "ratio": located.ratio(located.bound_m2),
        "ratio_within_hull": located.ratio(located.bound_m2, located.within_hull),
        "ratio_beyond_hull": located.ratio(located.bound_m2, ~located.within_hull),
        "ratio_with_area": located.ratio(located.with_area_m2),
        **{f"within_{key}": share.share for key, share in found.containment.items()},
        "nees": found.mean_nees,
        "sure_of_emitter": located.share(Label.INSIDE, doubtful=False),
        "doubts_none": doubted.share(Label.NONE, doubtful=True),
        "doubts_outside": doubted.share(Label.OUTSIDE, doubtful=True),
    }


@click.command()
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="With an emitter in the area, for each setting; as many again for doubt, half noise, half one outside.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of everything drawn.")
@click.option("--setting", type=click.Choice(list(SETTINGS)), help="Features and receivers; all in turn if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each setting.")
def main(windows: int, seed: int, setting: str | None, as_json: bool) -> None:
    """Error of the compiled model over the Cramér-Rao bound in an open field, its ellipses and its confidence.

    ratio: RMSE over the classical bound, where that is within the area; ratio_with_area: over the bound that knows the
    area, everywhere. within_P: share of truths in the ellipse of P percent. nees: 2 is honest. sure_of_emitter,
    doubts_none, doubts_outside: shares of confidences above 0.9 with an emitter in the area, and below 0.1 without one
    and with one outside.
    """
    for name in [setting] if setting else SETTINGS:
        located = run(name, windows=windows, seed=seed)
        doubted = run(name, windows=windows, seed=seed + 1, none=0.5, outside=0.5)
        row = summary(name, located, doubted)
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            shown = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print("  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
