"""A headless station that is told what to do: `gr-localize control`, and SIGHUP."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import zmq
from localize_apps.commands import not_followed
from localize_apps.main import main
from localize_benchmarks.process import start_app
from localize_benchmarks.stations import SCENE, SIMULATED, station_text
from localize_core.errors import ConfigError, PublishError, UnavailableError
from localize_core.model.contract import METADATA_KEY, Contract
from localize_core.serving.control import ControlServer, parse_command, send_command
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings
from localize_core.station.config import parse_station

STATION = station_text([SIMULATED], name="one") + SCENE
WAIT_S = 60.0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, model_cache) -> Path:
    made = tmp_path_factory.mktemp("compiled")
    (made / "plain.toml").write_text(STATION)
    assert main(["compile", str(made / "plain.toml"), "-o", str(made / "model.onnx")]) == 0
    return made / "model.onnx"


@pytest.fixture
def folder(compiled, folder) -> Path:
    """With a station whose model is the file model.onnx, version 1, and which takes commands at `control`."""
    shutil.copy(compiled, folder)
    station = f'{STATION}[model]\nuri = "model.onnx"\npoll_s = 0\n[control]\nendpoint = "ipc://{folder}/control"\n'
    (folder / "station.toml").write_text(station)
    return folder


def write_version(path: Path, version: str, *, to: Path | None = None) -> None:
    """The same model under another version."""
    model = onnx.load(path)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = Contract.from_json(entry.value).model_copy(update={"model_version": version})
    onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
    draft = path.with_suffix(".draft")
    onnx.save(model, draft)
    draft.replace(to or path)


def wait_for_version(running: Any, version: str) -> None:
    running.until(lambda: running.fixes and running.fixes[-1].model.version == version)


@pytest.fixture
def running(start) -> Iterator[Any]:
    station = start("-v", "run", "station.toml")
    wait_for_version(station, "1")
    yield station
    assert station.end() == 0, station.log
    sequences = [fix.sequence for fix in station.fixes]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] + 1 == len(sequences) + sum(fix.dropped_windows for fix in station.fixes)


def test_commands_from_another_terminal(folder, running, capsys):
    endpoint = ("--endpoint", f"ipc://{folder}/control")

    def control(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["control", *arguments, *endpoint])
        shown = capsys.readouterr()
        return code, shown.out or shown.err

    with start_app("control", "info", *endpoint, stderr=subprocess.PIPE) as other:
        shown, errors = other.communicate(timeout=WAIT_S)
    assert (other.returncode, errors) == (0, "")
    assert shown.startswith("ready\n")
    assert "champion" in shown
    write_version(folder / "model.onnx", "2")
    code, shown = control("reload", "--json")
    assert (code, json.loads(shown)["version"]) == (0, "2")
    assert json.loads(shown)["arms"]["champion"]["held"] is False
    wait_for_version(running, "2")
    code, shown = control("rollback")
    assert code == 0
    assert f"held: {folder}/model.onnx names " in shown
    wait_for_version(running, "1")
    (folder / "model.onnx").write_bytes(b"nothing")
    code, shown = control("reload")
    assert code == 2
    assert "no ONNX file at all" in shown
    code, shown = control("health")
    assert code == 0
    assert shown.startswith("degraded\n  model_rejected since ")
    assert control("activate", "7") == (
        2,
        f"gr-localize: model {folder}/model.onnx: a file has no versions to choose from, there is no 7\n",
    )


def test_hangup_reads_model_and_station_file_again(folder, compiled, running):
    write_version(folder / "model.onnx", "2")
    running.process.send_signal(signal.SIGHUP)
    wait_for_version(running, "2")
    warnings = [line for line in running.log.splitlines() if " WARNING " in line]
    assert len(warnings) == 1  # of the change, and of nothing else
    assert "status: ready, compiled-one version 2 (" in warnings[0]

    (folder / "model.onnx").write_bytes(b"nothing")  # a bad model changes nothing
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "going on with the model that serves" in running.log)
    wait_for_version(running, "2")

    write_version(compiled, "3", to=folder / "other.onnx")
    text = (folder / "station.toml").read_text()
    (folder / "station.toml").write_text(text.replace('"model.onnx"', '"other.onnx"'))
    running.process.send_signal(signal.SIGHUP)
    wait_for_version(running, "3")
    write_version(compiled, "4", to=folder / "third.onnx")
    changed = text.replace('"model.onnx"', '"third.onnx"\npeaks = 2\nfallback = "other.onnx"')
    (folder / "station.toml").write_text(changed.replace("window_s = 0.1", "window_s = 0.2"))
    running.process.send_signal(signal.SIGHUP)
    left = "a restart is needed for [features], model.peaks, model.fallback, left as it was"
    running.until(lambda: left in running.log)
    wait_for_version(running, "4")  # the rest of it is followed
    (folder / "station.toml").write_text(text.replace('"model.onnx"', '"compiled"'))
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "a restart is needed for model.uri, left as it was" in running.log)
    (folder / "station.toml").write_text("not TOML")
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "going on as before" in running.log)
    wait_for_version(running, "4")


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        ("[scene]", "[model]\nmin_confidence = 0.1\npoll_s = 5\n[scene]", []),
        ("[scene]", "[model]\npeaks = 2\n[scene]", ["model.peaks"]),
        ("[scene]", '[model]\nfallback = "compiled"\n[scene]', ["model.fallback"]),
        (
            "[scene]",
            "[model]\nprobability = 0.5\nqueue = { windows = 2 }\n[scene]",
            ["model.probability", "model.queue"],
        ),
        ("rows = 32", "rows = 64", ["[features]"]),
        ("[scene]", "[metrics]\n[scene]\nseed = 2", ["[metrics]", "[scene]"]),
    ],
)
def test_what_an_engine_cannot_follow(old, new, left):
    before, wanted = (parse_station(text, folder=Path()) for text in (STATION, STATION.replace(old, new)))
    assert not_followed(before, before, has_compiled=True) == []
    assert not_followed(before, wanted, has_compiled=True) == left


def test_whoever_does_not_know_the_compiled_model_cannot_go_over_to_it():
    tables = [f'[model]\nuri = "{uri}"\n' for uri in ("model.onnx", "compiled")]
    before, wanted = (parse_station(STATION + table, folder=Path()) for table in tables)
    assert not_followed(before, wanted, has_compiled=False) == ["model.uri"]
    assert not_followed(before, wanted, has_compiled=True) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "Invalid value for 'COMMAND'"),
        (["activate"], "activate takes a version"),
        (["share", "many"], "share takes a number of percent"),
        (["info", "7"], "info takes no value"),
        (
            ["info", "--endpoint", "tcp://10.0.0.1:5556"],
            "wanted ipc://PATH or tcp://127.0.0.1:PORT, on this machine only",
        ),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert main(["control", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nobody_answers(tmp_path, capsys):
    assert main(["control", "info", "--endpoint", f"ipc://{tmp_path}/nobody", "--timeout", "0.1"]) == 1
    assert "no station takes commands there" in capsys.readouterr().err


# the server itself


@pytest.fixture
def server(make_contract, make_model) -> Iterator[ControlServer]:
    engine = Engine(ServingSettings(uri=str(make_model(make_contract(2))), poll_s=0.0))
    engine.prepare(4)
    engine.start()
    found = ControlServer(engine, "tcp://127.0.0.1:*")
    found.start()
    yield found
    found.stop()
    engine.stop()


def test_answers_over_a_socket(server):
    answer = send_command(server.endpoint, "info")
    assert answer["state"] == "ready"
    with pytest.raises(ConfigError, match="no version before this one"):
        send_command(server.endpoint, "rollback")
    with pytest.raises(ConfigError, match="unknown colour"):
        send_command(server.endpoint, "info", colour="red")
    assert send_command(server.endpoint, "health")["live"] is True
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.connect(server.endpoint)
        socket.send_multipart([b"two", b"frames"])
        assert json.loads(socket.recv())["ok"] is False
    assert send_command(server.endpoint, "health")["live"] is True


def test_an_endpoint_that_is_taken(server):
    other = ControlServer(server._engine, server.endpoint)
    with pytest.raises(PublishError, match="Address already in use"):
        other.start()


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5556", "tcp://*:5556", "udp://127.0.0.1:1", ""])
def test_nobody_else_gives_commands(server, endpoint):
    with pytest.raises(ConfigError, match="on this machine only"):
        ControlServer(server._engine, endpoint)
    with pytest.raises(ConfigError, match=r"control\.endpoint: .*on this machine only"):
        parse_station(f'{STATION}[control]\nendpoint = "{endpoint}"\n', folder=Path())


@pytest.mark.parametrize("message", ["", "7", "[]", "{}", '{"command": 7}', '{"command": "share", "percent": true}'])
def test_what_is_no_command(message):
    with pytest.raises(ConfigError):
        parse_command(message)


def test_nothing_listens():
    with pytest.raises(UnavailableError, match="no station takes commands there"):
        send_command("tcp://127.0.0.1:1", "info")


def test_a_station_that_does_not_answer(tmp_path):
    with zmq.Context.instance().socket(zmq.REP) as socket:
        socket.bind(f"ipc://{tmp_path}/silent")
        with pytest.raises(UnavailableError, match=r"no station answered within 0\.1 s"):
            send_command(f"ipc://{tmp_path}/silent", "info", timeout_s=0.1)


def test_an_endpoint_of_another_station_is_left_to_it(server, tmp_path):
    one, other = (ControlServer(server._engine, f"ipc://{tmp_path}/control") for _ in range(2))
    one.start()
    try:
        with pytest.raises(PublishError, match="another station takes commands there"):
            other.start()
        assert send_command(one.endpoint, "health")["live"] is True
    finally:
        one.stop()
    again = ControlServer(server._engine, f"ipc://{tmp_path}/control")  # what is left of it is in nobody's way
    again.start()
    again.stop()
