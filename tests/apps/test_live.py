"""Stations with radios: what a run makes of receivers that go, blocks that fail, a file that changes, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_apps import live
from localize_apps.graph import RunResult
from localize_apps.main import main
from localize_apps.runner import run_station
from localize_core.engine.locator import Locator
from localize_core.errors import EngineError
from localize_core.geodesy import GEOD
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station, parse_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json

WAIT_S = 60.0
RATE_HZ = 250e3
PLACES = [("north", 45.10, 7.69), ("east", 45.07, 7.75), ("south", 45.03, 7.69), ("west", 45.07, 7.63)]
EMITTER = (45.0781, 7.6703)
STATION = """
[station]
name = "live"
sample_rate_hz = 250e3
frequency_hz = 433.92e6
[area]
south = 45.0
west = 7.6
north = 45.14
east = 7.79
[features]
rows = 32
channels = ["log_mel"]
window_s = 0.2
[propagation]
level_dbfs_at_1km = -30.0
[publish]
file = { path = "fixes.jsonl" }
"""


def receivers(addresses: list[str]) -> str:
    return "".join(
        f'[[receiver]]\nname = "{name}"\nlatitude = {latitude}\nlongitude = {longitude}\n'
        f'source = {{ kind = "rtl-tcp", address = "{address}", gain_db = 30.0 }}\n'
        for (name, latitude, longitude), address in zip(PLACES, addresses, strict=False)
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, model_cache) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def heard() -> np.ndarray:
    """What each place hears of the emitter, 0.4 s: complex, (place, sample)."""
    config = SceneConfig(bandwidth_hz=100e3, track=[list(EMITTER)], seed=3)
    station = parse_station(STATION + receivers([f"h:{k}" for k in range(1, 5)]), folder=Path())
    scene = Scene(config, station.receiver, sample_rate_hz=RATE_HZ, frequency_hz=433.92e6)
    return np.stack(scene.samples(0, 100_000))


@pytest.fixture
def servers(start_rtl_tcp, heard) -> Callable[[int], list[Any]]:
    """Starts as many rtl_tcp servers, one for each place, whose samples are on the air at the same time."""

    def start(count: int) -> list[Any]:
        epoch = time.monotonic()
        return [start_rtl_tcp(heard[place], epoch=epoch) for place in range(count)]

    return start


def station_of(served: list[Any], *changes: tuple[str, str]) -> Station:
    return parse_station(text_of(served, *changes), folder=Path())


def text_of(served: list[Any], *changes: tuple[str, str]) -> str:
    text = STATION
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text + receivers([server.address for server in served])


class Run:
    """A run in a thread. `fixes`, `statuses`, `alive`: what it has told so far."""

    def __init__(self, station: Station, **options: Any) -> None:
        self.fixes: list[Fix] = []
        self.statuses: list[dict[str, Any]] = []
        self.alive: list[dict[str, Any]] = []
        self.result: RunResult | None = None
        self.error: Exception | None = None
        self._stopped = threading.Event()
        self._options = {"on_fix": self.fixes.append, **options}
        self._station = station
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = run_station(
                self._station,
                on_status=self.statuses.append,
                on_alive=self.alive.append,
                stopped=self._stopped,
                **self._options,
            )
        except Exception as error:
            self.error = error

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self._thread.is_alive(), (self.result, self.error)
            assert time.monotonic() < deadline, (self.fixes[-1:], self.alive[-1:])
            time.sleep(0.02)

    def more(self, count: int = 3) -> list[Fix]:
        """The next fixes."""
        before = len(self.fixes)
        self.until(lambda: len(self.fixes) >= before + count)
        return self.fixes[before : before + count]

    def state(self, name: str) -> str:
        return self.alive[-1]["receivers"][name]["state"] if self.alive else ""

    def stop(self) -> RunResult:
        began_s = time.monotonic()
        self._stopped.set()
        self._thread.join(WAIT_S)
        self.took_s = time.monotonic() - began_s
        assert self.result is not None, self.error
        return self.result

    def end(self) -> None:
        self._stopped.set()
        self._thread.join(WAIT_S)


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(station: Station, **options: Any) -> Run:
        runs.append(Run(station, **options))
        return runs[-1]

    yield start
    for each in runs:
        each.end()


def published(folder: Path) -> list[Fix]:
    return [fix_from_json(line) for line in (folder / "fixes.jsonl").read_text().splitlines()]


# one receiver


def test_fixes_of_one_receiver_and_its_end(folder, run, servers):
    station = run(station_of(servers(1)))
    fixes = station.more(5)
    result = station.stop()
    assert (result.failure, result.interrupted) == (None, True)
    assert result.fixes == len(station.fixes)
    assert published(folder) == station.fixes  # the last ones too
    assert station.took_s < 10.0
    for fix in fixes:
        assert abs(fix.timestamp.timestamp() - time.time()) < 60.0
        assert fix.frequency_hz == 433.92e6
    assert [fix.sequence for fix in station.fixes] == list(range(len(station.fixes)))
    assert station.alive[-1]["phase"] == "stopping"
    assert station.alive[0]["live"] is True


def test_a_receiver_that_is_lost_is_said_and_comes_back(folder, run, servers):
    (server,) = served = servers(1)
    station = run(station_of(served))
    station.more()
    server.refuse()
    station.until(lambda: station.state("north") == "absent")
    station.until(lambda: any(status["state"] == "degraded" for status in station.statuses))
    (reason,) = station.statuses[-1]["reasons"]
    assert reason["reason"] == "receiver_lost"
    assert reason["detail"].startswith("north is absent: ")
    server.restart()
    station.until(lambda: station.state("north") == "streaming")
    station.more()
    assert station.alive[-1]["receivers"]["north"]["restarts"] == 1
    station.until(lambda: station.statuses[-1]["state"] == "ready")
    streams = {fix.stream for fix in station.fixes}
    assert len(streams) == 1  # the graph went on
    assert [fix.sequence for fix in station.fixes] == list(range(len(station.fixes)))


def test_nobody_is_there_at_first(folder, run, servers):
    (server,) = served = servers(1)
    server.refuse()
    station = run(station_of(served))
    station.until(lambda: station.state("north") == "absent")
    assert station.alive[-1]["receivers"]["north"]["error"]
    server.restart()
    station.more()


def test_a_duration(folder, run, servers):
    station = run(station_of(servers(1)), duration_s=4.0)
    station.more()
    station._thread.join(WAIT_S)
    assert station.result.failure is None
    assert not station.result.interrupted


def test_what_a_driver_can_never_do_ends_the_run_at_once(folder, servers, capsys):
    text = re.sub("source = .*", 'source = { kind = "osmosdr", args = "fcd=0", bias_tee = true }', text_of(servers(1)))
    (folder / "station.toml").write_text(text)
    assert main(["run", "station.toml"]) == 2
    assert "osmosdr fcd=0: bias_tee is known for" in capsys.readouterr().err


# four receivers


def used(fix: Fix) -> set[str]:
    return {receiver.name for receiver in fix.receivers if receiver.used}


def absent(fix: Fix) -> set[str]:
    return {receiver.name for receiver in fix.receivers if "absent" in receiver.flags}


def test_receivers_are_cut_and_restored(folder, run, servers):
    """One after the other, then all. GR_LOCALIZE_CUTS=20 takes some minutes."""
    everyone = {name for name, *_ in PLACES}
    served = servers(4)
    station = run(station_of(served))
    station.until(lambda: station.fixes and used(station.fixes[-1]) == everyone)
    for number in range(int(os.environ.get("GR_LOCALIZE_CUTS", "2"))):
        place = number % 4
        name = PLACES[place][0]
        served[place].refuse()
        station.until(lambda: station.state(name) == "absent")  # noqa: B023  it is over before the next turn
        station.until(lambda: all(absent(fix) == {name} for fix in station.fixes[-5:]))  # noqa: B023
        fixes = station.fixes[-5:]
        assert all(used(fix) == everyone - {name} for fix in fixes)
        assert all(fix.status == "ok" for fix in fixes), fixes
        served[place].restart()
        station.until(lambda: used(station.fixes[-1]) == everyone)
    for server in served:
        server.refuse()
    station.until(lambda: all(station.state(name) == "absent" for name in everyone))
    restored_s = time.time()
    for server in served:
        server.restart()
    station.until(lambda: all(station.state(name) == "streaming" for name in everyone))
    station.until(lambda: station.fixes[-1].timestamp.timestamp() > restored_s and used(station.fixes[-1]) == everyone)
    fixes = station.more(3)
    result = station.stop()
    assert result.failure is None
    assert len({fix.stream for fix in station.fixes}) == 1
    for fix in fixes:
        assert fix.status == "ok", fix
        error_m = GEOD.inv(fix.position.longitude, fix.position.latitude, EMITTER[1], EMITTER[0])[2]
        assert error_m < 2.0 * fix.uncertainty.semi_major_m
    told = station.alive[-1]
    windows = told["windows"]
    gone = windows["served"] + sum(windows["dropped"].values()) + windows["waiting"] + windows["answering"]
    assert windows["offered"] == gone
    for receiver in told["receivers"].values():
        assert receiver["taken"] == receiver["delivered"] + receiver["dropped"] + receiver["waiting"]
    assert published(folder) == station.fixes


# the graph


def break_once(monkeypatch, times: int, after: int = 3) -> dict[str, int]:
    """Have inference fail so many times, each time after so many windows."""
    infer, calls = Locator.infer, {"since": 0, "left": times}

    def breaking(self: Locator, *arguments: Any, **options: Any) -> Any:
        calls["since"] += 1
        if calls["left"] and calls["since"] > after:
            calls["left"] -= 1
            calls["since"] = 0
            raise EngineError("the arena is gone")
        return infer(self, *arguments, **options)

    monkeypatch.setattr(Locator, "infer", breaking)
    return calls


def test_a_graph_that_fails_starts_anew(folder, run, servers, monkeypatch, caplog):
    calls = break_once(monkeypatch, 2)
    station = run(station_of(servers(1)))
    station.until(lambda: calls["left"] == 0)
    station.more(5)
    assert station.alive[-1]["receivers"]["north"]["restarts"] == 0  # the receiver went on
    result = station.stop()
    assert result.failure is None
    assert result.fixes == len(station.fixes)
    assert len({fix.stream for fix in station.fixes}) == 3
    assert "starting another (2 of 5): the arena is gone" in caplog.text
    windows = station.alive[-1]["windows"]
    assert (
        windows["offered"]
        == windows["served"] + sum(windows["dropped"].values()) + windows["waiting"] + (windows["answering"])
    )
    assert windows["served"] >= len(station.fixes) - 1
    assert published(folder) == station.fixes


def test_a_graph_that_goes_on_failing_ends_the_run(folder, run, servers, monkeypatch):
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.01)
    break_once(monkeypatch, 100, after=0)
    station = run(station_of(servers(1)))
    station._thread.join(WAIT_S)
    assert isinstance(station.result.failure, EngineError)
    assert not station.result.interrupted
    assert station.fixes == []


def test_a_graph_that_fails_in_a_run_of_a_set_length_ends_it(folder, run, servers, monkeypatch):
    break_once(monkeypatch, 1)
    station = run(station_of(servers(1)), duration_s=100.0)
    station._thread.join(WAIT_S)
    assert isinstance(station.result.failure, EngineError)


def test_a_listener_that_raises_ends_the_run(folder, run, servers):
    def refuse(fix: Fix) -> None:
        raise BrokenPipeError("nobody reads this")

    station = run(station_of(servers(1)), on_fix=refuse)
    station._thread.join(WAIT_S)
    assert isinstance(station.result.failure, BrokenPipeError)


def test_a_slow_model_loses_windows_and_accounts_for_them(folder, run, servers, monkeypatch):
    infer = Locator.infer

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return infer(*arguments, **options)

    monkeypatch.setattr(Locator, "infer", slow)
    station = run(station_of(servers(1), ("[publish]", "[model.queue]\nwindows = 2\nmax_batch = 1\n[publish]")))
    station.until(lambda: station.alive and station.alive[-1].get("windows", {}).get("dropped", {}).get("queue", 0) > 5)
    told = station.alive[-1]
    windows, receiver = told["windows"], told["receivers"]["north"]
    gone = windows["served"] + sum(windows["dropped"].values()) + windows["waiting"] + windows["answering"]
    assert windows["offered"] == gone
    assert receiver["taken"] == receiver["delivered"] + receiver["dropped"] + receiver["waiting"]
    assert windows["waiting"] <= 2


# the station file, and the end of a process


class Process:
    """`gr-localize run` of a station file, as a process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "localize_apps.main", "-v", "run", "station.toml", "--json"]
        self._log = open("log", "wb")  # noqa: SIM115  until the test ends
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.fixes: list[Fix] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.fixes.append(fix_from_json(line))

    @property
    def log(self) -> str:
        return Path("log").read_text()

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def more(self, count: int = 3) -> None:
        before = len(self.fixes)
        self.until(lambda: len(self.fixes) >= before + count)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_S)
        self._reader.join()
        self._log.close()
        return code


def test_a_station_file_that_changes_and_a_signal(folder, servers, start_rtl_tcp, heard):
    """SIGHUP: a file that is wrong changes nothing; another window and name make another graph. Then the end."""
    served = servers(1)
    path = folder / "station.toml"
    path.write_text(text_of(served))
    process = Process()
    try:
        process.more()
        path.write_text("nonsense")
        os.kill(process.process.pid, signal.SIGHUP)
        process.until(lambda: "going on as before" in process.log)
        process.more()
        path.write_text(text_of(served, ("window_s = 0.2", "window_s = 0.3"), ('name = "live"', 'name = "changed"')))
        os.kill(process.process.pid, signal.SIGHUP)
        process.until(lambda: process.fixes[-1].station == "changed")
        process.more()
        assert process.fixes[-1].window_duration_s == pytest.approx(0.3, abs=0.05)
        assert served[0].clients == 1  # the device went on
        began_s = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.end() == 0, process.log
        assert time.monotonic() - began_s < 20.0
    finally:
        process.end()
    assert published(folder) == process.fixes
    assert "Traceback" not in process.log
