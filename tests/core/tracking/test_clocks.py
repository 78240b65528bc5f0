"""What the station says of its clocks, against fixes of simulated windows with and without noise."""

from __future__ import annotations

import numpy as np
import pytest
from localize_core.dataset.drawn import Draws, SceneWindows
from localize_core.dataset.windows import Windows
from localize_core.evaluation.baselines import ModelLocator
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel
from localize_core.resources import shared_file
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from localize_core.tracking.clocks import MOST, ClockShare, clock_share
from localize_core.types.fix import Position, Uncertainty


@pytest.fixture(scope="module")
def station():
    return load_station(shared_file("examples/four_receivers.toml"))


def test_it_is_what_is_left_of_the_ellipse_without_noise(station, tmp_path):
    """At 40 dB the model's ellipse is the clocks' alone."""
    draws = Draws(snr_db=(40.0, 40.0), waveforms=("noise",), none=0.0, outside=0.0, missing=0.0)
    source = SceneWindows(station, count=12, seed=3, draws=draws)
    compile_model(source.spec, tmp_path / "model.onnx")
    windows = Windows.concatenate(list(source.batches(12)))
    found = ModelLocator(OnnxModel(tmp_path / "model.onnx"), source).locate(windows)
    share, frame = ClockShare(source.spec), source.spec.area.frame
    ratios = []
    for place_m, covariance_m2 in zip(windows.truth_m, found.covariance_m2, strict=True):
        latitude, longitude = frame.to_wgs84(place_m)
        wide = Uncertainty(1e6, 1e6, 0.0)
        left_m2 = share(Position(float(latitude), float(longitude)), wide) * 2e12
        ratios.append(np.trace(covariance_m2) / left_m2)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.25)


def test_a_part_of_a_fix_is_always_its_own(station):
    share = clock_share(station)
    middle = Position((station.area.south + station.area.north) / 2.0, (station.area.west + station.area.east) / 2.0)
    assert share(middle, Uncertainty(0.01, 0.01, 0.0)) == MOST
    outside = Position(station.area.north + 5.0, station.area.east + 5.0)
    corner = Position(station.area.north, station.area.east)
    wide = Uncertainty(1e4, 1e4, 0.0)
    assert share(outside, wide) == share(corner, wide) > 0.0


def test_other_models_say_nothing_of_clocks(station):
    named = station.model.model_copy(update={"uri": "model.onnx"})
    assert clock_share(station.model_copy(update={"model": named})) is None
    levels = station.features.model_copy(update={"channels": ["log_mel"]})
    assert plan_station(station.model_copy(update={"features": levels})).spec.timing is None
    assert clock_share(station.model_copy(update={"features": levels})) is None
