"""How far fixes are from the truth, and whether their ellipses keep what they promise."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError, SourceError
from localize_core.evaluation.metrics import accuracy, covariance_of, squared_mahalanobis
from localize_core.geodesy import GEOD
from localize_core.types.fix import Fix, Position
from localize_core.wire.fix_json import fix_from_json


@dataclass(frozen=True)
class Track:
    """A moving truth. Each array has shape (n,), n >= 2: Unix times in seconds, increasing; WGS84 degrees."""

    times_s: NDArray[np.float64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not len(self.times_s) == len(self.latitude) == len(self.longitude) >= 2:
            raise ConfigError("a track needs at least 2 points, each with time, latitude and longitude")
        if not np.all(np.diff(self.times_s) > 0):
            raise ConfigError("the times of a track must increase")
        if not (np.all(np.abs(self.latitude) <= 90.0) and np.all(np.abs(self.longitude) <= 180.0)):
            raise ConfigError("a track's latitude lies in [-90, 90] and its longitude in [-180, 180]")

    def at(self, times_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude and longitude at `times_s`, linear in time. NaN more than one step before or after the track."""
        step = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(self.times_s) - 2)
        duration_s = self.times_s[step + 1] - self.times_s[step]
        fraction = (times_s - self.times_s[step]) / duration_s
        fraction = np.where((fraction < -1.0) | (fraction > 2.0), np.nan, fraction)
        unwrapped = np.unwrap(self.longitude, period=360.0)
        latitude = self.latitude[step] + fraction * (self.latitude[step + 1] - self.latitude[step])
        longitude = unwrapped[step] + fraction * (unwrapped[step + 1] - unwrapped[step])
        return latitude, (longitude + 180.0) % 360.0 - 180.0


@dataclass(frozen=True)
class Score:
    """Accuracy in metres and honesty of the ellipses, over the fixes that have a position and a truth.

    `fixes` counts all, `no_fix` those without a position, `unmatched` those outside the track's time. `containment`
    maps the keys of `metrics.PROBABILITIES` to the share of truths inside the ellipse of that probability. An honest
    covariance gives a `mean_nees` (normalised estimation error squared, Bar-Shalom 2001, 5.4.2) of 2, and of
    `nees_interval` in 95 % of runs with so many independent fixes. Without a scored fix, figures are None.
    """

    fixes: int
    no_fix: int
    unmatched: int
    median_m: float | None = None
    p90_m: float | None = None
    rmse_m: float | None = None
    containment: dict[str, float] | None = None
    mean_nees: float | None = None
    nees_interval: tuple[float, float] | None = None

    @property
    def scored(self) -> int:
        return self.fixes - self.no_fix - self.unmatched

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "fixes": self.fixes,
            "no_fix": self.no_fix,
            "unmatched": self.unmatched,
            "scored": self.scored,
            "error_m": {"median": self.median_m, "p90": self.p90_m, "rmse": self.rmse_m},
            "containment": self.containment,
            "nees": {"mean": self.mean_nees, "interval": self.nees_interval and list(self.nees_interval)},
        }


def score(fixes: Iterable[Fix], truth: Position | Track) -> Score:
    """Hold `fixes` against where the emitter was: a fixed place, or a track that is read at each fix's time."""
    total = 0
    rows = []
    for fix in fixes:
        total += 1
        if fix.position is not None and fix.uncertainty is not None:
            sigmas = (fix.uncertainty.sigma_x, fix.uncertainty.sigma_y, fix.uncertainty.theta)
            rows.append((fix.timestamp.timestamp(), fix.position.latitude, fix.position.longitude, *sigmas))
    times_s, latitude, longitude, sigma_x, sigma_y, theta = np.array(rows, float).reshape(-1, 6).T
    if isinstance(truth, Track):
        true_latitude, true_longitude = truth.at(times_s)
    else:
        true_latitude, true_longitude = np.full_like(times_s, truth.latitude), np.full_like(times_s, truth.longitude)
    matched = np.isfinite(true_latitude)
    places = (longitude, latitude, true_longitude, true_latitude)
    # as lists: pyproj takes an array of one for a scalar
    azimuth_deg, _, distance = GEOD.inv(*(degrees[matched].tolist() for degrees in places))
    distance_m = np.array(distance)
    azimuth = np.radians(np.array(azimuth_deg))
    offset_m = distance_m[:, None] * np.stack([np.sin(azimuth), np.cos(azimuth)], axis=-1)
    uncertainty = np.stack([sigma_x, sigma_y, theta], axis=-1)[matched]
    found = accuracy(distance_m, squared_mahalanobis(offset_m, covariance_of(uncertainty)))
    no_fix, unmatched = total - len(rows), len(rows) - len(distance_m)
    if found is None or found.containment is None:
        return Score(fixes=total, no_fix=no_fix, unmatched=unmatched)
    return Score(
        fixes=total,
        no_fix=no_fix,
        unmatched=unmatched,
        median_m=found.median_m,
        p90_m=found.p90_m,
        rmse_m=found.rmse_m,
        containment={key: item.share for key, item in found.containment.items()},
        mean_nees=found.mean_nees,
        nees_interval=found.nees_interval,
    )


def read_fixes(path: Path) -> Iterator[Fix]:
    """The fixes of a file with one line of JSON each. Raises SourceError naming file and line for any other line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield fix_from_json(line)
            except ConfigError as error:
                raise SourceError(f"{path}, line {number}: {error}") from error


def read_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file that has `columns`, each with the file and line it stands in.

    Raises SourceError naming them where the file cannot be read or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {*columns} - set(rows.fieldnames or ())
            if missing:
                raise SourceError(f"{path}, line 1: no column {', '.join(sorted(missing))}")
            for row in rows:
                yield f"{path}, line {rows.line_num}", {key: row[key] or "" for key in rows.fieldnames or ()}
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: not a text file with columns: {error}") from error


def read_track(path: Path) -> Track:
    """A track from CSV with columns `timestamp` (ISO 8601, UTC unless it says otherwise, or Unix seconds),
    `latitude` and `longitude`; others are ignored. Raises SourceError naming file and line.
    """
    points = []
    for place, row in read_rows(path, ("timestamp", "latitude", "longitude")):
        try:
            points.append((unix_seconds(row["timestamp"]), float(row["latitude"]), float(row["longitude"])))
        except ValueError as error:
            raise SourceError(f"{place}: {error}") from error
    try:
        return Track(*np.array(points, float).reshape(-1, 3).T)
    except ConfigError as error:
        raise SourceError(f"{path}: {error}") from error


def unix_seconds(text: str) -> float:
    """A time in ISO 8601, UTC unless it says otherwise, or in seconds since 1970. Raises ValueError for others."""
    try:
        return float(text)
    except ValueError:
        time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
