"""Fixes over time to tracks.

A fix's error has two parts: noise, which is new in each window, and what windows have in common, such as a constant
offset of a receiver's clock. A filter averages the first away and can tell nothing of the second. So it is given the
noise alone, and the common part is added to what is said of the place: the exact solution for an error that stays
(Schmidt's, with nothing to be learned of it). The velocity has none of it.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

import numpy as np
from scipy.stats import chi2

from localize_core.errors import MissingExtraError
from localize_core.geodesy import LocalFrame, surface_up_m
from localize_core.tracking.settings import TrackerSettings
from localize_core.types.fix import Fix, Position, Row4, TrackReport, Uncertainty

USUAL_COMMON = 0.25
HORIZON_M = 3_000e3
"""From where tracks began: farther out, a plane is no map."""
MOST_STATES = 512
"""That a track keeps for smoothing."""
MOST_EMITTERS = 64
"""Stations and frequencies that are followed at a time, each on its own."""
STEP_M = 1.0

Share = Callable[[Position, Uncertainty], float]
"""Of a fix: the part of its variance that other fixes at that place have as well."""


@dataclass
class _Followed:
    """A track under way. `place_m` (2,), `fix_m2` (2, 2): of the last fix that belongs to it."""

    id: int
    track: Any
    updates: int
    since: datetime
    last: datetime
    nis: float | None
    place_m: np.ndarray
    fix_m2: np.ndarray
    common_m2: np.ndarray

    def take(self, hypothesis: Any) -> None:
        """Note the fix that belongs to it."""
        seen = hypothesis.measurement
        self.last = seen.timestamp
        self.nis = float(hypothesis.distance) ** 2
        self.place_m = np.asarray(seen.state_vector, float).ravel()
        self.fix_m2, self.common_m2 = seen.metadata["fix_m2"], seen.metadata["common_m2"]


class Tracker:
    """Follows emitters from fix to fix, with `settings`. `share`: of a fix's variance that is common to others, the
    settings' `common` or USUAL_COMMON where it is None.

    Not for use by several threads. `late` counts fixes that were no newer than the one before. Raises MissingExtraError
    without Stone Soup.
    """

    def __init__(self, settings: TrackerSettings, *, share: Share | None = None) -> None:
        try:
            from localize_core.tracking import filters
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "stonesoup":
                raise
            raise MissingExtraError("a tracker", "track") from error
        self.settings = settings
        self.late = 0
        self._filters = filters
        common = settings.common if settings.common is not None else USUAL_COMMON
        self._share: Share = share if share is not None and settings.common is None else lambda _, __: common
        self._lost = timedelta(seconds=settings.lost_s)
        self._reach = math.sqrt(chi2.ppf(settings.gate, 2))
        self._ids = itertools.count(1)
        self._emitters: OrderedDict[tuple[str, float | None], _Emitters] = OrderedDict()

    def follow(self, fix: Fix) -> Fix:
        """The fix with the tracks as they stand after it.

        Stations and frequencies are followed apart. A fix that answers a request is left as it is, and so is one that
        is no newer than the one before; but where time has gone back by more than `lost_s`, all begins anew.
        """
        if fix.id is not None:
            return fix
        key = fix.station, fix.frequency_hz
        if key not in self._emitters:
            self._emitters[key] = _Emitters(self, self._filters.make_filters(self.settings))
            if len(self._emitters) > MOST_EMITTERS:
                self._emitters.popitem(last=False)
        self._emitters.move_to_end(key)
        reports = self._emitters[key].follow(fix)
        return replace(fix, tracks=reports) if reports else fix


class _Emitters:
    """Those of one station on one frequency."""

    def __init__(self, tracker: Tracker, made: Any) -> None:
        self._tracker, self._made = tracker, made
        self._settings, self._filters = tracker.settings, tracker._filters
        self._frame: LocalFrame | None = None
        self._followed: list[_Followed] = []
        self._now: datetime | None = None
        self._placed: datetime | None = None
        self._probability = 0.95

    def follow(self, fix: Fix) -> tuple[TrackReport, ...]:
        now = fix.timestamp
        if self._now is not None and now <= self._now:
            if self._now - now <= self._tracker._lost:
                self._tracker.late += 1
                return ()
            self._followed, self._made.initiator.holding_tracks = [], set()
            self._placed = None
        self._now = now
        self._forget(now)
        detections = self._detections(fix)
        left = detections - self._associated(detections, now)
        if detections:
            sure = self._made.initiator.initiate(left, now)
            for track in sorted(sure, key=lambda track: (track[0].timestamp, *map(float, track[0].state_vector))):
                self._confirm(track)
        return tuple(self._report(each, now) for each in sorted(self._followed, key=lambda each: each.id))

    def _forget(self, now: datetime) -> None:
        """Let go of what has had no fix for too long."""
        lost = self._tracker._lost
        self._followed = [each for each in self._followed if now - each.last <= lost]
        held = self._made.initiator.holding_tracks
        self._made.initiator.holding_tracks = {track for track in held if now - track[-1].timestamp <= lost}
        if not self._followed and not self._made.initiator.holding_tracks:
            self._frame = None

    def _detections(self, fix: Fix) -> set[Any]:
        """Where emitters were seen: the fix's position, and those of others that were heard at the same time."""
        if fix.position is None or fix.uncertainty is None:
            return set()
        self._probability = fix.uncertainty.probability
        if self._frame is None:
            self._frame = LocalFrame(fix.position.latitude, fix.position.longitude)
        since_s = math.inf if self._placed is None else (fix.timestamp - self._placed).total_seconds()
        self._placed = fix.timestamp
        repeats = max(fix.window_duration_s / since_s, 1.0)
        others = ((peak.position, peak.uncertainty) for peak in fix.peaks if peak.kind == "emitter")
        found = (self._detection(*seen, fix.timestamp, repeats) for seen in ((fix.position, fix.uncertainty), *others))
        return {each for each in found if each is not None}

    def _detection(self, position: Position, uncertainty: Uncertainty, timestamp: datetime, repeats: float) -> Any:
        """None beyond the horizon. `repeats`: windows that overlap, so many at a time, are one as to noise."""
        assert self._frame is not None
        east, north, up = self._frame.to_enu_m(position.latitude, position.longitude, 0.0)
        if max(abs(east), abs(north), -up) > HORIZON_M:
            return None
        place_m = np.array([east, north])
        back = np.linalg.inv(_turn(self._frame, place_m)[1])
        covariance_m2 = back @ uncertainty.covariance_m2 @ back.T
        common = self._tracker._share(position, uncertainty)
        return self._filters.detection(place_m, covariance_m2, timestamp, common=common, repeats=repeats)

    def _associated(self, detections: set[Any], now: datetime) -> set[Any]:
        """Bring all tracks to `now`, with the fix that belongs to each. Returns the fixes that were taken."""
        taken: set[Any] = set()
        if not self._followed:
            return taken
        found = self._made.associator.associate({each.track for each in self._followed}, detections, now)
        for each in self._followed:
            hypothesis = found[each.track]
            if hypothesis:
                each.track.append(self._made.updater.update(hypothesis))
                each.updates += 1
                each.take(hypothesis)
                taken.add(hypothesis.measurement)
            else:
                each.track.append(self._filters.coasting(hypothesis.prediction))
            self._filters.cut_history(each.track, self._kept(each.track, now))
        return taken

    def _kept(self, track: Any, now: datetime) -> int:
        """States of a track that smoothing needs: those within the lag, and one before."""
        lag = timedelta(seconds=self._settings.lag_s)
        within = sum(1 for _ in itertools.takewhile(lambda state: now - state.timestamp < lag, reversed(track.states)))
        return min(within + 1, MOST_STATES)

    def _confirm(self, track: Any) -> None:
        """Follow what enough fixes agree on: as what was lost nearby, which may have turned, or as a new one."""
        track.states[:] = map(self._filters.coasting, track.states)
        updates = [state for state in track if self._filters.is_update(state)]
        first, place_m = track[0].timestamp, np.asarray(track[0].state_vector, float).ravel()[[0, 2]]
        fix_m2 = updates[0].hypothesis.measurement.metadata["fix_m2"]
        near = []
        for each in self._followed:
            gap_s = (first - each.last).total_seconds()
            spread_m = self._tracker._reach * math.sqrt(np.linalg.eigvalsh(each.fix_m2 + fix_m2)[1])
            away_m = float(np.linalg.norm(place_m - each.place_m))
            if gap_s > 0.0 and away_m <= self._settings.max_speed_mps * gap_s + spread_m:
                near.append((away_m, each.id, each))
        if near:
            _, _, followed = min(near)
            followed.track, followed.updates = track, followed.updates + len(updates)
        else:
            self._make_room()
            followed = _Followed(
                next(self._tracker._ids), track, len(updates), first, first, None, place_m, fix_m2, fix_m2
            )
            self._followed.append(followed)
        followed.take(updates[-1].hypothesis)
        self._filters.cut_history(track, len(track))

    def _make_room(self) -> None:
        """For one more: the one that has been idle for longest goes."""
        if len(self._followed) >= self._settings.max_tracks:
            self._followed.remove(min(self._followed, key=lambda each: (each.last, each.updates)))

    def _report(self, each: _Followed, now: datetime) -> TrackReport:
        assert self._frame is not None
        state = self._state(each.track, now)
        order = self._filters.ORDER
        mean = np.asarray(state.state_vector, float).ravel()[order]
        covariance = np.asarray(state.covar, float)[np.ix_(order, order)].copy()
        covariance[:2, :2] += each.common_m2
        position, turn = _turn(self._frame, mean[:2])
        both = np.kron(np.eye(2), turn)
        covariance = both @ covariance @ both.T
        covariance = (covariance + covariance.T) / 2.0
        (ee, en), (_, nn) = covariance[:2, :2].tolist()
        east_mps, north_mps = turn @ mean[2:]
        rows = tuple(tuple(row) for row in covariance.tolist())
        return TrackReport(
            id=each.id,
            state="confirmed" if each.last == now else "coasting",
            position=position,
            uncertainty=Uncertainty.of_covariances(ee, en, nn, self._probability),
            east_mps=float(east_mps),
            north_mps=float(north_mps),
            covariance=cast("tuple[Row4, Row4, Row4, Row4]", rows),
            updates=each.updates,
            age_s=(now - each.since).total_seconds(),
            idle_s=(now - each.last).total_seconds(),
            lag_s=(now - state.timestamp).total_seconds(),
            nis=each.nis,
        )

    def _state(self, track: Any, now: datetime) -> Any:
        """What is to be told of a track: its last state, or the one the lag ago, which later fixes have smoothed."""
        if self._settings.lag_s == 0.0:
            return track[-1]
        smoothed = self._made.smoother.smooth(track)
        due = now - timedelta(seconds=self._settings.lag_s)
        return next((state for state in reversed(smoothed.states) if state.timestamp <= due), smoothed.states[0])


def _turn(frame: LocalFrame, place_m: np.ndarray) -> tuple[Position, np.ndarray]:
    """Where a plane point (2,) is, and what turns differences in the plane into local east and north there, (2, 2)."""
    points = place_m + STEP_M * np.array([[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    enu_m = np.column_stack([points, surface_up_m(frame, points)])
    latitude, longitude, _ = (float(value) for value in frame.to_geodetic(enu_m[0]))
    there = LocalFrame(latitude, longitude).axes[:2] @ frame.axes.T
    slopes = np.stack([enu_m[1] - enu_m[2], enu_m[3] - enu_m[4]], axis=1) / STEP_M
    return Position(latitude, longitude), there @ slopes
