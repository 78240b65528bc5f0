"""`gr-localize evaluate`: from a model file and data to figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from localize_apps.main import main

STATION = """
[station]
name = "three"
sample_rate_hz = 100e3
frequency_hz = 433.92e6
[[receiver]]
name = "a"
latitude = 45.0
longitude = 7.6
source = { kind = "scene" }
[[receiver]]
name = "b"
latitude = 45.1
longitude = 7.7
source = { kind = "scene" }
[[receiver]]
name = "c"
latitude = 45.1
longitude = 7.58
source = { kind = "scene" }
[[receiver]]
name = "d"
latitude = 45.02
longitude = 7.72
source = { kind = "scene" }
[area]
south = 45.0
west = 7.6
north = 45.1
east = 7.7
[features]
channels = ["log_mel", "cross_correlation"]
rows = 64
n_fft = 256
window_s = 0.03
[scene]
bandwidth_hz = 50e3
track = [[45.05, 7.65]]
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, model_cache) -> Path:
    """A folder with a station and its compiled model."""
    made = tmp_path_factory.mktemp("compiled")
    (made / "three.toml").write_text(STATION)
    assert main(["compile", str(made / "three.toml"), "-o", str(made / "model.onnx")]) == 0
    return made


@pytest.fixture
def folder(compiled, tmp_path, monkeypatch) -> Path:
    """The working directory, with a station and its compiled model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_scene_as_json(folder, capsys):
    capsys.readouterr()
    assert (
        main(["evaluate", "model.onnx", "--scene", "three.toml", "--windows", "40", "--snr", "5", "30", "--json"]) == 0
    )
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    told = json.loads(line)
    assert told["windows"]["all"] == 40
    assert list(told["figures"]) == ["model", "compiled", "tdoa", "knn5", "centroid"]
    assert told["figures"]["model"] == told["figures"]["compiled"]
    assert told["notes"] == {}
    bound = told["bound"]
    rmse_m = told["figures"]["model"]["accuracy"]["rmse_m"]
    assert bound["ratio"]["model"] == pytest.approx(rmse_m / bound["rmse_m"], rel=0.3)
    assert told["origin"]["data"] == "the scene of three.toml, SNR 5 to 30 dB"
    assert captured.err == ""


def test_the_same_seed_gives_the_same_figures(folder, capsys):
    def run(*arguments: str) -> dict:
        capsys.readouterr()
        base = ["evaluate", "model.onnx", "--scene", "three.toml", "--windows", "6", "--no-baselines", "--json"]
        assert main([*base, *arguments]) == 0
        return json.loads(capsys.readouterr().out)["figures"]

    first = run()
    assert list(first) == ["model"]
    assert run() == first
    assert run("--seed", "2") != first
    assert run("--split", "validation") != first


def test_a_table_for_people(folder, capsys):
    assert main(["evaluate", "model.onnx", "--scene", "three.toml", "--windows", "20"]) == 0
    out = capsys.readouterr().out
    for text in (
        "median error",
        "truth in ellipse of 39.35 % (1 σ)",
        "TDOA",
        "kNN-5",
        "Cramér–Rao bound: ",
        "split: test",
    ):
        assert text in out
    assert "Median receiver's SNR, dB" in out


def test_a_report(folder, capsys):
    arguments = ["--scene", "three.toml", "--windows", "20", "--no-baselines", "--report", "out/report"]
    assert main(["evaluate", "model.onnx", *arguments]) == 0
    page = (folder / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h1>compiled-three, version 1</h1>" in page
    assert 'id="map"' in page
    assert "report: out/report/index.html" in capsys.readouterr().err


def test_a_report_without_its_packages_fails_before_anything_runs(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["evaluate", "model.onnx", "--scene", "three.toml", "--report", "out"]) == 2
    assert "gr-localize[report]" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_channel_set(folder, capsys):
    rng = np.random.default_rng(1)
    receivers = np.array([[0.0, 0.0, 20.0], [9000.0, 0.0, 20.0], [4000.0, 9000.0, 20.0]])
    places = np.column_stack([rng.uniform(0.0, 9000.0, (80, 2)), np.full(80, 1.5)])
    distance = np.linalg.norm(places[:, None] - receivers, axis=2)
    np.savez(
        "site.npz",
        receivers_enu_m=receivers,
        transmitters_enu_m=places,
        tap_gain=(1e-1 / distance)[:, :, None].astype(np.complex64),
        tap_delay_ns=(distance / 0.299792458)[:, :, None].astype(np.float32),
        noise_gain=1e-6,
        frequency_hz=2.4e9,
        origin_wgs84=np.array([48.0, 11.0, 500.0]),
    )
    from localize_core.dataset.drawn import channel_station
    from localize_core.model.compiled.compile import compile_model
    from localize_core.simulation.channels import load_channels
    from localize_core.station.plan import plan_station

    station = channel_station(load_channels("site.npz"), name="site", sample_rate_hz=1e6)
    compile_model(plan_station(station).spec, "site.onnx")
    capsys.readouterr()
    assert main(["evaluate", "site.onnx", "--channels", "site.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["figures"]) == ["model", "compiled", "tdoa", "knn5", "centroid"]
    assert told["no_bound"] == "measured or ray-traced channels have no closed form"
    assert told["origin"]["split"].startswith("test, by place")
    assert main(["evaluate", "site.onnx", "--channels", "site.npz", "--split-by", "row", "--split", "all"]) == 0
    out = capsys.readouterr().out
    assert "by random rows, which flatters" in out
    assert "Without kNN-5: there are no training windows to be near to." in out
    assert main(["evaluate", "model.onnx", "--channels", "site.npz"]) == 2
    assert (
        "the windows are of receivers r0, r1, r2: the model compiled-three wants a, b, c, d" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --channels, --scene, --recordings"),
        (["--scene", "three.toml", "--recordings", "three.toml"], "given: --scene --recordings"),
        (["--scene", "three.toml", "--truth", "45,7"], "--truth means nothing with --scene"),
        (["--scene", "three.toml", "--split-by", "row"], "--split-by means nothing with --scene"),
        (["--recordings", "three.toml", "--truth", "45,7", "--snr", "0", "5"], "--snr means nothing with --recordings"),
        (["--recordings", "three.toml"], "--recordings needs --truth"),
        (["--recordings", "three.toml", "--truth", "45,7"], "labelled windows need recordings"),
        (["--scene", "no-such.toml"], "no-such.toml"),
        (["--channels", "model.onnx"], "model.onnx: cannot be read as a channel data set"),
        (["--scene", "three.toml", "--windows", "0"], "--windows"),
        (["--scene", "three.toml", "--snr", "9", "3"], "snr_db=(9.0, 3.0): the lower end comes first"),
        (["--scene", "model.onnx"], "model.onnx: cannot be read"),
        (["--scene", "three.toml", "--split", "tests"], "--split"),
    ],
)
def test_wrong_usage_is_2_and_one_line(folder, capsys, arguments, message):
    capsys.readouterr()
    assert main(["evaluate", "model.onnx", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith(("Error", "gr-localize"))]) == 1


def test_a_file_that_is_no_model(folder, capsys):
    assert main(["evaluate", "three.toml", "--scene", "three.toml"]) == 2
    assert "three.toml: not a usable ONNX model" in capsys.readouterr().err


def test_a_pipe_gets_figures_alone(folder):
    """No progress bar where nobody looks, and nothing but the object on standard output."""
    command = [sys.executable, "-m", "localize_apps.main", "evaluate", "model.onnx", "--scene", "three.toml"]
    done = subprocess.run(
        [*command, "--windows", "4", "--no-baselines", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )
    assert json.loads(done.stdout)["windows"]["all"] == 4
    assert "windows" not in done.stderr
