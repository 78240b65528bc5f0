"""Streams onto one grid: against signals whose value at any time is known, and however they are chopped."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.alignment.aligner import Aligner
from localize_core.alignment.timeline import TimeTag
from localize_core.errors import ConfigError, SourceError
from localize_core.types.fix import Alignment

RATE = 12000.0
BASE_S = 1_597_301_540
TONES_HZ = np.random.default_rng(1).uniform(-5000.0, 5000.0, 24)
TONE_PHASES = np.random.default_rng(2).uniform(0.0, 2 * np.pi, 24)


def signal(time_s: np.ndarray) -> np.ndarray:
    """Band-limited noise of power 1 at any time after BASE_S."""
    phase = 2 * np.pi * np.outer(time_s, TONES_HZ) + TONE_PHASES
    return (np.exp(1j * phase).sum(axis=1) / np.sqrt(24)).astype(np.complex64)


def delay_error_s(output: np.ndarray, time_s: np.ndarray) -> float:
    """By how much `output` is late against the signal, by least squares."""
    late = (signal(time_s - 1e-6) - signal(time_s)) / 1e-6
    return float(np.vdot(late, output - signal(time_s)).real / np.vdot(late, late).real)


@dataclass
class Stream:
    """What one receiver delivers: samples of `signal`, and a tag every `every` samples."""

    duration_s: float = 6.0
    start_s: float = 0.0
    ppm: float = 0.0
    jitter_s: float = 0.0
    wrong: float = 0.0
    every: int = 512
    lost: dict[int, int] = field(default_factory=dict)
    tagged: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rate = RATE * (1.0 + self.ppm * 1e-6)
        index = np.arange(round(self.duration_s * self.rate))
        missing = sum((np.where(index >= at, count, 0) for at, count in self.lost.items()), np.zeros_like(index))
        time_s = self.start_s + (index + missing) / self.rate
        self.samples = signal(time_s)
        self.tags = []
        for n in sorted({*range(0, len(index), self.every), *self.lost}) if self.tagged else ():
            stamp = time_s[n] + rng.normal(0.0, self.jitter_s)
            if rng.random() < self.wrong:
                stamp += rng.uniform(-2.0, 2.0)
            whole = int(np.floor(stamp))
            self.tags.append(TimeTag(n, BASE_S + whole, stamp - whole))


@dataclass
class Result:
    streams: list[np.ndarray]
    first: tuple[int, float] | None
    time_s: np.ndarray
    alignments: list[Alignment]
    filled: list[tuple[int, int, int]]
    marks: list[int]
    aligner: Aligner


def run(
    streams: list[Stream],
    *,
    chop=lambda stream: 4096,
    pull: int = 4096,
    ends: bool = True,
    dry: bool = False,
    **parameters,
) -> Result:
    """All that comes out. `time_s` is the time after BASE_S of each output sample, from the blocks' own times."""
    aligner = Aligner(len(streams), RATE, **parameters)
    for k, stream in enumerate(streams):
        aligner.describe(k, length=len(stream.samples) if ends else None)
    fed = [0] * len(streams)
    blocks = []
    while not aligner.finished:
        before = list(fed)
        for k, stream in enumerate(streams):
            part = stream.samples[fed[k] : fed[k] + chop(k)]
            own = [tag for tag in stream.tags if fed[k] <= tag.index < fed[k] + len(part)]
            fed[k] += aligner.push(k, part, own)
        pulled = 0
        while (block := aligner.pull(pull, dry=dry)) is not None:
            assert len({len(samples) for samples in block.samples}) == 1
            blocks.append(block)
            pulled += 1
        if fed == before and not pulled:
            break
    filled, marks, times, position = [], [], [], 0
    for block in blocks:
        count = len(block.samples[0])
        filled += [(k, position, n) for k, n in enumerate(block.filled) if n]
        marks += [position] if block.marked else []
        if block.time is not None:
            times.append(block.time[0] - BASE_S + block.time[1] + np.arange(count) / RATE)
        position += count
    return Result(
        [np.concatenate([b.samples[k] for b in blocks]) if blocks else np.zeros(0) for k in range(len(streams))],
        blocks[0].time if blocks else None,
        np.concatenate(times) if times else np.zeros(0),
        [block.alignment for block in blocks],
        filled,
        marks,
        aligner,
    )


def test_different_starts_rates_and_jitter_leave_nanoseconds():
    """100 ns of jitter, 24 tags a second: what remains after 2 s of acquisition is far below the jitter."""
    streams = [
        Stream(8.0, start_s=0.1234567, ppm=50.0, jitter_s=100e-9, seed=1),
        Stream(7.0, start_s=0.7654321, ppm=-50.0, jitter_s=100e-9, seed=2),
        Stream(7.5, start_s=-0.3, ppm=3.3, jitter_s=100e-9, seed=3),
    ]
    result = run(streams)
    inner = slice(64, -64)
    for output in result.streams:
        error = output[inner] - signal(result.time_s[inner])
        assert np.sqrt(np.mean(np.abs(error) ** 2)) < 4e-3
        for part in np.array_split(np.arange(len(output))[inner], 6):
            assert abs(delay_error_s(output[part], result.time_s[part])) < 100e-9
        assert abs(delay_error_s(output[inner], result.time_s[inner])) < 40e-9
    # The grid stands at whole multiples of 1/rate since 1970, from the latest start to the earliest end.
    assert result.first == (BASE_S, pytest.approx(np.ceil(0.7654321 * RATE) / RATE, abs=1e-9))
    assert result.time_s[-1] == pytest.approx(np.floor((7.2 + 1e-9) * RATE - 0.01) / RATE, abs=2 / RATE)
    assert 0.0 < result.alignments[-1].residual_ns < 100.0


def test_exact_tags_leave_the_error_of_interpolation_only():
    result = run([Stream(4.0, ppm=31.0), Stream(4.0, start_s=0.25, ppm=-17.0)])
    for output in result.streams:
        error = output[64:-64] - signal(result.time_s[64:-64])
        assert 20 * np.log10(np.max(np.abs(error))) < -60.0
        assert abs(delay_error_s(output[64:-64], result.time_s[64:-64])) < 1e-9


@pytest.mark.parametrize("wrong", [0.3, 0.45])
def test_wrong_tags_are_rejected(wrong):
    streams = [
        Stream(8.0, ppm=12.0, jitter_s=100e-9, wrong=wrong, seed=4),
        Stream(8.0, start_s=0.5, ppm=-20.0, jitter_s=100e-9, seed=5),
    ]
    result = run(streams)
    assert abs(delay_error_s(result.streams[0][64:-64], result.time_s[64:-64])) < 60e-9
    assert result.aligner.rejected[0] == pytest.approx(wrong * len(streams[0].tags), rel=0.25)
    assert result.alignments[-1].gaps_filled == result.alignments[-1].gaps_skipped == 0


def test_a_drifting_rate_is_followed():
    """A clock that speeds up by 1 ppm in 20 s: a line fitted once would be 10 us off at the end."""
    stream = Stream(0.0)
    index = np.arange(round(20 * RATE))
    time_s = index / RATE * (1.0 + 0.5e-6 * index / len(index))
    stream.samples = signal(time_s)
    stream.tags = [TimeTag(int(n), BASE_S, float(time_s[n])) for n in index[::512]]
    result = run([stream, Stream(20.0)])
    end = slice(-int(2 * RATE), -64)
    assert abs(delay_error_s(result.streams[0][end], result.time_s[end])) < 3e-6


def test_short_losses_become_zeros_in_place():
    result = run([Stream(6.0, lost={30_000: 512, 50_000: 1000}, ppm=20.0), Stream(6.5)], max_fill_s=0.1)
    assert [(stream, count) for stream, _, count in result.filled] == [
        (0, pytest.approx(512, abs=1)),
        (0, pytest.approx(1000, abs=1)),
    ]
    lossy, clean = result.streams
    valid = np.ones(len(lossy), dtype=bool)
    for _, position, count in result.filled:
        assert not lossy[position : position + count].any()
        assert lossy[position - 1] != 0
        assert lossy[position + count] != 0
        valid[position - 40 : position + count + 40] = False
    valid[:64] = valid[-64:] = False
    assert np.max(np.abs(lossy - signal(result.time_s))[valid]) < 2e-3
    assert np.max(np.abs(clean - signal(result.time_s))[64:-64]) < 2e-3
    assert np.allclose(np.diff(result.time_s), 1 / RATE, atol=1e-9)
    assert (result.alignments[-1].gaps_filled, result.alignments[-1].gaps_skipped) == (2, 0)


def test_losses_while_acquiring_count_too():
    result = run([Stream(6.0, lost={6000: 512}), Stream(6.0)])
    assert [(stream, count) for stream, _, count in result.filled] == [(0, 512)]
    assert abs(delay_error_s(result.streams[0][30_000:-64], result.time_s[30_000:-64])) < 1e-9


def test_long_losses_skip_the_grid_ahead_for_all():
    result = run([Stream(6.0), Stream(4.0, lost={30_000: 12_000}, ppm=-8.0)], max_fill_s=0.5)
    jump = np.flatnonzero(np.diff(result.time_s) > 1.5 / RATE)
    assert len(jump) == 1
    assert np.diff(result.time_s)[jump] == pytest.approx(1.0, abs=2 / RATE)
    assert int(jump[0]) + 1 in result.marks
    valid = np.ones(len(result.time_s), dtype=bool)
    valid[:64] = valid[-64:] = valid[jump[0] - 40 : jump[0] + 40] = False
    for output in result.streams:
        assert np.max(np.abs(output - signal(result.time_s))[valid]) < 2e-3
    assert (result.alignments[-1].gaps_filled, result.alignments[-1].gaps_skipped) == (0, 1)


def test_losses_of_a_stream_with_one_tag_per_loss():
    """UHD tags the first sample and the first after an overflow, nothing else."""
    sparse = Stream(6.0, lost={31_111: 363, 60_001: 363}, every=10**9)
    assert len(sparse.tags) == 3
    result = run([sparse, Stream(6.0)])
    assert [(stream, count) for stream, _, count in result.filled] == [(0, 363)] * 2
    assert abs(delay_error_s(result.streams[0][-5000:-64], result.time_s[-5000:-64])) < 1e-9


def test_one_wrong_tag_among_sparse_ones_is_no_loss():
    stream = Stream(12.0, every=6000)
    stream.tags[8] = TimeTag(48_000, BASE_S + 5, 0.0)
    result = run([stream, Stream(12.0)])
    assert result.filled == []
    assert result.aligner.rejected == (1, 0)
    assert abs(delay_error_s(result.streams[0][64:-64], result.time_s[64:-64])) < 1e-9


def test_a_clock_set_back_is_followed_and_time_never_runs_back():
    stream = Stream(8.0)
    late = [tag for tag in stream.tags if tag.index >= 48_128]
    stream.tags = [tag for tag in stream.tags if tag.index < 48_128]
    for tag in late:
        ns = round((tag.seconds - BASE_S + tag.fraction - 0.1) * 1e9)
        stream.tags.append(TimeTag(tag.index, BASE_S + ns // 10**9, ns % 10**9 * 1e-9))
    result = run([stream, Stream(8.0)])
    assert (np.diff(result.time_s) > 0).all()
    tail = slice(-12_000, -64)
    assert delay_error_s(result.streams[0][tail], result.time_s[tail] + 0.1) == pytest.approx(0.0, abs=1e-8)


def test_without_tags_streams_pass_through_unchanged():
    plain = [Stream(3.0, tagged=False), Stream(2.5, start_s=1.0, tagged=False)]
    plain[0].samples[777] = np.nan
    result = run(plain)
    for stream, output in zip(plain, result.streams, strict=True):
        assert np.array_equal(output, stream.samples[: len(output)], equal_nan=True)
    assert len(result.streams[0]) == 30_000
    assert result.first is None
    assert result.aligner.timed == (False, False)
    assert set(result.alignments) == {Alignment(None)}


def test_a_stream_without_tags_among_others_starts_where_they_start():
    plain = Stream(5.0, tagged=False)
    result = run([Stream(5.0), plain, Stream(5.0, start_s=0.75)])
    assert result.aligner.timed == (True, False, True)
    assert np.array_equal(result.streams[1], plain.samples[: len(result.streams[1])])
    assert result.alignments[-1].residual_ns is not None
    assert abs(delay_error_s(result.streams[0][64:-64], result.time_s[64:-64])) < 1e-9


def test_tags_of_a_host_clock_are_unusable():
    stream = Stream(5.0, jitter_s=5e-3)
    result = run([stream, Stream(5.0)])
    assert result.aligner.timed == (False, True)
    assert result.aligner.rejected[0] == len([tag for tag in stream.tags if tag.index < 24_000])


def test_unequal_lengths_end_with_the_shortest():
    result = run([Stream(3.0), Stream(5.0, start_s=-1.0), Stream(9.0)])
    assert result.aligner.finished
    assert [len(output) for output in result.streams] == [36_000] * 3


def test_shorter_than_acquisition():
    result = run([Stream(0.5, ppm=10.0), Stream(0.4, start_s=0.05)], acquire_s=2.0)
    assert len(result.streams[0]) == pytest.approx(0.4 * RATE, abs=2)
    assert abs(delay_error_s(result.streams[0][64:-64], result.time_s[64:-64])) < 1e-8


@pytest.mark.parametrize("off_s", [0.0, 1e-9, -1e-9])
def test_streams_on_the_grid_but_for_rounding_lose_no_sample(off_s):
    result = run([Stream(2.0, start_s=0.25), Stream(2.0, start_s=0.25 + off_s)])
    assert [len(output) for output in result.streams] == [24_000] * 2


def test_nothing_in_common_gives_nothing():
    result = run([Stream(2.5), Stream(2.5, start_s=10.0)])
    assert result.aligner.finished
    assert len(result.streams[0]) == 0


def test_an_end_that_is_not_announced_leaves_out_the_last_few_samples_only():
    announced, silent = run([Stream(4.0), Stream(5.0)]), run([Stream(4.0), Stream(5.0)], ends=False)
    assert not silent.aligner.finished
    count = len(silent.streams[0])
    assert 0 <= len(announced.streams[0]) - count <= 30
    assert np.array_equal(silent.streams[0], announced.streams[0][:count])


def test_a_stalled_stream_stops_the_others_from_piling_up():
    aligner = Aligner(2, RATE, acquire_s=1.0)
    assert aligner.starving() == [True, True]
    stream = Stream(30.0)
    taken = 0
    for start in range(0, len(stream.samples), 4096):
        taken += aligner.push(0, stream.samples[start : start + 4096], [t for t in stream.tags if t.index == start])
        assert aligner.pull(4096) is None
    assert taken < 100_000
    assert (aligner.room(0), aligner.room(1) > 0) == (0, True)
    assert aligner.starving() == [False, True]


def test_memory_stays_bounded_over_a_long_stream():
    aligner = Aligner(1, RATE, acquire_s=0.5)
    stream = Stream(1.0, every=1200)
    held_bytes = []
    tracemalloc.start()
    for turn in range(100):
        tags = [TimeTag(t.index + turn * 12_000, t.seconds + turn, t.fraction) for t in stream.tags]
        assert aligner.push(0, stream.samples, tags) == 12_000
        while aligner.pull(4096) is not None:
            pass
        held_bytes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held_bytes[60:]) - max(held_bytes[:60]) < 40_000


def test_of_two_tags_on_a_sample_the_later_counts():
    stream = Stream(3.0)
    doubled = [both for tag in stream.tags for both in (TimeTag(tag.index, 7, 0.5), tag)]
    stream.tags = doubled
    result = run([stream])
    assert result.aligner.rejected == (0,)
    assert abs(delay_error_s(result.streams[0][64:-64], result.time_s[64:-64])) < 1e-9


def test_what_the_tags_are_known_to_be_off_by_counts():
    aligner = Aligner(1, RATE, acquire_s=1.0)
    aligner.doubt(0, 0, 250e-9)
    stream = Stream(2.0)
    aligner.push(0, stream.samples, stream.tags)
    assert aligner.pull(100).alignment.residual_ns == pytest.approx(250.0, abs=0.1)


@pytest.mark.parametrize("clocks", ["fitted", "trusted"])
def test_what_the_tags_are_off_counts_from_its_sample_on(clocks):
    """Said long before that sample's turn, as it is where samples wait for those of others."""
    aligner, stream, told = Aligner(1, RATE, acquire_s=0.5, clocks=clocks), Stream(4.0), {}
    later = round(2.5 * RATE)
    for index, error_s in ((0, 250e-9), (later, 800e-9)):
        aligner.doubt(0, index, error_s)
    for first in range(0, len(stream.samples), 4000):
        tags = [tag for tag in stream.tags if first <= tag.index < first + 4000]
        aligner.push(0, stream.samples[first : first + 4000], tags)
        while (block := aligner.pull(1 << 16)) is not None:
            if block.marked:
                told[block.sources[0]] = block.alignment.residual_ns
    assert min(told) < later < max(told)
    for source, residual_ns in told.items():
        assert residual_ns == pytest.approx(250.0 if source < later else 800.0, abs=1.0)


SCENE = [
    Stream(3.2, start_s=0.11, ppm=45.0, jitter_s=100e-9, wrong=0.2, lost={15_000: 512, 26_000: 9000}, seed=6),
    Stream(4.0, start_s=-0.2, ppm=-45.0, jitter_s=100e-9, wrong=0.2, lost={28_500: 700}, seed=7),
    Stream(4.0, tagged=False),
]


@pytest.fixture(scope="module")
def whole() -> Result:
    return run(SCENE, chop=lambda stream: 10**6, pull=10**6, acquire_s=0.7)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), pull=st.sampled_from([97, 1000, 4096, 100_000]))
def test_output_does_not_depend_on_how_the_streams_are_chopped(whole, data, pull):
    sizes = st.sampled_from([1, 512, 4095, 4096, 20_000])
    chops = data.draw(st.lists(sizes, min_size=8, max_size=8).filter(lambda some: max(some) > 500))
    turn = iter(range(10**9))
    result = run(SCENE, chop=lambda stream: chops[next(turn) % 8], pull=pull, acquire_s=0.7)
    for one, other in zip(result.streams, whole.streams, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(result.time_s, whole.time_s) or np.max(np.abs(result.time_s - whole.time_s)) < 1e-9
    assert result.filled == whole.filled
    assert set(result.marks) >= set(whole.marks)
    assert result.alignments[-1] == whole.alignments[-1]


def test_a_dry_run_is_the_same_without_the_samples(whole):
    result = run(SCENE, chop=lambda stream: 10**6, pull=10**6, acquire_s=0.7, dry=True)
    assert not any(samples.any() for samples in result.streams)
    assert len(result.streams[0]) == len(whole.streams[0])
    assert np.array_equal(result.time_s, whole.time_s)
    assert (result.filled, result.marks, result.alignments) == (whole.filled, whole.marks, whole.alignments)


def test_the_scene_has_what_it_is_there_for(whole):
    assert [(stream, count) for stream, _, count in whole.filled] == [
        (0, pytest.approx(512, abs=1)),
        (1, pytest.approx(700, abs=1)),
    ]
    assert whole.alignments[-1].gaps_skipped == 1
    assert sum(whole.aligner.rejected) > 10


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_streams": 0}, "n_streams=0"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz=0"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz=nan"),
        ({"acquire_s": 0.0}, "acquire_s=0"),
        ({"max_fill_s": -1.0}, "max_fill_s=-1"),
        ({"max_residual_s": float("inf")}, "max_residual_s=inf"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ConfigError, match=message):
        Aligner(**({"n_streams": 2, "sample_rate_hz": RATE} | parameters))


def test_a_rate_that_needs_a_resampler():
    with pytest.raises(SourceError, match="24000 Hz, the common grid at 12000 Hz"):
        Aligner(2, RATE).describe(1, rate_hz=24_000.0)
