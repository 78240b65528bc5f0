"""`gr-localize run`: what comes out where, how a run ends, and with which exit code."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from localize_apps.graph import StationGraph
from localize_apps.keys import make_keys
from localize_apps.main import main
from localize_apps.run import StatusLog
from localize_apps.runner import run_station
from localize_benchmarks.process import start_app
from localize_benchmarks.stations import SCENE, SIMULATED, rtl_tcp, station_text
from localize_core.engine.locator import Locator
from localize_core.errors import EngineError, PublishError
from localize_core.geodesy import GEOD
from localize_core.resources import shared_file
from localize_core.simulation.scene import Scene
from localize_core.sinks.cot_sink import DECLARATION
from localize_core.sinks.file_sink import FileFixSink
from localize_core.station.config import Station, load_station, parse_station
from localize_core.types.fix import Fix
from localize_core.wire.cot import fix_to_cot
from localize_core.wire.fix_json import fix_from_json
from localize_core.wire.geojson import fix_to_geojson

WAIT_S = 60.0
STATION = station_text([SIMULATED], name="one") + SCENE + '[publish]\nfile = { path = "fixes.jsonl" }\n'


@pytest.fixture
def folder(folder) -> Path:
    """With the station in it."""
    (folder / "station.toml").write_text(STATION)
    return folder


@pytest.fixture
def station(folder) -> Station:
    return load_station(folder / "station.toml")


def write(folder: Path, old: str, new: str) -> None:
    assert old in STATION
    (folder / "station.toml").write_text(STATION.replace(old, new))


def test_json_alone_on_standard_output_with_all_there_is_to_log(start, published):
    run = start("-vv", "run", "station.toml", "--fast", "--duration", "1.05")
    assert run.wait() == 0, run.log
    assert [fix.sequence for fix in run.fixes] == list(range(10))
    assert "status" in run.log  # which is somewhere else
    assert published() == run.fixes
    assert all(fix.status == "ok" for fix in run.fixes)


def test_lines_for_people_and_a_quiet_log(folder, capsys):
    assert main(["run", "station.toml", "--fast", "--duration", "0.35"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"(2026-01-01T00:00:00\.\d+Z ok 45\.\d+ 7\.\d+ ±\d+ m \(95 %\).*\n){3}", out)
    assert err == ""


def test_whoever_has_seen_enough_may_close_the_pipe(folder):
    arguments = ("run", "station.toml", "--fast", "--json")
    with start_app(*arguments, stderr=subprocess.PIPE) as process:
        fix_from_json(process.stdout.readline())
        process.stdout.close()
        assert process.wait(WAIT_S) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_live_run_and_nothing_is_lost(start, published, number):
    run = start("run", "station.toml")
    run.more(3)
    assert run.end(number) == 0, run.log
    assert run.log == ""
    assert [fix.sequence for fix in run.fixes] == list(range(len(run.fixes)))
    assert published() == run.fixes


def test_a_live_run_of_a_set_length_loses_nothing(station, published):
    fixes: list[Fix] = []
    result = run_station(station, on_fix=fixes.append, duration_s=0.65)
    assert (result.failure, result.fixes, result.dropped_windows) == (None, 6, 0)
    assert published() == fixes


def test_a_slow_listener_gets_what_was_answered_before_the_end(station, published):
    """The windows that wait when the stop comes are answered, delivered and published first."""
    stopped, fixes = threading.Event(), []

    def slow(fix: Fix) -> None:
        stopped.set()
        threading.Event().wait(0.15)  # longer than a window
        fixes.append(fix)

    result = run_station(station, on_fix=slow, stopped=stopped)
    assert result.failure is None
    assert len(fixes) == result.fixes > 0
    assert published() == fixes


# failures


def error_line(errors: str) -> str:
    """The one line that says what is wrong."""
    (line,) = (line for line in errors.splitlines() if line.startswith("gr-localize: "))
    assert "Traceback" not in line
    return line


def test_sinks_of_several_kinds(folder):
    make_keys("any", folder)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(WAIT_S)
        sinks = (
            'file = { path = "fixes.geojsons", format = "geojson-seq" }',
            'zmq = { endpoint = "ipc://z", curve_secret_key_file = "any.key_secret", curve_clients = "." }',
            f'cot = {{ url = "udp://127.0.0.1:{receiver.getsockname()[1]}", stale_s = 5.0 }}',
        )
        write(folder, 'file = { path = "fixes.jsonl" }', "\n".join(sinks))
        fixes: list[Fix] = []
        result = run_station(load_station("station.toml"), on_fix=fixes.append, duration_s=0.35)
        assert (result.failure, len(fixes)) == (None, 3)
        events = [receiver.recv(65536).removeprefix(DECLARATION).decode() for _ in fixes]
        assert events == [fix_to_cot(fix, stale_s=5.0) for fix in fixes]
    records = (folder / "fixes.geojsons").read_bytes().split(b"\x1e")[1:]
    assert [json.loads(record) for record in records] == [fix_to_geojson(fix) for fix in fixes]


def test_redis_and_mqtt(folder, start_redis, start_mosquitto):
    redis = pytest.importorskip("redis")
    server, broker = start_redis(), start_mosquitto()
    sinks = f'redis = {{ url = "{server.url}", max_len = 50 }}\nmqtt = {{ url = "{broker.url}", retain = true }}'
    write(folder, 'file = { path = "fixes.jsonl" }', sinks)
    fixes: list[Fix] = []
    result = run_station(load_station("station.toml"), on_fix=fixes.append, duration_s=0.35)
    assert (result.failure, len(fixes)) == (None, 3)
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        kept = [fix_from_json(entry["fix"]) for _, entry in client.xrange("gr-localize:stream:one")]
    assert kept == fixes
    subscribe = pytest.importorskip("paho.mqtt.subscribe")
    retained = subscribe.simple(
        ["gr-localize/one/fix", "gr-localize/one/state"], msg_count=2, hostname="127.0.0.1", port=broker.port
    )
    by_topic = {message.topic: message.payload.decode() for message in retained}
    assert fix_from_json(by_topic["gr-localize/one/fix"]) == fixes[-1]
    assert by_topic["gr-localize/one/state"] == "offline"


def test_a_sink_whose_endpoint_is_in_use(folder, capsys):
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        write(folder, 'file = { path = "fixes.jsonl" }', f'zmq = {{ endpoint = "tcp://127.0.0.1:{port}" }}')
        assert main(["run", "station.toml", "--json"]) == 1  # endless, were it not for the failure
    assert str(port) in error_line(capsys.readouterr().err)


def test_a_control_endpoint_that_is_in_use(folder, capsys):
    """As of a station before it that is about to end: systemd tries again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        write(folder, "[publish]", f'[control]\nendpoint = "{endpoint}"\n[publish]')
        assert main(["run", "station.toml"]) == 1
    assert "control.endpoint: cannot listen at 127.0.0.1 port" in error_line(capsys.readouterr().err)


def test_a_file_that_cannot_be_written(folder, station, capsys):
    (folder / "fixes.jsonl").mkdir()
    for duration_s in (None, 0.05):  # a run that is over before it is looked at, too
        result = run_station(station, on_fix=print, duration_s=duration_s)
        assert isinstance(result.failure, PublishError)
    assert main(["run", "station.toml", "--fast", "--duration", "0.3"]) == 1
    assert "cannot write fixes.jsonl: Is a directory" in capsys.readouterr().err


def test_a_sink_that_raises(station, monkeypatch):
    def explode(self: FileFixSink, fix: Fix) -> bool:
        raise RuntimeError("boom")

    monkeypatch.setattr(FileFixSink, "publish", explode)
    result = run_station(station, on_fix=lambda _: None)
    assert str(result.failure) == "boom"


def test_a_source_that_raises(station, monkeypatch):
    samples = Scene.samples
    fixes: list[Fix] = []

    def breaking(self: Scene, first: int, count: int) -> np.ndarray:
        if fixes:
            raise OSError("the antenna has fallen down")
        return samples(self, first, count)

    monkeypatch.setattr(Scene, "samples", breaking)
    result = run_station(station, on_fix=fixes.append, live=False)
    assert isinstance(result.failure, OSError)


def test_inference_that_raises(station, monkeypatch):
    def broken(*_: Any, **__: Any) -> Fix:
        raise EngineError("no more")

    monkeypatch.setattr(Locator, "infer", broken)
    for live in (True, False):
        assert isinstance(run_station(station, on_fix=print, live=live).failure, EngineError)


def test_a_listener_that_raises(station):
    def refuse(fix: Fix) -> None:
        raise ValueError(f"not {fix.sequence}")

    result = run_station(station, on_fix=refuse)
    assert str(result.failure) == "not 0"


def test_a_status_listener_hears_of_the_model(station):
    statuses: list[dict[str, Any]] = []
    run_station(station, on_fix=lambda _: None, on_status=statuses.append, live=False, duration_s=0.3)
    assert statuses[0]["state"] == "ready"
    assert statuses[0]["model"] == "compiled-one"


def test_a_simulation_that_runs_again_is_answered_by_redis(folder, start, start_redis, capsys):
    """This process and another have nothing in common but that; a run in real time infers all the same."""
    write(folder, "[publish]", f'[cache]\nredis = "{start_redis().url}"\n[publish]')
    command = ("run", "station.toml", "--duration", "1.05")

    def here(*options: str) -> list[Fix]:
        assert main([*command, *options, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [fix_from_json(line) for line in out.splitlines()]

    found = [here("--fast")]
    other = start(*command, "--fast")
    assert (other.wait(), other.log) == (0, "")
    found += [other.fixes, here()]
    assert [[fix.cache_hit for fix in fixes] for fixes in found] == [[False] * 10, [True] * 10, [False] * 10]
    assert [fix.position for fix in found[0]] == [fix.position for fix in found[1]]


def test_a_station_whose_redis_is_away_runs(folder, capsys):
    write(folder, "[publish]", '[cache]\nredis = "redis://user:hunter2@127.0.0.1:9"\n[publish]')
    assert main(["run", "station.toml", "--fast", "--json", "--duration", "1.05"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 10
    assert "Redis is not asked until it is well again" in err
    assert "hunter2" not in err


# what is said of its state


@pytest.fixture
def told_of(caplog) -> Callable[..., tuple[str, str]]:
    """Level and line of the log after a status: its state, and reasons with their details."""
    caplog.set_level(logging.DEBUG, "localize_apps.run")
    log = StatusLog()

    def told(state: str, **reasons: str) -> tuple[str, str]:
        caplog.clear()
        listed = [{"reason": name, "detail": detail} for name, detail in reasons.items()]
        log({"state": state, "model": "m", "version": 1, "sha256": "0" * 64, "reasons": listed})
        (record,) = caplog.records
        return record.levelname, record.getMessage().removeprefix("status: ").replace("m version 1 (000000000000)", "m")

    return told


def test_a_status_says_what_has_changed(told_of):
    assert told_of("ready") == ("INFO", "ready, m")
    assert told_of("ready") == ("DEBUG", "ready, m")
    north, both = "north is absent: away", "north is absent: away; east is absent: away"
    assert told_of("degraded", receiver_lost=north) == ("WARNING", f"degraded, m; receiver_lost: {north}")
    # the receiver has said so itself
    east = ("INFO", "degraded, m; receiver_lost: east is absent: away")
    assert told_of("degraded", receiver_lost=both) == east
    slow = ("WARNING", "degraded, m; queue_full: 3 windows dropped")
    assert told_of("degraded", receiver_lost=both, queue_full="3 windows dropped") == slow
    assert told_of("degraded", queue_full="3 windows dropped") == (
        "WARNING",
        "degraded, m; receiver_lost is over",
    )
    assert told_of("degraded", queue_full="4 windows dropped")[0] == "WARNING"
    jump = {"queue_full": "4 windows dropped", "clock_jump": "east has jumped"}  # which sanity has said itself
    assert told_of("degraded", **jump) == ("INFO", "degraded, m; clock_jump: east has jumped")
    assert told_of("ready") == ("WARNING", "ready, m")


# what tells it to end or to change


@pytest.mark.parametrize("module", ["runner", "live"])
def test_signals_while_it_is_built(folder, capsys, monkeypatch, module):
    """The file is not read again, and nothing begins; it ends well."""
    if module == "live":
        text = station_text(rtl_tcp(["127.0.0.1:1"]), name="one", rate_hz=250e3, window_s=0.2)
        (folder / "station.toml").write_text(text)

    class Signalled(StationGraph):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(*arguments, **options)

        def start(self, *_: Any) -> None:
            raise AssertionError("it began")

    monkeypatch.setattr(f"localize_apps.{module}.StationGraph", Signalled)
    assert main(["record", "station.toml", "-o", "kept"]) == 0
    assert capsys.readouterr() == ("", "nothing was recorded\n")
    assert not (folder / "kept").exists()


def wait_until_it_minds(process: Any) -> None:
    """Wait until SIGTERM has a handler, which is put there last."""
    status = Path(f"/proc/{process.process.pid}/status")
    bit = 1 << (signal.SIGTERM - 1)
    process.until(lambda: int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & bit)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dry_run_that_was_interrupted_says_not_that_all_is_well(start, number):
    look = start("run", "--dry-run", "station.toml")
    wait_until_it_minds(look)
    assert look.end(number) == 128 + number
    assert look.log == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_before_it_is_up(start, number):
    """From the first moment on, while it loads its libraries."""
    run = start("run", "station.toml")
    wait_until_it_minds(run)
    run.process.send_signal(signal.SIGHUP)
    assert run.end(number) == 0, run.log
    assert run.fixes == []
    assert run.log == ""


# what cannot run


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], code: int = 2) -> str:
    assert main(["run", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "one"', 'name = "one"\ncolour = "red"', "station.colour"),
        ("window_s = 0.1", "window_s = 0.01", "features.window_s=0.01: holds"),
        ("rows = 32", "rows = 33", "33"),
        ('source = { kind = "scene" }', "", "receiver north.source: missing"),
        ("[scene]", '[model]\nuri = "none.onnx"\n[scene]', "none.onnx: cannot be read"),
        ("[publish]", '[publish]\nzmq = { endpoint = "carrier pigeon" }', "carrier pigeon"),
        ("track = [[45.0781, 7.6703]]", "track = []", "scene.track"),
        ("bandwidth_hz = 5e3", "bandwidth_hz = 50e3", "bandwidth"),
    ],
)
def test_a_station_that_cannot_work(folder, capsys, old, new, message):
    write(folder, old, new)
    errors = refused(capsys, ["station.toml"])
    assert message in errors
    assert errors.count("\n") == 1


def test_no_station_at_all(folder, capsys):
    assert "nowhere.toml: cannot be read" in refused(capsys, ["nowhere.toml"])
    assert "STATION" in refused(capsys, [])
    assert "--duration" in refused(capsys, ["station.toml", "--duration", "0"])
    assert "--recordings" in refused(capsys, ["station.toml", "--recordings", "nowhere"])


def test_a_cache_that_cannot_be_written(folder, capsys, monkeypatch):
    (folder / "occupied").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "occupied"))
    errors = refused(capsys, ["station.toml"])
    assert "XDG_CACHE_HOME" in errors
    assert errors.count("\n") == 1


def test_a_stream_that_ends_before_a_window_is_full(folder, capsys):
    errors = refused(capsys, ["station.toml", "--fast", "--duration", "0.05"], code=1)
    assert errors == "gr-localize: no fix was made: the streams ended before a window was full\n"


def test_a_reference_that_was_never_heard_is_the_reason(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["gnuradio.localize.reference_clock"], "PATIENCE_S", 0.1)
    text = Path(shared_file("examples/reference_emitter.toml")).read_text(encoding="utf-8")
    text = re.sub(r'\[\[receiver\]\]\nname = "(west|south)".*?\n\n', "", text, flags=re.DOTALL)
    text = text.replace("max_ppm = 80.0", "max_ppm = 1.0")  # the fewer are tried, the sooner it is over
    before, beacon, after = text.rpartition("level_dbfs_at_1km = -20.0")
    assert beacon
    (folder / "silent.toml").write_text(f"{before}level_dbfs_at_1km = -120.0{after}")
    errors = refused(capsys, ["silent.toml", "--fast", "--duration", "0.25"], code=1)
    assert errors.splitlines()[-1] == "gr-localize: no fix was made: no clock of north, east by beacon"


KIWI = """
[station]
name = "recorded"
sample_rate_hz = 12e3
frequency_hz = 77.5e3
[[receiver]]
name = "a"
latitude = 47.0
longitude = 8.0
source = { kind = "kiwi-wav", path = "a_iq.wav" }
[[receiver]]
name = "b"
latitude = 48.0
longitude = 9.0
source = { kind = "kiwi-wav", path = "b_iq.wav" }
[area]
south = 46.0
west = 7.0
north = 49.0
east = 10.0
"""


@pytest.fixture
def recordings(folder, kiwi_wav) -> Path:
    """Two recordings of noise, 4 s."""
    (folder / "kiwi.toml").write_text(KIWI)
    rng = np.random.default_rng(1)
    for name in "ab":
        samples = 0.1 * (rng.standard_normal(512 * 94) + 1j * rng.standard_normal(512 * 94))
        ns = (1000 * 10**9 + np.arange(94) * 512 * 10**9 // 12000).tolist()
        stamps = [(1, time // 10**9, time % 10**9) for time in ns]
        (folder / f"{name}_iq.wav").write_bytes(kiwi_wav(samples, stamps, header_rate_hz=12000))
    return folder


def test_recordings_of_nothing(recordings, capsys):
    assert main(["run", "kiwi.toml", "--json"]) == 0
    fix = json.loads(capsys.readouterr().out)
    assert (fix["status"], fix["reason"]) == ("no_fix", "no_emitter")


def test_a_missing_recording(recordings, capsys):
    (recordings / "b_iq.wav").unlink()
    errors = refused(capsys, ["kiwi.toml"])
    assert errors == f"gr-localize: {recordings}/b_iq.wav: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("size", [0, 30, 50, 2000])
def test_a_recording_of_hardly_anything(recordings, capsys, size):
    path = recordings / "b_iq.wav"
    path.write_bytes(path.read_bytes()[:size])
    errors = refused(capsys, ["kiwi.toml"])
    assert errors.count("\n") == 1
    assert "b_iq.wav" in errors or "time stamps" in errors or "window_s" in errors


def test_a_recording_shorter_than_a_window(recordings, capsys):
    (recordings / "kiwi.toml").write_text(KIWI + "[features]\nwindow_s = 30.0\n")
    assert "features.window_s=30: the recordings share only 4.0" in refused(capsys, ["kiwi.toml"])


def test_recordings_of_another_folder(recordings, capsys):
    elsewhere = recordings / "elsewhere"
    elsewhere.mkdir()
    for name in ("a_iq.wav", "b_iq.wav"):
        os.rename(recordings / name, elsewhere / name)
    assert main(["run", "kiwi.toml", "--json", "--recordings", "elsewhere"]) == 0
    assert "no_emitter" in capsys.readouterr().out


@pytest.fixture
def sigmf_station(folder, write_sigmf) -> Station:
    """The four receivers of the example as the channels of one SigMF recording, 1 s; returns the simulated station."""
    text = Path(shared_file("examples/four_receivers.toml")).read_text(encoding="utf-8")
    station = parse_station(text, folder=folder)
    assert station.scene is not None
    scene = Scene(station.scene, station.receiver, sample_rate_hz=100e3, frequency_hz=433.92e6)
    captures = [(0, "2026-01-01T00:00:00.000Z", 433.92e6)]
    write_sigmf(folder / "four", scene.samples(0, 100_000).T, rate_hz=100e3, captures=captures)
    sources = (f'source = {{ kind = "sigmf", path = "four.sigmf-data", channel = {k} }}' for k in range(4))
    text = re.sub(r'source = \{ kind = "scene" \}', lambda _: next(sources), text)
    (folder / "sigmf.toml").write_text(text[: text.index("[scene]")])
    return station


def test_channels_of_a_sigmf_recording(sigmf_station, capsys):
    assert main(["run", "sigmf.toml", "--json"]) == 0
    fixes = [fix_from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert len(fixes) >= 3
    scene = Scene(sigmf_station.scene, sigmf_station.receiver, sample_rate_hz=100e3, frequency_hz=433.92e6)
    for fix in fixes:
        assert (fix.status, fix.time_source, fix.frequency_hz) == ("ok", "rx_time", 433.92e6)
        latitude, longitude = scene.truth(fix.timestamp.timestamp())
        error_m = GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)[2]
        assert error_m < fix.uncertainty.semi_major_m < 500.0


def test_channels_of_a_sigmf_recording_without_a_time(sigmf_station, folder, capsys):
    meta = folder / "four.sigmf-meta"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"captures": [{"core:sample_start": 0}]}))
    assert main(["run", "sigmf.toml", "--json"]) == 0
    fixes = [fix_from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert len(fixes) >= 3
    for fix in fixes:
        assert (fix.status, fix.time_source) == ("ok", "host")
        (latitude, longitude), *_ = sigmf_station.scene.track
        error_m = GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)[2]
        assert error_m < fix.uncertainty.semi_major_m + 14.0  # m, driven in the recording's second


def test_a_broken_sigmf_recording(sigmf_station, folder, capsys):
    data = folder / "four.sigmf-data"
    data.write_bytes(data.read_bytes()[:-1])
    errors = refused(capsys, ["sigmf.toml"])
    assert errors == f"gr-localize: {data}: cut off, its data are no whole number of samples of all channels\n"
    data.unlink()
    assert "four.sigmf-data: cannot be read: No such file" in refused(capsys, ["sigmf.toml"])
