from __future__ import annotations

import json
from pathlib import Path

import pytest
from localize_apps.main import main
from localize_core.errors import ModelError
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel

pytest.importorskip("torch")

from localize_core.training import export as export_module
from localize_core.training.data import scene_data
from localize_core.training.fit import FitConfig
from localize_core.training.train import train

STATION = """
[station]
name = "small"
sample_rate_hz = 200e3
frequency_hz = 433e6
common_clock = true
[area]
south = 47.0
north = 47.05
west = 8.0
east = 8.07
[features]
channels = ["log_mel", "cross_correlation"]
rows = 32
n_fft = 256
window_s = 0.02
"""
PLACES = {"a": (47.0, 8.0), "b": (47.05, 8.0), "c": (47.05, 8.07), "d": (47.0, 8.07)}


@pytest.fixture(scope="module")
def station(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("station") / "small.toml"
    receivers = [
        f'[[receiver]]\nname = "{name}"\nlatitude = {lat}\nlongitude = {lon}\n' for name, (lat, lon) in PLACES.items()
    ]
    path.write_text("".join([STATION, *receivers]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(station: Path) -> Path:
    output = station.with_name("small.onnx")
    assert main(["train", "--scene", str(station), "--windows", "200", "--epochs", "2", "-o", str(output)]) == 0
    return output


def test_model_says_what_it_is_and_answers_as_ever(trained: Path):
    model = OnnxModel(trained)
    check_golden(model)
    told = model.contract.provenance
    assert told["kind"] == "trained"
    assert told["split"] == {"kind": "draw", "seed": 1}
    assert told["first_stage"] == "compiled"
    assert told["windows"] == {"train": 200, "validation": 200, "calibration": 200}
    assert model.contract.accuracy["windows"]["all"] == 200
    assert model.contract.accuracy["median_m"] > 0.0
    assert not trained.with_name("small.onnx.train").exists()


def test_the_same_seed_makes_the_same_model(trained: Path, station: Path, tmp_path: Path, capsys):
    again = tmp_path / "again.onnx"
    arguments = ["train", "--scene", str(station), "--windows", "200", "--epochs", "2", "-o", str(again), "--json"]
    assert main(arguments) == 0
    out = json.loads(capsys.readouterr().out)
    assert max(out["parity"][key] for key in ("position", "axes", "direction", "confidence")) <= 1e-4
    assert out["parity"]["windows"] == 200
    assert OnnxModel(again).contract.golden == OnnxModel(trained).contract.golden


def test_a_model_that_differs_from_its_network_is_not_written(station: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export_module, "PARITY_LIMIT", -1.0)
    with pytest.raises(ModelError, match="not written: the ONNX graph differs from the network"):
        train(scene_data(station, windows=200, seed=1), tmp_path / "m.onnx", name="m", config=FitConfig(epochs=1))
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --scene, --channels, --recordings says what to learn from"),
        (["--scene", "STATION", "--channels", "STATION"], "given: --scene --channels"),
        (["--scene", "STATION", "--truth", "47,8"], "--truth means nothing with --scene"),
        (["--scene", "STATION", "--split", "place"], "--split means nothing with --scene"),
        (["--channels", "STATION"], "small.toml: "),
        (["--scene", "STATION", "--seed", "100001"], "seed=100001: must lie between 0 and 100000"),
        (["--recordings", "STATION"], "--recordings needs --truth"),
    ],
)
def test_wrong_usage(arguments, message, station: Path, tmp_path: Path, capsys):
    given = [str(station) if argument == "STATION" else argument for argument in arguments]
    assert main(["train", *given, "-o", str(tmp_path / "m.onnx")]) == 2
    assert message in capsys.readouterr().err
