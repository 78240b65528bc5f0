"""`gr-localize record`: what a folder holds, and that a run on it says what was said live."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sigmf
from localize_apps.main import main
from localize_apps.record import FolderRecorder, Size, recorded_station
from localize_apps.runner import run_station
from localize_core.recorder.sigmf_writer import Limits
from localize_core.resources import shared_file
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.scene import Scene
from localize_core.sources.sigmf import read_sigmf
from localize_core.station.config import Station, load_station, parse_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json

COMMAND = [sys.executable, "-m", "localize_apps.main"]
WAIT_S = 90.0
OWN = ("stream", "inference_time_ms", "latency_ms", "cache_hit")
"""What two runs on the same samples may differ in."""
STATION = """
[station]
name = "two"
sample_rate_hz = 20e3
frequency_hz = 433.92e6
[[receiver]]
name = "north 1"
latitude = 45.10
longitude = 7.69
altitude_m = 300.0
source = { kind = "scene" }
[[receiver]]
name = "south"
latitude = 45.03
longitude = 7.69
source = { kind = "scene" }
[area]
south = 45.0
west = 7.6
north = 45.14
east = 7.79
[features]
rows = 32
channels = ["log_mel"]
window_s = 0.15
[propagation]
level_dbfs_at_1km = -30.0
[scene]
bandwidth_hz = 5e3
track = [[45.0781, 7.6703]]
[publish]
file = { path = "published.jsonl" }
[http]
port = 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, model_cache) -> Path:
    """The working directory of a run, with the station in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(STATION)
    return tmp_path


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
    assert {"north_1-0001.sigmf-meta", "south-0002.sigmf-data"} <= names
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
    assert [r.name for r in twin.receiver] == ["north 1", "south"]
    assert [r.source.path.name for r in twin.receiver] == ["north_1-[0-9]*.sigmf-meta", "south-[0-9]*.sigmf-meta"]
    assert (twin.area, twin.propagation) == (live.area, live.propagation)
    assert twin.model.uri == str(folder / "kept" / "model.onnx")
    assert twin.features.window_s is not None
    assert twin.features.window_hop_s is not None
    assert twin.alignment.plan(live=False) == live.alignment.plan(live=False)
    assert (twin.http, twin.scene, twin.publish.file) == (None, None, [])


def test_a_signal_ends_it_with_all_that_was_answered(folder, capsys):
    arguments = [*COMMAND, "record", "two.toml", "-o", "kept", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert_plays(replayed(folder / "kept", capsys), fixes_in("".join([*lines, rest])))
    for path in (folder / "kept").glob("*.sigmf-meta"):
        assert "core:sha512" in json.loads(path.read_text())["global"]


def test_a_kill_leaves_what_was_flushed(folder, capsys):
    arguments = [*COMMAND, "record", "two.toml", "-o", "kept", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        live = fixes_in("".join(process.stdout.readline() for _ in range(12)))
        process.kill()
        process.communicate(timeout=WAIT_S)
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
        "new_south-0001.sigmf-meta",
    }
    assert len(list((kept / "run-0002").glob("*.sigmf-data"))) < 8
    assert {path.name for path in (kept / "run-0002").iterdir()} >= {"fixes.jsonl"}
    lines = (kept / "run-0003" / "fixes.jsonl").read_text()
    assert alike(replayed(kept / "run-0003", capsys)) == alike(fixes_in(lines))
    told = recorder.report()["receivers"]
    assert {name: figures["state"] for name, figures in told.items()} == dict.fromkeys(told, "stopped")
    assert told["north 1"]["samples"] == 36_000
    assert told["new south"]["bytes"] == 8 * 18_000
    assert recorder.report()["free_bytes"] > 0
    gone = sum(figures["files_removed"] for figures in told.values())
    assert sum(figures["files"] for figures in told.values()) - gone == len(list(kept.rglob("*.sigmf-data")))


# Radios

RADIOS = (
    STATION[: STATION.index("[[receiver]]")].replace('"two"', '"four"').replace("20e3", "250e3")
    + """
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
"""
)
PLACES = [("north", 45.10, 7.69), ("east", 45.07, 7.75), ("south", 45.03, 7.69), ("west", 45.07, 7.63)]


def radios(addresses: list[str]) -> str:
    return RADIOS + "".join(
        f'[[receiver]]\nname = "{name}"\nlatitude = {latitude}\nlongitude = {longitude}\n'
        f'source = {{ kind = "rtl-tcp", address = "{address}", gain_db = 30.0 }}\n'
        for (name, latitude, longitude), address in zip(PLACES, addresses, strict=True)
    )


@pytest.fixture(scope="module")
def heard() -> np.ndarray:
    """What each place hears of the emitter, 0.4 s: complex, (place, sample)."""
    station = parse_station(radios([f"h:{k}" for k in range(1, 5)]), folder=Path())
    config = SceneConfig(bandwidth_hz=100e3, track=[[45.0781, 7.6703]], seed=3)
    scene = Scene(config, station.receiver, sample_rate_hz=250e3, frequency_hz=433.92e6)
    return np.stack(scene.samples(0, 100_000))


class Recorded:
    """A station with radios that is recorded in a thread."""

    def __init__(self, station: Station, folder: Path) -> None:
        self.fixes: list[Fix] = []
        self.recorder = FolderRecorder(folder, datatype="cf32_le", live=True, limits=Limits(min_free_bytes=0))
        self.result: Any = None
        self._changed, self._stopped = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(recorded_station(station),))
        self._thread.start()

    def _run(self, station: Station) -> None:
        self.result = run_station(station, on_fix=self._take, stopped=self._stopped, recorder=self.recorder)
        self.recorder.close()

    def _take(self, fix: Fix) -> None:
        self.recorder.keep(fix)
        with self._changed:
            self.fixes.append(fix)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Fix], bool], count: int) -> None:
        """Until so many more fixes are as wanted."""
        with self._changed:
            first = len(self.fixes)
            assert self._changed.wait_for(lambda: sum(map(condition, self.fixes[first:])) >= count, WAIT_S)

    def stop(self) -> list[dict[str, Any]]:
        self._stopped.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        assert self.result.failure is None
        return [json.loads(fix_to_json(fix)) for fix in self.fixes]


def present(fix: Fix) -> int:
    return sum("absent" not in receiver.flags for receiver in fix.receivers)


def test_radios_that_come_and_go_are_replayed_as_they_were(folder, capsys, start_rtl_tcp, heard):
    servers = [start_rtl_tcp(samples) for samples in heard]
    run = Recorded(parse_station(radios([server.address for server in servers]), folder=folder), folder / "kept")
    try:
        run.wait_for(lambda fix: present(fix) == 4, 3)
        servers[2].refuse()
        servers[2].cut()
        run.wait_for(lambda fix: present(fix) == 3, 3)
        servers[2].restart()
        run.wait_for(lambda fix: present(fix) == 4, 3)
    finally:
        live = run.stop()
    assert run.recorder.lost == 0
    assert load_station("kept").alignment.max_wait_s == 1.0
    again = replayed(folder / "kept", capsys)
    assert len(live) >= 9
    assert_plays(again, live)


def test_a_radio_that_was_never_there_is_none_in_a_replay_either(folder, capsys, start_rtl_tcp, heard):
    servers = [start_rtl_tcp(samples) for samples in heard]
    servers[1].refuse()
    run = Recorded(parse_station(radios([server.address for server in servers]), folder=folder), folder / "kept")
    try:
        run.wait_for(lambda fix: present(fix) == 3, 3)
    finally:
        live = run.stop()
    assert len(read_sigmf(folder / "kept" / "east-0001.sigmf-meta")) == 0
    assert_plays(replayed(folder / "kept", capsys), live)
