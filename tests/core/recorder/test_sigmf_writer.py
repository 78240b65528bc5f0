"""What is on disk at every moment: exact samples and tags, parts that stand alone, and nothing after a kill or a full
disk that the sigmf library does not open."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import sigmf
from localize_core.errors import ConfigError
from localize_core.recorder.sigmf_writer import MAX_CAPTURES, About, Limits, SigmfWriter, iso_time
from localize_core.sources.recording import Gap, Mark
from localize_core.sources.sigmf import read_sigmf
from sigmf.utils import parse_iso8601_datetime

RATE = 8000.0
START_S = int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp())
ABOUT = About(
    "north", RATE, 433.92e6, 47.05, 8.31, 437.5, hardware="rtl-tcp 10.0.0.7:1234", description="A test", author="me"
)
KILLS = int(os.environ.get("GR_LOCALIZE_KILLS", "6"))
WAIT_S = 60.0


def noise(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.9, 0.9, count) + 1j * rng.uniform(-0.9, 0.9, count)).astype(np.complex64)


def writer(folder: Path, **changes) -> SigmfWriter:
    return SigmfWriter(folder, "north", ABOUT, **({"stream": "s", "limits": Limits(min_free_bytes=0)} | changes))


def opened(meta: Path) -> sigmf.SigMFFile:
    """By the library, without anything to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = sigmf.fromfile(meta)
        file.validate()
    return file


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.sigmf-meta"))


def test_samples_and_tags_come_back_bit_by_bit(tmp_path):
    samples = noise(3000)
    samples[7] = np.nan
    marks = [
        Mark(0, rx_time=(START_S, 0.1 + 0.2), rx_rate_hz=RATE / 3.0, rx_freq_hz=100e6 + 1 / 3, time_source="host"),
        Mark(999, time_error_s=1e-7 / 3.0),
        Mark(1000, rx_time=(START_S, 0.9999999999999999), restart=True),
        Mark(2000, restart=True, lost=5, rx_time=(START_S + 9, np.nextafter(0.5, 1.0))),
        Mark(2500, rx_freq_hz=1.0),
    ]
    file = writer(tmp_path)
    for first in range(0, 3000, 7):
        own = [Mark(**(vars(m) | {"index": m.index - first})) for m in marks if first <= m.index < first + 7]
        file.append(samples[first : first + 7], own)
    file.close()
    recording = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert recording.read(0, 3000).tobytes() == samples.tobytes()
    assert recording.marks == tuple(marks)
    assert (recording.sample_rate_hz, recording.time_error_ns) == (RATE / 3.0, pytest.approx(1e2 / 3.0))


def test_another_program_finds_time_place_and_tuning(tmp_path):
    file = writer(tmp_path)
    file.append(noise(4000), [Mark(0, rx_time=(START_S, 0.125)), Mark(1000, rx_freq_hz=434e6)])
    file.close()
    found = opened(tmp_path / "north-0001.sigmf-meta")
    first, second = found.get_captures()
    assert first["core:datetime"] == "2026-01-02T03:04:05.125000000000000Z"
    assert parse_iso8601_datetime(first["core:datetime"]) == datetime(2026, 1, 2, 3, 4, 5, 125_000, timezone.utc)
    assert second["core:datetime"] == "2026-01-02T03:04:05.250000000000000Z"
    assert (first["core:frequency"], second["core:frequency"]) == (433.92e6, 434e6)
    said = found.get_global_info()
    assert said["core:geolocation"] == {"type": "Point", "coordinates": [8.31, 47.05, 437.5]}
    assert (said["core:hw"], said["core:author"], said["core:description"]) == (ABOUT.hardware, "me", "A test")
    assert said["core:recorder"].startswith("gr-localize ")
    assert said["core:extensions"] == [{"name": "localize", "version": "1.0.0", "optional": True}]
    assert np.array_equal(found.read_samples(), noise(4000))


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "000000000000000"), (0.1, "100000000000000"), (np.nextafter(1.0, 0.0), "999999999999999")],
)
def test_times_have_all_their_digits(fraction, text):
    assert iso_time(START_S, float(fraction)) == f"2026-01-02T03:04:05.{text}Z"


@pytest.mark.parametrize(("datatype", "scale", "size"), [("ci16_le", 32768, 4), ("ci8", 128, 2)])
def test_whole_numbers_round_and_clip(tmp_path, datatype, scale, size):
    samples = noise(1000)
    samples[:3] = [1.0, -1.0 - 2.0j, np.nan]
    file = writer(tmp_path, datatype=datatype)
    file.append(samples)
    file.close()
    meta = tmp_path / "north-0001.sigmf-meta"
    assert meta.with_suffix(".sigmf-data").stat().st_size == 1000 * size
    assert opened(meta).get_global_info()["localize:full_scale"] == scale
    found = read_sigmf(meta).read(0, 1000)
    assert np.max(np.abs((found[3:] - samples[3:]).view(np.float32))) <= 0.5 / scale + 1e-7
    assert found[:3].tolist() == [1.0 - 1.0 / scale, -1.0 - 1.0j, 0.0]
    assert file.clipped == 3


def test_before_the_first_sample(tmp_path):
    file = writer(tmp_path)
    assert opened(tmp_path / "north-0001.sigmf-meta").sample_count == 0
    recording = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert (len(recording), recording.marks, recording.time_valid) == (0, (), False)
    assert recording.read(0, 5).shape == (0,)
    file.close()
    assert opened(tmp_path / "north-0001.sigmf-meta").sample_count == 0


def test_what_was_flushed_is_there_without_a_close(tmp_path):
    file = writer(tmp_path, flush_s=0.0)
    samples = noise(900)
    for first in range(0, 900, 100):
        file.append(samples[first : first + 100], [Mark(0, rx_time=(START_S, first / RATE))])
        assert file.flushed == first + 100
        assert np.array_equal(opened(tmp_path / "north-0001.sigmf-meta").read_samples(), samples[: first + 100])
        assert len(read_sigmf(tmp_path / "north-0001.sigmf-meta").marks) == first // 100 + 1


def test_what_breaks_the_line_is_told_before_the_samples_after_it(tmp_path):
    """Though nothing was flushed, no reader takes the second half for a continuation of the first."""
    breaks = [
        Mark(100, rx_time=(START_S + 60, 0.0)),
        Mark(100, restart=True),
        Mark(100, rx_freq_hz=1e6),
        Mark(100, time_source="host"),
    ]
    for number, mark in enumerate(breaks):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = writer(folder, flush_s=1000.0)
        file.append(noise(200), [Mark(0, rx_time=(START_S, 0.0)), mark])
        assert [capture["core:sample_start"] for capture in opened(parts(folder)[0]).get_captures()] == [0, 100]
    folder = tmp_path / "regular"
    folder.mkdir()
    file = writer(folder, flush_s=1000.0)
    file.append(noise(200), [Mark(0, rx_time=(START_S, 0.0)), Mark(100, rx_time=(START_S, 100 / RATE))])
    assert len(opened(parts(folder)[0]).get_captures()) == 1


def test_half_a_sample_at_the_end_is_passed_over(tmp_path):
    for datatype, cut in (("cf32_le", 3), ("ci16_le", 2), ("ci16_le", 3), ("ci8", 1)):
        folder = tmp_path / f"{datatype}-{cut}"
        folder.mkdir()
        file = writer(folder, datatype=datatype, flush_s=0.0)
        file.append(noise(500))
        data = folder / "north-0001.sigmf-data"
        data.write_bytes(data.read_bytes()[:-cut])
        recording = read_sigmf(data)
        assert len(recording) == 499
        assert np.max(np.abs(recording.read(0, 600) - noise(500)[:499])) < 0.02
        data.write_bytes(b"x")
        assert len(read_sigmf(data)) == 0


def test_parts_stand_alone_and_make_one(tmp_path):
    samples = noise(10_000)
    marks = [Mark(0, rx_time=(START_S, 0.25), rx_rate_hz=RATE, rx_freq_hz=1e8), Mark(5000, rx_freq_hz=2e8)]
    file = writer(tmp_path, limits=Limits(max_part_bytes=8 * 1500, min_free_bytes=0))
    file.append(samples, marks)
    file.close()
    metas = parts(tmp_path)
    assert [opened(meta).sample_count for meta in metas] == [1500] * 6 + [1000]
    for path in (metas[0], tmp_path / "north-*.sigmf-meta"):
        whole = read_sigmf(path)
        assert whole.marks == tuple(marks)
        assert np.array_equal(whole.read(1000, 8000), samples[1000:9000])
    alone = read_sigmf(metas[4])
    assert np.array_equal(alone.read(0, 9000), samples[6000:])
    assert alone.marks == (Mark(0, rx_time=(START_S + 1, 0.0), rx_rate_hz=RATE, rx_freq_hz=2e8),)
    captures = opened(metas[4]).get_captures()
    assert captures[0]["core:datetime"] == "2026-01-02T03:04:06.000000000000000Z"
    assert captures[0]["core:frequency"] == 2e8
    assert captures[0]["core:global_index"] == 6000


def test_parts_end_after_a_time_and_after_many_captures(tmp_path):
    file = writer(tmp_path, limits=Limits(max_part_s=0.25, min_free_bytes=0))
    file.append(noise(5000))
    file.close()
    assert [len(opened(meta)) for meta in parts(tmp_path)] == [2000, 2000, 1000]
    folder = tmp_path / "many"
    folder.mkdir()
    file = writer(folder)
    count = MAX_CAPTURES + 10
    file.append(noise(2 * count), [Mark(2 * k, rx_time=(START_S, 2 * k / RATE)) for k in range(count)])
    file.close()
    assert [len(opened(meta).get_captures()) for meta in parts(folder)] == [MAX_CAPTURES, 10]
    assert len(read_sigmf(parts(folder)[0]).marks) == count


@pytest.mark.parametrize("limit", [{"max_parts": 3}, {"max_bytes": 8 * 3072 + 3000}])
def test_the_oldest_parts_go(tmp_path, limit):
    samples, told = noise(10_000), []
    limits = Limits(max_part_bytes=8 * 1024, min_free_bytes=0, **limit)
    file = writer(tmp_path, limits=limits, on_part=lambda: told.append(len(file.parts)))
    file.append(samples, [Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE)])
    file.close()
    assert [meta.name[6:10] for meta in parts(tmp_path)] == ["0008", "0009", "0010"]
    assert sorted(tmp_path.glob("*.sigmf-data")) == [meta.with_suffix(".sigmf-data") for meta in parts(tmp_path)]
    recording = read_sigmf(tmp_path / "north-*.sigmf-meta")
    assert np.array_equal(recording.read(0, 9999), samples[7 * 1024 :])
    assert recording.start_time == (START_S, pytest.approx(7 * 1024 / RATE))
    assert told[-1] == len(file.parts) == 3


def test_parts_of_earlier_recordings_go_first(tmp_path):
    folders = [tmp_path / "kept", tmp_path / "kept" / "run-0002"]
    limits = Limits(max_part_bytes=8 * 1024, max_parts=3, min_free_bytes=0)
    for folder in folders:
        folder.mkdir()
    before = writer(folders[0], limits=limits)
    before.append(noise(2500))
    before.close()
    after = writer(folders[1], limits=limits, earlier=before.parts)
    assert (len(parts(folders[0])), len(parts(folders[1]))) == (3, 1)  # of the second not a sample yet
    after.append(noise(1500))
    assert [meta.name[6:10] for meta in parts(folders[0])] == ["0003"]
    assert (after.begun, after.removed) == (2, 2)
    after.append(noise(1500))
    after.close()
    assert list(folders[0].glob("*.sigmf-*")) == []
    assert (after.begun, after.removed, after.written_bytes) == (3, 3, 8 * 3000)
    assert after.parts == parts(folders[1])
    assert len(read_sigmf(folders[1] / "north-*.sigmf-meta")) == 3000


def test_a_part_that_is_missing_is_a_restart(tmp_path):
    file = writer(tmp_path, limits=Limits(max_part_bytes=8 * 1000, min_free_bytes=0))
    file.append(noise(4000), [Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE)])
    file.close()
    for kind in ("meta", "data"):
        (tmp_path / f"north-0002.sigmf-{kind}").unlink()
    recording = read_sigmf(tmp_path / "north-*.sigmf-meta")
    assert recording.marks == (
        Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE),
        Mark(1000, rx_time=(START_S, 0.25), rx_rate_hz=RATE, restart=True, lost=1000),
    )
    assert recording.gaps == (Gap(1000, 1000),)
    assert len(read_sigmf(tmp_path / "north-0001.sigmf-meta")) == 1000


def test_what_was_not_kept_is_a_gap_that_says_what_it_held(tmp_path):
    file = writer(tmp_path)
    file.append(noise(1000), [Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE, rx_freq_hz=1e8)])
    file.skip(300, [Mark(100, rx_freq_hz=2e8)])
    file.skip(200)
    file.append(noise(100))
    file.skip(50, [Mark(10, restart=True, lost=7), Mark(20, rx_time=(START_S + 5, 0.5))])
    file.append(noise(100), [Mark(0, time_error_s=1e-6)])
    file.skip(10, [Mark(5, restart=True)])
    file.append(noise(100))
    file.close()
    recording = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert recording.marks[1:] == (
        Mark(1000, rx_time=(START_S, 1500 / RATE), rx_freq_hz=2e8, restart=True, lost=500),
        Mark(1100, rx_time=(START_S + 5, 0.5 + 30 / RATE), time_error_s=1e-6, restart=True, lost=57),
        Mark(1200, restart=True),
    )
    assert [c["core:global_index"] for c in opened(recording.path).get_captures()] == [0, 1500, 1650, 1760]


def test_a_folder_that_has_recordings_keeps_them(tmp_path):
    for seed in (1, 2):
        file = writer(tmp_path, stream=str(seed))
        file.append(noise(100, seed))
        file.close()
    assert np.array_equal(read_sigmf(tmp_path / "north-0001.sigmf-meta").read(0, 999), noise(100, 1))
    assert np.array_equal(read_sigmf(tmp_path / "north-0002.sigmf-meta").read(0, 999), noise(100, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datatype": "cf64_le"}, "datatype='cf64_le': wanted one of cf32_le, ci16_le, ci8"),
        ({"flush_s": -1.0}, "flush_s=-1.0: wanted 0 or more"),
    ],
)
def test_values_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        writer(tmp_path, **changes)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_part_bytes": 100}, "max_part_bytes=100: wanted at least 4096"),
        ({"max_part_s": 0.0}, "max_part_s=0.0: wanted more than 0"),
        ({"max_bytes": 1 << 30}, "holds no two parts of max_part_bytes=1073741824"),
        ({"max_parts": 1}, "max_parts=1: wanted at least 2"),
        ({"min_free_bytes": -1}, "min_free_bytes=-1: wanted 0 or more"),
    ],
)
def test_limits_that_cannot_be(limits, message):
    with pytest.raises(ConfigError, match=message):
        Limits(**limits)


# Disks


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond: a disk that is full, for those who write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_whole_samples(tmp_path):
    file = writer(tmp_path, flush_s=0.0)
    samples = noise(3000)
    file.append(samples[:1000], [Mark(0, rx_time=(START_S, 0.0))])
    with largest_file(8 * 2000 + 5), pytest.raises(OSError, match="File too large"):
        file.append(samples[1000:], [Mark(500, restart=True)])
    assert (file.index, file.recorded) == (1500, 1500)
    assert np.array_equal(opened(parts(tmp_path)[0]).read_samples(), samples[:1500])
    file.close()
    file.skip(1500)
    file.append(samples)
    file.close()
    assert np.array_equal(read_sigmf(parts(tmp_path)[0]).read(0, 9999), np.append(samples[:1500], samples))


def test_metadata_that_cannot_be_written_leave_the_old_ones(tmp_path):
    file = writer(tmp_path, flush_s=0.0)
    file.append(noise(10), [Mark(0, rx_time=(START_S, 0.0))])
    before = parts(tmp_path)[0].read_text()
    with largest_file(200), pytest.raises(OSError, match="File too large"):
        file.append(noise(10), [Mark(0, restart=True)])
    assert parts(tmp_path)[0].read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["north-0001.sigmf-data", "north-0001.sigmf-meta"]
    assert file.index == 10


def test_a_part_that_cannot_begin_leaves_nothing(tmp_path):
    file = writer(tmp_path)
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        file.append(noise(500))
    assert [path.name for path in tmp_path.iterdir()] == ["north-0001.sigmf-meta"]
    assert opened(parts(tmp_path)[0]).sample_count == 0
    file.append(noise(500))
    file.close()
    assert opened(parts(tmp_path)[0]).sample_count == 500


def test_the_floor_of_free_space_is_kept(tmp_path):
    disk = os.statvfs(tmp_path)
    file = writer(tmp_path, limits=Limits(min_free_bytes=disk.f_blocks * disk.f_frsize))
    with pytest.raises(OSError, match="min_free_bytes=") as caught:
        file.append(noise(10))
    assert "would be left" in str(caught.value)
    assert not list(tmp_path.glob("*.sigmf-data"))


# Kills

PROGRAM = """
import os, sys
import numpy as np
from pathlib import Path
from localize_core.recorder.sigmf_writer import About, Limits, SigmfWriter
from localize_core.sources.recording import Mark

rng = np.random.default_rng(int(sys.argv[2]))
file = SigmfWriter(
    Path(sys.argv[1]), "north", About("north", 8000.0), stream="s", datatype=sys.argv[3], flush_s=0.005,
    limits=Limits(max_part_bytes=1 << 18, min_free_bytes=0),
)
os.write(1, b"0\\n")
while True:
    count = int(rng.integers(1, 6000))
    index = np.arange(file.index, file.index + count)
    samples = ((index % 251 - 125) / 128 + 1j * (index // 251 % 251 - 125) / 128).astype(np.complex64)
    marks = [Mark(k, restart=True, lost=int(n)) for k, n in enumerate(index) if n % 1777 == 0]
    file.append(samples, marks)
    os.write(1, b"%d\\n" % file.flushed)
"""


def killed(folder: Path, seed: int, datatype: str) -> int:
    """Have a program record until it is killed; how many samples it knew to be flushed."""
    wait_s = float(np.random.default_rng(seed).uniform(0.0, 0.4))
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seed), datatype]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        timer = threading.Timer(wait_s, process.send_signal, (signal.SIGKILL,))
        timer.start()
        lines = process.stdout.read().split(b"\n")
        assert process.wait(WAIT_S) == -signal.SIGKILL
    return max(int(line) for line in [b"0", *lines[:-1]])


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_kill_at_any_moment_costs_what_was_not_flushed(tmp_path, seed):
    datatype = ("cf32_le", "ci16_le", "ci8")[seed % 3]
    flushed = killed(tmp_path, seed, datatype)
    counts = [opened(meta).sample_count for meta in parts(tmp_path)]
    assert sum(counts) >= flushed
    pieces = [opened(meta).read_samples() for meta, count in zip(parts(tmp_path), counts, strict=True) if count]
    index = np.arange(sum(counts))
    expected = ((index % 251 - 125) / 128 + 1j * (index // 251 % 251 - 125) / 128).astype(np.complex64)
    assert np.array_equal(np.concatenate([np.empty(0), *pieces]), expected)
    recording = read_sigmf(parts(tmp_path)[0])
    assert np.array_equal(recording.read(0, len(recording)), expected)
    assert recording.marks == tuple(Mark(n, restart=True, lost=n) for n in range(0, len(index), 1777))
    for meta in parts(tmp_path)[:-1]:
        assert "core:sha512" in json.loads(meta.read_text())["global"]
