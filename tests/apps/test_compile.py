"""`gr-localize compile`: a station as a model file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gnuradio import localize
from localize_apps.main import main
from localize_core.model.contract import Contract
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel

STATION = """
[station]
name = "two"
sample_rate_hz = 20e3
frequency_hz = 433.92e6
[[receiver]]
name = "left"
latitude = 45.0
longitude = 7.6
source = { kind = "scene" }
[[receiver]]
name = "right"
latitude = 45.1
longitude = 7.7
source = { kind = "scene" }
[area]
south = 45.0
west = 7.6
north = 45.14
east = 7.79
[scene]
track = [[45.0781, 7.6703]]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "station.toml").write_text(STATION)
    return tmp_path


def test_a_model_that_runs_and_says_how(folder, capsys):
    assert main(["compile", "station.toml", "-o", "two.onnx"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("two.onnx: 2 receivers, 1 channels of cross_correlation, 128 rows; ")
    check_golden(OnnxModel("two.onnx"))
    steps = int(printed.split("windows of ")[1].split()[0])
    assert localize.localizer("two.onnx", 2, time_steps=steps).inference.contract.name == "compiled-two"


def test_its_contract_as_json(folder, capsys):
    assert main(["compile", "station.toml", "-o", "two.onnx", "--json"]) == 0
    contract = Contract.from_json(capsys.readouterr().out)
    assert contract == OnnxModel("two.onnx").contract
    assert json.loads(contract.model_dump_json())["receivers"][0]["name"] == "left"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["station.toml"], 2, "--output"),
        (["station.toml", "-o", "no/such/folder.onnx"], 2, "no/such/folder.onnx: the folder does not exist"),
        (["station.toml", "-o", "."], 2, "is a directory"),
        (["nowhere.toml", "-o", "two.onnx"], 2, "nowhere.toml: cannot be read"),
    ],
)
def test_wrong_usage(folder, capsys, arguments, code, message):
    assert main(["compile", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert not list(folder.glob("*.onnx"))


def test_a_station_with_recordings_that_are_not_there(folder, capsys):
    path = folder / "station.toml"
    path.write_text(STATION.replace('kind = "scene"', 'kind = "kiwi-wav", path = "a.wav"'))
    assert main(["compile", "station.toml", "-o", "two.onnx"]) == 2
    assert "a.wav: cannot be read" in capsys.readouterr().err


def test_a_disk_that_is_full(folder, capsys):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    assert main(["compile", "station.toml", "-o", str(full)]) == 1
    assert "/dev/full: cannot be written: No space left on device" in capsys.readouterr().err
