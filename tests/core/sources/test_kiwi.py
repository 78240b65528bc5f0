"""KiwiSDR recordings with everything that goes wrong in real ones."""

from __future__ import annotations

import itertools
import struct
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from localize_core.alignment.aligner import Aligner
from localize_core.alignment.timeline import TimeTag
from localize_core.errors import ConfigError, SourceError
from localize_core.sources.kiwi import read_kiwi_wav
from localize_core.sources.recording import Gap, common_span
from pyproj import Geod

RATE = 12001.0862
BLOCKS = 400
NAME = "20200813T065220Z_77500_north_iq.wav"
START_NS = 370358_624751640
"""Second of the GPS week of the block that a test's recording begins with; 06:52:20.6 UTC on that day."""
START_UTC = int(datetime(2020, 8, 13, 6, 52, 20, tzinfo=timezone.utc).timestamp())


def noise(blocks: int = BLOCKS) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.uniform(-0.7, 0.7, 512 * blocks) + 1j * rng.uniform(-0.7, 0.7, 512 * blocks)).astype(np.complex64)


def stamps_ns(blocks: int = BLOCKS, *, start_ns: int = START_NS, lost: int = 0, lost_at: int = 0) -> np.ndarray:
    """True times of the blocks, whole ns; `lost` blocks are missing before block `lost_at`."""
    number = np.arange(blocks) + np.where(np.arange(blocks) >= lost_at, lost, 0)
    return start_ns + np.round(number * 512 * 1e9 / RATE).astype(np.int64)


def stamps(times_ns: np.ndarray, age_s: int = 1) -> list[tuple[int, int, int]]:
    return [(age_s, int(t) // 10**9 % 604_800, int(t) % 10**9) for t in times_ns]


@pytest.fixture
def write(tmp_path, kiwi_wav):
    def write_(samples, stamps_, name=NAME, cut=0, **changes) -> Path:
        content = kiwi_wav(samples, stamps_, **changes)
        path = tmp_path / name
        path.write_bytes(content[: len(content) - cut])
        return path

    return write_


def time_error_ns(recording, index: int, true_ns: int) -> float:
    """Of sample `index`, against ns of the GPS week that NAME lies in."""
    seconds, fraction = recording.time(index)
    return (seconds - START_UTC - (true_ns // 10**9 - START_NS // 10**9)) * 1e9 + fraction * 1e9 - true_ns % 10**9


def test_samples_rate_and_start(write):
    samples = noise()
    recording = read_kiwi_wav(write(samples, stamps(stamps_ns())))
    assert recording.samples.dtype == np.complex64
    assert np.max(np.abs(recording.samples - samples)) < 1 / 32768
    assert recording.header_rate_hz == 12001.0
    assert recording.sample_rate_hz == pytest.approx(RATE, rel=1e-9)
    assert recording.start_time == (START_UTC, pytest.approx(0.624751640, abs=1e-9))
    assert (recording.time_valid, recording.date_known, recording.frequency_hz) == (True, True, 77500.0)
    assert (recording.stamps_used, recording.stamps_rejected, recording.gaps) == (BLOCKS, 0, ())
    assert recording.stamp_residual_ns < 1.0
    assert recording.duration_s == pytest.approx(BLOCKS * 512 / RATE)


def test_full_scale_is_one(write):
    recording = read_kiwi_wav(write(np.full(1024, -1.0 + 0.5j, np.complex64), stamps(stamps_ns(2))))
    assert (recording.samples == np.complex64(-1.0 + 0.5j)).all()


@pytest.mark.parametrize("header_rate_hz", [12000, 11000, 48000, 1, 0])
def test_header_rate_does_not_matter(write, header_rate_hz):
    recording = read_kiwi_wav(write(noise(), stamps(stamps_ns()), header_rate_hz=header_rate_hz))
    assert recording.header_rate_hz == header_rate_hz
    assert recording.sample_rate_hz == pytest.approx(RATE, rel=1e-9)


def test_stale_and_zero_first_chunks(write):
    some = stamps(stamps_ns())
    some[0], some[1] = (0, 0, 0), (0, 358742, 520645442)
    recording = read_kiwi_wav(write(noise(), some))
    assert (recording.stamps_used, recording.stamps_rejected) == (BLOCKS - 2, 2)
    assert abs(time_error_ns(recording, 0, START_NS)) < 1.0
    assert recording.gaps == ()


@pytest.mark.parametrize("kind", ["zero", "stale", "frozen", "random"])
def test_almost_half_of_the_stamps_bad_from_the_start(write, kind):
    true, bad = stamps_ns(), int(0.45 * BLOCKS)
    some = stamps(true)
    rng = np.random.default_rng(4)
    for k in range(bad):
        some[k] = {
            "zero": (0, 0, 0),
            "stale": stamps(true[k : k + 1] - 11_646_123_456_789)[0],
            "frozen": (*some[0][:2], 5),
            "random": (0, int(rng.integers(0, 604_800)), int(rng.integers(0, 10**9))),
        }[kind]
    recording = read_kiwi_wav(write(noise(), some))
    assert abs(time_error_ns(recording, 512 * (BLOCKS - 1), true[-1])) < 2.0
    assert recording.stamps_rejected == bad
    assert recording.gaps == ()


def test_single_wrong_stamps_and_jitter(write):
    rng = np.random.default_rng(5)
    true = stamps_ns()
    noisy = true + np.round(rng.normal(0.0, 100.0, BLOCKS)).astype(np.int64)
    wrong = rng.permutation(BLOCKS)[:120]
    noisy[wrong] += rng.choice([-1, 1], 120) * rng.integers(10**5, 10**10, 120)
    recording = read_kiwi_wav(write(noise(), stamps(noisy)))
    assert recording.stamps_rejected == pytest.approx(120, abs=2)
    assert recording.stamp_residual_ns == pytest.approx(100.0, rel=0.15)
    for k in (0, BLOCKS // 2, BLOCKS - 1):
        assert abs(time_error_ns(recording, 512 * k, int(true[k]))) < 40.0


@pytest.mark.parametrize("jitter_us", [10.0, 50.0, 200.0])
def test_stamps_that_all_jitter_are_averaged(write, jitter_us):
    true = stamps_ns()
    noisy = true + np.round(np.random.default_rng(7).normal(0.0, jitter_us * 1e3, BLOCKS)).astype(np.int64)
    recording = read_kiwi_wav(write(noise(), stamps(noisy)))
    assert recording.time_valid
    assert recording.stamps_used > 0.75 * BLOCKS
    assert recording.time_error_ns < 0.25 * recording.stamp_residual_ns
    for k in (0, BLOCKS // 2, BLOCKS - 1):
        assert abs(time_error_ns(recording, 512 * k, int(true[k]))) < 4.0 * recording.time_error_ns


def test_old_stamps_are_not_used(write):
    """A clock without GNSS drifts away; the age field says since when."""
    true = stamps_ns()
    some = stamps(true)
    for k in range(250):
        some[k] = stamps(true[k : k + 1] + 40_000 * (250 - k), age_s=200)[0]
    recording = read_kiwi_wav(write(noise(), some))
    assert recording.stamps_used == BLOCKS - 250
    assert abs(time_error_ns(recording, 512 * (BLOCKS - 1), true[-1])) < 2.0
    assert read_kiwi_wav(recording.path, max_fix_age_s=255).stamps_used > BLOCKS - 250


def test_week_rollover(write):
    true = stamps_ns(start_ns=604_800 * 10**9 - 3 * 10**9)
    recording = read_kiwi_wav(write(noise(), stamps(true), "20200815T235939Z_77500_north_iq.wav"))
    assert recording.stamps_used == BLOCKS
    # GPS weeks begin 18 s before Sunday 00:00 UTC.
    sunday = int(datetime(2020, 8, 16, tzinfo=timezone.utc).timestamp())
    assert recording.start_time == (sunday - 18 - 3, pytest.approx(0.0, abs=2e-9))
    late = recording.time(512 * (BLOCKS - 1))
    assert late[0] - recording.start_time[0] + late[1] == pytest.approx((BLOCKS - 1) * 512 / RATE, abs=5e-9)


@pytest.mark.parametrize("wrong", [0, 100])
def test_lost_blocks(write, wrong):
    true = stamps_ns(lost=7, lost_at=150)
    noisy = true.copy()
    rng = np.random.default_rng(6)
    chosen = rng.choice([k for k in range(BLOCKS) if k not in (149, 150)], wrong, replace=False)
    noisy[chosen] += rng.integers(10**6, 10**10, wrong)
    recording = read_kiwi_wav(write(noise(), stamps(noisy)))
    assert recording.gaps == (Gap(150 * 512, 7 * 512),)
    assert recording.stamps_rejected == wrong
    for k in (0, 149, 150, BLOCKS - 1):
        assert abs(time_error_ns(recording, 512 * k, int(true[k]))) < 2.0
    assert recording.duration_s == pytest.approx((BLOCKS + 7) * 512 / RATE)


def test_other_chunks_missing_stamps_and_a_cut_last_block(write):
    extra = {3: struct.pack("<4sI", b"LIST", 5) + b"abcde\0", 9: struct.pack("<4sI", b"kiwi", 4) + b"abcd"}
    some = stamps(stamps_ns())
    some[20] = None
    samples = noise()
    recording = read_kiwi_wav(write(samples, some, before_block=extra, cut=4 * 100 + 1))
    assert len(recording.samples) == 512 * BLOCKS - 101
    assert np.max(np.abs(recording.samples - samples[:-101])) < 1 / 32768
    assert recording.stamps_used == BLOCKS - 1


def test_cut_before_the_last_samples_leaves_a_stamp_of_nothing(write):
    recording = read_kiwi_wav(write(noise(), stamps(stamps_ns()), cut=512 * 4))
    assert (len(recording.samples), recording.stamps_used) == (512 * (BLOCKS - 1), BLOCKS - 1)


@pytest.mark.parametrize("bad", [(0, 0, 0), (255, 370358, 5), (0, 604_800, 0), (0, 370358, 10**9)])
def test_never_a_valid_stamp(write, bad):
    recording = read_kiwi_wav(write(noise(20), [bad] * 20))
    assert (recording.time_valid, recording.start_time, recording.date_known) == (False, None, False)
    assert (recording.sample_rate_hz, recording.stamps_rejected) == (12001.0, 20)
    assert len(recording.samples) == 512 * 20
    with pytest.raises(SourceError, match=r"north_iq\.wav: its time stamps are not valid"):
        recording.time(0)


def test_a_single_stamp_counts_with_the_headers_rate(write):
    recording = read_kiwi_wav(write(noise(1), stamps(stamps_ns(1))))
    assert (recording.sample_rate_hz, recording.stamps_used) == (12001.0, 1)
    assert recording.start_time == (START_UTC, pytest.approx(0.624751640, abs=1e-9))


def test_stamps_without_agreement_are_no_time(write):
    rng = np.random.default_rng(8)
    some = [(0, int(rng.integers(1, 604_800)), int(rng.integers(0, 10**9))) for _ in range(BLOCKS)]
    assert not read_kiwi_wav(write(noise(), some)).time_valid


@pytest.mark.parametrize("name", ["north.wav", "20201399T065220Z_77500_north_iq.wav"])
def test_a_name_without_a_date_leaves_the_week_open(write, name):
    recording = read_kiwi_wav(write(noise(), stamps(stamps_ns()), name))
    assert recording.time_valid
    assert not recording.date_known
    assert recording.start_time == (370358, pytest.approx(0.624751640, abs=1e-9))


def test_common_span(write):
    early = read_kiwi_wav(write(noise(), stamps(stamps_ns()), "20200813T065220Z_77500_a_iq.wav"))
    late_ns = stamps_ns(start_ns=START_NS + 1_500_000_000)
    late = read_kiwi_wav(write(noise(), stamps(late_ns), "20200813T065220Z_77500_b_iq.wav"))
    start, duration_s = common_span([early, late])
    assert start == (START_UTC + 2, pytest.approx(0.124751640, abs=2e-9))
    assert duration_s == pytest.approx(BLOCKS * 512 / RATE - 1.5, abs=1e-8)


def test_common_span_of_what_shares_none(write):
    early = read_kiwi_wav(write(noise(), stamps(stamps_ns()), "20200813T065220Z_77500_a_iq.wav"))
    later = stamps_ns(start_ns=START_NS + 60 * 10**9)
    late = read_kiwi_wav(write(noise(), stamps(later), "20200813T065220Z_77500_b_iq.wav"))
    timeless = read_kiwi_wav(write(noise(3), [(0, 0, 0)] * 3, "20200813T065220Z_77500_c_iq.wav"))
    with pytest.raises(ConfigError, match=r"_b_iq\.wav starts after .*_a_iq\.wav has ended"):
        common_span([early, late])
    with pytest.raises(ConfigError, match=r"_c_iq\.wav: its time stamps are not valid"):
        common_span([early, timeless])
    with pytest.raises(ConfigError, match="no recordings"):
        common_span([])


def riff(*chunks: bytes) -> bytes:
    return b"RIFF\0\0\0\0WAVE" + b"".join(chunks)


FMT = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 12001, 48004, 4, 16)
MONO = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 12001, 24002, 2, 16)
KIWI = struct.pack("<4sIBBII", b"kiwi", 10, 0, 0, 1, 1)
DATA = struct.pack("<4sI", b"data", 8) + b"\0" * 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no RIFF/WAVE file"),
        (b"OggS" + b"\0" * 100, "no RIFF/WAVE file"),
        (riff(KIWI, DATA), "no fmt chunk"),
        (riff(MONO, KIWI, DATA), "1 channels of 16 bits"),
        (riff(FMT, DATA), "no kiwi chunks"),
        (riff(FMT, KIWI), "no samples"),
    ],
)
def test_what_is_no_recording(tmp_path, content, message):
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"{NAME}.*{message}"):
        read_kiwi_wav(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.wav: cannot be read"):
        read_kiwi_wav(tmp_path / "nowhere.wav")


@pytest.fixture(scope="module")
def dcf77(data_dir):
    paths = sorted((data_dir / "kiwi-dcf77").glob("*.wav"))
    if len(paths) != 3:
        pytest.skip(f"no recordings in {data_dir / 'kiwi-dcf77'}")
    return [read_kiwi_wav(path) for path in paths]


def test_real_recordings(dcf77):
    for recording in dcf77:
        assert recording.header_rate_hz == 12001.0
        assert 12001.02 < recording.sample_rate_hz < 12001.21
        assert recording.stamps_rejected <= 2
        assert recording.stamp_residual_ns < 150.0
        assert recording.gaps == ()
        assert recording.start_time[0] == START_UTC
    assert common_span(dcf77)[1] == pytest.approx(29.534, abs=0.001)


def test_real_recordings_aligned_show_the_transmitters_delays(dcf77):
    """Envelopes of the aligned streams lag each other as the distances to the DCF77 transmitter say, to 30 us.

    A plain estimate of others is 14 us off on this set: LF paths are that much longer than the geodesic.
    """
    aligner = Aligner(3, 12000.0)
    for k, recording in enumerate(dcf77):
        aligner.describe(k, rate_hz=recording.sample_rate_hz, length=len(recording.samples))
    fed, parts = [0, 0, 0], ([], [], [])
    while not aligner.finished:
        for k, recording in enumerate(dcf77):
            part = recording.samples[fed[k] : fed[k] + 12_000]
            tags = [TimeTag(fed[k], *recording.time(fed[k]))] if len(part) else []
            fed[k] += aligner.push(k, part, tags)
        while (block := aligner.pull(20_000)) is not None:
            for own, samples in zip(parts, block.samples, strict=True):
                own.append(samples)
    envelopes = [np.abs(np.concatenate(own)) for own in parts]
    assert {len(envelope) for envelope in envelopes} == {354_411}
    geod = Geod(ellps="WGS84")
    receivers = [(46.499351, 8.798828), (51.466044, 11.977189), (51.500500, 3.600690)]
    delays_s = [geod.inv(9.0112, 50.0152, lon, lat)[2] / 299_792_458.0 for lat, lon in receivers]
    for a, b in itertools.combinations(range(3), 2):
        spectra = [np.fft.rfft(envelopes[k] - envelopes[k].mean(), 2**20) for k in (a, b)]
        correlation = np.fft.irfft(spectra[0] * np.conj(spectra[1]))
        near = np.arange(-40, 41)
        peak = int(near[np.argmax(correlation[near])])
        left, top, right = correlation[[peak - 1, peak, peak + 1]]
        lag_s = (peak + 0.5 * (left - right) / (left - 2 * top + right)) / 12_000.0
        assert lag_s == pytest.approx(delays_s[a] - delays_s[b], abs=30e-6)
