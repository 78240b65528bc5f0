"""SigMF recordings: every type of sample, times and gaps out of captures, and what is wrong with broken ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from localize_core.errors import MissingExtraError, SourceError
from localize_core.sources.recording import Gap, common_span, stamped_samples
from localize_core.sources.sigmf import read_sigmf

RATE = 8000.0
START_S = int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp())


def noise(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.uniform(-0.9, 0.9, shape) + 1j * rng.uniform(-0.9, 0.9, shape)).astype(np.complex64)


def changed(meta: Path, **captures_or_global) -> Path:
    """The same metadata with top-level entries replaced."""
    meta.write_text(json.dumps(json.loads(meta.read_text()) | captures_or_global))
    return meta


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize(
    ("kind", "step"),
    [("cf32", 0.0), ("cf64", 0.0), ("ci32", 2**-31), ("cu32", 2**-31), ("ci16", 2**-15), ("cu16", 2**-15)],
)
def test_types_of_two_bytes_and_more(write_sigmf, tmp_path, kind, step, order):
    samples = noise(3000)
    recording = read_sigmf(write_sigmf(tmp_path / "a", samples, datatype=f"{kind}_{order}"))
    assert len(recording) == 3000
    found = recording.read(0, 3000)
    assert found.dtype == np.complex64
    assert np.max(np.abs(found.view(np.float32) - samples.view(np.float32))) <= step / 2 + 1e-7


@pytest.mark.parametrize("kind", ["ci8", "cu8", "ci8_le"])
def test_types_of_a_byte(write_sigmf, tmp_path, kind):
    samples = noise(3000)
    found = read_sigmf(write_sigmf(tmp_path / "a", samples, datatype=kind)).read(0, 3000)
    assert np.max(np.abs(found.view(np.float32) - samples.view(np.float32))) <= 2**-8


@pytest.mark.parametrize(
    ("kind", "raw"), [("ci16_le", b"\x00\x80\xff\x7f"), ("cu8", b"\x00\xff"), ("ci8", b"\x80\x7f")]
)
def test_full_scale_is_one(write_sigmf, tmp_path, kind, raw):
    meta = write_sigmf(tmp_path / "a", noise(1), datatype=kind)
    meta.with_suffix(".sigmf-data").write_bytes(raw)
    (sample,) = read_sigmf(meta).read(0, 1)
    assert sample.real == -1.0
    assert sample.imag == pytest.approx(1.0, abs=2**-7)


def test_any_span_and_no_more_than_there_is(write_sigmf, tmp_path):
    samples = noise(1000)
    recording = read_sigmf(write_sigmf(tmp_path / "a", samples))
    assert np.array_equal(recording.read(123, 400), samples[123:523])
    assert np.array_equal(recording.read(900, 400), samples[900:])
    assert recording.read(1000, 5).shape == (0,)


@pytest.mark.parametrize("kind", ["cf32_le", "ci16_be", "cu8"])
def test_one_of_several_channels(write_sigmf, tmp_path, kind):
    samples = noise(500, 3)
    meta = write_sigmf(tmp_path / "a", samples, datatype=kind)
    for channel in range(3):
        recording = read_sigmf(meta, channel=channel)
        assert len(recording) == 500
        assert np.max(np.abs(recording.read(20, 300) - samples[20:320, channel])) < 0.01
    for channel in (3, -1):
        with pytest.raises(SourceError, match=rf"a\.sigmf-meta: channel={channel}: it has 3"):
            read_sigmf(meta, channel=channel)


def archive(folder: Path, suffix: str) -> Path:
    """Both files of recording a as an archive, of the kind that its suffix says."""
    path = folder / f"b{suffix}"
    names = ("a.sigmf-meta", "a.sigmf-data")
    if suffix == ".sigmf.zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.write(folder / name, f"a/{name}")
        return path
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name in names:
            file.add(folder / name, f"a/{name}")
    path.write_bytes(gzip.compress(content.getvalue()) if suffix.endswith(".gz") else content.getvalue())
    return path


@pytest.mark.parametrize("suffix", [".sigmf", ".sigmf.gz", ".sigmf.zip"])
@pytest.mark.parametrize("channels", [1, 2])
def test_archives(write_sigmf, tmp_path, suffix, channels):
    samples = noise(700, channels)
    meta = write_sigmf(tmp_path / "a", samples, datatype="ci16_le", captures=[(0, "2026-01-02T03:04:05.25Z", 1e8)])
    digest = hashlib.sha512(meta.with_suffix(".sigmf-data").read_bytes()).hexdigest()
    meta = write_sigmf(
        tmp_path / "a",
        samples,
        datatype="ci16_le",
        captures=[(0, "2026-01-02T03:04:05.25Z", 1e8)],
        fields={"core:sha512": digest},
    )
    recording = read_sigmf(archive(tmp_path, suffix), channel=channels - 1)
    assert recording.start_time == (START_S, 0.25)
    assert np.array_equal(recording.read(100, 500), read_sigmf(meta, channel=channels - 1).read(100, 500))
    assert np.max(np.abs(recording.read(0, 700) - samples[:, -1])) < 2**-14


def test_either_file_names_the_recording(write_sigmf, tmp_path):
    meta = write_sigmf(tmp_path / "a.b", noise(10))
    assert np.array_equal(read_sigmf(meta).read(0, 10), read_sigmf(meta.with_suffix(".sigmf-data")).read(0, 10))


@pytest.mark.parametrize(
    ("text", "time", "error_ns"),
    [
        ("2026-01-02T03:04:05.678901Z", (START_S, 0.678901), 1e3 / 12**0.5),
        ("2026-01-02T03:04:05.123456789Z", (START_S, 0.123456789), 1 / 12**0.5),
        ("2026-01-02T03:04:05.000000000000Z", (START_S, 0.0), 1e-3 / 12**0.5),
        ("2026-01-02T04:34:05.5+01:30", (START_S, 0.5), 1e8 / 12**0.5),
        ("2026-01-02T01:04:05.5-02:00", (START_S, 0.5), 1e8 / 12**0.5),
        ("2026-01-02T03:04:05", (START_S, 0.0), 1e9 / 12**0.5),
    ],
)
def test_times(write_sigmf, tmp_path, text, time, error_ns):
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(4000), captures=[(0, text, 433.92e6)]))
    assert recording.time_valid
    assert recording.start_time == (time[0], pytest.approx(time[1], abs=1e-15))
    assert recording.time(12_000) == (time[0] + 1 + int(time[1] + 0.5), pytest.approx((time[1] + 0.5) % 1.0))
    assert recording.time_error_ns == pytest.approx(error_ns)
    assert recording.tunings == ((0, 433.92e6),)
    assert recording.duration_s == pytest.approx(0.5)


def test_without_a_time(write_sigmf, tmp_path):
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(400)))
    assert (recording.time_valid, recording.start_time, recording.gaps, recording.tunings) == (False, None, (), ())
    assert (recording.duration_s, recording.time_error_ns) == (0.05, 0.0)
    assert len(stamped_samples(recording)) == 0
    with pytest.raises(SourceError, match=r"a\.sigmf-meta: no capture has core:datetime"):
        recording.time(0)
    changed(recording.path, captures=[])
    assert len(read_sigmf(recording.path)) == 400


def test_captures_are_segments_with_gaps(write_sigmf, tmp_path):
    """A retuning without loss, 800 lost samples whose time is rounded, and a new start at some other moment."""
    captures = [
        (0, "2026-01-02T03:04:05.000000Z", 100e6),
        (4000, "2026-01-02T03:04:05.500000Z", 101e6),
        (5001, "2026-01-02T03:04:05.725126Z", None),  # true: .725125
        (8001, "2026-01-02T03:04:07.000033Z", 100e6),
        (12001, None, 99e6),
    ]
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(16_001), captures=captures))
    assert recording.gaps == (Gap(5001, 800), Gap(8001, 7199))
    assert recording.tunings == ((0, 100e6), (4000, 101e6), (8001, 100e6), (12001, 99e6))
    seconds = {n: s - START_S + f for n in (0, 5000, 5001, 8000, 8001, 16_000) for s, f in [recording.time(n)]}
    assert seconds == {
        0: 0.0,
        5000: 0.625,
        5001: pytest.approx(0.725125, abs=1e-12),  # whole samples: better than the stamp
        8000: pytest.approx(0.725125 + 2999 / RATE, abs=1e-12),
        8001: pytest.approx(2.000033, abs=1e-12),  # no whole number of samples: as it stands
        16_000: pytest.approx(2.000033 + 7999 / RATE, abs=1e-12),
    }
    assert recording.duration_s == pytest.approx(2.000033 + 8000 / RATE)
    assert stamped_samples(recording).tolist() == [0, 5001, 8000, 8001, 16_000]
    _, shared_s = common_span([recording, recording])
    assert shared_s == pytest.approx(recording.duration_s)


def test_a_time_that_a_later_capture_says_holds_before_it(write_sigmf, tmp_path):
    captures = [(0, None, None), (4000, "2026-01-02T03:04:05.250000Z", None)]
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(5000), captures=captures))
    assert recording.start_time == (START_S - 1, 0.75)
    assert recording.gaps == ()


def test_a_part_of_a_longer_recording(write_sigmf, tmp_path):
    captures = [(10_000, "2026-01-02T03:04:05.000000Z", None), (10_100, "2026-01-02T03:04:06.000000Z", None)]
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(200), captures=captures, fields={"core:offset": 10_000}))
    assert recording.gaps == (Gap(100, 7900),)
    assert recording.start_time == (START_S, 0.0)


def test_a_checksum_is_kept(write_sigmf, tmp_path):
    meta = write_sigmf(tmp_path / "a", noise(10))
    digest = hashlib.sha512(meta.with_suffix(".sigmf-data").read_bytes()).hexdigest()
    write_sigmf(tmp_path / "a", noise(10), fields={"core:sha512": digest})
    assert len(read_sigmf(meta)) == 10
    write_sigmf(tmp_path / "a", noise(9), fields={"core:sha512": digest})
    with pytest.raises(SourceError, match="not those that core:sha512 was made of"):
        read_sigmf(meta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_hz": None}, "no core:sample_rate$"),
        ({"rate_hz": 0.0}, "core:sample_rate=0: must be above 0"),
        ({"rate_hz": "fast"}, "core:sample_rate='fast': must be a finite number"),
        ({"fields": {"core:datatype": "rf32_le"}}, "core:datatype='rf32_le': cannot be read, only cf32"),
        ({"fields": {"core:datatype": "ci16"}}, "core:datatype='ci16': cannot be read"),
        ({"fields": {"core:datatype": None}}, "DATATYPE_KEY must be set"),
        ({"captures": [(0, "yesterday", None)]}, "core:datetime='yesterday': wanted a time like 2026-"),
        ({"captures": [(0, "2026-13-02T03:04:05Z", None)]}, "core:datetime='2026-13-02T03:04:05Z'"),
        ({"captures": [(0, None, "high")]}, "core:frequency='high': must be a finite number"),
        ({"captures": [(0, None, None), (100, None, None)]}, "cut off, its data end after 100 samples, .* at 100"),
        ({"captures": [(5, None, None), (5, None, None)]}, "core:sample_start=5: captures must begin one after"),
        ({"captures": [(-1, None, None)]}, "core:sample_start=-1"),
        (
            {"captures": [(0, "2026-01-02T03:04:05.000Z", None), (80, "2026-01-02T03:04:05.002Z", None)]},
            r"capture at sample 80 begins 0\.008 s before the previous one ends",
        ),
        ({"fields": {"core:trailing_bytes": 8}}, "core:trailing_bytes"),
    ],
)
def test_metadata_that_cannot_be(write_sigmf, tmp_path, options, message):
    meta = write_sigmf(tmp_path / "a", noise(100), **options)
    with pytest.raises(SourceError, match=rf"a\.sigmf-meta: .*{message}"):
        read_sigmf(meta)


def test_files_that_are_not_what_they_should_be(write_sigmf, tmp_path):
    with pytest.raises(SourceError, match=r"none\.sigmf-meta: cannot be read: No such file"):
        read_sigmf(tmp_path / "none.sigmf-meta")
    with pytest.raises(SourceError, match=r"iq\.wav: no SigMF recording, whose name ends in \.sigmf-meta"):
        read_sigmf(tmp_path / "iq.wav")
    for shape, datatype, cut in (
        ((100,), "cf32_le", 3),
        ((100, 3), "cf32_le", 8),
        ((100,), "ci16_le", 2),
        ((9,), "cu8", 1),
    ):
        meta = write_sigmf(tmp_path / "a", noise(*shape), datatype=datatype)
        data = meta.with_suffix(".sigmf-data")
        data.write_bytes(data.read_bytes()[:-cut])
        with pytest.raises(SourceError, match=r"a\.sigmf-meta: cut off, its data are no whole number of samples"):
            read_sigmf(meta)
    data.write_bytes(b"")
    with pytest.raises(SourceError, match=r"a\.sigmf-meta"):
        read_sigmf(meta)
    data.unlink()
    with pytest.raises(SourceError, match=r"its samples, a\.sigmf-data, are not there"):
        read_sigmf(meta)
    for content in ("", "no JSON", "{}", "[]", '{"global": 5}'):
        meta.write_text(content)
        with pytest.raises(SourceError, match=r"a\.sigmf-meta: ") as caught:
            read_sigmf(meta)
        assert "\n" not in str(caught.value)
    broken = tmp_path / "b.sigmf"
    broken.write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"b\.sigmf: no readable SigMF recording"):
        read_sigmf(broken)


def test_data_that_vanish_while_they_are_read(write_sigmf, tmp_path):
    recording = read_sigmf(write_sigmf(tmp_path / "a", noise(100)))
    data = recording.path.with_suffix(".sigmf-data")
    data.write_bytes(data.read_bytes()[:80])
    with pytest.raises(SourceError, match="has become shorter"):
        recording.read(0, 50)
    data.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        recording.read(0, 50)


def test_the_extra_is_named(write_sigmf, tmp_path, monkeypatch):
    meta = write_sigmf(tmp_path / "a", noise(10))
    monkeypatch.setitem(sys.modules, "sigmf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gr-localize\[sigmf\]'"):
        read_sigmf(meta)


def test_long_recordings_stay_on_disk(tmp_path, write_sigmf):
    """Eight GiB, all a hole: opened and read in places, with next to no memory."""
    meta = write_sigmf(tmp_path / "a", noise(10))
    with meta.with_suffix(".sigmf-data").open("r+b") as data:
        data.truncate(8 << 30)
    recording = read_sigmf(meta)
    assert len(recording) == 1 << 30
    assert np.array_equal(recording.read(0, 10), noise(10))
    assert not recording.read((1 << 30) - 1000, 1000).any()
