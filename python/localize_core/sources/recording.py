"""What recordings of all kinds have in common: samples, their times, and what was lost between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError

STAMP_INTERVAL_S = 1.0
"""About how often a recording says what time it is."""


@dataclass(frozen=True)
class Gap:
    """`missing` samples were lost before sample `index` of the recording."""

    index: int
    missing: int


@dataclass(frozen=True)
class Mark:
    """The tags that a stream carried at its sample `index`, exactly; None where there was none of a kind.

    `rx_time`: whole seconds and fraction. `restart`: the stream was interrupted before this sample, `lost` samples are
    missing, None for an unknown number.
    """

    index: int
    rx_time: tuple[int, float] | None = None
    rx_rate_hz: float | None = None
    rx_freq_hz: float | None = None
    time_source: str | None = None
    time_error_s: float | None = None
    restart: bool = False
    lost: int | None = None


def moved(mark: Mark, samples: int) -> Mark:
    """The same tags so many samples later."""
    return replace(mark, index=mark.index + samples)


class Recording(Protocol):
    """One receiver's samples and their time line."""

    @property
    def path(self) -> Path: ...

    @property
    def sample_rate_hz(self) -> float:
        """The true rate as far as it is known."""
        ...

    @property
    def start_time(self) -> tuple[int, float] | None:
        """Whole UTC seconds since 1970 and the fraction, of sample 0; None where the time is not valid."""
        ...

    @property
    def time_valid(self) -> bool: ...

    @property
    def time_error_ns(self) -> float:
        """Standard error of the time line as a whole, 0 without time."""
        ...

    @property
    def gaps(self) -> tuple[Gap, ...]: ...

    @property
    def tunings(self) -> tuple[tuple[int, float], ...]:
        """Samples from which the receiver is tuned to a frequency (Hz), as far as it is known."""
        ...

    @property
    def marks(self) -> tuple[Mark, ...] | None:
        """The tags of the recorded stream where they are known, rising by sample; else what the times say counts."""
        ...

    @property
    def duration_s(self) -> float:
        """From the first sample to just after the last, gaps included."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def read(self, first: int, count: int) -> NDArray[np.complex64]:
        """Samples [first, first + count), fewer at the end; full scale 1."""
        ...

    def time(self, index: int) -> tuple[int, float]:
        """Whole seconds and fraction of sample `index`. Raises SourceError where the time is not valid."""
        ...


def stamped_samples(recording: Recording) -> NDArray[np.int64]:
    """Samples whose time is told to whoever aligns the recording, rising.

    Those of its marks, or else about one a second and that after each gap.
    """
    if recording.marks is not None:
        return np.array([mark.index for mark in recording.marks if mark.rx_time is not None], np.int64)
    if not recording.time_valid:
        return np.empty(0, np.int64)
    interval = max(1, round(STAMP_INTERVAL_S * recording.sample_rate_hz))
    regular = np.arange(0, len(recording), interval, dtype=np.int64)
    return np.union1d(regular, np.array([gap.index for gap in recording.gaps], np.int64))


def common_span(recordings: Sequence[Recording]) -> tuple[tuple[int, float], float]:
    """Start time and duration (seconds) of what all recordings share.

    Raises ConfigError where there is no recording, one has no valid time, or they do not overlap.
    """
    starts = []
    for recording in recordings:
        if recording.start_time is None:
            raise ConfigError(f"{recording.path}: its time stamps are not valid, so it shares no time with others")
        starts.append(recording.start_time)
    if not starts:
        raise ConfigError("no recordings, so no common time")
    start = max(starts)
    # Relative to the latest start's whole second: seconds since 1970 would cost the fraction its nanoseconds.
    ends_s = [
        seconds - start[0] + fraction + recording.duration_s
        for (seconds, fraction), recording in zip(starts, recordings, strict=True)
    ]
    duration_s = min(ends_s) - start[1]
    if duration_s <= 0.0:
        first, last = recordings[ends_s.index(min(ends_s))], recordings[starts.index(start)]
        raise ConfigError(f"{last.path} starts after {first.path} has ended")
    return start, duration_s
