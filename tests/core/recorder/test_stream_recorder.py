"""Between a radio and a disk: what waits, what is left out, and how recording goes on."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sigmf
from localize_core.errors import ConfigError, PublishError
from localize_core.recorder import station_recorder, stream_recorder
from localize_core.recorder.sigmf_writer import About, Limits, SigmfWriter
from localize_core.recorder.station_recorder import StationRecorder, file_names
from localize_core.recorder.stream_recorder import Account, StreamRecorder
from localize_core.sources.recording import Mark
from localize_core.sources.sigmf import read_sigmf

RATE = 8000.0
START_S = 1_767_323_045
ABOUT = About("north", RATE)
WAIT_S = 30.0


def noise(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.9, 0.9, count) + 1j * rng.uniform(-0.9, 0.9, count)).astype(np.complex64)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class HeldWriter(SigmfWriter):
    """One whose disk hangs until it is let go."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.go, self.held = threading.Event(), threading.Event()

    def append(self, samples, marks=()) -> None:
        self.held.set()
        assert self.go.wait(WAIT_S)
        super().append(samples, marks)


@contextmanager
def recording(folder: Path, kind: type[SigmfWriter] = SigmfWriter, *, capacity: int = 10_000, live: bool = True):
    writer = kind(folder, "north", ABOUT, stream="s", flush_s=0.0, limits=Limits(min_free_bytes=0))
    recorder = StreamRecorder(writer, capacity=capacity, live=live)
    recorder.start()
    yield recorder, writer
    recorder.stop()
    assert recorder.offered == recorder.recorded + recorder.lost_queue + recorder.lost_disk
    assert (recorder.waiting, recorder.failure) == (0, None)


def test_what_is_pushed_may_be_overwritten(tmp_path):
    samples = noise(1000)
    with recording(tmp_path) as (recorder, _):
        for first in range(0, 1000, 100):
            buffer = samples[first : first + 100].copy()
            recorder.push(buffer, [Mark(0, rx_time=(START_S, first / RATE))])
            buffer[:] = 0
    found = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert np.array_equal(found.read(0, 9999), samples)
    assert [mark.index for mark in found.marks] == [*range(0, 1000, 100)]


def test_a_disk_that_hangs_costs_samples_and_never_the_radio(tmp_path, caplog):
    samples = noise(100_000)
    with recording(tmp_path, HeldWriter, capacity=5000) as (recorder, writer):
        recorder.push(samples[:1000], [Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE)])
        assert writer.held.wait(WAIT_S)
        for first in range(1000, 50_000, 1000):
            recorder.push(samples[first : first + 1000], [Mark(7, rx_freq_hz=float(first))])
        assert (recorder.waiting, recorder.lost_queue) == (5000, 45_000)
        assert len(recorder._queue) <= 6  # what is left out takes no room either
        writer.go.set()
        wait_for(lambda: recorder.waiting == 0)
        recorder.push(samples[50_000:51_000])
    assert len([r for r in caplog.records if "the disk is too slow" in r.getMessage()]) == 1
    found = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert np.array_equal(found.read(0, 9999), np.append(samples[:5000], samples[50_000:51_000]))
    resumed = Mark(5000, rx_time=(START_S + 6, 50_000 / RATE - 6), rx_freq_hz=49_000.0, restart=True, lost=45_000)
    assert found.marks[-1] == resumed


def test_a_stream_that_may_wait_loses_nothing(tmp_path):
    samples = noise(50_000)
    with recording(tmp_path, HeldWriter, capacity=5000, live=False) as (recorder, writer):
        pushed = threading.Thread(target=lambda: [recorder.push(each) for each in np.split(samples, 5)])
        pushed.start()
        assert writer.held.wait(WAIT_S)
        writer.go.set()
        pushed.join(WAIT_S)
        assert not pushed.is_alive()
    assert np.array_equal(read_sigmf(tmp_path / "north-0001.sigmf-meta").read(0, 99_999), samples)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_pause(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(stream_recorder, "RETRY_S", 0.05)
    samples = noise(100_000)
    position = 0

    def push(recorder) -> None:
        nonlocal position
        recorder.push(samples[position : position + 500])
        position += 500
        wait_for(lambda: recorder.waiting == 0)

    with recording(tmp_path) as (recorder, _):
        recorder.push(np.empty(0, np.complex64))
        push(recorder)
        with largest_file(2000):
            for _ in range(20):
                push(recorder)
            assert recorder.state == "File too large"
        while recorder.state != "recording":
            push(recorder)
        push(recorder)
        lost = recorder.lost_disk
    assert lost >= 10_000
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        "recording north pauses: File too large",
        f"recording north goes on: {lost} samples were not kept",
    ]
    for meta in tmp_path.glob("*.sigmf-meta"):
        sigmf.fromfile(meta).validate()
    found = read_sigmf(tmp_path / "north-*.sigmf-meta")
    assert [(mark.index, mark.restart, mark.lost) for mark in found.marks] == [(500, True, lost)]
    assert np.array_equal(found.read(0, 99_999), np.append(samples[:500], samples[500 + lost : position]))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_and_has_room_again(small_disk, monkeypatch):
    monkeypatch.setattr(stream_recorder, "RETRY_S", 0.05)
    samples, position = noise(2_000_000), 0

    def push(recorder) -> None:
        nonlocal position
        recorder.push(samples[position : position + 4000])
        position += 4000
        wait_for(lambda: recorder.waiting == 0)

    other = small_disk / "other"
    other.write_bytes(bytes(400_000))
    with recording(small_disk) as (recorder, _):
        while recorder.state == "recording":
            push(recorder)
        assert recorder.state == "No space left on device"
        for meta in small_disk.glob("*.sigmf-meta"):
            sigmf.fromfile(meta).validate()
        kept = recorder.recorded
        other.unlink()
        while recorder.state != "recording":
            push(recorder)
        push(recorder)
    found = read_sigmf(small_disk / "north-*.sigmf-meta")
    (resumed,) = found.marks
    assert (resumed.index, resumed.lost) == (kept, recorder.lost_disk)
    assert np.array_equal(found.read(0, kept), samples[:kept])
    assert np.array_equal(found.read(kept, 9_999_999), samples[kept + resumed.lost : position])


def test_a_station_has_a_collection_of_what_is_whole(tmp_path):
    abouts = [About("north", RATE), About("süd/ost", RATE)]
    limits = Limits(max_part_bytes=8 * 1000, min_free_bytes=0)
    station = StationRecorder(tmp_path / "new" / "folder", abouts, name="my station", limits=limits)
    assert station.names == ["north", "süd_ost"]
    streams = [station.open_stream(index) for index in (0, 1)]
    streams[0].push(noise(2500))
    streams[1].push(noise(500))
    path = station.folder / "my_station.sigmf-collection"
    wait_for(lambda: path.exists() and "north-0002" in path.read_text())
    assert sigmf.fromfile(path).get_stream_names() == ["north-0001", "north-0002"]
    for stream in streams:
        stream.stop()
    collection = sigmf.fromfile(path)  # which holds the hashes against the files
    assert collection.get_stream_names() == ["north-0001", "north-0002", "north-0003", "süd_ost-0001"]
    assert collection.get_SigMFFile("north-0001").get_global_info()["core:collection"] == "my_station"
    assert len(read_sigmf(path, stream="north")) == 2500
    assert {name: (account.samples, account.lost) for name, account in station.accounts.items()} == {
        "north": (2500, 0),
        "süd/ost": (500, 0),
    }
    assert station.failure is None
    again = station.open_stream(1)
    again.push(noise(10))
    again.stop()
    assert sigmf.fromfile(path).get_stream_names()[-2:] == ["süd_ost-0001", "süd_ost-0002"]


def test_limits_hold_over_streams_that_open_again_and_over_folders(tmp_path):
    limits = Limits(max_part_bytes=8 * 1000, max_parts=2, min_free_bytes=0)
    first = StationRecorder(tmp_path, [About("north", RATE), About("silent", RATE)], name="s", limits=limits)
    silent = first.open_stream(1)
    for _ in range(3):
        stream = first.open_stream(0)
        stream.push(noise(800))
        stream.stop()
    silent.stop()
    assert [path.stem for path in first.whole["north"]] == ["north-0002", "north-0003"]
    assert first.accounts["north"] == Account(2400, 0, 0, 8 * 2400, files=3, files_removed=1)
    assert first.accounts["silent"] == Account()
    second = StationRecorder(tmp_path / "next", [About("north", RATE)], name="s", limits=limits)
    second.earlier = first.whole
    told: list[bool] = []
    second.on_part = lambda: told.append(first.tidy())
    stream = second.open_stream(0)
    assert told == [True]
    assert sigmf.fromfile(tmp_path / "s.sigmf-collection").get_stream_names() == ["north-0003"]
    stream.push(noise(1800))
    stream.stop()
    assert told[-1] is False
    assert [path.name for path in tmp_path.iterdir()] == ["next"]  # nor what waited for samples
    assert [path.stem for path in second.whole["north"]] == ["north-0001", "north-0002"]
    assert second.phases == {"north": ("stopped", "recording")}


def test_accounts_hold_while_a_stream_opens_again(tmp_path, monkeypatch):
    station = StationRecorder(tmp_path, [ABOUT], name="s")
    stream = station.open_stream(0)
    stream.push(noise(800))
    stream.stop()
    before, seen = station.accounts, []

    class Seen(StreamRecorder):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            seen.append(station.accounts)

    monkeypatch.setattr(station_recorder, "StreamRecorder", Seen)
    station.open_stream(0).stop()
    assert [*seen, station.accounts] == [before, before]


def test_names_of_files_are_no_pattern_of_others():
    names = file_names(["a", "a-1", "a", "/", "..", "b c", "a-b"])
    assert names == ["a", "a_1", "a_", "receiver", "receiver_", "b_c", "a-b"]
    for name in names:
        assert [other for other in names if fnmatch(f"{other}-0001", f"{name}-[0-9]*")] == [name]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    station = StationRecorder(tmp_path / "file" / "x", [ABOUT], name="s")
    with pytest.raises(PublishError, match=r"cannot record into .*file/x: Not a directory"):
        station.open_stream(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue_s": 0.0}, "queue_s=0.0: wanted more than 0"),
        ({"abouts": [About("north", 0.0)]}, "sample_rate_hz=0.0: must be positive"),
        ({"folder": ""}, "the folder of a recording is empty"),
        ({"datatype": "x"}, "datatype='x'"),
    ],
)
def test_values_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        StationRecorder(**({"folder": tmp_path, "abouts": [ABOUT], "name": "s"} | changes))
