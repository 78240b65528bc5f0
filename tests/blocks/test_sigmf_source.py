"""SigMF recordings as a source block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from localize_core.errors import ConfigError, SourceError

RATE = 8000.0
START_S = 1_767_323_045
LENGTH = 30_000


@pytest.fixture
def recording(tmp_path, write_sigmf) -> Path:
    """Two channels of 3.75 s at 8 kHz; 800 samples lost before sample 12,000, where the receiver was tuned anew."""
    rng = np.random.default_rng(1)
    samples = rng.uniform(-0.5, 0.5, (LENGTH, 2)) + 1j * rng.uniform(-0.5, 0.5, (LENGTH, 2))
    captures = [(0, "2026-01-02T03:04:05.250000Z", 100e6), (12_000, "2026-01-02T03:04:06.850000Z", 101e6)]
    return write_sigmf(tmp_path / "a", samples, datatype="ci16_le", captures=captures)


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


@pytest.mark.parametrize("channel", [0, 1])
def test_samples_and_what_they_are(recording, channel):
    source = localize.sigmf_source(recording, channel)
    samples, found = play(source)
    assert np.array_equal(samples, source.recording.read(0, LENGTH))
    raw = np.fromfile(recording.with_suffix(".sigmf-data"), "<i2").reshape(-1, 2, 2) / 32768.0
    assert np.array_equal(samples, (raw[:, channel, 0] + 1j * raw[:, channel, 1]).astype(np.complex64))
    assert {k: pmt.to_double(v) for k, v in values(found, tags.RX_RATE).items()} == {0: RATE}
    assert {k: pmt.to_double(v) for k, v in values(found, tags.RX_FREQ).items()} == {0: 100e6, 12_000: 101e6}
    assert {k: pmt.to_uint64(v) for k, v in values(found, tags.LENGTH).items()} == {0: LENGTH}
    assert pmt.to_double(values(found, tags.TIME_ERROR)[0]) == pytest.approx(1e-6 / 12**0.5)


def test_times_at_the_start_every_second_and_after_the_gap(recording):
    _, found = play(localize.sigmf_source(recording))
    times = {offset: tags.time_from_pmt(value) for offset, value in values(found, tags.RX_TIME).items()}
    assert {offset: (seconds - START_S, fraction) for offset, (seconds, fraction) in times.items()} == {
        0: (0, 0.25),
        8000: (1, 0.25),
        12_000: (1, pytest.approx(0.85)),
        16_000: (2, pytest.approx(0.35)),
        24_000: (3, pytest.approx(0.35)),
    }


def test_a_frequency_for_all_of_it(recording):
    _, found = play(localize.sigmf_source(recording, frequency_hz=60e3))
    assert {k: pmt.to_double(v) for k, v in values(found, tags.RX_FREQ).items()} == {0: 60e3}


def test_repeat_goes_on_a_minute_later(recording):
    samples, found = play(localize.sigmf_source(recording, repeat=True), 2 * LENGTH + 100)
    assert np.array_equal(samples[LENGTH : 2 * LENGTH], samples[:LENGTH])
    times = values(found, tags.RX_TIME)
    assert tags.time_from_pmt(times[2 * LENGTH]) == (START_S + 120, 0.25)
    assert values(found, tags.LENGTH) == {}


def test_a_file_that_shrinks_ends_the_stream_with_its_error(recording):
    source = localize.sigmf_source(recording)
    data = recording.with_suffix(".sigmf-data")
    data.write_bytes(data.read_bytes()[:1000])
    flowgraph = gr.top_block()
    flowgraph.connect(source, blocks.null_sink(gr.sizeof_gr_complex))
    flowgraph.run()
    assert isinstance(source.failure, SourceError)
    assert "has become shorter" in str(source.failure)


def test_errors_at_construction(recording, tmp_path):
    with pytest.raises(SourceError, match=r"none\.sigmf-meta: cannot be read"):
        localize.sigmf_source(tmp_path / "none.sigmf-meta")
    with pytest.raises(SourceError, match="channel=2: it has 2"):
        localize.sigmf_source(recording, channel=2)
    with pytest.raises(ConfigError, match="frequency_hz=nan"):
        localize.sigmf_source(recording, frequency_hz=float("nan"))
