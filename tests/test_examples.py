"""What ships beside the code: station files can be run, and models are what their station files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from localize_core.model.compiled.compile import compile_model
from localize_core.model.golden import check_golden, golden_difference, golden_features
from localize_core.model.onnx_model import OnnxModel
from localize_core.resources import shared_file
from localize_core.simulation.channels import load_channels
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station

ROOT = Path(__file__).resolve().parent.parent
STATIONS = sorted((ROOT / "examples").glob("*.toml"))
MODELS = sorted((ROOT / "models").glob("*.onnx"))


@pytest.mark.parametrize("file", STATIONS, ids=lambda file: file.stem)
def test_station_file_is_valid(file: Path) -> None:
    station = load_station(file)
    if station.source_kind == "scene":
        assert plan_station(station).time_steps >= 8


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_model_is_small_and_described(file: Path) -> None:
    assert file.stat().st_size < 2_000_000
    assert file.with_suffix(".md").read_text(encoding="utf-8").startswith(f"# {file.name}\n")
    check_golden(OnnxModel(file))
    nodes = onnx.load(file).graph.node
    assert not any(node.metadata_props for node in nodes)  # exporters note source files with their paths there


def test_single_receiver_is_compiled_from_its_station_file(tmp_path: Path) -> None:
    """After a change of the station file or of the compiler: `gr-localize compile` it anew."""
    shipped = OnnxModel(shared_file("models/single_receiver.onnx"))
    spec = plan_station(load_station(shared_file("examples/single_receiver.toml"))).spec
    compile_model(spec, tmp_path / "fresh.onnx")
    fresh = OnnxModel(tmp_path / "fresh.onnx")
    own = {"golden", "provenance"}  # rounding of the machine, and the version that compiled it
    assert shipped.contract.model_dump(exclude=own) == fresh.contract.model_dump(exclude=own)
    # The ellipse is nearly a circle, whose direction is rounding: compared as golden vectors are.
    golden = shipped.contract.golden
    features = golden_features(fresh.contract, seed=golden.seed, time_steps=golden.time_steps)
    answer = fresh.run(fresh.contract.normalisation.apply(features[0])[None])
    assert golden_difference(answer, golden.position, golden.uncertainty, golden.confidence) < 2e-3


def test_the_access_road_is_a_data_set_of_one_receiver(tmp_path: Path) -> None:
    file = tmp_path / "access_road.npz"
    subprocess.run([sys.executable, shared_file("models/access_road.py"), file], check=True)
    channels = load_channels(file)
    assert len(channels) == 1200
    assert len(channels.receivers) == 1
    assert not channels.has_delays
    distance_m = np.linalg.norm(channels.transmitters_enu_m - channels.receivers_enu_m, axis=1)
    slope, _ = np.polyfit(np.log10(distance_m), channels.level_db[:, 0], 1)
    assert -36.0 < slope < -24.0
