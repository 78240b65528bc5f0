"""time_align in flowgraphs: what the core aligns, in small and large pieces, and what it tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from gnuradio.localize.time_align import STATUS_PORT
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError, SourceError

RATE = 12000.0
BASE_S = 1_597_301_540
UNALIGNED, GAP = 8, 16


def signal(time_s: np.ndarray) -> np.ndarray:
    return (0.5 * np.exp(2j * np.pi * 1234.5 * time_s) + 0.2 * np.exp(-2j * np.pi * 4321.0 * time_s)).astype(
        np.complex64
    )


class tagged_source(gr.sync_block):
    """Samples with tags, at most `chop[i % len(chop)]` of them in the i-th call."""

    def __init__(
        self, samples: np.ndarray, found: Sequence[tuple[int, Any, Any]], chop: Sequence[int] = (4096,)
    ) -> None:
        gr.sync_block.__init__(self, "tagged_source", in_sig=None, out_sig=[np.complex64])
        self._samples, self._tags, self._chop, self._calls = samples, found, chop, 0

    def work(self, input_items: Any, output_items: Any) -> int:
        first = self.nitems_written(0)
        count = min(len(output_items[0]), len(self._samples) - first, self._chop[self._calls % len(self._chop)])
        self._calls += 1
        if count <= 0:
            return -1
        output_items[0][:count] = self._samples[first : first + count]
        for offset, key, value in self._tags:
            if first <= offset < first + count:
                self.add_item_tag(0, offset, key, value)
        return count


def stream(
    duration_s: float,
    *,
    start_s: float = 0.0,
    rate: float = RATE,
    lost: tuple[int, int] = (10**9, 0),
    every: int = 3000,
    timed: bool = True,
    length: bool = True,
    more: Sequence[tuple[int, Any, Any]] = (),
):
    index = np.arange(round(duration_s * rate))
    time_s = start_s + (index + np.where(index >= lost[0], lost[1], 0)) / rate
    found = list(more)
    if length:
        found.append((0, tags.LENGTH, pmt.from_uint64(len(index))))
    for n in sorted({*range(0, len(index), every), *({lost[0]} & {*index.tolist()})}) if timed else ():
        whole = int(np.floor(time_s[n]))
        found.append((n, tags.RX_TIME, tags.time_to_pmt(BASE_S + whole, time_s[n] - whole)))
    return signal(time_s), found


def align(streams, *, chop: Sequence[int] = (4096,), max_items: int = 4096, block=None, **parameters):
    """Samples and tags of each output, and the status messages."""
    block = block or localize.time_align(RATE, len(streams), **parameters)
    sinks = [blocks.vector_sink_c() for _ in streams]
    messages = blocks.message_debug()
    flowgraph = gr.top_block()
    flowgraph.msg_connect(block, pmt.symbol_to_string(STATUS_PORT), messages, "store")
    # GNU Radio alone does not keep a Python block alive.
    sources = [tagged_source(samples, found, chop) for samples, found in streams]
    for k, source in enumerate(sources):
        flowgraph.connect(source, (block, k))
        flowgraph.connect((block, k), sinks[k])
    flowgraph.run(max_items)
    states = [pmt.to_python(messages.get_message(k)) for k in range(messages.num_messages())]
    outputs = [np.array(sink.data(), np.complex64) for sink in sinks]
    return outputs, [sorted(sink.tags(), key=lambda tag: tag.offset) for sink in sinks], states, block


def values(found, key) -> dict[int, Any]:
    return {tag.offset: tag.value for tag in found if pmt.eq(tag.key, key)}


def output_times_s(found, count: int) -> np.ndarray:
    """Time after BASE_S of each output item, from its `rx_time` tags."""
    times = {offset: tags.time_from_pmt(value) for offset, value in values(found, tags.RX_TIME).items()}
    offsets = np.array(sorted(times))
    at = np.searchsorted(offsets, np.arange(count), side="right") - 1
    start_s = np.array([times[offset][0] - BASE_S + times[offset][1] for offset in offsets.tolist()])
    return start_s[at] + (np.arange(count) - offsets[at]) / RATE


STREAMS = [
    stream(5.0, start_s=0.2500321, rate=RATE * (1 + 40e-6)),
    stream(6.0, start_s=-0.5, rate=RATE * (1 - 40e-6), lost=(40_000, 700)),
]


@pytest.fixture(scope="module")
def reference():
    return align(STREAMS)


def test_streams_stand_side_by_side_in_time(reference):
    outputs, found, states, block = reference
    assert block.failure is None
    assert len(outputs[0]) == len(outputs[1]) == pytest.approx(5.0 * RATE, abs=2)
    time_s = output_times_s(found[0], len(outputs[0]))
    inner = np.ones(len(time_s), dtype=bool)
    inner[:64] = inner[-64:] = False
    gap = next(iter(values(found[1], tags.GAP)))
    inner[gap - 40 : gap + 740] = False
    for output in outputs:
        assert np.max(np.abs(output - signal(time_s))[inner]) < 2e-4
    assert [state["state"] for state in states] == ["acquiring", "aligned", "gap"]
    assert states[-1]["gaps_filled"] == 1
    assert list(states[-1]["timed"]) == [True, True]


def test_a_flowgraph_that_starts_again_begins_anew(reference):
    outputs, found, states, _ = reference
    block = localize.time_align(RATE, 2)
    align(STREAMS, block=block)
    again, tagged, told, _ = align(STREAMS, block=block)
    assert block.failure is None
    for one, other in zip(outputs, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert output_times_s(tagged[0], 1) == output_times_s(found[0], 1)
    assert told == states


def test_tags(reference):
    outputs, found, _, _ = reference
    for own in found:
        times = values(own, tags.RX_TIME)
        assert min(times) == 0
        assert max(np.diff(sorted(times))) <= RATE
        assert tags.time_from_pmt(times[0]) == (BASE_S, pytest.approx(0.25 + 1 / RATE, abs=1e-9))
        assert {k: pmt.to_double(v) for k, v in values(own, tags.RX_RATE).items()} == {0: RATE}
        alignments = [tags.alignment_from_pmt(value) for value in values(own, tags.ALIGNMENT).values()]
        assert alignments[0].residual_ns < 1.0
        assert (alignments[-1].gaps_filled, alignments[-1].gaps_skipped) == (1, 0)
    assert values(found[0], tags.GAP) == values(found[0], tags.FLAGS) == {}
    ((start, count),) = ((k, pmt.to_long(v)) for k, v in values(found[1], tags.GAP).items())
    assert count == pytest.approx(700, abs=1)
    assert not outputs[1][start : start + count].any()
    flags = {k: list(pmt.s32vector_elements(v)) for k, v in values(found[1], tags.FLAGS).items()}
    assert set(map(tuple, flags.values())) == {(GAP,)}
    assert min(flags) == start
    assert max(flags) < start + count
    alignment_offsets = sorted(values(found[0], tags.ALIGNMENT))
    assert start in alignment_offsets


@settings(max_examples=6, deadline=None)
@given(
    chop=st.lists(st.sampled_from([37, 500, 1024, 4095, 8000]), min_size=1, max_size=5),
    max_items=st.sampled_from([101, 512, 8191]),
)
def test_output_and_tags_do_not_depend_on_chopping(reference, chop, max_items):
    outputs, found, _, _ = align(STREAMS, chop=chop, max_items=max_items)
    for one, other in zip(outputs, reference[0], strict=True):
        assert np.array_equal(one, other)
    for key in (tags.RX_TIME, tags.ALIGNMENT, tags.GAP, tags.FLAGS, tags.RX_RATE):
        for one, other in zip(found, reference[1], strict=True):
            assert {k: str(v) for k, v in values(one, key).items()} == {
                k: str(v) for k, v in values(other, key).items()
            }


def test_long_loss_skips_and_says_so():
    outputs, found, states, block = align(
        [stream(6.0), stream(4.0, lost=(30_000, 18_000))], max_fill_s=0.5, chop=[1000]
    )
    assert block.failure is None
    time_s = output_times_s(found[1], len(outputs[1]))
    assert np.max(np.diff(time_s)) == pytest.approx(1.5, abs=2 / RATE)
    skip = int(np.argmax(np.diff(time_s))) + 1
    assert tags.alignment_from_pmt(values(found[0], tags.ALIGNMENT)[skip]).gaps_skipped == 1
    assert states[-1]["state"] == "gap"
    inner = np.ones(len(time_s), dtype=bool)
    inner[:64] = inner[-64:] = inner[skip - 40 : skip + 40] = False
    for output in outputs:
        assert np.max(np.abs(output - signal(time_s))[inner]) < 2e-4


def test_frequency_tags_go_with_their_samples():
    retuned = [(0, tags.RX_FREQ, pmt.from_double(77500.0)), (50_000, tags.RX_FREQ, pmt.from_double(60000.0))]
    _, found, _, _ = align([stream(6.0, start_s=-1.0, more=retuned), stream(6.0)])
    frequencies = {k: pmt.to_double(v) for k, v in values(found[0], tags.RX_FREQ).items()}
    assert list(frequencies.values()) == [77500.0, 60000.0]
    first, second = frequencies
    assert (first, second) == (0, pytest.approx(50_000 - RATE, abs=1))
    assert values(found[1], tags.RX_FREQ) == {}


@pytest.mark.parametrize("length", [True, False])
def test_streams_without_time_pass_through(length):
    plain = [stream(3.0, timed=False, length=length), stream(3.5, timed=False, length=length)]
    outputs, found, states, block = align(plain, acquire_s=1.0)
    assert block.failure is None
    count = len(outputs[0])
    assert count == 36_000 if length else 36_000 - 32 <= count <= 36_000
    for (samples, _), output, own in zip(plain, outputs, found, strict=True):
        assert np.array_equal(output, samples[:count])
        assert values(own, tags.RX_TIME) == {}
        assert pmt.to_python(values(own, tags.ALIGNMENT)[0])["time"] == "none"
        flagged = values(own, tags.FLAGS)
        assert sorted(flagged) == list(range(0, count, 1024))
        assert {tuple(pmt.s32vector_elements(v)) for v in flagged.values()} == {(UNALIGNED,)}
    assert [state["state"] for state in states] == ["acquiring", "no_time"]


def test_one_stream_without_time_is_flagged_and_passed_on():
    plain = stream(4.0, timed=False)
    outputs, found, states, _ = align([stream(4.0, start_s=0.5), plain])
    assert np.array_equal(outputs[1], plain[0][: len(outputs[1])])
    assert values(found[0], tags.FLAGS) == {}
    assert 0 in values(found[1], tags.FLAGS)
    assert states[-1]["state"] == "partly_aligned"
    assert list(states[-1]["timed"]) == [True, False]


def test_recordings_shorter_than_acquisition_and_of_unequal_length():
    outputs, _, _, block = align([stream(0.8), stream(1.1, start_s=0.1), stream(0.5, start_s=0.2)], acquire_s=2.0)
    assert block.failure is None
    assert [len(output) for output in outputs] == [6000] * 3


def test_an_end_without_notice_still_ends():
    outputs, _, _, block = align([stream(3.0, length=False), stream(5.0, length=False)])
    assert block.failure is None
    assert 36_000 - 32 <= len(outputs[0]) == len(outputs[1]) <= 36_000


def test_nothing_in_common_ends_with_nothing():
    outputs, _, _, block = align([stream(2.5), stream(2.5, start_s=20.0)])
    assert block.failure is None
    assert [len(output) for output in outputs] == [0, 0]


def test_tags_that_are_no_tags_are_ignored():
    junk = [
        (100, tags.RX_TIME, pmt.from_double(5.0)),
        (200, tags.RX_TIME, pmt.PMT_NIL),
        (300, tags.RX_RATE, pmt.intern("fast")),
        (400, tags.LENGTH, pmt.intern("long")),
        (500, tags.TIME_ERROR, pmt.PMT_T),
    ]
    outputs, found, _, block = align([stream(3.0, more=junk), stream(3.0)])
    assert block.failure is None
    assert len(outputs[0]) == 36_000
    assert tags.alignment_from_pmt(values(found[0], tags.ALIGNMENT)[0]).residual_ns < 1.0


def test_a_stream_of_another_rate_ends_the_graph_and_says_why():
    block = localize.time_align(RATE, 2)
    align([stream(3.0), stream(3.0, more=[(0, tags.RX_RATE, pmt.from_double(48_000.0))])], block=block)
    assert isinstance(block.failure, SourceError)
    assert "stream 1 runs at 48000 Hz" in str(block.failure)


def test_recordings_through_source_and_alignment(tmp_path, kiwi_wav):
    """KiwiSDR files of two receivers with their own rates and starts, one with lost blocks, come out as one signal."""
    paths = []
    for name, rate, start_s, lost in (("a", 12001.03, 0.1, 0), ("b", 12001.2, 0.35, 3)):
        number = np.arange(100)
        missing = np.where(number >= 60, lost, 0)
        time_s = start_s + ((number + missing)[:, np.newaxis] * 512 + np.arange(512)) / rate
        ns = 370358 * 10**9 + np.round(time_s[:, 0] * 1e9).astype(np.int64)
        stamps = [(0, int(t) // 10**9, int(t) % 10**9) for t in ns]
        stamps[0] = (0, 0, 0)
        paths.append(tmp_path / f"20200813T065220Z_77500_{name}_iq.wav")
        paths[-1].write_bytes(kiwi_wav(signal(time_s.ravel()), stamps))
    flowgraph = gr.top_block()
    block = localize.time_align(RATE, 2)
    sinks = [blocks.vector_sink_c(), blocks.vector_sink_c()]
    sources = [localize.kiwi_wav_source(path) for path in paths]
    for k, source in enumerate(sources):
        flowgraph.connect(source, (block, k))
        flowgraph.connect((block, k), sinks[k])
    flowgraph.run()
    assert block.failure is None
    one, other = (np.array(sink.data(), np.complex64) for sink in sinks)
    filled = np.flatnonzero(other == 0)
    assert len(filled) == pytest.approx(3 * 512 * RATE / 12001.2, abs=2)
    inner = np.ones(len(one), dtype=bool)
    inner[:64] = inner[-64:] = inner[filled[0] - 40 : filled[-1] + 40] = False
    time_s = output_times_s(sinks[0].tags(), len(one))
    for output in (one, other):
        # 16 bits and two rounded nanoseconds
        assert np.max(np.abs(output - signal(time_s))[inner]) < 3e-4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sample_rate_hz": -1.0}, "sample_rate_hz=-1"),
        ({"n_receivers": 0}, "n_streams=0"),
        ({"acquire_s": float("nan")}, "acquire_s=nan"),
        ({"max_fill_s": -0.1}, "max_fill_s=-0.1"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ConfigError, match=message):
        localize.time_align(**({"sample_rate_hz": RATE} | parameters))


class counting_sink(gr.sync_block):
    """How many items came, and the tags on them."""

    def __init__(self) -> None:
        gr.sync_block.__init__(self, "counting_sink", in_sig=[np.complex64], out_sig=None)
        self.count, self.found = 0, []

    def work(self, input_items: Any, output_items: Any) -> int:
        found = self.get_tags_in_window(0, 0, len(input_items[0]))
        self.found += [(tag.offset, tag.key, tag.value) for tag in found]
        self.count += len(input_items[0])
        return len(input_items[0])


def wait_until(condition, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "timed out"
        time.sleep(0.005)


class radio(gr.sync_block):
    """A stream as `clock` runs; silent or ended when told."""

    def __init__(self, clock) -> None:
        gr.sync_block.__init__(self, "radio", in_sig=None, out_sig=[np.complex64])
        self.clock, self.is_silent, self.has_ended = clock, False, False
        self._next: int | None = 0
        self._tagged = False

    def work(self, input_items: Any, output_items: Any) -> int:
        if self.has_ended:
            return -1
        now = int(self.clock() * RATE)
        if self.is_silent:
            self._next, self._tagged = None, False
            time.sleep(0.002)
            return 0
        if self._next is None:
            self._next = now
        count = min(now - self._next, len(output_items[0]))
        if count <= 0:
            time.sleep(0.002)
            return 0
        if not self._tagged:
            self._tagged = True
            whole, rest = divmod(self._next, int(RATE))
            self.add_item_tag(0, self.nitems_written(0), tags.RX_TIME, tags.time_to_pmt(BASE_S + whole, rest / RATE))
        output_items[0][:count] = 1.0
        self._next += count
        return count


@pytest.fixture
def station():
    """Three radios ten times as fast as real ones, aligned; stopped at the end."""
    began_s = time.monotonic()

    def clock() -> float:
        return 10.0 * (time.monotonic() - began_s)

    radios = [radio(clock) for _ in range(3)]
    # Half a second of real time: what a busy machine may hold a thread up for.
    block = localize.time_align(RATE, 3, clocks="trusted", max_wait_s=5.0, max_fill_s=0.0)
    sinks = [counting_sink() for _ in range(3)]
    flowgraph = gr.top_block()
    for k in range(3):
        flowgraph.connect(radios[k], (block, k))
        flowgraph.connect((block, k), sinks[k])
    flowgraph.start()
    yield radios, block, sinks
    flowgraph.stop()
    flowgraph.wait()
    assert block.failure is None


def boundaries(sink: counting_sink) -> list[tuple[int, str]]:
    return [(at, tags.boundary_from_pmt(value)[0]) for at, key, value in list(sink.found) if pmt.eq(key, tags.BOUNDARY)]


def test_a_receiver_that_falls_silent_and_comes_back_in_a_flowgraph(station):
    radios, block, sinks = station
    wait_until(lambda: sinks[0].count > RATE)
    assert block.aligner.present == (True, True, True)
    radios[1].is_silent = True
    wait_until(lambda: block.aligner.present == (True, False, True))
    before = sinks[0].count
    wait_until(lambda: sinks[0].count > before + 5 * RATE)
    radios[1].is_silent = False
    wait_until(lambda: block.aligner.present == (True, True, True))
    after = sinks[1].count
    wait_until(lambda: min(sink.count for sink in sinks) > after + RATE)
    assert [reason for _, reason in boundaries(sinks[0])] == ["gap", "receiver"]
    assert boundaries(sinks[0]) == boundaries(sinks[1])
    (gone, _), (back, _) = boundaries(sinks[1])
    absent = [at for at, key, value in sinks[1].found if pmt.eq(key, tags.FLAGS)]
    assert gone == absent[0]
    assert absent[-1] < back
    assert {tuple(pmt.s32vector_elements(v)) for _, key, v in sinks[1].found if pmt.eq(key, tags.FLAGS)} == {(32,)}
    assert not [at for at, key, _ in sinks[0].found if pmt.eq(key, tags.FLAGS)]


def test_a_receiver_that_ends_in_a_flowgraph(station):
    radios, block, sinks = station
    wait_until(lambda: sinks[0].count > RATE)
    radios[0].has_ended = True
    wait_until(lambda: block.aligner.present == (False, True, True))
    before = sinks[0].count
    wait_until(lambda: sinks[0].count > before + 10 * RATE)
    assert [reason for _, reason in boundaries(sinks[2])] == ["gap"]


def test_when_all_have_ended_the_flowgraph_ends():
    """Without a word of how long the streams are."""
    outputs, _, _, block = align(
        [stream(3.0, length=False), stream(2.0, length=False)], clocks="trusted", max_wait_s=4.0, max_fill_s=0.0
    )
    assert block.failure is None
    assert len(outputs[0]) > 23_000


def test_streams_of_radios_replayed():
    """All there is, in whatever order: one receiver begins later, one ends earlier, both have gaps."""
    streams = [
        stream(8.0, lost=(30_000, 20_000)),
        stream(5.0, start_s=2.5, lost=(40_000, 1)),
    ]
    outputs, found, states, block = align(streams, clocks="trusted", max_wait_s=1.0, max_fill_s=0.0, replay=True)
    assert block.failure is None
    # From 2.5 s, when the first breaks off, to 3.5 s, when the other has been there for long enough, there is nobody.
    assert len(outputs[0]) == pytest.approx(7.0 * RATE + 20_000, abs=2)
    parted = [(k / RATE, tags.boundary_from_pmt(v)[0]) for k, v in values(found[0], tags.BOUNDARY).items()]
    assert parted == [
        (2.5, "gap"),
        (pytest.approx(2.5 + 20 / 12, abs=1e-3), "receiver"),
        (pytest.approx(1.5 + 40 / 12, abs=1e-3), "gap"),
        (pytest.approx(1.5 + 40 / 12, abs=1e-3), "receiver"),
        (pytest.approx(6.5, abs=1e-3), "gap"),
    ]
    again, *_ = align(streams, chop=[100, 4000], clocks="trusted", max_wait_s=1.0, max_fill_s=0.0, replay=True)
    for one, other in zip(outputs, again, strict=True):
        assert np.array_equal(one, other)
    assert list(states[-1]["present"]) == [True, False]


def test_retuning_and_the_host_clock_are_told():
    more = [
        (0, tags.TIME_SOURCE, tags.time_source_to_pmt("host")),
        (0, tags.RX_FREQ, pmt.from_double(77500.0)),
        (20_000, tags.RX_FREQ, pmt.from_double(77500.0)),
        (30_000, tags.RX_FREQ, pmt.from_double(60000.0)),
        (40_000, tags.TIME_SOURCE, tags.time_source_to_pmt("rx_time")),
    ]
    _, found, _, _ = align([stream(5.0), stream(5.0, more=more)], acquire_s=1.0)
    for own in found:
        told = {k: tags.boundary_from_pmt(v) for k, v in values(own, tags.BOUNDARY).items()}
        assert told == {30_000: ("retune", 0)}
        sources = [tags.time_source_from_pmt(v) for v in values(own, tags.TIME_SOURCE).values()]
        assert sources == ["host", "rx_time"]


def test_a_restart_is_a_boundary():
    more = [(30_000, tags.RESTART, tags.restart_to_pmt(5))]
    _, found, _, block = align([stream(5.0, more=more), stream(5.0)], clocks="trusted", max_fill_s=0.0)
    assert {k: tags.boundary_from_pmt(v)[0] for k, v in values(found[1], tags.BOUNDARY).items()} == {30_000: "restart"}
    assert block.aligner.streams[0].lost_samples == 5
