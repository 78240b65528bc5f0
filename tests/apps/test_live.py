"""Stations with radios: what a run makes of receivers that go, blocks that fail, a file that changes, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from localize_apps import ending, live
from localize_apps.main import main
from localize_benchmarks.stations import EMITTER, PLACES, rtl_tcp, station_text
from localize_core.engine.locator import Locator
from localize_core.errors import EngineError
from localize_core.geodesy import GEOD
from localize_core.serving.engine import Engine
from localize_core.station.config import Station, parse_station
from localize_core.types.fix import Fix

WAIT_S = 60.0
PUBLISH = '[publish]\nfile = { path = "fixes.jsonl" }\n'


def text_of(served: list[Any], *changes: tuple[str, str]) -> str:
    """The file of a station whose receivers are these servers, with changes: (what is there, what is there instead)."""
    sources = rtl_tcp([server.address for server in served])
    text = station_text(sources, name="live", rate_hz=250e3, window_s=0.2) + PUBLISH
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def station_of(served: list[Any], *changes: tuple[str, str]) -> Station:
    return parse_station(text_of(served, *changes), folder=Path())


# one receiver


def assert_numbered(fixes: list[Fix]) -> None:
    """The numbers of one stream, with what was lost between them said."""
    number = -1
    for fix in fixes:
        number += 1 + fix.dropped_windows
        assert fix.sequence == number


def test_fixes_of_one_receiver_and_its_end(run, servers, published):
    station = run(station_of(servers(1)))
    fixes = station.more(5)
    result = station.stop()
    assert (result.failure, result.interrupted) == (None, True)
    assert result.fixes == len(station.fixes)
    assert published() == station.fixes  # the last ones too
    for fix in fixes:
        assert abs(fix.timestamp.timestamp() - time.time()) < 60.0
        assert fix.frequency_hz == 433.92e6
    assert_numbered(station.fixes)
    assert station.alive[-1]["phase"] == "stopping"
    assert station.alive[0]["live"] is True


def test_a_receiver_that_is_lost_is_said_and_comes_back(run, servers):
    (server,) = served = servers(1)
    station = run(station_of(served))
    station.more()
    server.refuse()
    station.until(lambda: station.state("north") == "absent")
    station.until(lambda: station.statuses[-1]["state"] == "degraded")  # and so it stays
    (reason,) = station.statuses[-1]["reasons"]
    assert reason["reason"] == "receiver_lost"
    assert reason["detail"].startswith("north is absent: ")
    server.restart()
    station.until(lambda: station.state("north") == "streaming")
    station.more()
    assert station.alive[-1]["receivers"]["north"]["restarts"] >= 1
    station.until(lambda: station.statuses[-1]["state"] == "ready")
    streams = {fix.stream for fix in station.fixes}
    assert len(streams) == 1  # the graph went on
    assert_numbered(station.fixes)


def test_nobody_is_there_at_first(run, servers):
    (server,) = served = servers(1)
    server.refuse()
    station = run(station_of(served))
    station.until(lambda: station.state("north") == "absent")
    assert station.alive[-1]["receivers"]["north"]["error"]
    server.restart()
    station.more()


def test_nobody_was_ever_there(run, servers):
    """Why there is no fix is said for each receiver."""
    served = servers(2)
    for server in served:
        server.refuse()
    station = run(station_of(served))
    station.until(lambda: (station.state("north"), station.state("east")) == ("absent", "absent"))
    reasons = station.stop().without_fix
    north, east = (
        f"{name} is absent: rtl-tcp {served[place].address}: " for place, name in enumerate(("north", "east"))
    )
    assert re.fullmatch(f"{north}.*; {east}.*", reasons)
    assert "window" not in reasons


def test_a_duration(run, servers):
    began_s = time.monotonic()
    station = run(station_of(servers(1)), duration_s=3.0)
    result = station.wait()
    assert time.monotonic() - began_s >= 3.0
    assert (result.failure, result.interrupted) == (None, False)
    assert result.fixes == len(station.fixes) > 0


def test_what_a_driver_can_never_do_ends_the_run_at_once(folder, servers, capsys):
    args = "file=/dev/zero,rate=250e3,freq=433.92e6"
    text = re.sub("source = .*", f'source = {{ kind = "osmosdr", args = "{args}", channel = 1 }}', text_of(servers(1)))
    (folder / "station.toml").write_text(text)
    assert main(["run", "station.toml"]) == 2
    assert f"osmosdr {args}: channel=1: it has 1, counted from 0" in capsys.readouterr().err


# four receivers


def used(fix: Fix) -> set[str]:
    return {receiver.name for receiver in fix.receivers if receiver.used}


def absent(fix: Fix) -> set[str]:
    return {receiver.name for receiver in fix.receivers if "absent" in receiver.flags}


def is_placed(fix: Fix) -> bool:
    """Whether it is no farther from the emitter than its ellipse is long."""
    if fix.position is None or fix.uncertainty is None:
        return False
    error_m = GEOD.inv(fix.position.longitude, fix.position.latitude, EMITTER[1], EMITTER[0])[2]
    return error_m < fix.uncertainty.semi_major_m


def five_without(name: str, fixes: list[Fix]) -> list[Fix]:
    """The first five fixes in a row in whose windows it is the only receiver that is absent; else none."""
    for first in range(len(fixes) - 4):
        if all(absent(fix) == {name} for fix in fixes[first : first + 5]):
            return fixes[first : first + 5]
    return []


def test_receivers_are_cut_and_restored(run, servers, published):
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
        began = len(station.fixes)
        station.until(lambda: five_without(name, station.fixes[began:]))  # noqa: B023
        without = five_without(name, station.fixes[began:])
        assert all(used(fix) == everyone - {name} for fix in without)
        assert all(is_placed(fix) for fix in without), without
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
    assert all(is_placed(fix) for fix in fixes), fixes
    told = station.alive[-1]
    windows = told["windows"]
    gone = windows["served"] + sum(windows["dropped"].values()) + windows["waiting"] + windows["answering"]
    assert windows["offered"] == gone
    for receiver in told["receivers"].values():
        assert receiver["taken"] == receiver["delivered"] + receiver["dropped"] + receiver["waiting"]
    assert published() == station.fixes


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


def test_a_graph_that_fails_starts_anew(run, servers, published, monkeypatch, caplog):
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
    assert result.dropped_windows >= sum(windows["dropped"].values()) >= 2  # those of all three graphs
    assert published() == station.fixes


def test_a_graph_that_goes_on_failing_ends_the_run(run, servers, monkeypatch):
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.01)
    break_once(monkeypatch, 100, after=0)
    station = run(station_of(servers(1)))
    result = station.wait()
    assert isinstance(result.failure, EngineError)
    assert not result.interrupted
    assert station.fixes == []


def test_a_graph_that_fails_in_a_run_of_a_set_length_ends_it(run, servers, monkeypatch):
    break_once(monkeypatch, 1)
    station = run(station_of(servers(1)), duration_s=100.0)
    assert isinstance(station.wait().failure, EngineError)


def test_a_listener_that_raises_ends_the_run(run, servers):
    def refuse(fix: Fix) -> None:
        raise BrokenPipeError("nobody reads this")

    station = run(station_of(servers(1)), on_fix=refuse)
    assert isinstance(station.wait().failure, BrokenPipeError)


def test_a_slow_model_loses_windows_and_accounts_for_them(run, servers, monkeypatch):
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


# the station file


@pytest.fixture
def live_run(folder, servers):
    """A station of one receiver that can be told to reload, for a signal reaches no thread of a test."""
    station, nothing = station_of(servers(1)), lambda *_: None
    run = live.LiveRun(
        station,
        on_fix=nothing,
        on_status=nothing,
        on_serving=nothing,
        recorder=None,
        radio_of=live.open_radio,
        most_failures=0,
    )
    try:
        run.start()
        yield run
    finally:
        run.stop(None)


def renamed(station: Station, **changes: Any) -> Station:
    """The station by another name, with other changes."""
    table = station.station.model_copy(update={"name": "changed"})
    return station.model_copy(update={"station": table, **changes})


def test_preparing_another_graph_tells_all_the_time_that_it_is_alive(live_run, monkeypatch):
    """It may take longer than a watchdog waits."""
    monkeypatch.setattr(live, "ALIVE_S", 0.02)
    made, told = live_run._made, []

    def slow(*arguments: Any) -> Any:
        deadline_s = time.monotonic() + 20.0
        while len(told) < 5 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return made(*arguments)

    monkeypatch.setattr(live_run, "_made", slow)
    wanted = renamed(live_run.station)

    def on_wait() -> None:
        told.append(live_run.alive("reloading")["phase"])

    live_run.reload(lambda: wanted, on_wait, threading.Event())
    assert live_run.station is wanted
    assert len(told) >= 5


@pytest.fixture
def endless(monkeypatch):
    """Another graph than the first is not made before this is set, and is let go when the test ends."""
    made, close, released = live.LiveRun._made, Engine.close, threading.Event()
    threads, prepared, closed = [], [], []

    def slow(self: live.LiveRun, *arguments: Any) -> Any:
        if threading.current_thread().name != "localize-prepare":
            return made(self, *arguments)
        threads.append(threading.current_thread())
        assert released.wait(WAIT_S)
        prepared.append(made(self, *arguments))
        return prepared[-1]

    def closing(self: Engine) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(live.LiveRun, "_made", slow)
    monkeypatch.setattr(Engine, "close", closing)
    monkeypatch.setattr(ending, "abandoned", [])
    yield released
    released.set()
    for thread in threads:
        thread.join(WAIT_S)
    (late,) = prepared
    assert late.graph.localizer.engine in closed
    assert len(ending.abandoned) == 1


def test_sigterm_ends_a_run_that_prepares_another_graph(folder, servers, endless, monkeypatch):
    text = text_of(servers(1))
    (folder / "station.toml").write_text(text)
    prepared = live.LiveRun._prepared

    def signalled(self: live.LiveRun, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return prepared(self, *arguments)

    def changed(*arguments: Any) -> None:
        (folder / "station.toml").write_text(text.replace('name = "live"', 'name = "changed"'))
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(live.LiveRun, "_prepared", signalled)
    monkeypatch.setattr("localize_apps.run.fix_line", changed)
    assert main(["run", "station.toml"]) == 0
    assert not endless.is_set()


def test_a_graph_that_fails_while_another_is_prepared_is_seen(live_run, endless, monkeypatch):
    station = live_run.station
    break_once(monkeypatch, 1)
    live_run.reload(lambda: renamed(station), lambda: None, threading.Event())
    assert isinstance(live_run.failure, EngineError)
    assert live_run.station is station


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ("[http]\nport = {}\n", "http.port"),
        ("[metrics]\nport = {}\n", "metrics.port"),
        ('[control]\nendpoint = "tcp://127.0.0.1:{}"\n', "control.endpoint"),
        ('[publish]\nzmq = {{ endpoint = "tcp://127.0.0.1:{}" }}\n', "publish.zmq[0].endpoint"),
    ],
)
def test_an_address_that_is_in_use_is_said_and_nothing_is_halted(live_run, caplog, tables, key):
    station, graph = live_run.station, live_run._graph
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = station_text(rtl_tcp(["127.0.0.1:1"]), name="live", rate_hz=250e3, window_s=0.2)
        served = parse_station(text + tables.format(port), folder=Path())
        changes = {name: getattr(served, name) for name in ("http", "metrics", "control", "publish")}
        live_run.reload(lambda: renamed(station, **changes), lambda: None, threading.Event())
    assert f"going on as before: {key}: cannot listen at 127.0.0.1 port {port}: Address already in use" in caplog.text
    assert (live_run.station, live_run._graph) == (station, graph)
    live_run.reload(lambda: renamed(station, **changes), lambda: None, threading.Event())  # it is free now
    assert live_run.station.station.name == "changed"
    live_run.reload(lambda: station, lambda: None, threading.Event())
