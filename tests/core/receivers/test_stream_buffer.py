"""Samples between two graphs: none is lost without an account, and each keeps its time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.receivers.stream_buffer import BufferGroup, Mark, StreamBuffer
from localize_core.types.time import shift_time

RATE_HZ = 1000.0
START = (1_700_000_000, 0.25)


def ramp(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32).astype(np.complex64)


def pulled(buffer: StreamBuffer, most: int) -> tuple[np.ndarray, list[Mark]]:
    out = np.zeros(most, np.complex64)
    count, marks = buffer.pull(out)
    return out[:count].real.astype(int), marks


def balanced(buffer: StreamBuffer) -> bool:
    count = buffer.count
    return count.taken == count.delivered + count.dropped + count.waiting


def beginning(index: int = 0, time: tuple[int, float] = START) -> Mark:
    return Mark(index, time=time, rate_hz=RATE_HZ, frequency_hz=1e8, time_source="host")


def test_samples_and_marks_come_out_as_they_went_in():
    buffer = StreamBuffer(10)
    assert not buffer.wait(0.0)
    assert buffer.push(ramp(0, 6), [beginning(), Mark(4, frequency_hz=2e8)]) == 0
    assert buffer.wait(0.0)
    samples, marks = pulled(buffer, 3)
    assert samples.tolist() == [0, 1, 2]
    assert marks == [beginning()]
    assert buffer.push(ramp(6, 7)) == 0  # over the end of the ring
    samples, marks = pulled(buffer, 100)
    assert samples.tolist() == list(range(3, 13))
    assert marks == [Mark(1, frequency_hz=2e8)]
    assert pulled(buffer, 5)[0].size == 0
    assert buffer.count.delivered == 13
    assert balanced(buffer)


def test_what_has_no_room_is_dropped_and_the_next_sample_says_so():
    buffer = StreamBuffer(10)
    assert buffer.push(ramp(0, 14), [beginning()]) == 4
    assert pulled(buffer, 4)[0].tolist() == [0, 1, 2, 3]
    assert buffer.push(ramp(14, 3)) == 3  # until half of the buffer is free
    pulled(buffer, 2)
    assert buffer.push(ramp(17, 3)) == 0
    samples, marks = pulled(buffer, 100)
    assert samples.tolist() == [6, 7, 8, 9, 17, 18, 19]
    (mark,) = marks
    assert (mark.index, mark.restart, mark.lost) == (4, True, 7)
    assert (mark.rate_hz, mark.frequency_hz, mark.time_source) == (RATE_HZ, 1e8, "host")
    assert mark.time == pytest.approx(shift_time(*START, 17 / RATE_HZ))
    count = buffer.count
    assert (count.overflows, count.dropped, count.lost, count.gaps) == (1, 7, 0, 0)
    assert balanced(buffer)


def test_marks_of_dropped_samples_still_tell_the_time():
    """A jump and a retune among what was dropped belong to the next sample."""
    buffer = StreamBuffer(4)
    buffer.push(ramp(0, 4), [beginning()])
    jumped = shift_time(*START, 106 / RATE_HZ)  # a hundred samples lost before sample 6
    assert buffer.push(ramp(4, 4), [Mark(2, time=jumped, frequency_hz=3e8)]) == 4
    pulled(buffer, 4)
    buffer.push(ramp(8, 1))
    _, (mark,) = pulled(buffer, 1)
    assert mark.time == pytest.approx(shift_time(*START, 108 / RATE_HZ))
    assert (mark.frequency_hz, mark.restart) == (3e8, True)
    assert (buffer.count.lost, buffer.count.gaps) == (100, 1)


def test_a_jump_of_the_receivers_times_is_a_loss_and_a_regular_time_is_none():
    buffer = StreamBuffer(1000)
    buffer.push(ramp(0, 100), [beginning()])
    buffer.push(ramp(100, 100), [Mark(0, time=shift_time(*START, 0.1))])
    buffer.push(ramp(200, 100), [Mark(0, time=shift_time(*START, 0.2 + 0.05 / RATE_HZ))])
    assert (buffer.count.lost, buffer.count.gaps) == (0, 0)
    buffer.push(ramp(300, 100), [Mark(0, time=shift_time(*START, 0.3 + 7 / RATE_HZ))])
    assert (buffer.count.lost, buffer.count.gaps) == (7, 1)


def test_an_interruption_is_a_restart_after_an_unknown_loss():
    buffer = StreamBuffer(100)
    buffer.interrupt()  # before there was anything, there is nothing to interrupt
    buffer.push(ramp(0, 5), [beginning()])
    buffer.interrupt()
    later = shift_time(*START, 60.0)
    buffer.push(ramp(5, 5), [beginning(time=later)])
    _, marks = pulled(buffer, 100)
    assert [(mark.index, mark.restart, mark.lost) for mark in marks] == [(0, False, None), (5, True, None)]
    assert marks[1].time == later
    assert buffer.count.gaps == 0  # that is a restart of the receiver, which has its own account


def test_nothing_of_an_old_line_is_told_after_an_interruption():
    buffer = StreamBuffer(100)
    buffer.push(ramp(0, 5), [beginning()])
    buffer.interrupt()
    buffer.push(ramp(5, 5))
    _, marks = pulled(buffer, 100)
    assert marks[1] == Mark(5, restart=True)


def test_a_restart_that_the_source_tells_is_passed_on():
    buffer = StreamBuffer(100)
    buffer.push(ramp(0, 5), [beginning()])
    told = Mark(2, time=shift_time(*START, 3.0), rate_hz=RATE_HZ, restart=True, lost=2993)
    buffer.push(ramp(5, 5), [told])
    assert pulled(buffer, 100)[1][1] == Mark(7, time=told.time, rate_hz=RATE_HZ, restart=True, lost=2993)
    assert (buffer.count.gaps, buffer.count.lost) == (1, 2993)


def test_who_pulls_anew_is_told_all_there_is_to_know():
    buffer = StreamBuffer(100)
    buffer.push(ramp(0, 30), [beginning()])
    pulled(buffer, 10)
    buffer.begin()
    assert buffer.count.dropped == 20
    buffer.push(ramp(30, 5))
    samples, (mark,) = pulled(buffer, 100)
    assert samples.tolist() == [30, 31, 32, 33, 34]
    assert (mark.index, mark.restart, mark.lost) == (0, True, None)
    assert mark.time == pytest.approx(shift_time(*START, 30 / RATE_HZ))
    assert mark.frequency_hz == 1e8
    assert balanced(buffer)


def test_a_capacity_that_cannot_be():
    with pytest.raises(ValueError, match="capacity=1"):
        StreamBuffer(1)


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(2, 60),
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), min_size=1, max_size=60),
)
def test_every_sample_has_its_own_time_whatever_is_dropped(capacity, steps):
    """Each sample is its number; by the marks alone, its time must come out as that number over the rate."""
    buffer = StreamBuffer(capacity)
    number = position = 0
    line = None
    seen = []
    for push, pull, marked in steps:
        mark = [beginning(time=shift_time(*START, number / RATE_HZ))] if push and (marked or number == 0) else []
        buffer.push(ramp(number, push), mark)
        number += push
        samples, marks = pulled(buffer, pull)
        for index, sample in enumerate(samples):
            for each in (each for each in marks if each.index == index):
                line = (position, each.time)
                if each.restart:
                    assert each.lost == sample - seen[-1] - 1
            at, time = line
            seconds, fraction = shift_time(*time, (position - at) / RATE_HZ)
            assert (seconds - START[0]) + fraction - START[1] == pytest.approx(sample / RATE_HZ, abs=1e-6)
            position += 1
            seen.append(int(sample))
        assert balanced(buffer)
    assert seen == sorted(set(seen))
    assert buffer.count.lost == 0


def overloaded(buffers: list[StreamBuffer], pulls: list[int], rounds: int = 400) -> list[np.ndarray]:
    """What comes out of buffers that get 10 samples at a time, and of which so many are pulled."""
    found: list[list[np.ndarray]] = [[] for _ in buffers]
    for number in range(rounds):
        for buffer, pull, out in zip(buffers, pulls, found, strict=True):
            marks = [beginning()] if number == 0 else []
            buffer.push(ramp(10 * number, 10), marks)
            out.append(pulled(buffer, pull)[0])
            assert balanced(buffer)
    for buffer, out in zip(buffers, found, strict=True):
        out.append(pulled(buffer, buffer.capacity)[0])
    return [np.concatenate(out) for out in found]


def missing(samples: np.ndarray) -> list[tuple[int, int]]:
    """First and last number of each span that is not there."""
    ends = np.flatnonzero(np.diff(samples) != 1)
    return [(int(samples[end]) + 1, int(samples[end + 1]) - 1) for end in ends]


def test_receivers_that_are_pulled_together_lose_the_same_spans():
    """One hears earlier, one later, and one has samples waiting from before."""
    group = BufferGroup()
    buffers = [StreamBuffer(200, group) for _ in range(4)]
    for buffer, before in zip(buffers, (0, 7, 31, 18), strict=True):
        buffer.push(ramp(-before, before))
    spans = [missing(samples[samples >= 0]) for samples in overloaded(buffers, [7] * 4)]
    assert len(spans[0]) > 3
    for others in zip(*spans, strict=True):
        for first, last in others:
            assert abs(first - others[0][0]) <= 10
            assert abs(last - others[0][1]) <= 10
            assert last - first > 100
    counts = [buffer.count for buffer in buffers]
    assert [count.overflows for count in counts] == [len(own) for own in spans]
    alone = [StreamBuffer(200) for _ in range(4)]
    for buffer, before in zip(alone, (0, 7, 31, 18), strict=True):
        buffer.push(ramp(-before, before))
    apart = [missing(samples[samples >= 0]) for samples in overloaded(alone, [7] * 4)]
    assert max(abs(own[0] - apart[0][0][0]) for own in (span[0] for span in apart)) > 20


@pytest.mark.parametrize("dead", ["unheard", "never pulled"])
def test_one_receiver_alone_costs_the_others_nothing(dead):
    group = BufferGroup()
    buffers = [StreamBuffer(200, group) for _ in range(3)]
    if dead == "unheard":
        overloaded(buffers[1:], [10, 10])
    else:
        left = overloaded(buffers, [0, 10, 10])[0]
        assert buffers[0].count.overflows == 1
        assert left.tolist() == list(range(200))  # what had come before it was full
        buffers[0].push(ramp(4_000, 10))
        samples, marks = pulled(buffers[0], 10)
        assert samples.tolist() == list(range(4_000, 4_010))
        assert [(mark.restart, mark.lost) for mark in marks] == [(True, 3_800)]
    assert [buffer.count.dropped for buffer in buffers[1:]] == [0, 0]


def test_who_is_not_pulled_holds_up_the_others_no_longer_than_they_have_samples():
    group = BufferGroup()
    stuck, slow = (StreamBuffer(200, group) for _ in range(2))
    slow.push(ramp(-150, 150))
    spans = missing(overloaded([stuck, slow], [0, 12])[1])
    assert len(spans) == 1  # it was more than half full when the other overflowed
    assert slow.count.overflows == 1
    assert balanced(slow)


def test_who_is_gone_holds_up_the_others_no_longer_than_they_have_samples():
    """It was full when it went, and nobody asks for it any more."""
    group = BufferGroup()
    gone, *others = (StreamBuffer(200, group) for _ in range(3))
    gone.push(ramp(0, 300), [beginning()])
    for buffer in others:
        buffer.push(ramp(-150, 150))
    for samples in overloaded(others, [10, 10]):
        assert missing(samples) == [(0, 149)]
    assert [(buffer.count.overflows, buffer.count.dropped) for buffer in others] == [(1, 150)] * 2


def test_two_threads_lose_nothing():
    buffer, total = StreamBuffer(5000), 200_000

    def produce() -> None:
        first = 0
        while first < total:
            while buffer.count.waiting > 4000:
                pass
            buffer.push(ramp(first, 700)[: total - first])
            first += 700

    producer = threading.Thread(target=produce)
    producer.start()
    found = []
    while sum(map(len, found)) < total:
        assert buffer.wait(10.0)
        found.append(pulled(buffer, 999)[0])
    producer.join()
    assert np.array_equal(np.concatenate(found), np.arange(total))
    assert buffer.count.dropped == 0
