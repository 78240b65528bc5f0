"""The short form of benchmarks/calibration.py: ellipses hold what they say on stations that nothing was tuned on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "benchmarks"))
from calibration import run_trials  # the folder is no package


@pytest.mark.parametrize(("kind", "snr_db"), [("correlation", -5.0), ("correlation", 30.0), ("level", 5.0)])
def test_ellipses_hold_what_they_say(kind: str, snr_db: float) -> None:
    """60 windows: a share of 95 % gives 52 or more, of 39.35 % 13 to 35, each in 99.9 % of all cases."""
    found = run_trials(kind, snr_db, trials=60, seed=5)
    assert round(60 * found.containment(0.95)) >= 51
    assert 12 <= round(60 * found.containment(0.3935)) <= 36
    assert (found.confidence > 0.9).mean() >= 0.95


@pytest.mark.parametrize("kind", ["correlation", "level"])
def test_no_emitter_no_confidence(kind: str) -> None:
    found = run_trials(kind, None, trials=40, seed=5)
    assert (found.confidence < 0.1).mean() >= 0.9
