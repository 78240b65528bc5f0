from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from localize_apps.main import main
from localize_core.errors import ModelError
from localize_core.geodesy import LocalFrame
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel

pytest.importorskip("torch")

import torch
from localize_apps import train as command_module
from localize_core.model.compiled.compile import compile_model
from localize_core.training import export as export_module
from localize_core.training import train as train_module
from localize_core.training.data import scene_data
from localize_core.training.network import Layout
from localize_core.training.summaries import Summaries, prior_spec, summarise
from localize_core.training.train import _check_same

FOLDS = 3

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


@pytest.fixture(autouse=True, scope="module")
def _one_core():
    """Windows are made in this process, by one thread: more take longer to start, and wait for one another, than so few
    windows take to make and learn. Of a site's networks there are as few as can judge one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        patch.setattr(train_module, "FOLDS", FOLDS)
        patch.setattr(command_module, "FOLDS", FOLDS)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def station(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("station") / "small.toml"
    receivers = [
        f'[[receiver]]\nname = "{name}"\nlatitude = {lat}\nlongitude = {lon}\n' for name, (lat, lon) in PLACES.items()
    ]
    path.write_text("".join([STATION, *receivers]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def exported() -> list[onnx.ModelProto]:
    """What PyTorch made of the network of `trained`, which takes longer than all the rest of the training."""
    return []


@pytest.fixture(scope="module")
def trained(station: Path, exported: list[onnx.ModelProto]) -> Path:
    output = station.with_name("small.onnx")
    export = export_module._exported

    def kept(*given: Any) -> onnx.ModelProto:
        exported.append(export(*given))
        return copy.deepcopy(exported[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_exported", kept)
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


@pytest.mark.parametrize("usable", [3, 1, 0])
def test_file_answers_where_pairs_are_silent(trained: Path, usable: int):
    model = OnnxModel(trained)
    contract = model.contract
    names = [receiver.name for receiver in contract.receivers][:usable]
    features = np.zeros((2, len(contract.channels), contract.rows, 12), np.float32)
    for number, channel in enumerate(contract.channels):
        if channel.feature == "log_mel" and channel.receivers[0] not in names:
            features[:, number] = np.log(contract.mel_config.log_offset)
    answer = model.run(features)
    assert all(np.isfinite(part).all() for part in (answer.position, answer.uncertainty, answer.confidence))
    assert (answer.uncertainty[:, :2] > 0.0).all()


def test_what_differs_from_its_network_is_not_written_and_resumed_it_is_as_if_never_stopped(
    trained: Path, exported: list[onnx.ModelProto], station: Path, tmp_path: Path, monkeypatch, capsys
):
    """The network of a training that went on is compared with the file of the one that was never stopped."""
    monkeypatch.setattr(export_module, "_exported", lambda *_: copy.deepcopy(exported[0]))
    again = tmp_path / "again.onnx"
    arguments = ["train", "--scene", str(station), "--windows", "200", "--epochs", "2", "-o", str(again), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "PARITY_LIMIT", -1.0)
        assert main(arguments) == 1
    told = capsys.readouterr()
    assert "epoch 2: " in told.err
    assert "not written: the ONNX graph differs from the network" in told.err
    assert not again.exists()
    assert not list(tmp_path.rglob("model.onnx"))

    assert main([*arguments, "--resume"]) == 0
    told = capsys.readouterr()
    assert "epoch " not in told.err  # both were done
    out = json.loads(told.out)
    assert max(out["parity"][key] for key in ("position", "axes", "direction", "confidence")) <= 1e-4
    assert out["parity"]["windows"] == 200
    assert OnnxModel(again).contract.golden == OnnxModel(trained).contract.golden


def test_windows_made_by_several_processes_are_those_of_one_in_the_same_order(station: Path, tmp_path: Path):
    data = scene_data(station, windows=200, seed=1)
    layout = Layout.of(data.parts["train"].contract, data.spec)
    prior = tmp_path / "prior.onnx"
    compile_model(prior_spec(data.spec), prior)
    progress: list[int] = []
    alone, shared = (
        summarise(data.parts["train"], layout, prior, workers=workers, progress=progress.append) for workers in (1, 2)
    )
    for field in dataclasses.fields(Summaries):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(shared, field.name), err_msg=field.name)
    assert len(alone) == 200
    assert sum(progress) == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --scene, --channels, --recordings says what to learn from"),
        (["--scene", "STATION", "--channels", "STATION"], "given: --scene --channels"),
        (["--scene", "STATION", "--truth", "47,8"], "--truth means nothing with --scene"),
        (["--scene", "STATION", "--split", "place"], "--split means nothing with --scene"),
        (["--scene", "STATION", "--repeats", "8"], "--repeats means nothing with --scene"),
        (["--channels", "STATION", "--windows", "8000"], "--windows means nothing with --channels"),
        (["--channels", "STATION"], "small.toml: "),
        (["--scene", "STATION", "--name", ""], "--name: must not be empty"),
        (["--scene", "STATION", "--seed", "100001"], "seed=100001: must lie between 0 and 100000"),
        (["--recordings", "STATION"], "--recordings needs --truth"),
        (["--recordings", "FOLDER", "--truth", "47,8"], "no station file (*.toml) in this folder"),
        (["--recordings", "FOLDER/none", "--truth", "47,8"], "does not exist"),
        (["--scene", "STATION", "-o", "FOLDER/none/m.onnx"], "the folder does not exist"),
    ],
)
def test_wrong_usage(arguments, message, station: Path, tmp_path: Path, capsys):
    given = [argument.replace("STATION", str(station)).replace("FOLDER", str(tmp_path)) for argument in arguments]
    assert main(["train", "-o", str(tmp_path / "m.onnx"), *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [{"snr_db": (20.0, 30.0)}, {"waveforms": ("qpsk",)}, {"seed": 2}, {"windows": 300}],
    ids=lambda c: next(iter(c)),
)
def test_windows_of_other_options_are_not_gone_on_with(changed, station: Path, tmp_path: Path):
    told = {"windows": 200, "seed": 1, "snr_db": (0.0, 5.0)}
    work = tmp_path / "m.onnx.train"
    work.mkdir()
    _check_same(work / "data", scene_data(station, **told))
    _check_same(work / "data", scene_data(station, **told))
    with pytest.raises(ModelError, match="belongs to a training on other data"):
        _check_same(work / "data", scene_data(station, **(told | changed)))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A channel data set of levels, with walls: what a receiver loses depends on the side of the place it stands on."""
    rng = np.random.default_rng(1)
    places = np.column_stack([rng.uniform(0.0, 600.0, (240, 2)), np.full(240, 1.5)])
    receivers = np.array([[0.0, 0.0, 20.0], [600.0, 0.0, 20.0], [600.0, 600.0, 20.0], [0.0, 600.0, 20.0]])
    distance_m = np.linalg.norm(places[:, None] - receivers, axis=2)
    walls_db = 12.0 * (np.sin(places[:, None, 0] / 90.0 + np.arange(4)) > 0.0)
    level_db = 110.0 - 30.0 * np.log10(distance_m) - walls_db
    path = tmp_path_factory.mktemp("site") / "site.npz"
    np.savez(
        path,
        receivers_enu_m=receivers,
        transmitters_enu_m=places,
        tap_gain=(1e-4 * 10.0 ** (level_db / 20.0))[:, :, None].astype(np.complex64),
        tap_delay_ns=np.zeros((240, 4, 1), np.float32),
        noise_gain=np.float32(1e-4),
        frequency_hz=np.float64(450e6),
        origin_wgs84=np.array([48.0, 11.0, 500.0]),
    )
    return path


def test_blocks_of_place_are_for_a_split_by_place(site: Path, tmp_path: Path, capsys):
    given = ["train", "--channels", str(site), "--split", "time", "--block-m", "100", "-o", str(tmp_path / "m.onnx")]
    assert main(given) == 2
    assert "block_m=100: is for a split by place, and this one is by time" in capsys.readouterr().err


def test_what_is_in_the_way_of_its_folder_stays(station: Path, tmp_path: Path, capsys):
    (tmp_path / "m.onnx.train").mkdir()
    (tmp_path / "m.onnx.train" / "diary.txt").write_text("mine")
    assert main(["train", "--scene", str(station), "--windows", "200", "-o", str(tmp_path / "m.onnx")]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert (tmp_path / "m.onnx.train" / "diary.txt").exists()


def test_interrupted_it_says_how_to_go_on(station: Path, tmp_path: Path):
    output = tmp_path / "m.onnx"
    command = [sys.executable, "-m", "localize_apps.main", "train", "--scene", str(station), "-o", str(output)]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started these tests may ignore it
    )
    try:
        while not (tmp_path / "m.onnx.train" / "data").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers that are just starting get it, too
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"with --resume goes on from {output}.train" in said
    assert "Traceback" not in said


def test_a_site_is_learned_from_its_channels(site: Path, tmp_path: Path, capsys):
    output = tmp_path / "site.onnx"
    given = ["train", "--channels", str(site), "--split", "place", "--repeats", "2", "--epochs", "4"]
    assert main([*given, "--block-m", "100", "-o", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parity"]["position"] < 1e-4
    model = OnnxModel(output)
    check_golden(model)
    provenance = model.contract.provenance
    assert provenance["first_stage"] == "radio map"
    assert provenance["networks"] == FOLDS
    assert provenance["split"] == {"kind": "place", "seed": 1, "block_m": 100.0, "blocks": 20}
    assert main(["evaluate", str(output), "--channels", str(site), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["model"]["accuracy"]["median_m"] < figures["compiled"]["accuracy"]["median_m"]


RATE_HZ, DRIVE_S, DRIVE_WINDOW_S = 50e3, 12.0, 0.05


@pytest.fixture
def drives(tmp_path: Path, write_sigmf) -> tuple[Path, list[Path]]:
    """A folder with two drives, heard by four receivers, two of them behind a wall in the west, and their truths."""
    folder = tmp_path / "drives"
    folder.mkdir()
    frame = LocalFrame(47.025, 8.035, 0.0)
    places = frame.to_enu_m(*np.array([*PLACES.values()]).T, 0.0)[:, :2]
    truths = []
    for drive in range(2):
        rng = np.random.default_rng(drive)
        count = round(DRIVE_S * RATE_HZ)
        t = np.arange(count) / RATE_HZ
        turn = 2.0 * np.pi * t / DRIVE_S
        track = np.column_stack([2000.0 * np.sin(3.0 * turn + drive), 2000.0 * np.cos(2.0 * turn)])
        emitted = rng.standard_normal(count) + 1j * rng.standard_normal(count)
        lines = [f'[station]\nname = "small"\nsample_rate_hz = {RATE_HZ}\nfrequency_hz = 433e6\ncommon_clock = true']
        lines.append("[area]\nsouth = 47.0\nnorth = 47.05\nwest = 8.0\neast = 8.07")
        lines.append(f'[features]\nchannels = ["log_mel"]\nrows = 32\nn_fft = 256\nwindow_s = {DRIVE_WINDOW_S}')
        for number, (name, (latitude, longitude)) in enumerate(PLACES.items()):
            distance_m = np.linalg.norm(track - places[number], axis=1)
            wall_db = 15.0 * (track[:, 0] < 0.0) * (number < 2)
            gain = 10.0 ** ((-30.0 - 30.0 * np.log10(distance_m / 1000.0) - wall_db) / 20.0)
            noise = 1e-3 * (rng.standard_normal(count) + 1j * rng.standard_normal(count))
            samples = ((gain * emitted + noise) / np.sqrt(2.0)).astype(np.complex64)
            path = folder / f"{drive}{name}"
            write_sigmf(path, samples, rate_hz=RATE_HZ, captures=[(0, f"2026-01-02T0{drive}:00:00Z", 433e6)])
            lines.append(f'[[receiver]]\nname = "{name}"\nlatitude = {latitude}\nlongitude = {longitude}')
            lines.append(f'noise_dbfs = -60.0\nsource = {{ kind = "sigmf", path = "{path.name}.sigmf-meta" }}')
        (folder / f"{drive}.toml").write_text("\n".join(lines), encoding="utf-8")
        start_s = datetime(2026, 1, 2, drive, tzinfo=UTC).timestamp()
        rows = ["timestamp,latitude,longitude"]
        for k in range(0, count, 500):
            latitude, longitude, _ = frame.to_geodetic(np.array([*track[k], 0.0]))
            rows.append(f"{start_s + t[k]:.3f},{latitude:.7f},{longitude:.7f}")
        truths.append(tmp_path / f"{drive}.csv")
        truths[-1].write_text("\n".join(rows), encoding="utf-8")
    return folder, truths


def test_a_site_is_learned_from_drives(drives, tmp_path: Path, capsys):
    folder, truths = drives
    output = tmp_path / "drives.onnx"
    told = [part for truth in truths for part in ("--truth", str(truth))]
    given = ["train", "--recordings", str(folder), *told, "--epochs", "12", "-o", str(output), "--json"]
    assert main(given) == 0
    assert f"network {FOLDS} of {FOLDS}, epoch" in capsys.readouterr().err
    contract = OnnxModel(output).contract
    assert contract.provenance["first_stage"] == "radio map"
    assert contract.provenance["split"]["kind"] == "time"
    assert contract.accuracy["median_m"] < 200.0
