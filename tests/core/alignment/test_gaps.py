"""benchmarks/gaps.py in short: what windows span, how streams stand after gaps, and what three receivers are worth."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gaps() -> Any:
    spec = importlib.util.spec_from_file_location("gaps", ROOT / "benchmarks" / "gaps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gaps"] = module  # its data classes look there
    spec.loader.exec_module(module)
    return module


def test_no_window_spans_a_gap_and_streams_stand_side_by_side_after_it(gaps):
    found = gaps.measure_gaps(60, seed=2)
    assert found.spanning == 0
    assert found.windows > 300
    assert len(found.error_samples) == 60
    assert np.abs(found.error_samples).max() < 0.05
    frames = found.frames
    assert frames.taken == found.expected_frames
    assert frames.offered == found.windows * gaps.STEPS
    assert frames.taken == frames.offered + frames.interrupted + frames.skipped + frames.held
    assert frames.windows > 30


def test_windows_would_span_gaps_without_boundaries(gaps, monkeypatch):
    """The measure sees what it is there for."""
    monkeypatch.setattr(gaps, "frames_across", lambda sample, n_fft, hop: 0)
    assert gaps.measure_gaps(40, seed=2).spanning > 5


def test_three_receivers_go_on_with_an_ellipse_as_the_geometry_says(gaps):
    four, three = gaps.measure_receivers(32, seed=1)
    assert four.missing == three.missing == 0
    assert len(four.squared) == len(three.squared) == 32
    grown, wanted = three.major_m.mean() / four.major_m.mean(), three.bound_m.mean() / four.bound_m.mean()
    assert wanted > 1.3
    assert grown == pytest.approx(wanted, rel=0.1)
    # 32 windows: three standard deviations of a share of 95 % are 11 %, of one of 50 % are 27 %.
    for side in (four, three):
        assert side.containment(0.95) > 0.84
        assert side.containment(0.5) == pytest.approx(0.5, abs=0.27)


def test_a_receiver_cut_and_restored_leaves_no_hole(gaps):
    windows = gaps.measure_cuts(2, seed=1)
    used = [count for _, count, _ in windows]
    assert set(used) == {3, 4}
    assert [status for _, _, status in windows] == ["ok"] * len(windows)
    middles = np.array([middle_s for middle_s, _, _ in windows])
    # A window is lost at most where a receiver goes or comes, besides the one that is cut short.
    assert np.diff(middles).max() < 3 * np.median(np.diff(middles))
    assert sum(a != b for a, b in itertools.pairwise(used)) == 4
