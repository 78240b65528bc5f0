"""How near the compiled model comes to the Cramér–Rao bound where all that it assumes is so: in an open field.

Errors are compared as root mean squares; a few hundred windows leave a standard error of some 4 % round their ratio.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from localize_core.dataset.drawn import INSIDE_ONLY, SceneWindows
from localize_core.evaluation.baselines import ModelLocator
from localize_core.evaluation.data import scene_spec
from localize_core.evaluation.evaluate import MODEL, evaluate, window_s
from localize_core.geodesy import LocalFrame
from localize_core.model.compiled.compile import compile_model
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station, load_station

EXAMPLE = Path(__file__).parents[3] / "examples" / "four_receivers.toml"
DRAWS = replace(INSIDE_ONLY, snr_db=(5.0, 30.0))
LARGEST_RATIO = 1.2


@pytest.fixture
def compiled(tmp_path):
    def make(spec: LikelihoodSpec, name: str = "model") -> OnnxModel:
        compile_model(spec, tmp_path / f"{name}.onnx")
        return OnnxModel(tmp_path / f"{name}.onnx")

    return make


def test_four_receivers_by_time(compiled):
    """The example's scene, in shorter windows. A model that is told the scene's clocks is honest; the example's own
    allows for what resampling may be off, which is a third of its variance at 100 kHz, and is never too sure."""
    station = load_station(EXAMPLE)
    features = station.features.model_copy(update={"window_s": 0.08})
    source = SceneWindows(station.model_copy(update={"features": features}), count=400, seed=1, draws=DRAWS)
    truth = scene_spec(source.spec, station.scene, duration_s=window_s(source.contract, source.time_steps))
    told = ModelLocator(compiled(truth, "told"), source)
    found = evaluate(compiled(source.spec), source, spec=truth, baselines={"told": told})
    assert found.bound.unbounded == 0
    assert found.bound.ratio[MODEL] < LARGEST_RATIO
    assert found.bound.ratio["told"] < LARGEST_RATIO
    honest = found.figures["told"].accuracy
    assert 0.35 < honest.containment["39.35"].share < 0.44
    assert 0.93 < honest.containment["95"].share < 0.97
    low, high = honest.nees_interval
    assert low < honest.mean_nees < high
    own = found.figures[MODEL].accuracy
    assert own.containment["39.35"].share > 0.35
    assert own.containment["95"].share > 0.93


def test_eight_receivers_by_level_alone(compiled):
    """6 dB of shadowing, 1 dB of gain errors. The classical bound is as wide as the area where receivers are far: the
    one that knows the area is what there is to reach."""
    frame, half_m = LocalFrame(48.0, 11.0), 2000.0
    angle = 2.0 * np.pi * (np.arange(8) + 0.25) / 8.0
    radius_m = np.where(np.arange(8) % 2, 0.95, 0.55) * half_m
    latitude, longitude = frame.to_wgs84(radius_m[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))
    (south, north), (west, east) = (ends.tolist() for ends in frame.to_wgs84(half_m * np.array([[-1, -1], [1, 1]])))
    station = Station.model_validate(
        {
            "station": {"name": "levels", "sample_rate_hz": 100e3, "frequency_hz": 433e6},
            "receiver": [
                {"name": f"r{k}", "latitude": lat, "longitude": lon, "noise_dbfs": -60.0}
                for k, (lat, lon) in enumerate(zip(latitude.tolist(), longitude.tolist(), strict=True))
            ],
            "area": {"south": south, "north": north, "west": west, "east": east},
            "features": {"channels": ["log_mel"], "rows": 64, "n_fft": 256, "window_s": 0.05},
            "propagation": {"shadowing_db": 6.0},
        }
    )
    source = SceneWindows(station, count=250, seed=2, draws=DRAWS)
    found = evaluate(compiled(source.spec), source, spec=source.spec)
    assert found.bound.windows == 250
    assert found.bound.with_area_ratio[MODEL] < LARGEST_RATIO
    assert found.bound.ratio[MODEL] < LARGEST_RATIO
    accuracy = found.figures[MODEL].accuracy
    # what levels say of a place is no ellipse: some more truths than 5 % lie beyond
    assert 0.90 < accuracy.containment["95"].share < 0.98
