from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from localize_core.errors import ConfigError, SourceError
from localize_core.evaluation.metrics import PROBABILITIES
from localize_core.score import Track, read_fixes, read_track, score
from localize_core.types.fix import Position, Uncertainty
from localize_core.wire.fix_json import fix_to_json
from pyproj import Geod
from scipy.stats import binom, chi2

GEOD = Geod(ellps="WGS84")
TRUTH = Position(60.0, 10.0)
COUNT = 20_000


def place(origin, azimuth_deg, distance_m):
    longitude, latitude, _ = GEOD.fwd(origin.longitude, origin.latitude, azimuth_deg, distance_m)
    return Position(latitude, longitude)


def simulated(make_fix, claimed, seed):
    """Fixes whose errors are Gaussian with sigmas of 300 m and 40 m along axes turned by 30 degrees from east."""
    draw = np.random.default_rng(seed).standard_normal((COUNT, 2)) * [300.0, 40.0]
    turn = math.radians(30.0)
    east, north = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ draw.T
    longitude, latitude, _ = GEOD.fwd(
        np.full(COUNT, TRUTH.longitude),
        np.full(COUNT, TRUTH.latitude),
        np.degrees(np.arctan2(east, north)),
        np.hypot(east, north),
    )
    fix = make_fix(uncertainty=claimed)
    places = zip(latitude.tolist(), longitude.tolist(), strict=True)
    return [make_fix(position=Position(*at), uncertainty=fix.uncertainty) for at in places], np.hypot(east, north)


def test_honest_ellipses_hold_what_they_promise(make_fix):
    fixes, errors_m = simulated(make_fix, Uncertainty(300.0, 40.0, 30.0), seed=7)
    result = score(fixes, TRUTH)
    assert (result.fixes, result.no_fix, result.unmatched, result.scored) == (COUNT, 0, 0, COUNT)
    for percent, share in result.containment.items():
        low, high = binom.interval(0.9999, COUNT, PROBABILITIES[percent])
        assert low <= share * COUNT <= high, percent
    assert result.mean_nees == pytest.approx(2.0, abs=4.0 * math.sqrt(4.0 / COUNT))
    assert result.median_m == pytest.approx(np.median(errors_m), rel=1e-6)
    assert result.p90_m == pytest.approx(np.percentile(errors_m, 90), rel=1e-6)
    assert result.rmse_m == pytest.approx(np.sqrt(np.mean(errors_m**2)), rel=1e-6)


def test_axes_given_the_other_way_round_are_the_same_ellipse(make_fix):
    fixes, _ = simulated(make_fix, Uncertainty(40.0, 300.0, 120.0), seed=7)
    same, _ = simulated(make_fix, Uncertainty(300.0, 40.0, 30.0), seed=7)
    assert score(fixes, TRUTH).mean_nees == pytest.approx(score(same, TRUTH).mean_nees)


@pytest.mark.parametrize(
    ("claimed", "nees"),
    [
        (Uncertainty(150.0, 20.0, 30.0), 8.0),  # over-confident
        (Uncertainty(600.0, 80.0, 30.0), 0.5),  # over-cautious
        (Uncertainty(300.0, 40.0, -30.0), None),  # turned to the wrong side
    ],
)
def test_dishonest_ellipses_are_found_out(make_fix, claimed, nees):
    fixes, _ = simulated(make_fix, claimed, seed=8)
    result = score(fixes, TRUTH)
    low, high = result.nees_interval
    assert not low <= result.mean_nees <= high
    if nees is not None:
        assert result.mean_nees == pytest.approx(nees, rel=0.05)
    nominal = binom.interval(0.9999, COUNT, 0.95)
    assert not nominal[0] <= result.containment["95"] * COUNT <= nominal[1]


def test_probabilities_are_what_their_labels_say():
    assert {label: round(100.0 * p, 2) for label, p in PROBABILITIES.items()} == {
        "39.35": 39.35,
        "50": 50.0,
        "68": 68.0,
        "90": 90.0,
        "95": 95.0,
    }
    assert chi2.ppf(PROBABILITIES["39.35"], 2) == pytest.approx(1.0)


@pytest.mark.parametrize(("azimuth_deg", "nees"), [(0.0, 4.0), (180.0, 4.0), (90.0, 0.04), (270.0, 0.04)])
def test_direction_counts(make_fix, azimuth_deg, nees):
    fix = make_fix(uncertainty=Uncertainty(1000.0, 100.0, 0.0))  # long from west to east
    result = score([fix], place(fix.position, azimuth_deg, 200.0))
    assert result.mean_nees == pytest.approx(nees, rel=1e-6)
    assert result.median_m == result.p90_m == pytest.approx(200.0)
    assert result.containment["39.35"] == (1.0 if nees < 1.0 else 0.0)
    assert result.containment["90"] == 1.0


def test_nees_interval_is_the_one_of_the_count(make_fix):
    # chi-square with 20 degrees: 9.591 and 34.170 (Abramowitz & Stegun, table 26.8)
    result = score([make_fix()] * 10, place(make_fix().position, 10.0, 50.0))
    assert result.nees_interval == pytest.approx((0.9591, 3.4170), abs=1e-4)


def test_no_fix_is_counted_and_scores_nothing(make_fix):
    result = score([make_fix(reason="silence")] * 3, TRUTH)
    assert (result.fixes, result.no_fix, result.unmatched, result.scored) == (3, 3, 0, 0)
    assert result.as_dict() == {
        "fixes": 3,
        "no_fix": 3,
        "unmatched": 0,
        "scored": 0,
        "error_m": {"median": None, "p90": None, "rmse": None},
        "containment": None,
        "nees": {"mean": None, "interval": None},
    }
    assert score([], TRUTH).fixes == 0


START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(make_fix, seconds, latitude, longitude):
    return make_fix(timestamp=START + timedelta(seconds=seconds), position=Position(latitude, longitude))


def track(*points):
    times_s, latitude, longitude = np.array(points, float).T
    return Track(START.timestamp() + times_s, latitude, longitude)


def test_track_is_linear_in_time(make_fix):
    moving = track((0, 50.0, 8.0), (10, 50.1, 8.2), (30, 50.1, 8.0))
    fixes = [at(make_fix, 2.5, 50.025, 8.05), at(make_fix, 10, 50.1, 8.2), at(make_fix, 20, 50.1, 8.1)]
    result = score(fixes, moving)
    assert result.unmatched == 0
    assert result.rmse_m < 1e-6
    assert score([at(make_fix, 2.5, 50.0, 8.0)], moving).median_m > 1000.0


def test_track_goes_on_for_one_step_and_no_further(make_fix):
    moving = track((0, 50.0, 8.0), (10, 50.1, 8.2), (30, 50.1, 8.0))
    near = [at(make_fix, -10, 49.9, 7.8), at(make_fix, 50, 50.1, 7.8)]
    assert score(near, moving).rmse_m < 1e-6
    result = score([*near, at(make_fix, -10.1, 49.9, 7.8), at(make_fix, 50.1, 50.1, 7.8)], moving)
    assert (result.fixes, result.unmatched, result.scored) == (4, 2, 2)


def test_track_crosses_the_date_line(make_fix):
    moving = track((0, 0.0, 179.9), (10, 0.0, -179.9))
    assert score([at(make_fix, 7.5, 0.0, -179.95), at(make_fix, 2.5, 0.0, 179.95)], moving).rmse_m < 1e-6


@pytest.mark.parametrize(
    "points",
    [
        [(0, 50.0, 8.0)],
        [(0, 50.0, 8.0), (0, 50.0, 8.0)],
        [(1, 50.0, 8.0), (0, 50.0, 8.0)],
        [(0, 91.0, 8.0), (1, 50.0, 8.0)],
        [(0, 50.0, 181.0), (1, 50.0, 8.0)],
        [(0, math.nan, 8.0), (1, 50.0, 8.0)],
        [(0, 50.0, 8.0), (math.nan, 50.0, 8.0)],
    ],
)
def test_impossible_track_is_refused(points):
    with pytest.raises(ConfigError, match="track"):
        track(*points)


def test_track_file_with_either_kind_of_time(tmp_path):
    epoch = tmp_path / "epoch.csv"
    epoch.write_text("latitude,timestamp,note,longitude\n50.0,1767225600,x,8.0\n50.1,1767225601.5,,8.2\n")
    iso = tmp_path / "iso.csv"
    iso.write_text(
        "timestamp,latitude,longitude\n2026-01-01T00:00:00Z,50.0,8.0\n2026-01-01T02:00:01.500000+02:00,50.1,8.2\n"
    )
    naive = tmp_path / "naive.csv"
    naive.write_bytes(
        b"\xef\xbb\xbftimestamp,latitude,longitude\r\n"
        b"2026-01-01T00:00:00,50.0,8.0\r\n2026-01-01 00:00:01.500,50.1,8.2\r\n"
    )
    for path in (epoch, iso, naive):
        read = read_track(path)
        assert read.times_s.tolist() == [1767225600.0, 1767225601.5]
        assert read.latitude.tolist() == [50.0, 50.1]
        assert read.longitude.tolist() == [8.0, 8.2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column latitude, longitude, timestamp"),
        ("timestamp,latitude\n", "line 1: no column longitude"),
        ("timestamp,latitude,longitude\n0,1,2\n1,north,2\n", "line 3: .*north"),
        ("timestamp,latitude,longitude\n0,1,2\nyesterday,1,2\n", "line 3: .*yesterday"),
        ("timestamp,latitude,longitude\n0,1,2\n1,1\n", "line 3"),
        ("timestamp,latitude,longitude\n0,1,2\n", "at least 2 points"),
        ("timestamp,latitude,longitude\n1,1,2\n0,1,2\n", "increase"),
    ],
)
def test_bad_track_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=rf"truth\.csv.*{message}"):
        read_track(path)


def test_a_track_that_is_no_text(tmp_path):
    (tmp_path / "truth.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SourceError, match=r"truth\.csv: not a text file"):
        read_track(tmp_path / "truth.csv")


def test_bad_line_of_fixes_is_named(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    path.write_text(f"{fix_to_json(make_fix())}\n{fix_to_json(make_fix()).replace('0.92', '7')}\n")
    lines = read_fixes(path)
    assert next(lines) == make_fix()
    with pytest.raises(SourceError, match=r"fixes\.jsonl, line 2: confidence=7"):
        next(lines)
