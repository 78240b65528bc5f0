"""Recordings of several parts: patterns, collections, and what does not belong together."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from localize_core.errors import SourceError
from localize_core.recorder.sigmf_writer import About, Limits, SigmfWriter
from localize_core.sources.recording import Gap, Mark, stamped_samples
from localize_core.sources.sigmf import read_sigmf

RATE = 8000.0
START_S = int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp())


def noise(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.uniform(-0.9, 0.9, count) + 1j * rng.uniform(-0.9, 0.9, count)).astype(np.complex64)


@pytest.fixture
def parts(tmp_path, write_sigmf) -> Path:
    """By another program: 1 s, 1 s at once after it, and 0.5 s after a gap of 0.5 s, at another frequency."""
    samples = noise(20_000)
    for name, part, time, frequency_hz in (
        ("a-2", samples[:8000], "2026-01-02T03:04:05.000000Z", 1e8),
        ("a-10", samples[8000:16_000], "2026-01-02T03:04:06.000000Z", 1e8),
        ("a-11", samples[16_000:], "2026-01-02T03:04:07.500000Z", 2e8),
        ("b-1", samples[:10], "2026-01-02T03:04:05.000000Z", None),
    ):
        write_sigmf(tmp_path / name, part, captures=[(0, time, frequency_hz)])
    return tmp_path


def recorded(folder: Path, count: int = 5000, name: str = "north", stream: str = "s") -> SigmfWriter:
    limits = Limits(max_part_bytes=8 * 1000, min_free_bytes=0)
    writer = SigmfWriter(folder, name, About(name, RATE), stream=stream, limits=limits)
    writer.append(noise(count), [Mark(0, rx_time=(START_S, 0.0), rx_rate_hz=RATE)])
    writer.close()
    return writer


def edit(meta: Path, **capture) -> Path:
    """The first capture with some keys replaced."""
    content = json.loads(meta.read_text())
    content["captures"][0] |= {key.replace("__", ":"): value for key, value in capture.items()}
    meta.write_text(json.dumps(content))
    return meta


def test_a_pattern_is_its_parts_in_the_order_of_their_numbers(parts):
    recording = read_sigmf(parts / "a-*.sigmf-meta")
    assert len(recording) == 20_000
    assert np.array_equal(recording.read(0, 99_999), noise(20_000))
    assert np.array_equal(recording.read(7990, 8020), noise(20_000)[7990:16_010])
    assert recording.gaps == (Gap(16_000, 4000),)
    assert recording.tunings == ((0, 1e8), (8000, 1e8), (16_000, 2e8))
    assert recording.marks is None
    assert recording.time(16_000) == (START_S + 2, 0.5)
    assert recording.duration_s == pytest.approx(3.0)
    assert stamped_samples(recording).tolist() == [0, 8000, 16_000]
    assert len(read_sigmf(parts / "a-2.sigmf-meta")) == 8000  # alone: nothing says that the others follow


def test_a_collection_and_its_streams(parts):
    path = parts / "both.sigmf-collection"
    streams = [{"name": name, "hash": ""} for name in ("a-2", "a-11", "a-10", "b-1")]
    path.write_text(json.dumps({"collection": {"core:streams": streams}}))
    assert np.array_equal(read_sigmf(path, stream="a").read(0, 99_999), noise(20_000))
    assert len(read_sigmf(path, stream="b")) == 10
    assert len(read_sigmf(path, stream="a-10")) == 8000
    with pytest.raises(SourceError, match=r"both\.sigmf-collection: stream has to name one of its streams: a, b"):
        read_sigmf(path)
    with pytest.raises(SourceError, match="stream='c': no such stream; it has a, b"):
        read_sigmf(path, stream="c")
    path.write_text(json.dumps({"collection": {"core:streams": streams[:3]}}))
    assert len(read_sigmf(path)) == 20_000
    for wrong in ("", "[]", '{"collection": {}}', '{"collection": {"core:streams": [1]}}'):
        path.write_text(wrong)
        with pytest.raises(SourceError, match="no readable SigMF collection"):
            read_sigmf(path)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read_sigmf(path)


def test_what_is_no_sequel_is_refused(parts, write_sigmf):
    write_sigmf(parts / "a-12", noise(10), rate_hz=9000.0)
    with pytest.raises(SourceError, match=r"a-12.* does not follow a-2.*core:sample_rate is 9000 and 8000"):
        read_sigmf(parts / "a-*.sigmf-meta")
    write_sigmf(parts / "a-12", noise(10), datatype="ci16_le")
    with pytest.raises(SourceError, match="core:datatype is 'ci16_le' and 'cf32_le'"):
        read_sigmf(parts / "a-*.sigmf-meta")
    with pytest.raises(SourceError, match=r"c-\*\.sigmf-meta: no file has such a name"):
        read_sigmf(parts / "c-*.sigmf-meta")
    with pytest.raises(SourceError, match=r"stream='a': only a collection, \*\.sigmf-collection, has streams"):
        read_sigmf(parts / "a-2.sigmf-meta", stream="a")


def test_recordings_of_two_receivers_or_runs_are_no_one(tmp_path):
    recorded(tmp_path)
    recorded(tmp_path, name="north-east", stream="t")
    with pytest.raises(SourceError, match="localize:stream is 't' and 's'"):
        read_sigmf(tmp_path / "north*.sigmf-meta")
    recorded(tmp_path, stream="another")
    with pytest.raises(SourceError, match="localize:stream is 'another' and 's'"):
        read_sigmf(tmp_path / "north-[0-9]*.sigmf-meta")
    assert len(read_sigmf(tmp_path / "north-0001.sigmf-meta")) == 5000
    assert len(read_sigmf(tmp_path / "north-0007.sigmf-data")) == 4000


def test_a_collection_that_a_kill_left_behind_is_gone_on_from(tmp_path):
    recorded(tmp_path)
    path = tmp_path / "s.sigmf-collection"
    path.write_text(json.dumps({"collection": {"core:streams": [{"name": "north-0001"}, {"name": "north-0002"}]}}))
    assert len(read_sigmf(path)) == 5000


def test_many_parts_keep_one_file_open(tmp_path):
    recorded(tmp_path, 100_000)
    samples = noise(100_000)
    before = len(list(Path("/proc/self/fd").iterdir()))
    recording = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    for first in range(0, 100_000, 700):
        assert np.array_equal(recording.read(first, 700), samples[first : first + 700])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rx_time", [1]),
        ("rx_time", [1, 1.0]),
        ("rx_time", [-1, 0.5]),
        ("rx_time", ["1", 0.5]),
        ("rx_rate", "fast"),
        ("rx_freq", True),
        ("time_error", [1]),
        ("time_source", 5),
        ("restart", -1),
        ("restart", 1.5),
    ],
)
def test_tags_that_cannot_be(tmp_path, key, value):
    recorded(tmp_path, 500)
    meta = edit(tmp_path / "north-0001.sigmf-meta", **{f"localize__{key}": value})
    with pytest.raises(SourceError, match=rf"north-0001.*localize:{key}=.*: no such tag"):
        read_sigmf(meta)


def test_a_clock_that_goes_back_is_no_gap(tmp_path):
    writer = SigmfWriter(tmp_path, "north", About("north", RATE), stream="s", limits=Limits(min_free_bytes=0))
    writer.append(
        noise(300),
        [
            Mark(0, rx_time=(START_S, 0.5)),
            Mark(100, rx_time=(START_S - 9, 0.0), restart=True),
            Mark(200, rx_time=(START_S, 0.0)),
        ],
    )
    writer.close()
    recording = read_sigmf(tmp_path / "north-0001.sigmf-meta")
    assert recording.gaps == (Gap(200, 9 * 8000 - 100),)
    assert [recording.time(index) for index in (0, 100, 200)] == [(START_S, 0.5), (START_S - 9, 0.0), (START_S, 0.0)]
    assert stamped_samples(recording).tolist() == [0, 100, 200]
