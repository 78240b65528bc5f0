"""What fixes say of themselves, as metrics of their stations."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.metrics.families import counter, gauge, histogram
from localize_core.types.fix import Alignment, Fix, Status, TrackState

METRES = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5)
SURPRISES = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
JUDGED = (None, "no_emitter")
"""Reasons of fixes whose confidence is the model's."""
MOST_STATIONS = 100
"""Fixes of any others are not measured."""


class FixMetrics(Collector):
    """Metrics of the fixes that it is told of. Threads may share it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made = partial(histogram, registry, labels=("station",))
        self._latency = made("fix_latency_seconds", "From a stream's window being complete to its fix.")
        self._confidence = made("fix_confidence_ratio", "What models say of their answers.", buckets=CONFIDENCES)
        self._semi_major = made("ellipse_semi_major_metres", "Of the ellipses of positions.", buckets=METRES)
        self._track_nis = made(
            "track_nis_ratio", "Normalised innovation squared of fixes that belong to tracks.", buckets=SURPRISES
        )
        self._track_semi_major = made("track_semi_major_metres", "Of the ellipses of tracks.", buckets=METRES)
        self._stations: dict[str, _Station] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def add(self, fix: Fix) -> None:
        with self._lock:
            station = self._stations.get(fix.station)
            if station is None:
                if len(self._stations) >= MOST_STATIONS:
                    return
                station = self._stations[fix.station] = _Station(
                    self._latency.labels(fix.station),
                    self._confidence.labels(fix.station),
                    self._semi_major.labels(fix.station),
                    self._track_nis.labels(fix.station),
                    self._track_semi_major.labels(fix.station),
                )
            station.add(fix)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now_s = time.time()
            stations = dict(self._stations)
            ages = {
                (name, status): now_s - latest_s
                for name, station in stations.items()
                for status, latest_s in station.latest_s.items()
            }
            windows = {name: each.window_s for name, each in stations.items() if each.window_s is not None}
            residuals = {
                name: each.alignment.residual_ns * 1e-9
                for name, each in stations.items()
                if each.alignment is not None and each.alignment.residual_ns is not None
            }
            gaps = {
                (name, kind): count
                for name, station in stations.items()
                if station.alignment is not None
                for kind, count in (("filled", station.gaps_filled), ("skipped", station.gaps_skipped))
            }
            tracks = {
                (name, state): station.tracks.count(state)
                for name, station in stations.items()
                if station.tracked_s is not None
                for state in get_args(TrackState)
            }
        yield gauge("tracks", "Emitters that are followed.", ("station", "state"), tracks)
        yield gauge(
            "fix_age_seconds", "Since the time that the latest fix of a stream speaks of.", ("station", "status"), ages
        )
        yield gauge("window_duration_seconds", "Signal in the latest window of a stream.", ("station",), windows)
        yield gauge(
            "alignment_residual_seconds", "Standard error of the worst receiver's time line.", ("station",), residuals
        )
        yield counter("alignment_gaps", "Gaps in receivers' streams, by what was done.", ("station", "kind"), gaps)


class _Station:
    """What is known of one station's fixes. `latest_s`: by status, the latest time that a stream's fix speaks of.
    `tracks`: states of those that are followed; `tracked_s`: the latest time that they were told for, None for never.
    """

    def __init__(
        self,
        latency: Histogram,
        confidence: Histogram,
        semi_major: Histogram,
        track_nis: Histogram,
        track_semi_major: Histogram,
    ) -> None:
        self._latency, self._confidence, self._semi_major = latency, confidence, semi_major
        self._track_nis, self._track_semi_major = track_nis, track_semi_major
        self.tracks: tuple[TrackState, ...] = ()
        self.tracked_s: float | None = None
        self.latest_s: dict[Status, float] = {}
        self.window_s: float | None = None
        self.alignment: Alignment | None = None
        self.gaps_filled = self.gaps_skipped = 0
        self._stream, self._sequence = "", -1

    def add(self, fix: Fix) -> None:
        if fix.reason in JUDGED:
            self._confidence.observe(fix.confidence)
        if fix.uncertainty is not None:
            self._semi_major.observe(fix.uncertainty.semi_major_m)
        if fix.id is not None:  # a request speaks of any time, and waits for other things
            return
        self._latency.observe(fix.latency_ms / 1e3)
        self.latest_s[fix.status] = fix.timestamp.timestamp()
        self.window_s = fix.window_duration_s
        begins = fix.stream != self._stream or fix.sequence <= self._sequence
        self._stream, self._sequence = fix.stream, fix.sequence
        self._track(fix, begins=begins)
        if fix.alignment is not None:
            self._align(fix.alignment, begins=begins)

    def _track(self, fix: Fix, *, begins: bool) -> None:
        """`begins`: the stream has begun anew, perhaps at an earlier time."""
        now_s = fix.timestamp.timestamp()
        if begins and self.tracked_s is not None:
            self.tracks, self.tracked_s = (), min(self.tracked_s, now_s)
        if not fix.tracks and (self.tracked_s is None or now_s <= self.tracked_s):
            return  # what comes late has none, and says nothing of them
        self.tracks, self.tracked_s = tuple(track.state for track in fix.tracks), now_s
        for track in fix.tracks:
            self._track_semi_major.observe(track.uncertainty.semi_major_m)
            if track.state == "confirmed" and track.nis is not None:
                self._track_nis.observe(track.nis)

    def _align(self, alignment: Alignment, *, begins: bool) -> None:
        """`begins`: the stream has begun anew, and counts its gaps from zero."""
        before = self.alignment
        if before is None or begins:
            before = Alignment(None)
        self.gaps_filled += max(alignment.gaps_filled - before.gaps_filled, 0)
        self.gaps_skipped += max(alignment.gaps_skipped - before.gaps_skipped, 0)
        self.alignment = alignment
