"""Streams that come and go, with true times: as they arrive, and as they are replayed."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.alignment.aligner import Aligner, RateTag, RestartTag, TimeTag
from localize_core.errors import ConfigError, SourceError

RATE = 2000.0
BASE_S = 1_700_000_000
WAIT_S = 1.0
TONES_HZ = np.random.default_rng(1).uniform(-800.0, 800.0, 24)
TONE_PHASES = np.random.default_rng(2).uniform(0.0, 2 * np.pi, 24)


def signal(time_s: np.ndarray) -> np.ndarray:
    """Band-limited noise of power 1 at any time after BASE_S."""
    phase = 2 * np.pi * np.outer(time_s, TONES_HZ) + TONE_PHASES
    return (np.exp(1j * phase).sum(axis=1) / np.sqrt(24)).astype(np.complex64)


def stamp(index: int, time_s: float) -> TimeTag:
    whole = int(np.floor(time_s))
    return TimeTag(index, BASE_S + whole, float(time_s - whole))


@dataclass
class Radio:
    """A receiver that is on from `spans` start to end (s), tags each start, and delivers `late_s` after the time."""

    spans: list[tuple[float, float]]
    ppm: float = 0.0
    late_s: float = 0.0
    restarts: tuple[int, ...] = ()
    tagged: bool = True
    every_s: float = 1e9
    chunk: int = 100
    samples: np.ndarray = field(init=False, repr=False)
    time_s: np.ndarray = field(init=False, repr=False)
    tags: list = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rate = RATE * (1 + self.ppm * 1e-6)
        times, self.tags, count = [], [], 0
        for number, (start, end) in enumerate(self.spans):
            own = start + np.arange(int((end - start) * rate)) / rate
            times.append(own)
            if number in self.restarts:
                self.tags.append(RestartTag(count))
            if self.tagged:
                if number == 0 and self.ppm:
                    self.tags.append(RateTag(0, rate))
                step = max(int(self.every_s * rate), 1)
                self.tags += [stamp(count + n, own[n]) for n in range(0, len(own), step)]
            count += len(own)
        self.time_s = np.concatenate(times)
        self.samples = signal(self.time_s)

    def arrivals(self) -> list[tuple[float, int, int]]:
        """(when, first, end) of each chunk; none holds samples of two spans."""
        starts = np.flatnonzero(np.diff(self.time_s, prepend=-1e9) > 1.5 / RATE).tolist()
        edges = sorted({*starts, *range(0, len(self.samples), self.chunk), len(self.samples)})
        return [(float(self.time_s[b - 1]) + self.late_s, a, b) for a, b in itertools.pairwise(edges)]


@dataclass
class Output:
    """`steps`: grid step after BASE_S of each output sample. `boundaries`: reason by step."""

    steps: np.ndarray
    samples: np.ndarray
    present: np.ndarray
    timed: np.ndarray
    boundaries: list[tuple[int, str]]
    filled: list[tuple[int, int, int]]
    aligner: Aligner

    def spans_s(self, stream: int) -> list[tuple[float, float]]:
        """When a stream was present, seconds after BASE_S."""
        here = np.concatenate([[False], self.present[stream], [False]])
        edges = np.flatnonzero(np.diff(here.astype(int)))
        return [
            (float(self.steps[a]) / RATE, float(self.steps[b - 1] + 1) / RATE)
            for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]


def collect(blocks: list, aligner: Aligner) -> Output:
    steps, boundaries, filled = [], [], []
    position = 0
    for block in blocks:
        count = len(block.samples[0])
        first = position
        if block.time is not None:
            first = round((block.time[0] - BASE_S) * RATE + block.time[1] * RATE)
        steps.append(first + np.arange(count))
        position = first + count
        boundaries += [(first, block.boundary)] if block.boundary else []
        filled += [(k, first, n) for k, n in enumerate(block.filled) if n]
    n = len(aligner.streams)
    sizes = [len(block.samples[0]) for block in blocks]
    return Output(
        np.concatenate(steps) if steps else np.zeros(0, int),
        np.array([np.concatenate([b.samples[k] for b in blocks]) for k in range(n)]) if blocks else np.zeros((n, 0)),
        np.repeat(np.array([b.present for b in blocks]).T, sizes, axis=1) if blocks else np.zeros((n, 0), bool),
        np.repeat(np.array([b.timed for b in blocks]).T, sizes, axis=1) if blocks else np.zeros((n, 0), bool),
        boundaries,
        filled,
        aligner,
    )


def make(n: int, **parameters) -> Aligner:
    return Aligner(
        n, RATE, **({"clocks": "trusted", "max_wait_s": WAIT_S, "max_fill_s": 0.0, "acquire_s": 2.0} | parameters)
    )


def live(radios: list[Radio], *, pull: int = 100_000, ends: bool = True, **parameters) -> Output:
    """As the samples arrive; the streams end with their last ones."""
    aligner = make(len(radios), **parameters)
    events = []
    for k, radio in enumerate(radios):
        for when, first, end in radio.arrivals():
            heapq.heappush(events, (when, k, first, end))
    blocks = []
    while events:
        _, k, first, end = heapq.heappop(events)
        radio = radios[k]
        own = [tag for tag in radio.tags if first <= tag.index < end]
        assert aligner.push(k, radio.samples[first:end], own) == end - first
        if ends and end == len(radio.samples):
            aligner.end(k)
        while (block := aligner.pull(pull)) is not None:
            blocks.append(block)
    assert aligner.finished == ends
    return collect(blocks, aligner)


def replay(radios: list[Radio], *, chop=lambda stream: 4096, pull: int = 100_000, **parameters) -> Output:
    """With no order between the streams but that which the aligner asks for."""
    aligner = make(len(radios), replay=True, **parameters)
    for k, radio in enumerate(radios):
        aligner.describe(k, length=len(radio.samples))
    fed = [0] * len(radios)
    blocks = []
    while not aligner.finished:
        before = sum(fed)
        for k, radio in enumerate(radios):
            part = radio.samples[fed[k] : fed[k] + chop(k)]
            own = [tag for tag in radio.tags if fed[k] <= tag.index < fed[k] + len(part)]
            fed[k] += aligner.push(k, part, own)
        pulled = 0
        while (block := aligner.pull(pull)) is not None:
            blocks.append(block)
            pulled += 1
        assert pulled or sum(fed) > before or aligner.finished, "stuck"
    return collect(blocks, aligner)


def assert_same(one: Output, other: Output) -> None:
    assert one.boundaries == other.boundaries
    assert one.filled == other.filled
    assert np.array_equal(one.steps, other.steps)
    assert np.array_equal(one.present, other.present)
    assert np.array_equal(one.samples, other.samples)


def assert_true(output: Output, *, tolerance: float = 3e-3) -> None:
    """Every sample is that of its time, but within the interpolation's reach of a boundary."""
    near = np.zeros(len(output.steps), bool)
    edges = [output.steps[0], output.steps[-1] + 1, *(step for step, _ in output.boundaries)]
    edges += [step for _, first, count in output.filled for step in (first, first + count)]
    edges += output.steps[np.flatnonzero(np.diff(output.steps) > 1)].tolist()
    for edge in edges:
        near |= np.abs(output.steps - edge) <= 30
    wanted = signal(output.steps / RATE)
    for k, samples in enumerate(output.samples):
        here = output.present[k] & ~near
        for stream, first, count in output.filled:
            if stream == k:
                here &= ~((output.steps >= first) & (output.steps < first + count))
        assert np.max(np.abs(samples - wanted)[here], initial=0.0) < tolerance
        assert not samples[~output.present[k]].any()


def test_a_receiver_that_dies_and_comes_back():
    radios = [Radio([(0.0, 12.0)]), Radio([(0.0, 3.0), (7.0, 12.0)], ppm=20.0), Radio([(0.0, 12.0)], ppm=-30.0)]
    output = live(radios)
    assert output.spans_s(0) == output.spans_s(2) == [(0.0, pytest.approx(12.0, abs=0.01))]
    (gone, back) = output.spans_s(1)
    assert gone == (0.0, pytest.approx(3.0, abs=2 / RATE))
    assert back == (pytest.approx(7.0 + WAIT_S, abs=2 / RATE), pytest.approx(12.0, abs=0.01))
    assert [reason for _, reason in output.boundaries[:2]] == ["gap", "receiver"]
    assert_true(output)
    assert_same(output, replay(radios))
    report = output.aligner.streams[1]
    assert (report.gaps, report.absences, report.restarts) == (1, 1, 0)
    assert report.lost_samples == pytest.approx(4.0 * RATE, abs=2)
    assert report.rate_error_ppm == pytest.approx(20.0, abs=1e-3)


def test_output_goes_on_while_a_receiver_is_silent():
    aligner = make(2)
    radio = Radio([(0.0, 60.0)])
    produced = 0
    for first in range(0, len(radio.samples), 200):
        part = slice(first, first + 200)
        own = [tag for tag in radio.tags if first <= tag.index < first + 200]
        aligner.push(0, radio.samples[part], own)
        if first < 2000:
            aligner.push(1, radio.samples[part], own)
        while (block := aligner.pull(10_000)) is not None:
            produced += len(block.samples[0])
        assert first - produced < (WAIT_S + 0.2) * RATE
    assert aligner.present == (True, False)
    assert aligner.starving() == [True, False]


def test_a_receiver_that_is_not_there_at_first():
    radios = [Radio([(0.0, 10.0)]), Radio([(4.0, 10.0)]), Radio([(0.3, 10.0)])]
    output = live(radios)
    # Those that begin together start together; the other joins them.
    assert output.spans_s(0)[0][0] == output.spans_s(2)[0][0] == 0.3
    assert output.spans_s(1)[0][0] == 4.0 + WAIT_S
    assert [reason for _, reason in output.boundaries] == ["receiver"]
    assert_same(output, replay(radios))


def test_a_receiver_that_ends_does_not_end_the_others():
    radios = [Radio([(0.0, 3.0)]), Radio([(0.0, 8.0)])]
    output = replay(radios)
    assert output.spans_s(0) == [(0.0, 3.0)]
    assert output.spans_s(1) == [(0.0, 8.0)]
    assert output.boundaries == [(6000, "gap")]
    assert_same(output, live(radios))


def test_all_gone_skips_the_grid():
    radios = [Radio([(0.0, 3.0), (9.0, 12.0)]), Radio([(0.0, 3.2), (9.1, 12.0)])]
    output = live(radios)
    assert (np.diff(output.steps) > 1).sum() == 1
    assert output.spans_s(0)[1][0] == 10.0
    assert [reason for _, reason in output.boundaries] == ["gap", "gap", "receiver"]
    assert output.aligner.alignment.gaps_skipped == 2
    assert_same(output, replay(radios))


def test_one_receiver_alone():
    radios = [Radio([(0.0, 3.0), (3.2, 5.0), (9.0, 12.0)])]
    output = live(radios)
    assert output.spans_s(0) == [(0.0, pytest.approx(12.0, abs=1e-3))]
    assert [(step / RATE, reason) for step, reason in output.boundaries] == [(3.2, "gap"), (10.0, "gap")]
    assert_true(output)
    assert_same(output, replay(radios))


@pytest.mark.parametrize("lost", [1, 2, 500, 1000])
def test_a_short_loss_ends_windows_and_the_stream_goes_on_at_once(lost):
    radios = [Radio([(0.0, 3.0), (3.0 + lost / RATE, 6.0)]), Radio([(0.0, 6.0)])]
    output = live(radios)
    assert [reason for _, reason in output.boundaries] == ["gap", "receiver"]
    (_, end), (begin, _) = output.spans_s(0)
    assert (begin - end) * RATE == pytest.approx(lost, abs=1e-6)
    assert_true(output)
    assert_same(output, replay(radios))
    assert output.aligner.streams[0].lost_samples == lost


def test_short_losses_are_filled_where_that_is_wanted():
    radios = [Radio([(0.0, 3.0), (3.05, 6.0), (6.2, 8.0)]), Radio([(0.0, 7.5)])]
    output = live(radios, max_fill_s=0.1)
    assert output.filled == [(0, 6000, 100)]
    assert [step for step, _ in output.boundaries] == [12_000, 12_400, 15_000]
    assert_true(output)
    assert_same(output, replay(radios, max_fill_s=0.1))
    assert (output.aligner.alignment.gaps_filled, output.aligner.alignment.gaps_skipped) == (1, 2)


def test_part_of_a_sample_is_a_jump_and_less_moves_the_line():
    radio = Radio([(0.0, 6.0)])
    radio.tags += [stamp(4000, 2.0 + 0.05 / RATE), stamp(8000, 4.0 + 0.25 / RATE)]
    output = live([radio, Radio([(0.0, 5.0)])])
    assert output.boundaries == [(8001, "gap"), (10_000, "gap")]
    report = output.aligner.streams[0]
    assert (report.gaps, report.lost_samples) == (1, 0)
    assert report.residual_ns == pytest.approx(0.05 / RATE * 1e9 / 4.0, rel=1e-3)


def test_a_restart_forgets_the_line():
    radios = [Radio([(0.0, 3.0), (3.0, 6.0)], restarts=(1,)), Radio([(0.0, 6.0)])]
    output = live(radios)
    assert output.boundaries == [(6000, "restart")]
    assert output.aligner.streams[0].restarts == 1
    assert_true(output)
    assert_same(output, replay(radios))


def test_samples_between_a_restart_and_the_next_time_are_given_up():
    radio = Radio([(0.0, 6.0)])
    radio.tags += [RestartTag(4000, 7), stamp(5000, 2.5)]
    output = live([radio, Radio([(0.0, 6.0)])])
    assert output.spans_s(0) == [(0.0, 2.0), (2.5, 6.0)]
    assert output.aligner.streams[0].lost_samples == 7
    assert_same(output, replay([radio, Radio([(0.0, 6.0)])]))


def test_a_clock_set_back_a_little_gives_up_what_has_been():
    radio = Radio([(0.0, 3.0), (3.0, 6.0)])
    back = [stamp(n, float(radio.time_s[n]) - 0.2) for n in (6000,)]
    radio.tags = [tag for tag in radio.tags if tag.index != 6000] + back
    radio.samples[6000:] = signal(radio.time_s[6000:] - 0.2)
    output = live([radio, Radio([(0.0, 6.0)])])
    assert output.boundaries[0] == (6000, "gap")
    assert output.spans_s(0)[0] == (0.0, pytest.approx(5.8, abs=1e-3))
    assert_true(output)
    assert_same(output, replay([radio, Radio([(0.0, 6.0)])]))


def test_all_clocks_set_back_an_hour_go_on():
    radios = [Radio([(3600.0, 3603.0), (3603.0, 3620.0)]), Radio([(3600.0, 3603.0), (3603.0, 3620.0)])]
    for radio in radios:
        radio.tags[1] = stamp(6000, 3.0)
    output = live(radios)
    late = output.steps < 3000 * RATE
    assert late.sum() > 8 * RATE
    assert output.present[:, np.flatnonzero(late)[-1]].all()
    assert output.boundaries[-1][0] < 3000 * RATE


def test_one_wrong_tag_a_year_ahead_costs_its_own_receiver_only():
    radios = [Radio([(0.0, 40.0)]), Radio([(0.0, 40.0)])]
    radios[0].tags += [stamp(8000, 31e6), stamp(12_000, 6.0)]
    output = live(radios, ends=False)
    assert output.spans_s(1) == [(0.0, pytest.approx(40.0, abs=0.1))]
    gone, back = output.spans_s(0)
    assert gone == (0.0, 4.0)
    assert back[0] == 6.0 + WAIT_S


def test_a_clock_that_stays_a_year_ahead_is_left_out_and_its_buffer_stays_small():
    radios = [Radio([(0.0, 80.0)]), Radio([(0.0, 80.0)])]
    radios[0].tags.append(stamp(8000, 31e6))
    output = live(radios, ends=False)
    assert output.spans_s(1) == [(0.0, pytest.approx(80.0, abs=0.1))]
    assert output.spans_s(0) == [(0.0, 4.0)]
    assert output.aligner.streams[0].late_samples > 0


def test_one_that_goes_while_another_is_waited_for_does_not_hold_up_either():
    """The first ends 0.4 s after the second, before that can be done without, and is back long before it."""
    radios = [Radio([(0.0, 5.0), (9.0, 40.0)]), Radio([(0.0, 4.6), (36.0, 40.0)])]
    aligner = make(2)
    events = sorted((when, k, first, end) for k in range(2) for when, first, end in radios[k].arrivals())
    for when, k, first, end in events:
        own = [tag for tag in radios[k].tags if first <= tag.index < end]
        aligner.push(k, radios[k].samples[first:end], own)
        latest = None
        while (block := aligner.pull(10**6)) is not None:
            assert block.time is not None
            latest = block.time[0] - BASE_S + block.time[1]
        if 13.0 < when < 36.0:
            assert latest is not None
            assert when - latest < 0.2
    assert_same(live(radios), replay(radios))


def test_a_stream_that_only_comes_late_is_given_up_and_joins_again():
    """Its samples are all there, but for a while nobody has them."""
    radios = [Radio([(0.0, 20.0)]), Radio([(0.0, 20.0)])]

    def delayed() -> list[tuple[float, int, int]]:
        return [(max(when, 9.0) if 5.0 < when < 9.0 else when, a, b) for when, a, b in Radio.arrivals(radios[1])]

    radios[1].arrivals = delayed
    output = live(radios)
    assert output.spans_s(0) == [(0.0, 20.0)]
    gone, back = output.spans_s(1)
    assert gone == (0.0, pytest.approx(5.0, abs=0.06))
    assert 9.0 < back[0] < 9.0 + 2.5 * WAIT_S
    assert output.aligner.streams[1].late_samples > 2 * RATE
    assert_true(output)


def test_streams_without_tags_are_not_aligned():
    radios = [Radio([(0.0, 8.0)], tagged=False), Radio([(0.0, 8.0)])]
    output = live(radios)
    assert output.timed.all(axis=1).tolist() == [False, True]
    assert output.present.all()
    assert_same(output, replay(radios))
    both = live([Radio([(0.0, 8.0)], tagged=False), Radio([(0.0, 8.0)], tagged=False)])
    assert not both.timed.any()
    assert np.array_equal(both.samples[0], radios[0].samples)
    assert both.boundaries == []


def test_a_stream_without_tags_comes_back_somewhere():
    radios = [Radio([(0.0, 4.0), (8.0, 16.0)], tagged=False), Radio([(0.0, 16.0)])]
    output = live(radios)
    assert len(output.spans_s(0)) == 2
    assert 8.0 < output.spans_s(0)[1][0] < 11.0
    assert output.spans_s(1) == [(0.0, 16.0)]


def test_retuning_is_a_boundary_and_leaks_no_sample_across():
    aligner = make(2)
    radio = Radio([(0.0, 4.0)], ppm=50.0)
    radio.samples[:] = 1.0
    radio.samples[4000:] = 100.0
    blocks = []
    aligner.retune(0, 4000)
    for k in range(2):
        aligner.push(k, radio.samples if k == 0 else np.ones(8000, np.complex64), radio.tags)
        aligner.end(k)
    while (block := aligner.pull(1000)) is not None:
        blocks.append(block)
    output = collect(blocks, aligner)
    ((step, reason),) = output.boundaries
    assert reason == "retune"
    assert step == pytest.approx(4000, abs=1)
    assert np.abs(output.samples[0][output.steps < step]).max() < 1.5
    assert np.abs(output.samples[0][output.steps >= step]).min() > 40.0


def test_no_precision_is_lost_after_months():
    """1e12 samples at 2 MHz are six days; a stream tagged once is where it was to a thousandth of a sample."""
    rate = 2_000_000.1
    aligner = Aligner(1, 2e6, clocks="trusted", max_wait_s=1.0, max_fill_s=0.0)
    line = aligner._streams[0].line
    line.add([RateTag(0, rate), TimeTag(0, BASE_S, 0.3), RateTag(500_000_000_000, rate)])
    line._waiting[0], line._waiting[1]  # both are there before the first sample
    line.advance(10, False)
    # What lies between is of no interest: the next segment is made where it is.
    line.pieces[-1].segments.clear()
    line._append(10**12)
    segment = line.pieces[-1].segments[-1]
    from fractions import Fraction

    exact = (Fraction(BASE_S) + Fraction(0.3) + Fraction(10**12) / Fraction(rate)) * 2_000_000
    whole, fraction = segment.step_of(10**12 + 1_000_000)
    exact += Fraction(1_000_000) / Fraction(rate) * 2_000_000
    assert abs(float(whole - exact) + fraction) < 1e-6


STREAMS = st.integers(1, 4)


@st.composite
def stations(draw) -> list[Radio]:
    radios = []
    for _ in range(draw(st.integers(1, 3))):
        time_s, spans = draw(st.sampled_from([0.0, 0.0, 0.13, 2.7])), []
        for _ in range(draw(st.integers(1, 4))):
            end = time_s + draw(st.sampled_from([0.3, 1.1, 2.75, 4.0]))
            spans.append((time_s, end))
            time_s = end + draw(st.sampled_from([0.0005, 0.011, 0.3, 0.49, 0.7, 1.2, 3.3, 6.0]))
        radios.append(
            Radio(
                spans,
                ppm=draw(st.sampled_from([0.0, 35.0, -200.0])),
                late_s=draw(st.sampled_from([0.0, 0.05, 0.2])),
                restarts=tuple(draw(st.lists(st.integers(1, 3), max_size=2))),
                every_s=draw(st.sampled_from([1e9, 0.5])),
                chunk=draw(st.sampled_from([40, 177, 400])),
            )
        )
    return radios


@settings(max_examples=50, deadline=None)
@given(radios=stations(), fill=st.sampled_from([0.0, 0.02]), pull=st.sampled_from([100_000, 333]), data=st.data())
def test_a_replay_gives_what_live_gave(radios, fill, pull, data):
    output = live(radios, pull=pull, max_fill_s=fill)
    if len(output.steps):
        assert_true(output)
        assert (np.diff(output.steps) > 0).all()
    sizes = data.draw(st.lists(st.sampled_from([150, 300, 4096, 100_000]), min_size=3, max_size=3))
    assert_same(output, replay(radios, chop=lambda stream: sizes[stream], max_fill_s=fill))


def test_streams_that_wait_for_each_other_with_true_clocks():
    """Recordings, without a limit to waiting: from the latest start to the earliest end, as with fitted clocks."""
    radios = [Radio([(0.0, 3.0), (3.01, 6.0), (7.0, 9.0)], ppm=40.0), Radio([(0.5, 8.0)])]
    aligner = Aligner(2, RATE, clocks="trusted", max_fill_s=0.1)
    blocks = []
    for k, radio in enumerate(radios):
        aligner.describe(k, length=len(radio.samples))
        aligner.push(k, radio.samples, radio.tags)
    while (block := aligner.pull(1000)) is not None:
        blocks.append(block)
    assert aligner.finished
    output = collect(blocks, aligner)
    assert (output.steps[0], output.steps[-1]) == (0.5 * RATE, 8.0 * RATE - 1)
    assert output.filled == [(0, 6000, pytest.approx(20, abs=1))]
    assert output.boundaries == [(7.0 * RATE, "gap")]
    assert output.present.all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clocks": "true"}, "clocks='true'"),
        ({"clocks": "fitted"}, "needs clocks='trusted'"),
        ({"max_wait_s": 0.0}, "max_wait_s=0"),
        ({"max_fill_s": 0.6}, "max_fill_s=0.6: at most half"),
        ({"max_wait_s": None, "replay": True}, "replay=True"),
    ],
)
def test_parameters_that_do_not_go_together(parameters, message):
    with pytest.raises(ConfigError, match=message):
        make(2, **parameters)


def test_a_rate_that_needs_a_resampler():
    with pytest.raises(SourceError, match="4000 Hz, the common grid at 2000 Hz"):
        make(2).push(1, np.zeros(3, np.complex64), [RateTag(1, 4000.0)])
