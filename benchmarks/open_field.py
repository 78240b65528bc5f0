"""How near the compiled model comes to the Cramér-Rao bound in an open field, and whether its ellipse and its
confidence are honest there.

    python benchmarks/open_field.py [--windows 600] [--seed 1] [--setting NAME] [--json]

Stations, emitters, waveforms and signal-to-noise ratios are drawn anew; what a station's file states is what happens.
Errors are compared with the bound over the same windows: the classical one where the signal alone locates, and the one
that knows the area (`PositionBound.with_area_m2`) where it does not.
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
from localize_core.evaluation.bound import position_bound
from localize_core.evaluation.metrics import PROBABILITIES, covariance_of, squared_mahalanobis
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station
from scipy.spatial import Delaunay
from scipy.stats import chi2

WINDOWS_PER_STATION = 20
WAVEFORMS = ("noise", "qpsk", "ofdm", "chirp", "fsk")
SNR_DB = (5.0, 30.0)
METRES_PER_DEGREE = 111_195.0
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
    """Of n windows. `bound_m2`, `with_area_m2`: least squared errors; `within_hull`: of the receivers."""

    label: np.ndarray
    squared: np.ndarray
    error_m: np.ndarray
    confidence: np.ndarray
    bound_m2: np.ndarray
    with_area_m2: np.ndarray
    within_hull: np.ndarray

    def containment(self, probability: float) -> float:
        return float(np.mean(self.squared[self.label == Label.INSIDE] <= chi2.ppf(probability, 2)))

    def ratio(self, bound_m2: np.ndarray, which: np.ndarray | None = None) -> float:
        """RMSE over the bound, over the windows with an emitter in the area and a finite bound."""
        counted = (self.label == Label.INSIDE) & np.isfinite(bound_m2)
        counted &= True if which is None else which
        return float(np.sqrt(np.mean(self.error_m[counted] ** 2) / np.mean(bound_m2[counted])))

    def share(self, label: Label, *, doubtful: bool) -> float:
        """Windows of one kind whose confidence is below DOUBTFUL, or above CLEAR."""
        value = self.confidence[self.label == label]
        return float(np.mean(value < DOUBTFUL if doubtful else value > CLEAR))


def random_station(rng: np.random.Generator, setting: Setting) -> Station:
    """Receivers of an open field: spread over the area, or over the inner part of it, so that emitters often stand
    outside their hull.

    Receivers lie one in each equal sector round a point near the middle, as nobody puts them in a row.
    """
    latitude, longitude = float(rng.uniform(-60.0, 60.0)), float(rng.uniform(-179.0, 179.0))
    count = int(rng.integers(setting.receivers[0], setting.receivers[1] + 1))
    reach_m = setting.half_m * (rng.uniform(0.8, 1.0) if rng.uniform() < 0.5 else rng.uniform(0.45, 0.6))
    angle = 2.0 * np.pi * (np.arange(count) + rng.uniform() + rng.uniform(-0.3, 0.3, count)) / count
    radius = reach_m * rng.uniform(0.5, 1.0, count)
    north = latitude + radius * np.sin(angle) / METRES_PER_DEGREE
    per_degree_m = METRES_PER_DEGREE * np.cos(np.radians(latitude))
    east = longitude + radius * np.cos(angle) / per_degree_m
    half_lat, half_lon = setting.half_m / METRES_PER_DEGREE, setting.half_m / per_degree_m
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
                for index, (lat, lon) in enumerate(zip(north, east, strict=True))
            ],
            "area": {
                "south": latitude - half_lat,
                "north": latitude + half_lat,
                "west": longitude - half_lon,
                "east": longitude + half_lon,
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
            yield _located(OnnxModel(path), source)


def _located(model: OnnxModel, source: SceneWindows) -> tuple[np.ndarray, ...]:
    spec = source.spec
    found = Windows.concatenate(list(source.batches(WINDOWS_PER_STATION)))
    answers = [model.run(found.features[index : index + 1]) for index in range(len(found))]
    position = np.concatenate([answer.position for answer in answers]).astype(float)
    covariance = covariance_of(np.concatenate([answer.uncertainty for answer in answers]))
    squared = squared_mahalanobis(position - found.truth_m, covariance)
    contract = source.contract
    duration_s = ((source.time_steps - 1) * contract.hop + contract.n_fft) / spec.sample_rate_hz
    bound = position_bound(spec, found.truth_m, found.snr_db, found.bandwidth_hz, duration_s=duration_s)
    hull = Delaunay(spec.receivers_enu_m[:, :2])
    return (
        found.label,
        squared,
        np.linalg.norm(position - found.truth_m, axis=1),
        np.concatenate([answer.confidence[:, 0] for answer in answers]),
        np.trace(bound.covariance_m2, axis1=1, axis2=2),
        np.trace(bound.with_area_m2, axis1=1, axis2=2),
        hull.find_simplex(np.nan_to_num(found.truth_m)) >= 0,
    )


def summary(name: str, located: Outcome, doubted: Outcome) -> dict[str, object]:
    """Figures of a setting: `located` holds emitters in the area alone, `doubted` the other kinds of windows too."""
    row: dict[str, object] = {
        "setting": name,
        "windows": len(located.label),
        "rmse_m": float(np.sqrt(np.mean(located.error_m**2))),
        "median_m": float(np.median(located.error_m)),
        "ratio": located.ratio(located.bound_m2),
        "ratio_within_hull": located.ratio(located.bound_m2, located.within_hull),
        "ratio_beyond_hull": located.ratio(located.bound_m2, ~located.within_hull),
        "ratio_with_area": located.ratio(located.with_area_m2),
    }
    row |= {f"within_{key}": located.containment(p) for key, p in PROBABILITIES.items()}
    row["nees"] = float(located.squared.mean())
    row["sure_of_emitter"] = located.share(Label.INSIDE, doubtful=False)
    row["doubts_none"] = doubted.share(Label.NONE, doubtful=True)
    row["doubts_outside"] = doubted.share(Label.OUTSIDE, doubtful=True)
    return row


@click.command()
@click.option("--windows", default=600, show_default=True, help="Of each setting, and as many for the confidence.")
@click.option("--seed", default=1, show_default=True)
@click.option("--setting", type=click.Choice(list(SETTINGS)), help="This one alone.")
@click.option("--json", "as_json", is_flag=True)
def main(windows: int, seed: int, setting: str | None, as_json: bool) -> None:
    """Error over the Cramér-Rao bound, containment and confidence of the compiled model in an open field."""
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
