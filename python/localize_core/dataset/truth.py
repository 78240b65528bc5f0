"""Where the emitter was while windows were recorded, and whether it sent at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError, SourceError
from localize_core.score import Track, read_rows, unix_seconds
from localize_core.types.fix import Position

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Known:
    """What is known of n windows: `known` whether anything is, `changes` whether the emitter is switched on or off
    meanwhile, `sends` whether it is on, `latitude` and `longitude` (NaN where it is not). Each (n,).
    """

    known: Booleans
    changes: Booleans
    sends: Booleans
    latitude: Floats
    longitude: Floats


class FixedTruth:
    """An emitter that stands at one place and always sends."""

    def __init__(self, place: Position) -> None:
        self._place = place

    def __str__(self) -> str:
        return f"{self._place.latitude}, {self._place.longitude}"

    def at(self, begin_s: Floats, centre_s: Floats, end_s: Floats) -> Known:
        """What is known of windows from `begin_s` to `end_s`, seconds since 1970."""
        every = np.ones(len(centre_s), np.bool_)
        return Known(
            known=every,
            changes=~every,
            sends=every,
            latitude=np.full(len(centre_s), self._place.latitude),
            longitude=np.full(len(centre_s), self._place.longitude),
        )


class TruthFile:
    """A CSV file with the columns of a track (`localize_core.score.read_track`), and maybe `emitter`.

    `emitter`: 1 where the emitter sends, 0 from where it does not, until the next row; without the column it always
    sends. Where it is 0, places may be left out. Raises SourceError naming file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        times_s, sends, places = [], [], []
        for place, row in read_rows(path, ("timestamp", "latitude", "longitude")):
            try:
                times_s.append(unix_seconds(row["timestamp"]))
                if row.get("emitter", "1").strip() not in ("0", "1"):
                    raise ValueError(f"emitter={row['emitter']!r}: must be 1 or 0")
                sends.append(row.get("emitter", "1").strip() == "1")
                if sends[-1]:
                    places.append((times_s[-1], float(row["latitude"]), float(row["longitude"])))
            except ValueError as error:
                raise SourceError(f"{place}: {error}") from error
        self._times_s, self._sends = np.array(times_s, np.float64), np.array(sends, np.bool_)
        if len(times_s) < 2 or not np.isfinite(self._times_s).all() or (np.diff(self._times_s) <= 0.0).any():
            raise SourceError(f"{path}: at least 2 rows are needed, and their times must increase")
        if len(places) == 1:  # between two rows without emitter: it is where it is until the second
            places.append((np.inf, *places[0][1:]))
        try:
            self._track = Track(*np.array(places, float).T) if places else None
        except ConfigError as error:
            raise SourceError(f"{path}: {error}") from error

    def __str__(self) -> str:
        return f"{self.path}, from {self._times_s[0]:.3f} to {self._times_s[-1]:.3f} s since 1970"

    def at(self, begin_s: Floats, centre_s: Floats, end_s: Floats) -> Known:
        """What is known of windows from `begin_s` to `end_s`, seconds since 1970.

        As far before and after the rows as their first and last step is long.
        """
        steps_s = np.diff(self._times_s)
        known = (centre_s >= self._times_s[0] - steps_s[0]) & (centre_s <= self._times_s[-1] + steps_s[-1])
        sends = self._sends[self._row(centre_s)]
        switched = np.concatenate([[0], np.cumsum(self._sends[1:] != self._sends[:-1])])
        latitude, longitude = np.full((2, len(centre_s)), np.nan)
        if self._track is not None:
            latitude[sends], longitude[sends] = self._track.at(centre_s[sends])
        return Known(
            known=known & (np.isfinite(latitude) | ~sends),
            changes=switched[self._row(begin_s)] != switched[self._row(end_s)],
            sends=sends,
            latitude=latitude,
            longitude=longitude,
        )

    def _row(self, times_s: Floats) -> NDArray[np.intp]:
        """The last row at or before each time, the first one before all."""
        return np.maximum(np.searchsorted(self._times_s, times_s, side="right") - 1, 0)
