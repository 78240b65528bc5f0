"""What a flowgraph records is what a replay plays: samples, and each tag at its sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pmt
import pytest
import sigmf
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from localize_core.errors import ConfigError
from localize_core.sources.recording import Gap

RATE = 8000.0
START_S = 1_767_323_045
PLACES = [("north", 47.05, 8.31, 440.0), ("east", 47.04, 8.42)]


def noise(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.9, 0.9, count) + 1j * rng.uniform(-0.9, 0.9, count)).astype(np.complex64)


def tag(offset: int, key, value) -> gr.tag_t:
    made = gr.tag_t()
    made.offset, made.key, made.value = offset, key, value
    return made


TAGS = [
    tag(0, tags.RX_TIME, tags.time_to_pmt(START_S, 0.1 + 0.2)),
    tag(0, tags.RX_RATE, pmt.from_double(RATE * (1 + 1e-7 / 3))),
    tag(0, tags.RX_FREQ, pmt.from_double(433.92e6)),
    tag(0, tags.TIME_SOURCE, tags.time_source_to_pmt("host")),
    tag(777, tags.TIME_ERROR, pmt.from_double(1e-6 / 3)),
    tag(12_345, tags.RESTART, tags.restart_to_pmt(4000)),
    tag(12_345, tags.RX_TIME, tags.time_to_pmt(START_S + 2, 0.7)),
    tag(20_000, tags.RESTART, tags.restart_to_pmt()),
    tag(20_001, tags.RX_FREQ, pmt.from_double(434e6)),
    tag(29_999, tags.RX_TIME, tags.time_to_pmt(START_S - 100, 0.0)),
]
"""A stream with a gap, a restart of unknown length, a retune, and a clock that was set back on its last sample."""

STRANGE = [
    tag(5, pmt.intern("packet_len"), pmt.from_long(7)),
    tag(6, tags.RX_TIME, pmt.intern("noon")),
    tag(7, tags.RX_RATE, pmt.from_double(float("nan"))),
    tag(8, tags.RX_FREQ, pmt.from_complex(1j)),
    tag(9, tags.TIME_SOURCE, pmt.intern("sundial")),
]


def said(found) -> list[tuple[int, str, str, bytes]]:
    return sorted(
        (t.offset, pmt.symbol_to_string(t.key), str(t.value), pmt.serialize_str(t.value))
        for t in found
        if not pmt.eq(t.key, tags.LENGTH)
    )


def record(sources, folder: Path, places=PLACES, **options):
    graph = gr.top_block()
    sink = localize.sigmf_sink(folder, places, RATE, live=False, min_free_bytes=0, **options)
    for index, source in enumerate(sources):
        graph.connect(source, (sink, index))
    graph.run(1000)
    assert sink.failure is None
    assert all(account.lost == 0 for account in sink.recorder.accounts.values())
    return sink


def play(source):
    sink, graph = blocks.vector_sink_c(), gr.top_block()
    graph.connect(source, sink)
    graph.run(1234)
    assert source.failure is None
    return np.array(sink.data(), np.complex64), sink.tags()


def test_every_tag_comes_back_at_its_sample(tmp_path):
    samples = noise(30_000, 1)
    sink = record([blocks.vector_source_c(samples, False, 1, TAGS + STRANGE)], tmp_path, PLACES[:1])
    assert sink.taken == [30_000]
    source = localize.sigmf_source(tmp_path / "north-0001.sigmf-meta")
    found, told = play(source)
    assert found.tobytes() == samples.tobytes()
    assert said(told) == said(TAGS)
    assert source.recording.gaps[0] == Gap(12_345, round(2.4 * RATE - 12_345))


def test_a_frequency_instead_of_the_recorded_ones(tmp_path):
    record([blocks.vector_source_c(noise(30_000, 1), False, 1, TAGS)], tmp_path, PLACES[:1])
    _, told = play(localize.sigmf_source(tmp_path / "north-0001.sigmf-meta", frequency_hz=1e6))
    others = [each for each in TAGS if not pmt.eq(each.key, tags.RX_FREQ)]
    assert said(told) == said([*others, tag(0, tags.RX_FREQ, pmt.from_double(1e6))])


def test_streams_end_each_for_itself(tmp_path):
    streams = [noise(100, 1), noise(50_000, 2)]
    record([blocks.vector_source_c(each, False) for each in streams], tmp_path, max_part_bytes=80_000)
    for (name, *_), samples in zip(PLACES, streams, strict=True):
        found, told = play(localize.sigmf_source(tmp_path / f"{name}-*.sigmf-meta"))
        assert np.array_equal(found, samples)
        assert said(told) == []
    collection = sigmf.fromfile(tmp_path / "station.sigmf-collection")
    assert len(collection) == 1 + 5
    place = collection.get_SigMFFile("north-0001").get_global_info()["core:geolocation"]["coordinates"]
    assert place == [8.31, 47.05, 440.0]


def test_parts_are_played_as_one_whatever_is_kept(tmp_path):
    samples = noise(30_000, 1)
    record([blocks.vector_source_c(samples, False, 1, TAGS)], tmp_path, PLACES[:1], max_part_bytes=40_000, max_parts=3)
    found, told = play(localize.sigmf_source(tmp_path / "north-*.sigmf-meta"))
    assert np.array_equal(found, samples[15_000:])
    begins = [
        tag(15_000, tags.RX_RATE, TAGS[1].value),
        tag(15_000, tags.RX_FREQ, TAGS[2].value),
        tag(15_000, tags.TIME_SOURCE, TAGS[3].value),
        tag(15_000, tags.TIME_ERROR, TAGS[4].value),
    ]
    kept = [each for each in told if not pmt.eq(each.key, tags.RX_TIME) or each.offset > 0]
    moved = [tag(t.offset - 15_000, t.key, t.value) for t in [*begins, *TAGS] if t.offset >= 15_000]
    assert said(kept) == said(moved)
    (first,) = [t.value for t in told if pmt.eq(t.key, tags.RX_TIME) and t.offset == 0]
    seconds, fraction = tags.time_from_pmt(first)
    assert seconds - START_S - 2 + fraction == pytest.approx(0.7 + (15_000 - 12_345) / RATE, abs=2e-8)


def test_a_flowgraph_that_is_started_again_records_beside(tmp_path):
    graph = gr.top_block()
    source, sink = blocks.vector_source_c(noise(100, 1), False), localize.sigmf_sink(tmp_path, PLACES[:1], RATE)
    graph.connect(source, sink)
    for _ in range(2):
        source.rewind()
        graph.run()
    assert sorted(path.name for path in tmp_path.glob("*.sigmf-meta")) == [
        "north-0001.sigmf-meta",
        "north-0002.sigmf-meta",
    ]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "file").touch()
    sink = localize.sigmf_sink(tmp_path / "file", PLACES[:1], RATE)
    graph = gr.top_block()
    graph.connect(blocks.vector_source_c(noise(10, 1), False), sink)
    graph.run()
    assert "cannot record into" in str(sink.failure)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"receivers": []}, "receivers: none"),
        ({"receivers": [("north", 47.0)]}, "must be"),
        ({"receivers": [("north", 147.0, 8.0)]}, "WGS84"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz=0.0"),
        ({"frequency_hz": float("nan")}, "frequency_hz=nan"),
        ({"folder": ""}, "folder"),
        ({"collection": ""}, "collection is empty"),
        ({"max_parts": 1}, "max_parts=1"),
        ({"datatype": "cf64"}, "datatype='cf64'"),
    ],
)
def test_errors_at_construction(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        localize.sigmf_sink(**({"folder": tmp_path, "receivers": PLACES, "sample_rate_hz": RATE} | changes))


@pytest.mark.parametrize("repeat", [False, True])
def test_a_stream_that_never_began_is_played_as_nothing(tmp_path, repeat):
    record([blocks.vector_source_c([], False)], tmp_path, PLACES[:1])
    found, told = play(localize.sigmf_source(tmp_path / "north-0001.sigmf-meta", repeat=repeat))
    assert (len(found), len(told)) == (0, 0)
