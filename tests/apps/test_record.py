"""`gr-localize record`: what a folder holds, and that a run on it says what was said live."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sigmf
from localize_apps.folder_recorder import FolderRecorder
from localize_apps.graph import Listener, StationGraph
from localize_apps.main import main
from localize_apps.record import Size, recorded_station
from localize_apps.runner import run_station
from localize_apps.running_graph import RunningGraph
from localize_benchmarks.stations import SCENE, SIMULATED, rtl_tcp, station_text
from localize_core.engine.locator import Locator
from localize_core.errors import EngineError
from localize_core.recorder.sigmf_writer import Limits
from localize_core.resources import shared_file
from localize_core.sources.sigmf import read_sigmf
from localize_core.station.config import load_station, parse_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json, fix_to_dict

OWN = ("stream", "inference_time_ms", "latency_ms", "cache_hit")
"""What two runs on the same samples may differ in."""
STATION = (
    station_text([SIMULATED] * 2, name="two", window_s=0.15).replace(
        'name = "north"', 'name = "north 1"\naltitude_m = 300.0'
    )
    + SCENE
    + '[publish]\nfile = { path = "published.jsonl" }\n[http]\nport = 0\n'
)


@pytest.fixture
def folder(folder) -> Path:
    """With a station in it, one of whose receivers has a name that no file can have."""
    (folder / "two.toml").write_text(STATION)
    return folder


def fixes_in(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def alike(fixes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs from run to run."""
    return [{key: value for key, value in fix.items() if key not in OWN} for fix in fixes]


def replayed(folder: Path, capsys) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["run", str(folder), "--json"]) == 0
    return fixes_in(capsys.readouterr().out)


def assert_plays(again: list[dict[str, Any]], live: list[dict[str, Any]]) -> None:
    """Each live fix is there again, under its number, and alike.

    A live station may have dropped windows, which a replay answers, and at its end have left some that were whole.
    """
    wanted = {fix["sequence"]: fix for fix in alike(again)}
    for fix in alike(live):
        assert wanted[fix["sequence"]] | {"dropped_windows": fix["dropped_windows"]} == fix
    assert [fix["sequence"] for fix in again] == list(range(len(again)))


@pytest.mark.parametrize("datatype", ["cf32_le", "ci16_le"])
def test_a_run_on_the_folder_says_the_same(folder, capsys, datatype):
    arguments = ["-o", "kept", "--fast", "--duration", "2", "--max-part-bytes", "100kB", "--datatype", datatype]
    assert main(["record", "two.toml", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    live = fixes_in(out)
    assert len(live) > 10
    assert "80000 samples and" in err
    assert "not kept" not in err
    assert fixes_in((folder / "kept" / "fixes.jsonl").read_text()) == live
    assert len((folder / "published.jsonl").read_text().splitlines()) == len(live)
    again = replayed(folder / "kept", capsys)
    if datatype == "cf32_le":
        assert alike(again) == alike(live)
    else:  # rounded samples, and so rounded fixes
        assert [fix["timestamp"] for fix in again] == [fix["timestamp"] for fix in live]
        assert alike(again) != alike(live)
    assert len((folder / "published.jsonl").read_text().splitlines()) == len(live)  # a replay publishes nothing
    names = {path.name for path in (folder / "kept").iterdir()}
    assert names >= {"station.toml", "model.onnx", "fixes.jsonl", "two.sigmf-collection"}
    assert {"north_1-0001.sigmf-meta", "east-0002.sigmf-data"} <= names
    for name in sigmf.fromfile("kept/two.sigmf-collection").get_stream_names():
        sigmf.fromfile(folder / "kept" / f"{name}.sigmf-meta").validate()


@pytest.mark.parametrize("example", ["four_receivers", "reference_emitter"])
def test_four_receivers_by_their_differences_of_time(folder, capsys, example):
    arguments = ["-o", "kept", "--fast", "--duration", "2", "--json"]
    assert main(["record", str(shared_file(f"examples/{example}.toml")), *arguments]) == 0
    live = fixes_in(capsys.readouterr().out)
    assert len(live) >= 4
    assert all(fix["status"] == "ok" for fix in live)
    assert alike(replayed(folder / "kept", capsys)) == alike(live)


def test_the_station_file_leaves_nothing_to_kinds_of_sources(folder):
    (folder / "two.toml").write_text(STATION.replace("window_s = 0.15\n", ""))
    assert main(["record", "two.toml", "-o", "kept", "--fast", "--duration", "2"]) == 0
    live, twin = load_station("two.toml"), load_station("kept")
    assert twin.station == live.station.model_copy(update={"common_clock": True})
    assert [r.name for r in twin.receiver] == ["north 1", "east"]
    assert [r.source.path.name for r in twin.receiver] == ["north_1-[0-9]*.sigmf-meta", "east-[0-9]*.sigmf-meta"]
    assert (twin.area, twin.propagation) == (live.area, live.propagation)
    assert twin.model.uri == str(folder / "kept" / "model.onnx")
    assert twin.features.window_s is not None
    assert twin.features.window_hop_s is not None
    assert twin.alignment.plan(live=False) == live.alignment.plan(live=False)
    assert (twin.http, twin.scene, twin.publish.file) == (None, None, [])


def test_a_signal_ends_it_with_all_that_was_answered(start, folder, capsys):
    recording = start("record", "two.toml", "-o", "kept")
    recording.more(3)
    assert recording.end() == 0, recording.log
    assert_plays(replayed(folder / "kept", capsys), [fix_to_dict(fix) for fix in recording.fixes])
    for path in (folder / "kept").glob("*.sigmf-meta"):
        assert "core:sha512" in json.loads(path.read_text())["global"]


def test_a_kill_leaves_what_was_flushed(start, folder, capsys):
    recording = start("record", "two.toml", "-o", "kept")
    live = [fix_to_dict(fix) for fix in recording.more(12)]
    recording.end(signal.SIGKILL)
    kept = fixes_in((folder / "kept" / "fixes.jsonl").read_text())
    assert kept[:12] == live
    again = replayed(folder / "kept", capsys)
    assert len(again) >= 4  # all but those of the last second or so
    assert_plays(again, [fix for fix in kept if fix["sequence"] < len(again)])


def test_a_folder_that_is_not_empty_is_left_alone(folder, capsys):
    (folder / "kept").mkdir()
    (folder / "kept" / "mine").touch()
    assert main(["record", "two.toml", "-o", "kept"]) == 2
    assert "kept: is not empty" in capsys.readouterr().err
    assert [path.name for path in (folder / "kept").iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["tracker", "sink", "http"])
def test_a_recording_that_fails_at_its_start_leaves_nothing(folder, capsys, what):
    """So that another try, with what was wrong put right, has an empty folder."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            "tracker": '[tracker]\nmotion = "still"\nmanoeuvre = [1.0]\n',
            "sink": f'[[publish.zmq]]\nendpoint = "tcp://127.0.0.1:{port}"\n',
            "http": f"[metrics]\nport = {port}\n",
        }[what]
        (folder / "wrong.toml").write_text(STATION + wrong)
        (folder / "kept").mkdir()
        for output in ("kept", "new"):
            assert main(["record", "wrong.toml", "-o", output]) != 0
    assert list((folder / "kept").iterdir()) == []
    assert not (folder / "new").exists()


def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(folder, capsys):
    (folder / "file").touch()
    assert main(["record", "two.toml", "-o", "file/kept"]) == 1
    assert "cannot record into file/kept: Not a directory" in capsys.readouterr().err


def test_a_station_that_a_flowgraph_feeds_has_nothing_to_record(folder, capsys):
    text = STATION.replace('source = { kind = "scene" }\n', "")
    (folder / "fed.toml").write_text(text)
    assert main(["record", "fed.toml", "-o", "kept"]) == 2
    assert "a receiver has no source" in capsys.readouterr().err
    assert not (folder / "kept").exists()


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("2MB", 2_000_000), ("1GiB", 1 << 30)])
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


def test_sizes_that_are_none(folder, capsys):
    assert main(["record", "two.toml", "-o", "kept", "--max-bytes", "much"]) == 2
    assert "'much': wanted a number of bytes, such as 500MB or 2GiB" in capsys.readouterr().err
    assert main(["record", "two.toml", "-o", "kept", "--max-bytes", "9000"]) == 2
    assert "--max-bytes 9000: wanted at least 32768 for 2 receivers" in capsys.readouterr().err
    assert not (folder / "kept").exists()


def test_a_disk_that_never_had_room_is_a_failure(folder, capsys):
    arguments = ["-o", "kept", "--fast", "--duration", "0.5", "--min-free-bytes", "1000TiB"]
    assert main(["record", "two.toml", *arguments]) == 1
    err = capsys.readouterr().err
    assert "recording north_1 pauses: less than min_free_bytes=" in err
    assert err.splitlines()[-1] == "gr-localize: nothing could be written into kept"


def test_old_parts_go(folder):
    limits = ["--max-bytes", "400kB", "--max-part-bytes", "40kB"]
    assert main(["record", "two.toml", "-o", "kept", "--fast", "--duration", "4", *limits]) == 0
    size = sum(path.stat().st_size for path in (folder / "kept").glob("*.sigmf-data"))
    assert 200_000 < size <= 400_000
    recording = read_sigmf(load_station("kept").receiver[0].source.path)
    assert recording.start_time[1] > 0.0 or recording.start_time[0] > 1_767_225_600
    assert len(recording) < 80_000


def test_all_runs_of_a_folder_share_its_bytes_and_the_oldest_go_first(folder, capsys):
    kept = folder / "kept"
    recorder = FolderRecorder(kept, datatype="cf32_le", live=False, limits=Limits(min_free_bytes=0), max_bytes=400_000)
    station = recorded_station(load_station("two.toml"))
    others = [receiver.model_copy(update={"name": f"new {receiver.name}"}) for receiver in station.receiver]
    other = station.model_copy(update={"receiver": others})
    for each, duration_s in ((station, 1.0), (station, 0.8), (other, 0.9)):
        result = run_station(each, on_fix=recorder.keep, duration_s=duration_s, live=False, recorder=recorder)
        assert result.failure is None
        assert sum(path.stat().st_size for path in kept.rglob("*.sigmf-*")) <= 400_000 + 20_000  # of the last
    recorder.close()
    assert sorted(path.name for path in kept.iterdir()) == ["fixes.jsonl", "run-0002", "run-0003"]
    assert {path.name for path in (kept / "run-0003").glob("*-0001.sigmf-meta")} == {
        "new_north_1-0001.sigmf-meta",
        "new_east-0001.sigmf-meta",
    }
    assert len(list((kept / "run-0002").glob("*.sigmf-data"))) < 8
    assert {path.name for path in (kept / "run-0002").iterdir()} >= {"fixes.jsonl"}
    lines = (kept / "run-0003" / "fixes.jsonl").read_text()
    assert alike(replayed(kept / "run-0003", capsys)) == alike(fixes_in(lines))
    told = recorder.report()["receivers"]
    assert {name: figures["state"] for name, figures in told.items()} == dict.fromkeys(told, "stopped")
    assert told["north 1"]["samples"] == 36_000
    assert told["new east"]["bytes"] == 8 * 18_000
    gone = sum(figures["files_removed"] for figures in told.values())
    assert sum(figures["files"] for figures in told.values()) - gone == len(list(kept.rglob("*.sigmf-data")))
    shutil.rmtree(kept)
    assert recorder.report()["free_bytes"] > 0  # as the last write has seen it: nobody waits for a disk here


def test_parts_of_receivers_that_are_no_more_go_first(folder):
    """And a graph that never begins has no folder."""
    kept, nothing = folder / "kept", lambda *_: None
    recorder = FolderRecorder(kept, datatype="cf32_le", live=False, limits=Limits(min_free_bytes=0), max_bytes=400_000)
    both = recorded_station(load_station("two.toml"))
    one = both.model_copy(update={"receiver": both.receiver[:1]})
    first = run_station(both, on_fix=recorder.keep, duration_s=0.5, live=False, recorder=recorder)
    assert first.failure is None
    listener = Listener(nothing, nothing, nothing)
    never = StationGraph(one, listener, duration_s=1.0, live=False, recorder=recorder)
    never.localizer.engine.close()
    result = run_station(one, on_fix=recorder.keep, duration_s=1.5, live=False, recorder=recorder)
    assert result.failure is None
    recorder.close()
    assert {path.name for path in kept.glob("*.sigmf-data")} == {f"north_1-000{n}.sigmf-data" for n in (1, 2)}
    assert len(list((kept / "run-0002").glob("north_1-*.sigmf-data"))) == 3
    assert not (kept / "run-0003").exists()


# Radios


def test_the_graph_after_one_that_failed_is_recorded_too(folder, run, monkeypatch, start_rtl_tcp, heard):
    """Its sink in Python is kept until it starts, whatever is collected meanwhile."""
    infer, start, failures = Locator.infer, RunningGraph.start, []

    def failing(*arguments: Any, **options: Any) -> Any:
        if not failures:
            failures.append(EngineError("the arena is gone"))
            raise failures[0]
        return infer(*arguments, **options)

    def collecting(running: RunningGraph) -> None:
        gc.collect()
        start(running)

    monkeypatch.setattr(Locator, "infer", failing)
    monkeypatch.setattr(RunningGraph, "start", collecting)
    recorded = Recorded([start_rtl_tcp(heard[0])], folder, run)
    recorded.wait_for_present(1)
    live = recorded.stop()
    assert {path.name for path in (folder / "kept").glob("run-*")} == {"run-0002"}
    assert fixes_in((folder / "kept" / "run-0002" / "fixes.jsonl").read_text()) == live


def test_a_station_file_that_changes_while_it_is_recorded(folder, start, published, start_rtl_tcp, heard):
    """What is wrong changes nothing and makes no folder; another window and name make another graph.

    The log says what happens in words, and no more than that.
    """
    epoch = time.monotonic()
    north, east = (start_rtl_tcp(heard[place], epoch=epoch) for place in range(2))
    text = station_text(rtl_tcp([north.address, east.address]), name="four", rate_hz=250e3, window_s=0.2)
    text += '[publish]\nfile = { path = "fixes.jsonl" }\n'
    (folder / "radios.toml").write_text(text)
    recording = start("record", "radios.toml", "-o", "kept")
    recording.until(lambda: recording.fixes and present(recording.fixes[-1]) == 2)
    east.refuse()
    recording.until(lambda: "WARNING gnuradio.time_align: east is absent" in recording.log)
    recording.until(lambda: recording.log.count("status: degraded") == 1)
    assert "present [" not in recording.log
    assert "gr-osmosdr" not in recording.log
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (folder / "radios.toml").write_text(text + f"[metrics]\nport = {taken.getsockname()[1]}\n")
        recording.process.send_signal(signal.SIGHUP)
        recording.until(lambda: "going on as before: metrics.port: cannot listen" in recording.log)
    (folder / "radios.toml").write_text("nonsense")
    recording.process.send_signal(signal.SIGHUP)
    recording.until(lambda: recording.log.count("going on as before") == 2)
    recording.more(2)
    changed = text.replace("window_s = 0.2", "window_s = 0.3").replace('name = "four"', 'name = "changed"')
    (folder / "radios.toml").write_text(changed)
    recording.process.send_signal(signal.SIGHUP)
    recording.until(lambda: recording.fixes[-1].station == "changed")
    assert recording.fixes[-1].window_duration_s == pytest.approx(0.3, abs=0.05)
    assert north.clients == 1  # the device went on
    assert "\nreload: done\n" in recording.log
    assert recording.end() == 0, recording.log
    assert {path.name for path in (folder / "kept").glob("run-*")} == {"run-0002"}
    kept = [fix_from_json(line) for line in (folder / "kept" / "run-0002" / "fixes.jsonl").read_text().splitlines()]
    assert kept == [fix for fix in recording.fixes if fix.station == "changed"]
    assert published() == recording.fixes
    assert "Traceback" not in recording.log


def present(fix: Fix) -> int:
    return sum("absent" not in receiver.flags for receiver in fix.receivers)


class Recorded:
    """A station whose receivers are these servers, and which is recorded while it runs."""

    def __init__(self, servers: list[Any], folder: Path, run: Callable[..., Any]) -> None:
        text = station_text(rtl_tcp([server.address for server in servers]), name="four", rate_hz=250e3, window_s=0.2)
        station = recorded_station(parse_station(text, folder=folder))
        self.recorder = FolderRecorder(folder / "kept", datatype="cf32_le", live=True, limits=Limits(min_free_bytes=0))
        self._running = run(station, keep=self.recorder.keep, recorder=self.recorder)

    def wait_for_present(self, receivers: int) -> None:
        """Until three more fixes are of so many receivers."""
        fixes = self._running.fixes
        first = len(fixes)
        self._running.until(lambda: sum(present(fix) == receivers for fix in fixes[first:]) >= 3)

    def stop(self) -> list[dict[str, Any]]:
        """Its fixes."""
        result = self._running.stop()
        self.recorder.close()
        assert result.failure is None
        return [fix_to_dict(fix) for fix in self._running.fixes]


def test_radios_that_come_and_go_are_replayed_as_they_were(folder, run, capsys, start_rtl_tcp, heard):
    servers = [start_rtl_tcp(samples) for samples in heard]
    recorded = Recorded(servers, folder, run)
    recorded.wait_for_present(4)
    servers[2].refuse()
    recorded.wait_for_present(3)
    servers[2].restart()
    recorded.wait_for_present(4)
    live = recorded.stop()
    assert recorded.recorder.lost == 0
    assert load_station("kept").alignment.max_wait_s == 1.0
    again = replayed(folder / "kept", capsys)
    assert len(live) >= 9
    assert_plays(again, live)


def test_a_radio_that_was_never_there_is_none_in_a_replay_either(folder, run, capsys, start_rtl_tcp, heard):
    servers = [start_rtl_tcp(samples) for samples in heard]
    servers[1].refuse()
    recorded = Recorded(servers, folder, run)
    recorded.wait_for_present(3)
    live = recorded.stop()
    assert len(read_sigmf(folder / "kept" / "east-0001.sigmf-meta")) == 0
    assert_plays(replayed(folder / "kept", capsys), live)
