from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from localize_core.engine.frame_values import FrameValues


def latest(_, new):
    return new


def test_values_said_ahead_come_with_their_frames():
    levels = FrameValues(2, np.nan, np.float32, latest)
    levels.add(1, np.array([[1.0], [2.0], [3.0]]), [1])
    np.testing.assert_array_equal(levels.take(2), [[np.nan, np.nan], [np.nan, 1.0]])
    levels.add(0, np.array([[-5.0]]), [0])
    np.testing.assert_array_equal(levels.take(3), [[-5.0, 2.0], [np.nan, 3.0], [np.nan, np.nan]])


def test_what_is_said_twice_is_merged():
    flags = FrameValues(1, 0, np.int32, np.bitwise_or)
    flags.add(0, np.array([[1], [2]]), [0])
    flags.add(1, np.array([[4]]), [0])
    np.testing.assert_array_equal(flags.take(2), [[1], [6]])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=20), st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_runs_and_reads_of_any_length_give_every_value_once(runs, reads):
    total = sum(runs)
    expected, said, got, kept = np.arange(total)[:, None], 0, 0, FrameValues(1, -1, np.int64, latest)
    taken = []
    for length in reads * total:
        # As a stream: what is said of a frame comes no later than the frame.
        while runs and said < min(got + length, total):
            run = runs.pop(0)
            kept.add(said - got, expected[said : said + run], [0])
            said += run
        count = min(length, total - got)
        taken.append(kept.take(count))
        got += count
        if got == total:
            break
    np.testing.assert_array_equal(np.concatenate(taken), expected)
