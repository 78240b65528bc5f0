"""KiwiSDR recordings as a source block."""

from __future__ import annotations

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from localize_core.errors import ConfigError, SourceError

RATE = 12001.0862
START_NS = 370358_624751640
NAME = "20200813T065220Z_77500_north_iq.wav"
BLOCKS = 100


@pytest.fixture
def recording(tmp_path, kiwi_wav):
    """Writes a recording that begins at 06:52:20.62 UTC and lost two blocks before block 30."""

    def write(name=NAME, valid=True):
        rng = np.random.default_rng(1)
        samples = rng.uniform(-0.5, 0.5, 512 * BLOCKS) + 1j * rng.uniform(-0.5, 0.5, 512 * BLOCKS)
        number = np.arange(BLOCKS) + np.where(np.arange(BLOCKS) >= 30, 2, 0)
        times_ns = START_NS + np.round(number * 512e9 / RATE).astype(np.int64)
        stamps = [(0, int(t) // 10**9, int(t) % 10**9) if valid else (0, 0, 0) for t in times_ns]
        path = tmp_path / name
        path.write_bytes(kiwi_wav(samples, stamps))
        return path

    return write


def play(source, count: int | None = None):
    sink = blocks.vector_sink_c()
    flowgraph = gr.top_block()
    if count is None:
        flowgraph.connect(source, sink)
    else:
        flowgraph.connect(source, blocks.head(gr.sizeof_gr_complex, count), sink)
    flowgraph.run(1000)
    assert source.failure is None
    return np.array(sink.data(), np.complex64), sorted(sink.tags(), key=lambda tag: tag.offset)


def values(found, key):
    return {tag.offset: tag.value for tag in found if pmt.eq(tag.key, key)}


def test_samples_and_what_they_are(recording):
    source = localize.kiwi_wav_source(recording())
    samples, found = play(source)
    assert np.array_equal(samples, source.recording.samples)
    assert len(samples) == 512 * BLOCKS
    assert {k: pmt.to_double(v) for k, v in values(found, tags.RX_RATE).items()} == {0: pytest.approx(RATE, rel=1e-8)}
    assert {k: pmt.to_double(v) for k, v in values(found, tags.RX_FREQ).items()} == {0: 77500.0}
    assert {k: pmt.to_uint64(v) for k, v in values(found, tags.LENGTH).items()} == {0: 512 * BLOCKS}
    error_s = pmt.to_double(values(found, tags.TIME_ERROR)[0])
    assert error_s == pytest.approx(source.recording.time_error_ns * 1e-9)


def test_times_at_the_start_every_second_and_after_the_gap(recording):
    source = localize.kiwi_wav_source(recording())
    _, found = play(source)
    times = {offset: tags.time_from_pmt(value) for offset, value in values(found, tags.RX_TIME).items()}
    assert sorted(times) == [0, 12001, 30 * 512, 24002, 36003, 48004]
    for offset, (seconds, fraction) in times.items():
        lost = 1024 if offset >= 30 * 512 else 0
        elapsed = seconds - 1_597_301_540 + fraction - 0.624751640
        assert elapsed == pytest.approx((offset + lost) / RATE, abs=3e-9)


def test_frequency_is_the_parameter_then_the_name(recording):
    _, found = play(localize.kiwi_wav_source(recording(), frequency_hz=60e3))
    assert pmt.to_double(values(found, tags.RX_FREQ)[0]) == 60e3
    _, found = play(localize.kiwi_wav_source(recording("north.wav")))
    assert values(found, tags.RX_FREQ) == {}


def test_without_valid_time_there_are_no_time_tags(recording):
    _, found = play(localize.kiwi_wav_source(recording(valid=False)))
    assert values(found, tags.RX_TIME) == values(found, tags.TIME_ERROR) == {}
    assert pmt.to_double(values(found, tags.RX_RATE)[0]) == 12001.0


def test_repeat_goes_on_a_minute_later(recording):
    length = 512 * BLOCKS
    source = localize.kiwi_wav_source(recording(), repeat=True)
    samples, found = play(source, 2 * length + 100)
    assert np.array_equal(samples, np.tile(source.recording.samples, 3)[: 2 * length + 100])
    times = values(found, tags.RX_TIME)
    first, second = tags.time_from_pmt(times[0]), tags.time_from_pmt(times[2 * length])
    assert second == (first[0] + 120, first[1])
    assert values(found, tags.LENGTH) == {}


def test_errors_at_construction(recording, tmp_path):
    with pytest.raises(SourceError, match=r"none\.wav: cannot be read"):
        localize.kiwi_wav_source(tmp_path / "none.wav")
    with pytest.raises(ConfigError, match="frequency_hz=nan"):
        localize.kiwi_wav_source(recording(), frequency_hz=float("nan"))
