"""Tracks out of fixes: as consistent as their model, and neither lost nor doubled by what fixes do in practice."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from localize_core.errors import MissingExtraError
from localize_core.geodesy import GEOD, LocalFrame
from localize_core.tracking.settings import TrackerSettings
from localize_core.tracking.tracker import MOST_EMITTERS, Tracker
from localize_core.types.fix import Peak, Uncertainty
from scipy.stats import chi2

STEP_S = 0.5
ELLIPSE = Uncertainty(30.0, 12.0, 35.0)
SETTINGS = TrackerSettings(acceleration_mps2=2.0, max_speed_mps=40.0, common=0.0)


def walk(rng, count, *, acceleration_mps2=2.0, speed_mps=20.0):
    """States (count, 4) of one that moves as the tracker assumes: east, north and their velocities."""
    q = acceleration_mps2**2
    own = q * np.array([[STEP_S**3 / 3.0, STEP_S**2 / 2.0], [STEP_S**2 / 2.0, STEP_S]])
    root = np.kron(np.linalg.cholesky(own), np.eye(2))
    move = np.eye(4) + STEP_S * np.eye(4, k=2)
    state = np.concatenate([rng.normal(0.0, 300.0, 2), rng.normal(0.0, speed_mps, 2)])
    states = [state]
    for _ in range(count - 1):
        states.append(move @ states[-1] + root @ rng.normal(size=4))
    return np.array(states)


def error(report, state, plane):
    return np.concatenate([plane(report.position), [report.east_mps, report.north_mps]]) - state


def bounds(degrees, runs):
    return chi2.ppf([0.025, 0.975], degrees * runs) / runs


@pytest.mark.parametrize(
    ("common", "stated", "honest"), [(0.0, 0.0, True), (0.6, 0.6, True), (0.6, 0.0, False)], ids=str
)
def test_nees_and_nis_are_what_the_model_says(seen, plane, common, stated, honest):
    """Independent runs, each with an offset of its own that all its fixes share: what a tracker cannot see."""
    rng = np.random.default_rng(11)
    tracker_settings = SETTINGS.model_copy(update={"common": stated})
    root = np.linalg.cholesky(ELLIPSE.covariance_m2)
    runs, steps = 60, 24
    whole, of_place, nis = [], [], []
    for _ in range(runs):
        tracker = Tracker(tracker_settings)
        states = walk(rng, steps)
        offset_m = np.sqrt(common) * root @ rng.normal(size=2)
        for index, state in enumerate(states):
            noise_m = np.sqrt(1.0 - common) * root @ rng.normal(size=2)
            fix = tracker.follow(seen(STEP_S * index, state[:2] + offset_m + noise_m, ELLIPSE))
        (report,) = fix.tracks
        off, covariance = error(report, states[-1], plane), np.array(report.covariance)
        whole.append(off @ np.linalg.solve(covariance, off))
        of_place.append(off[:2] @ np.linalg.solve(covariance[:2, :2], off[:2]))
        nis.append(report.nis)
    low, high = bounds(4, runs)
    assert bool(low < np.mean(whole) < high) is honest
    low, high = bounds(2, runs)
    assert bool(low < np.mean(of_place) < high) is honest
    assert not honest or low < np.mean(nis) < high


def test_windows_that_overlap_are_no_more_than_they_are(seen, plane):
    """Five at a time: fixes have moving means of noise."""
    rng = np.random.default_rng(21)
    root = np.linalg.cholesky(ELLIPSE.covariance_m2)
    runs, steps, windows = 24, 20, 5
    nees = []
    for _ in range(runs):
        tracker = Tracker(SETTINGS)
        states = walk(rng, steps)
        parts_m = np.sqrt(windows) * rng.normal(size=(steps + windows - 1, 2)) @ root.T
        for index, state in enumerate(states):
            noise_m = parts_m[index : index + windows].mean(axis=0)
            fix = tracker.follow(seen(STEP_S * index, state[:2] + noise_m, ELLIPSE, window_duration_s=windows * STEP_S))
        (report,) = fix.tracks
        off = error(report, states[-1], plane)
        nees.append(off @ np.linalg.solve(np.array(report.covariance), off))
    assert 2.0 < np.mean(nees) < bounds(4, runs)[1]  # a little cautious while windows are few


def test_it_is_the_kalman_filter(seen, plane):
    """Against the textbook's, written down once more."""
    rng = np.random.default_rng(3)
    tracker = Tracker(SETTINGS)
    noise = ELLIPSE.covariance_m2
    q = SETTINGS.acceleration_mps2**2
    move = np.eye(4) + STEP_S * np.eye(4, k=2)
    own = q * np.kron([[STEP_S**3 / 3.0, STEP_S**2 / 2.0], [STEP_S**2 / 2.0, STEP_S]], np.eye(2))
    mean = covariance = None
    for index, state in enumerate(walk(rng, 12)):
        observed = state[:2] + np.linalg.cholesky(noise) @ rng.normal(size=2)
        fix = tracker.follow(seen(STEP_S * index, observed, ELLIPSE))
        if mean is None:
            mean = np.concatenate([observed, [0.0, 0.0]])
            covariance = np.diag([0.0, 0.0, 400.0, 400.0])
            covariance[:2, :2] = noise
            continue
        mean, covariance = move @ mean, move @ covariance @ move.T + own
        gain = covariance[:, :2] @ np.linalg.inv(covariance[:2, :2] + noise)
        mean, covariance = mean + gain @ (observed - mean[:2]), covariance - gain @ covariance[:2]
    (report,) = fix.tracks
    assert error(report, mean, plane) == pytest.approx(np.zeros(4), abs=0.02)  # the plane of the test is another one
    assert np.array(report.covariance) == pytest.approx(covariance, rel=1e-3, abs=0.02)
    assert report.uncertainty.covariance_m2 == pytest.approx(covariance[:2, :2], rel=1e-3, abs=0.02)
    assert report.updates == 12
    assert report.age_s == pytest.approx(11 * STEP_S)


def test_one_that_stands_still_comes_to_rest(seen, plane):
    rng = np.random.default_rng(5)
    errors = {10: [], 30: [], 90: []}
    told = dict.fromkeys(errors, 0.0)
    speeds = []
    for _ in range(20):
        tracker = Tracker(SETTINGS.model_copy(update={"acceleration_mps2": 0.02}))
        for index in range(1, max(errors) + 1):
            fix = tracker.follow(seen(STEP_S * index, rng.normal(0.0, 20.0, 2)))
            if index in errors:
                (report,) = fix.tracks
                errors[index].append(plane(report.position))
                told[index] = float(np.trace(report.uncertainty.covariance_m2))
        speeds.append(report.speed_mps)
    for index, found in errors.items():
        assert np.mean(np.square(found)) * 2.0 == pytest.approx(told[index], rel=0.6)  # three standard deviations
    assert told[90] < 0.5 * told[30] < 0.3 * told[10]
    assert np.mean(speeds) < 0.6


def test_what_all_fixes_share_stays(seen):
    tracker = Tracker(SETTINGS.model_copy(update={"common": 0.4, "acceleration_mps2": 0.01}))
    for index in range(150):
        fix = tracker.follow(seen(STEP_S * index, (0.0, 0.0)))
    (report,) = fix.tracks
    assert report.uncertainty.sigma_y == pytest.approx(20.0 * np.sqrt(0.4), rel=0.08)


def test_the_stations_own_share_counts_where_none_is_given(seen):
    for stated, sigma_m in ((None, 20.0 * np.sqrt(0.81)), (0.0, None)):
        settings = TrackerSettings(acceleration_mps2=0.01, common=stated)
        tracker = Tracker(settings, share=lambda position, uncertainty: 0.81)
        for index in range(150):
            fix = tracker.follow(seen(STEP_S * index, (0.0, 0.0)))
        sigma_y = fix.tracks[0].uncertainty.sigma_y
        assert sigma_y == pytest.approx(sigma_m, rel=0.05) if sigma_m else sigma_y < 6.0


def test_missing_and_wild_fixes_neither_lose_nor_double_it(seen):
    rng = np.random.default_rng(8)
    lost = wild_taken = 0
    for _ in range(5):
        tracker = Tracker(SETTINGS)
        ids = set()
        for index, state in enumerate(walk(rng, 200)):
            chance = rng.uniform()
            point = None if chance < 0.2 else state[:2] + rng.normal(0.0, 20.0, 2)
            wild = 0.2 <= chance < 0.25
            if wild:
                point = rng.uniform(-4000.0, 4000.0, 2)
            fix = tracker.follow(seen(STEP_S * index, point))
            ids |= {track.id for track in fix.tracks}
            if index > 10:
                lost += not fix.tracks
                wild_taken += wild and fix.tracks[0].state == "confirmed"
        assert len(ids) == 1
    assert lost == 0
    assert wild_taken <= 2  # one that fell where it was expected


def test_it_coasts_while_there_are_no_fixes_and_ends_in_time(seen, plane):
    tracker = Tracker(SETTINGS)
    for index in range(20):
        tracker.follow(seen(index * 0.5, (10.0 * index * 0.5, 0.0)))
    grown = [tracker.follow(seen(9.5 + wait, None)).tracks for wait in (1.0, 4.0, 10.0, 10.5)]
    assert [len(tracks) for tracks in grown] == [1, 1, 1, 0]
    for (report,), wait in zip(grown[:3], (1.0, 4.0, 10.0), strict=True):
        assert report.state == "coasting"
        assert report.idle_s == wait
        assert plane(report.position) == pytest.approx([95.0 + 10.0 * wait, 0.0], abs=5.0 + wait)
    sizes = [tracks[0].uncertainty.semi_major_m for tracks in grown[:3]]
    assert sizes == sorted(sizes)
    assert sizes[2] > 3.0 * sizes[0]
    new = [tracker.follow(seen(21.0 + index, (0.0, 0.0))).tracks for index in range(3)]
    assert [len(tracks) for tracks in new] == [0, 0, 1]
    assert new[-1][0].id == grown[0][0].id + 1


def test_a_gap_without_any_window_ends_it_too(seen):
    tracker = Tracker(SETTINGS)
    for index in range(5):
        fix = tracker.follow(seen(index, (0.0, 0.0)))
    assert len(fix.tracks) == 1
    assert tracker.follow(seen(4 + 9.9, None)).tracks[0].state == "coasting"
    assert not tracker.follow(seen(4 + 3600.0, (0.0, 0.0))).tracks


def test_a_sharp_turn_keeps_its_id(seen, plane):
    """Far beyond what its acceleration allows: it is found again, and not taken for another."""
    rng = np.random.default_rng(2)
    tracker = Tracker(SETTINGS)
    ids, corner = set(), np.array([600.0, 0.0])
    for index in range(80):
        way_m = 30.0 * 0.5 * index
        point = np.array([way_m, 0.0]) if way_m < 600.0 else corner - [way_m - 600.0, 0.0]
        fix = tracker.follow(seen(0.5 * index, point + rng.normal(0.0, 5.0, 2), 5.0))
        ids |= {track.id for track in fix.tracks}
    assert ids == {1}
    (report,) = fix.tracks
    assert np.linalg.norm(plane(report.position) - point) < 15.0
    assert report.course_deg == pytest.approx(270.0, abs=5.0)
    assert report.speed_mps == pytest.approx(30.0, abs=4.0)


def test_late_and_repeated_fixes_change_nothing(seen):
    tracker = Tracker(SETTINGS)
    for index in range(6):
        tracker.follow(seen(index, (10.0 * index, 0.0)))
    again = [seen(5.0, (900.0, 900.0)), seen(3.0, (-900.0, 0.0)), seen(4.5, None)]
    assert [tracker.follow(fix) for fix in again] == again
    assert tracker.late == 3
    (report,) = tracker.follow(seen(6.0, (60.0, 0.0))).tracks
    assert (report.updates, report.id) == (7, 1)


def test_a_clock_that_is_set_back_begins_anew(seen):
    tracker = Tracker(SETTINGS)
    for start in (0.0, -7200.0, 1e8, 10.0):
        for index in range(4):
            fix = tracker.follow(seen(start + index, (0.0, 0.0)))
        assert fix.tracks[0].updates == 4
    assert fix.tracks[0].id == 4
    assert tracker.late == 0


def test_a_new_stream_goes_on_with_the_track(seen):
    tracker = Tracker(SETTINGS)
    for index in range(10):
        stream, sequence = ("first", index) if index < 5 else ("second", index - 5)
        fix = tracker.follow(seen(index, (0.0, 0.0), stream=stream, sequence=sequence))
    assert fix.tracks[0].updates == 10


def test_frequencies_are_followed_apart(seen):
    tracker = Tracker(SETTINGS)
    for index in range(5):
        low = tracker.follow(seen(index, (0.0, 0.0), frequency_hz=100e6))
        high = tracker.follow(seen(index + 0.5, (0.0, 0.0), frequency_hz=200e6))
    assert [track.id for track in low.tracks] == [1]
    assert [track.id for track in high.tracks] == [2]
    for number in range(2 * MOST_EMITTERS):
        tracker.follow(seen(10.0, None, frequency_hz=float(number)))
    assert len(tracker._emitters) == MOST_EMITTERS


def test_answers_to_requests_are_left_alone(seen):
    tracker = Tracker(SETTINGS)
    for index in range(5):
        fix = seen(index, (0.0, 0.0), id="mine")
        assert tracker.follow(fix) == fix


def test_two_in_one_window_are_two_tracks(seen, place):
    """They change places in importance, and cross."""
    rng = np.random.default_rng(4)
    tracker = Tracker(SETTINGS)
    courses: dict[int, list] = {}
    for index in range(60):
        points = np.array([[20.0 * 0.5 * index - 300.0, 0.0], [0.0, 300.0 - 20.0 * 0.5 * index]])
        points = rng.permutation(points + rng.normal(0.0, 5.0, (2, 2)))
        other = Peak(place(*points[1]), Uncertainty(5.0, 5.0, 0.0), 0.9, "emitter")
        nowhere = Peak(place(2000.0, 2000.0), Uncertainty(5.0, 5.0, 0.0), 0.5, "alternative")
        fix = tracker.follow(seen(0.5 * index, points[0], 5.0, peaks=(other, nowhere)))
        for track in fix.tracks:
            courses.setdefault(track.id, []).append(track.course_deg)
    assert sorted(courses) == [1, 2]
    assert sorted(round(np.median(found) / 10.0) * 10 for found in courses.values()) == [90, 180]


def test_more_than_there_is_room_for(seen, place):
    tracker = Tracker(SETTINGS.model_copy(update={"max_tracks": 3}))
    others = [Peak(place(3000.0 * k, 0.0), Uncertainty(5.0, 5.0, 0.0), 1.0, "emitter") for k in range(1, 8)]
    for index in range(20):
        fix = tracker.follow(seen(index, (0.0, 0.0), 5.0, peaks=tuple(others)))
        assert len(fix.tracks) <= 3
    assert len(fix.tracks) == 3


def test_with_a_lag_it_is_smoother_and_says_so(seen, plane):
    squared: dict[float, float] = {}
    for lag_s in (0.0, 2.0):
        rng = np.random.default_rng(12)
        squares, nees = [], []
        for _ in range(40):
            tracker = Tracker(SETTINGS.model_copy(update={"lag_s": lag_s}))
            states = walk(rng, 16)
            for index, state in enumerate(states):
                fix = tracker.follow(seen(STEP_S * index, state[:2] + rng.normal(0.0, 20.0, 2)))
            (report,) = fix.tracks
            assert report.lag_s == lag_s
            off = error(report, states[len(states) - 1 - round(lag_s / STEP_S)], plane)
            squares.append(off[:2] @ off[:2])
            nees.append(off @ np.linalg.solve(np.array(report.covariance), off))
        squared[lag_s] = np.mean(squares)
        low, high = bounds(4, 40)
        assert low < np.mean(nees) < high
    assert squared[2.0] < 0.7 * squared[0.0]


def test_smoothing_goes_through_missing_fixes(seen, plane):
    """Windows without a fix say as much as no windows."""
    rng = np.random.default_rng(13)
    points = walk(rng, 16)[:, :2] + rng.normal(0.0, 20.0, (16, 2))
    told = []
    for silent in (False, True):
        tracker = Tracker(SETTINGS.model_copy(update={"lag_s": 3.0}))
        for index, point in enumerate(points):
            missing = index in (4, 10, 12, 13)
            if not (missing and silent):
                fix = tracker.follow(seen(STEP_S * index, None if missing else point))
        (report,) = fix.tracks
        assert report.lag_s == 3.0
        told.append(np.concatenate([error(report, 0.0, plane), np.ravel(report.covariance)]))
    assert told[0] == pytest.approx(told[1], rel=1e-6)


@pytest.mark.parametrize(("latitude", "longitude"), [(10.0, 179.999), (-89.99, 20.0), (0.0, 0.0)])
def test_anywhere_on_earth(make_fix, at, latitude, longitude):
    tracker = Tracker(SETTINGS.model_copy(update={"acceleration_mps2": 0.1}))
    for index in range(40):
        east, north, _ = GEOD.fwd(longitude, latitude, 90.0, 15.0 * index)
        position = replace(make_fix().position, latitude=north, longitude=east)
        fix = tracker.follow(make_fix(timestamp=at(index), position=position, uncertainty=Uncertainty(5.0, 3.0, 0.0)))
    (report,) = fix.tracks
    assert GEOD.inv(report.position.longitude, report.position.latitude, east, north)[2] < 5.0
    assert report.speed_mps == pytest.approx(15.0, abs=0.3)
    assert report.uncertainty.covariance_m2[0, 0] > report.uncertainty.covariance_m2[1, 1]


def test_fixes_on_the_other_side_of_the_earth_are_outliers(seen, place):
    tracker = Tracker(SETTINGS)
    for index in range(6):
        tracker.follow(seen(2 * index, (0.0, 0.0)))
        tracker.follow(replace(seen(2 * index + 1, (0.0, 0.0)), position=place(0.0, 0.0, LocalFrame(-47.0, -172.0))))
    fix = tracker.follow(seen(13, (0.0, 0.0)))
    assert [track.updates for track in fix.tracks] == [7]


def test_very_different_ellipses_leave_numbers_finite(seen):
    rng = np.random.default_rng(6)
    tracker = Tracker(SETTINGS.model_copy(update={"lag_s": 3.0, "common": 0.9}))
    for index in range(300):
        ellipse = Uncertainty(*(10.0 ** rng.uniform(-4.0, 7.0, 2)), rng.uniform(-90.0, 90.0))
        fix = tracker.follow(seen(index + rng.uniform(0.0, 0.9), rng.normal(0.0, 0.01, 2), ellipse))
        for track in fix.tracks:
            assert np.isfinite(track.covariance).all()
            assert np.linalg.eigvalsh(track.uncertainty.covariance_m2)[0] > 0.0


def test_the_same_fixes_give_the_same_tracks(seen, place):
    def once():
        rng = np.random.default_rng(1)
        tracker = Tracker(SETTINGS.model_copy(update={"lag_s": 1.0}))
        found = []
        for index in range(30):
            points = rng.normal(0.0, 400.0, (4, 2))
            others = tuple(Peak(place(*point), ELLIPSE, 0.5, "emitter") for point in points[1:])
            found.append(tracker.follow(seen(index, points[0], ELLIPSE, peaks=others)).tracks)
        return found

    assert once() == once()


def test_nothing_piles_up(seen):
    """Once Stone Soup's memory of its last 128 predictions is full."""
    from stonesoup.types.state import State

    tracker = Tracker(SETTINGS.model_copy(update={"lag_s": 1.0}))
    counts = []
    for index in range(400):
        tracker.follow(seen(0.1 * index, None if index % 7 == 0 else (0.0, 0.0)))
        if index in (250, 399):
            gc.collect()
            counts.append(sum(issubclass(type(each), State) for each in gc.get_objects()))
    assert counts[1] <= counts[0] + 5


def test_without_stone_soup_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stonesoup", None)
    for name in [name for name in sys.modules if name.startswith(("stonesoup.", "localize_core.tracking.filters"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("localize_core.tracking.filters", raising=False)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[track\]"):
        Tracker(SETTINGS)


def test_it_is_imported_when_there_is_something_to_follow():
    code = (
        "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None\n"
        "import localize_core.tracking.tracker, localize_core.tracking.settings\n"
        "assert not [name for name in sys.modules if name.startswith('stonesoup')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_time_steps_of_a_microsecond(seen, at):
    tracker = Tracker(SETTINGS)
    for index in range(5):
        fix = tracker.follow(replace(seen(0.0, (0.0, 0.0)), timestamp=at(0.0) + timedelta(microseconds=index)))
    (report,) = fix.tracks
    assert np.isfinite(report.covariance).all()
    assert report.updates == 5
