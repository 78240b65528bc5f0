"""Windows against plain slicing, however the frames come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.engine.history import History
from localize_core.engine.windows import Window, WindowAssembler, frame_groups, frames_across
from localize_core.errors import ConfigError
from localize_core.features.quality import SampleFlag

CHANNELS, ROWS, RECEIVERS = 2, 3, 2


def frames(count: int, start: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, levels and flags that tell every frame from every other."""
    number = np.arange(start, start + count)
    features = number[:, None, None] + np.arange(CHANNELS * ROWS).reshape(CHANNELS, ROWS) / 100.0
    level_db = -number[:, None] - np.array([0.0, 0.5])
    flags = np.stack([np.array([1, 2, 4, 16, 20])[number % 5], 1 << number % 3], axis=1)
    return features.astype(np.float32), level_db.astype(np.float32), flags.astype(np.int32)


def push_chopped(assembler: WindowAssembler, found: tuple[np.ndarray, ...], sizes: list[int]) -> list[Window]:
    windows: list[Window] = []
    at, turn = 0, 0
    while at < len(found[0]):
        size = sizes[turn % len(sizes)]
        windows += assembler.push(*(values[at : at + size] for values in found))
        at, turn = at + size, turn + 1
    return windows


@settings(deadline=None)
@given(
    count=st.integers(0, 60),
    time_steps=st.integers(1, 12),
    window_hop=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    first=st.integers(0, 1000),
)
def test_windows_are_slices_of_the_stream(count, time_steps, window_hop, sizes, first):
    found = frames(count)
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=time_steps, window_hop=window_hop)
    assembler.restart(first)
    windows = push_chopped(assembler, found, sizes)
    starts = range(0, count - time_steps + 1, window_hop)
    assert [window.first_frame for window in windows] == [first + start for start in starts]
    for window, start in zip(windows, starts, strict=True):
        features, level_db, flags = (values[start : start + time_steps] for values in found)
        np.testing.assert_array_equal(window.features, features.transpose(1, 2, 0))
        np.testing.assert_allclose(window.level_db, 10 * np.log10(np.mean(10 ** (level_db / 10), axis=0)), rtol=1e-5)
        assert window.flags == tuple(SampleFlag(int(np.bitwise_or.reduce(flags[:, r]))) for r in range(RECEIVERS))


def test_a_window_keeps_its_features_when_more_frames_come():
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=4, window_hop=2)
    (window,) = assembler.push(*frames(5))
    before = window.features.copy()
    assembler.push(*frames(20, start=5))
    np.testing.assert_array_equal(window.features, before)


def test_restart_drops_what_is_held_and_what_was_to_be_skipped():
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=4, window_hop=10)
    assembler.push(*frames(6))  # one window, and four frames more to skip
    assembler.restart(6)
    (window,) = assembler.push(*frames(4, start=6))
    assert window.first_frame == 6
    assert window.features[0, 0, 0] == 6.0
    assembler.restart(10)
    assembler.push(*frames(3, start=10))
    assembler.restart(13)
    assert assembler.push(*frames(3, start=13)) == []


@pytest.mark.parametrize(
    ("flag", "bad_frames", "unusable"),
    [
        (SampleFlag.SILENT, 2, False),
        (SampleFlag.SILENT, 3, True),
        (SampleFlag.INVALID, 3, True),
        (SampleFlag.SATURATED, 4, False),
        (SampleFlag.GAP, 4, False),
    ],
)
def test_a_receiver_is_unusable_when_most_of_its_frames_are(flag, bad_frames, unusable):
    features, level_db, flags = frames(4)
    flags[:] = 0
    flags[:bad_frames, 1] = flag
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=4, window_hop=4)
    (window,) = assembler.push(features, level_db, flags)
    assert window.unusable.tolist() == [False, unusable]
    assert window.flags == (SampleFlag(0), flag)


@pytest.mark.parametrize(("name", "value"), [("time_steps", 0), ("window_hop", 0), ("window_hop", -3)])
def test_sizes_are_positive(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        WindowAssembler(1, 1, 1, **{"time_steps": 4, "window_hop": 4, name: value})


@given(
    time_steps=st.integers(1, 200), window_hop=st.integers(1, 200), warmup=st.integers(0, 9), hop_s=st.floats(1e-5, 1.0)
)
def test_groups_of_frames_end_where_windows_do(time_steps, window_hop, warmup, hop_s):
    group, first = frame_groups(time_steps, window_hop, warmup, hop_s)
    assert 0 <= first < group <= max(time_steps / 8.0, 1.0)
    assert group == 1 or group * hop_s <= 0.025
    for window in range(3):
        assert (warmup + time_steps + window * window_hop - first) % group == 0


def test_groups_are_as_large_as_they_may_be():
    # 75 frames every 76 of 3.3 ms: groups of 4, for 8 would be more than 25 ms and do not divide 76.
    assert frame_groups(75, 76, 1, 7932 / 2.4e6) == (4, 0)
    assert frame_groups(64, 64, 3, 1e-4) == (8, 3)


@given(
    entries=st.lists(st.integers(0, 30), unique=True, max_size=8).map(sorted),
    asked=st.lists(st.integers(0, 30), min_size=1, max_size=8).map(sorted),
    span=st.integers(0, 5),
)
def test_history_answers_as_if_nothing_was_forgotten(entries, asked, span):
    history: History[str] = History()
    for frame in entries:
        history.add(frame, f"wrong {frame}")
        history.add(frame, f"value {frame}")
    for frame in asked:
        before = [entry for entry in entries if entry <= frame]
        soon = [entry for entry in entries if frame < entry <= frame + span]
        expected = before[-1] if before else soon[0] if soon else None
        found = history.at(frame, frame + span)
        assert found == (None if expected is None else (expected, f"value {expected}"))


@settings(deadline=None)
@given(
    time_steps=st.integers(1, 9),
    window_hop=st.integers(1, 14),
    turns=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=8),
)
def test_every_frame_is_accounted_for(time_steps, window_hop, turns):
    """Against a list of what became of each frame, with boundaries (skips) between runs of frames."""
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=time_steps, window_hop=window_hop)
    at = offered = interrupted = windows = 0
    for skipped, count in turns:
        left_out = frames(skipped, start=at)
        assert assembler.push(*left_out, boundaries={at: skipped} if skipped else {}) == []
        at += skipped
        found = assembler.push(*frames(count, start=at), boundaries={at: 0})
        starts = range(0, count, window_hop)
        whole = [start for start in starts if start + time_steps <= count]
        assert [window.first_frame for window in found] == [at + start for start in whole]
        offered += len({frame for start in whole for frame in range(start, start + time_steps)})
        begun = {frame for start in starts for frame in range(start, min(start + time_steps, count))}
        kept = {frame for start in whole for frame in range(start, start + time_steps)}
        interrupted += len(begun - kept)
        windows += len(starts) - len(whole)
        at += count
    assembler.restart(at)
    told = assembler.count
    assert (told.taken, told.offered, told.interrupted, told.windows) == (at, offered, interrupted, windows)
    assert told.taken == told.offered + told.interrupted + told.skipped + told.held
    other = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=time_steps, window_hop=window_hop)
    other.count_on(assembler)
    assert other.count == told


def test_an_absent_receiver_is_of_no_use_and_nothing_else_is_said_of_it():
    features, level_db, flags = frames(4)
    flags[:] = 0
    flags[:, 1] = SampleFlag.ABSENT | SampleFlag.SILENT
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=4, window_hop=4)
    (window,) = assembler.push(features, level_db, flags)
    assert window.unusable.tolist() == [False, True]
    assert window.flags == (SampleFlag(0), SampleFlag.ABSENT)
    assert np.isnan(window.level_db).tolist() == [False, True]


@pytest.mark.parametrize("sizes", [[1], [5, 3], [100]])
def test_unaligned_and_absent_hold_until_a_boundary(sizes):
    features, level_db, flags = frames(24)
    flags[:] = 0
    flags[2, 0], flags[12, 1] = SampleFlag.UNALIGNED, SampleFlag.ABSENT
    assembler = WindowAssembler(CHANNELS, ROWS, RECEIVERS, time_steps=4, window_hop=4)
    windows, at, turn = [], 0, 0
    while at < 24:
        part = slice(at, at + sizes[turn % len(sizes)])
        inside = {frame: 0 for frame in (12, 20) if part.start <= frame < part.stop}
        windows += assembler.push(features[part], level_db[part], flags[part], inside)
        at, turn = part.stop, turn + 1
    none, unaligned, absent = SampleFlag(0), SampleFlag.UNALIGNED, SampleFlag.ABSENT
    assert [window.flags for window in windows] == [*[(unaligned, none)] * 3, *[(none, absent)] * 2, (none, none)]


@given(sample=st.integers(0, 40), n_fft=st.integers(1, 50), hop=st.integers(1, 20), frame=st.integers(0, 5))
def test_frames_across_a_boundary_are_those_that_see_both_sides(sample, n_fft, hop, frame):
    sample %= hop
    at = frame * hop + sample
    spans = {k: ((k + 1) * hop - n_fft, (k + 1) * hop) for k in range(frame, frame + 200)}
    clean = [k for k, (first, _) in spans.items() if first >= at]
    assert frame + frames_across(sample, n_fft, hop) == clean[0]
    assert frame * hop <= at  # the frame before has seen nothing of what comes after
