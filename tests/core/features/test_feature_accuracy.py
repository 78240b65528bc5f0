from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "feature_accuracy.py"


@pytest.fixture(scope="module")
def figures() -> list[dict]:
    done = subprocess.run([sys.executable, SCRIPT, "--json", "--frames", "64"], capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def values(figures: list[dict], figure: str) -> list[tuple[dict, float]]:
    return [(row, row["value"]) for row in figures if row["figure"] == figure]


def test_mel_equals_librosa(figures):
    rows = values(figures, "mel_relative_difference")
    assert {row["mel_scale"] for row, _ in rows} == {"htk", "slaney"}
    assert max(value for _, value in rows) <= 1e-5


def test_delays_are_unbiased(figures):
    rows = values(figures, "delay_bias_samples")
    assert {row["lag_step"] for row, _ in rows} == {1.0, 0.5, 0.3}
    assert max(value for _, value in rows) <= 0.01
    # Where the lags resolve the signal with something to spare.
    ample = [value for row, value in rows if row["n_fft"] == 4096 and row["bandwidth"] * row["lag_step"] < 0.5]
    assert max(ample) < 1e-3


def test_delays_are_as_exact_as_they_can_be(figures):
    rows = [(row, value) for row, value in values(figures, "variance_over_bound") if row["snr_db"] >= 10.0]
    assert len(rows) == 16
    for row, ratio in rows:
        # Between samples a signal that fills all of the band is known to 1 / n_core only, which shows at 30 dB.
        limit = 2.0 if row["bandwidth"] == 1.0 and row["snr_db"] == 30.0 else 1.2
        assert 0.8 <= ratio <= limit, row
