"""Where the emitter was and whether it sent, out of a CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from localize_core.dataset.truth import FixedTruth, Known, TruthFile
from localize_core.errors import SourceError
from localize_core.types.fix import Position

HEAD = "timestamp,latitude,longitude,emitter"


@pytest.fixture
def truth_of(tmp_path):
    def write(*lines: str) -> Path:
        path = tmp_path / "truth.csv"
        path.write_text("\n".join(lines))
        return path

    return write


def at(truth: FixedTruth | TruthFile, *centres_s: float, half_s: float = 0.25) -> Known:
    centre_s = np.array(centres_s)
    return truth.at(centre_s - half_s, centre_s, centre_s + half_s)


def test_a_fixed_place():
    known = at(FixedTruth(Position(47.0, 8.0)), -1e9, 1e9)
    assert known.known.tolist() == known.sends.tolist() == [True, True]
    assert not known.changes.any()
    assert known.latitude.tolist() == [47.0, 47.0]
    assert known.longitude.tolist() == [8.0, 8.0]


def test_without_the_column_it_always_sends(truth_of):
    truth = TruthFile(truth_of("longitude,name,latitude,timestamp", "8,a,47,1970-01-01T00:00:10Z", "9,b,48,20"))
    known = at(truth, -0.5, 0.5, 10.0, 12.5, 29.5, 30.5)
    assert known.known.tolist() == [False, True, True, True, True, False]
    assert known.sends.all()
    assert known.latitude[1:5] == pytest.approx([46.05, 47.0, 47.25, 48.95])
    assert known.longitude[1:5] == pytest.approx([7.05, 8.0, 8.25, 9.95])


def test_times_without_emitter(truth_of):
    """Off from 20 to 30, its places left out there."""
    rows = ("0,47.0,8.0,1", "10,47.1,8.0,1", "20,,,0", "30,47.3,8.0,1", "40,47.4,8.0,1")
    truth = TruthFile(truth_of(HEAD, *rows))
    known = at(truth, 5.0, 15.0, 19.9, 25.0, 30.1, 35.0)
    assert known.known.all()
    assert known.sends.tolist() == [True, True, True, False, True, True]
    assert known.changes.tolist() == [False, False, True, False, True, False]
    assert known.latitude == pytest.approx([47.05, 47.15, 47.199, np.nan, 47.301, 47.35], nan_ok=True)


def test_a_switch_counts_wherever_in_the_window_it_is(truth_of):
    truth = TruthFile(truth_of(HEAD, "0,47,8,1", "10,47,8,0", "10.1,47,8,1", "20,47,8,1"))
    known = at(truth, 9.74, 9.76, 10.05, 10.34, 10.36)
    # Off and on again inside one window is a change too.
    assert known.changes.tolist() == [False, True, True, True, False]


def test_never_an_emitter(truth_of):
    known = at(TruthFile(truth_of(HEAD, "0,,,0", "10,,,0")), -11.0, 5.0, 21.0)
    assert known.known.tolist() == [False, True, False]
    assert not known.sends.any()
    assert np.isnan(known.latitude).all()


def test_one_place_between_times_without_emitter(truth_of):
    known = at(TruthFile(truth_of(HEAD, "0,,,0", "10,47.5,8.5,1", "20,,,0")), 5.0, 12.0, 19.0)
    assert known.sends.tolist() == [False, True, True]
    assert known.latitude == pytest.approx([np.nan, 47.5, 47.5], nan_ok=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("timestamp,latitude", "0,47"), r"line 1: no column longitude"),
        ((HEAD, "0,47,8,1", "10,47,8,maybe"), r"line 3: emitter='maybe': must be 1 or 0"),
        ((HEAD, "0,47,8,1", "10,47,8"), r"line 3: emitter='': must be 1 or 0"),
        ((HEAD, "0,47,8,1", "10,,8,1"), r"line 3: could not convert"),
        ((HEAD, "0,47,8,1", "soon,47,8,1"), r"line 3: Invalid isoformat"),
        ((HEAD, "0,47,8,1"), r"truth\.csv: at least 2 rows are needed"),
        ((HEAD, "5,47,8,1", "4,47,8,0"), r"truth\.csv: .*their times must increase"),
        ((HEAD, "5,47,8,1", "nan,47,8,0"), r"truth\.csv: .*their times must increase"),
        ((HEAD, "0,47,8,1", "5,97,8,1"), r"truth\.csv: a track's latitude lies in"),
        (("",), r"line 1: no column latitude, longitude, timestamp"),
    ],
)
def test_files_that_are_no_truth(truth_of, lines, message):
    with pytest.raises(SourceError, match=message):
        TruthFile(truth_of(*lines))


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceError, match=r"none\.csv: cannot be read: No such file"):
        TruthFile(tmp_path / "none.csv")
