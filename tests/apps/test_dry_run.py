"""`gr-localize run --dry-run`: what it tells of a station that would run, and all that is wrong with another."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import localize_core.tracking
import pytest
import zmq
from localize_apps.dry_run import DryRun, _addresses, _with_unit
from localize_apps.main import main
from localize_benchmarks.stations import station_text
from localize_core.resources import shared_file
from localize_core.station.config import parse_station

NOBODY = 'kind = "rtl-tcp", address = "127.0.0.1:9"'
LIVE = station_text([NOBODY], name="live", rate_hz=250e3)
Look = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def look(folder: Path, capsys) -> Look:
    """The dry run of a station: exit code and what --json says."""

    def looked(text: str, *options: str) -> tuple[int, dict[str, Any]]:
        (folder / "station.toml").write_text(text)
        code = main(["run", "--dry-run", "--json", "station.toml", *options])
        captured = capsys.readouterr()
        assert captured.err == ""
        return code, json.loads(captured.out)

    return looked


def messages(found: dict[str, Any], level: str) -> dict[str, str]:
    return {each["check"]: each["message"] for each in found["findings"] if each["level"] == level}


@pytest.fixture
def taken() -> Any:
    """A port where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_would_run(look):
    text = Path(shared_file("examples/four_receivers.toml")).read_text(encoding="utf-8")
    code, found = look(text)
    assert (code, found["ok"], messages(found, "error")) == (0, True, {})
    assert found["station"]["receivers"] == ["Superga", "Stupinigi", "Rivoli", "Venaria"]
    assert (found["model"]["uri"], found["model"]["golden"]) == ("compiled", True)
    assert re.fullmatch("[0-9a-f]{64}", found["model"]["sha256"])
    feature = found["features"]["cross_correlation"]
    assert feature["inputs"] == 6
    assert feature["rows"] * feature["lag_step"] <= feature["n_fft"]
    window, rate_hz = found["window"], found["station"]["sample_rate_hz"]
    spanned = feature["n_fft"] + (window["frames"] - 1) * feature["hop"]
    assert window["duration_s"] == pytest.approx(spanned / rate_hz)


def test_lines_for_people(look, capsys):
    (Path.cwd() / "people.toml").write_text(LIVE)
    assert main(["run", "--dry-run", "people.toml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "station live: north (rtl-tcp 127.0.0.1:9), 433.92 MHz, 250 kS/s"
    assert re.fullmatch(
        r"model compiled-live version 1 \([0-9a-f]{12}\) from compiled, golden vector answered", lines[1]
    )
    assert re.fullmatch(r"log_mel: 1 of n_fft \d+, hop \d+, 32 rows", lines[2])
    assert lines[3].startswith("window: ")
    assert lines[-1] == "it would run"


def test_no_radio_is_opened_and_nothing_is_written(look, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as radio:
        radio.settimeout(0.2)
        port = radio.getsockname()[1]
        text = LIVE.replace("127.0.0.1:9", f"127.0.0.1:{port}") + '[publish]\nfile = { path = "fixes.jsonl" }\n'
        assert look(text)[0] == 0
        with pytest.raises(TimeoutError):
            radio.accept()
    assert {path.name for path in tmp_path.iterdir()} == {"station.toml"}


def test_all_that_is_wrong_at_once(look, taken, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "folder").mkdir()
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        busy = other.bind_to_random_port("tcp://127.0.0.1")
        code, found = look(
            LIVE
            + f"""
[model]
uri = "none.onnx"
[control]
endpoint = "tcp://127.0.0.1:{taken}"
[http]
port = {taken}
token_file = "token"
[metrics]
port = {taken}
[publish]
zmq = {{ endpoint = "tcp://127.0.0.1:{busy}" }}
file = [{{ path = "nowhere/fixes.jsonl" }}, {{ path = "folder" }}]
redis = {{ url = "redis://user:hunter2@127.0.0.1:9" }}
"""
        )
    assert (code, found["ok"]) == (2, False)
    errors = [f"{each['check']}: {each['message']}" for each in found["findings"] if each["level"] == "error"]
    for wanted in (
        "station: station.toml names .*none.onnx, which is not there",
        "model: .*none.onnx: cannot be read",
        f"publish.zmq: .*{busy}.*",
        "station: station.toml names nowhere, which is not there",
        "publish.file: cannot write folder: Is a directory",
        "http: token_file=.*anybody can read it",
        f"http: http at 127.0.0.1:{taken} cannot be had: Address already in use",
        f"metrics: metrics at 127.0.0.1:{taken} cannot be had: Address already in use",
    ):
        assert any(re.match(wanted, error) for error in errors), (wanted, errors)
    assert messages(found, "warning")["publish.redis"].startswith("127.0.0.1:9 does not answer: Connection refused")
    assert "hunter2" not in json.dumps(found)
    assert not any("nowhere/fixes" in error for error in errors), "its folder is missing, as was said"


def test_a_control_endpoint_that_is_taken(look, taken):
    code, found = look(LIVE + f'[control]\nendpoint = "tcp://127.0.0.1:{taken}"\n')
    assert code == 2
    assert "Address already in use" in messages(found, "error")["control"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(look, tmp_path):
    (tmp_path / "kept").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    code, found = look(LIVE + '[publish]\nfile = { path = "kept/fixes.jsonl" }\n')
    assert code == 2
    assert "Permission denied" in messages(found, "error")["publish.file"]


def test_a_station_file_that_cannot_be_read(look):
    code, found = look(LIVE.replace("rows = 32", "rows = 4"))
    assert (code, list(found)) == (2, ["ok", "findings"])
    assert "features.rows" in messages(found, "error")["station"]


def test_a_window_that_cannot_work_beside_a_missing_source(look):
    code, found = look(LIVE.replace(f"source = {{ {NOBODY} }}", "").replace("window_s = 0.1", "window_s = 0.001"))
    assert code == 2
    errors = messages(found, "error")
    assert errors["source"].startswith("receiver north: source is missing")
    assert errors["model"].startswith("features.window_s=0.001: holds")


def test_extras_that_are_not_installed(look, monkeypatch):
    packages = {"stonesoup", "fastapi", "prometheus_client", "pybreaker", "redis", "paho", "mlflow"}
    loaded = {name for name in sys.modules if name.partition(".")[0] in packages}
    for name in loaded | packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "localize_core.tracking.filters", raising=False)  # it holds the package
    monkeypatch.delattr(localize_core.tracking, "filters", raising=False)
    code, found = look(
        LIVE
        + """
[tracker]
[http]
port = 0
[metrics]
port = 0
[cache]
redis = "redis://127.0.0.1:9"
[publish]
redis = { url = "redis://127.0.0.1:9" }
mqtt = { url = "mqtt://127.0.0.1:9" }
[model]
uri = "models:/a@b"
registry = "http://127.0.0.1:9"
"""
    )
    assert code == 2
    errors = messages(found, "error")
    extras = {"tracker": "track", "http": "serve", "metrics": "metrics", "cache.redis": "redis", "model": "mlflow"}
    for check, extra in (extras | {"publish.redis": "redis", "publish.mqtt": "mqtt"}).items():
        assert f"'gr-localize[{extra}]'" in errors.pop(check)
    assert errors == {}


@pytest.mark.parametrize("package", ["msgspec", "prometheus_client", "simdjson", "uvicorn"])
def test_a_map_needs_each_of_its_packages(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    run = DryRun()
    _addresses(run, parse_station(f"{LIVE}[http]\nport = 0\n", folder=Path()), None)
    (found,) = run.findings
    assert (found.check, found.level) == ("http", "error")
    assert "'gr-localize[serve]'" in found.message


def test_recordings_that_are_missing_are_said_once(look):
    text = station_text([f'kind = "kiwi-wav", path = "{name}.wav"' for name in "ab"], name="recorded")
    code, found = look(text.replace("window_s = 0.1\n", ""))
    assert code == 2
    assert [each["check"] for each in found["findings"]] == ["station", "station"]


@pytest.mark.parametrize(
    ("hz", "shown"),
    [(77.5e3, "77.5 kHz"), (1e6, "1 MHz"), (433.92e6, "433.92 MHz"), (2.4e9, "2.4 GHz"), (50.0, "50 Hz")],
)
def test_frequencies_for_people(hz, shown):
    assert _with_unit(hz, "Hz") == shown


def test_a_driver_that_is_not_here(look):
    code, found = look(station_text(['kind = "soapy", args = "driver=nothing"'], name="live"))
    assert code == 2
    (driver,) = (each for each in found["findings"] if each["check"] == "radios")
    assert "soapy" in driver["message"].lower()
    assert "soapysdr-module-nothing" in driver["fix"]


def test_recordings_that_cannot_be_read(look, tmp_path):
    text = station_text([f'kind = "kiwi-wav", path = "{name}.wav"' for name in "ab"], name="recorded")
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(b"RIFF")
    code, found = look(text)
    assert code == 2
    assert "a.wav" in messages(found, "error")["recordings"]


def test_a_registry_that_cannot_be_reached(look, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = '[model]\nuri = "models:/localization_model@champion"\nregistry = "http://127.0.0.1:9"\n'
    code, found = look(LIVE + uri)
    assert code == 2
    assert "127.0.0.1:9" in messages(found, "error")["model"]
