"""Feature frames to windows: fixed spans of consecutive frames of all channels, which may overlap or leave some out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property

import numpy as np

from localize_core.errors import ConfigError
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import Contract

GROUP_S = 0.025
LASTING = int(SampleFlag.UNALIGNED | SampleFlag.ABSENT)
"""Flags that hold from a boundary to the next."""
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Window:
    """A complete span of frames.

    `first_frame`: its index in the stream. `features` (channels, rows, time_steps) float32. `level_db` (receivers,):
    mean power of the receivers' samples, dB re full scale, NaN where unknown or where the receiver is absent. `flags`:
    per receiver the union of what its frames were flagged with; an absent one's zeros are not called silent besides.
    `unusable` (receivers,): whether it is absent, or most of its frames are invalid or silent.
    """

    first_frame: int
    features: np.ndarray
    level_db: np.ndarray
    flags: tuple[SampleFlag, ...]
    unusable: np.ndarray

    @cached_property
    def is_finite(self) -> bool:
        """Whether no feature is NaN or infinite."""
        # One sum tells in a third of the time that looking at each value takes, unless it overflows.
        return math.isfinite(self.features.sum()) or bool(np.isfinite(self.features).all())


@dataclass(frozen=True)
class FrameCount:
    """What has become of the frames: taken = offered + interrupted + skipped + held.

    `offered`: in complete windows. `interrupted`: in none but those that a boundary cut short, of which there were
    `windows`. `skipped`: left out, before a first window or between two. `held`: of a window that is not complete yet.
    """

    taken: int = 0
    offered: int = 0
    interrupted: int = 0
    skipped: int = 0
    held: int = 0
    windows: int = 0


class WindowAssembler:
    """Collects frames in order and gives windows as they fill. Holds no more than one window of frames.

    `window_hop`: frames from one window's start to the next; `time_steps` puts them side by side. Raises ConfigError
    when a size is not positive.
    """

    def __init__(self, channels: int, rows: int, receivers: int, *, time_steps: int, window_hop: int) -> None:
        for name, value in (("time_steps", time_steps), ("window_hop", window_hop)):
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        self.time_steps, self.window_hop = time_steps, window_hop
        self._features = np.empty((time_steps, channels, rows), np.float32)
        self._level_db = np.empty((time_steps, receivers), np.float32)
        self._flags = np.empty((time_steps, receivers), np.int32)
        self._first = 0  # index of the frame that the buffer starts with
        self._held = 0
        self._fresh = 0  # of those held, how many are in no complete window
        self._skip = 0
        self._pending = 0
        self._lasting = np.zeros(receivers, np.int32)
        self._offered = self._interrupted = self._skipped = self._windows = 0

    @property
    def count(self) -> FrameCount:
        """What has become of the frames so far."""
        told = (self._offered, self._interrupted, self._skipped, self._fresh)
        return FrameCount(sum(told), *told, windows=self._windows)

    def count_on(self, before: WindowAssembler) -> None:
        """Go on with the account of another, which has come to its end."""
        before.restart(0)
        told = before.count
        self._offered, self._interrupted = told.offered, told.interrupted
        self._skipped, self._windows = told.skipped, told.windows

    @property
    def next_frame(self) -> int:
        """The number of the frame that is pushed next."""
        return self._first + self._held

    def push(
        self,
        features: np.ndarray,
        level_db: np.ndarray,
        flags: np.ndarray,
        boundaries: Mapping[int, int] | None = None,
    ) -> list[Window]:
        """Take frames (n, channels, rows) with levels and flags (n, receivers); return the windows they complete.

        `boundaries`: numbers of frames before which a window ends at the latest, and how many frames from each on have
        seen both sides: these are in no window. Whether a receiver is absent or unaligned is decided until the next
        boundary by the first frame that says so.
        """
        complete: list[Window] = []
        start, count = self.next_frame, len(features)
        inside = {frame - start: reaching for frame, reaching in (boundaries or {}).items()}
        for first, end in itertools.pairwise(sorted({0, *inside, count})):
            if first in inside:
                self.restart(start + first)
                self._pending = max(self._pending, inside[first])
                self._lasting[:] = 0
            lasting = np.bitwise_or.accumulate(flags[first:end] & LASTING, axis=0) | self._lasting
            self._lasting = lasting[-1]
            skipped = min(self._pending, end - first)
            if skipped:
                self._pending -= skipped
                self._skipped += skipped
                self.restart(start + first + skipped)
            taken = slice(first + skipped, end)
            complete += self._take(features[taken], level_db[taken], flags[taken] | lasting[skipped:])
        return complete

    def skip(self, frames: int) -> None:
        """So many of the next frames are in no window."""
        self._pending += frames

    def _take(self, features: np.ndarray, level_db: np.ndarray, flags: np.ndarray) -> list[Window]:
        complete = []
        taken, count = 0, len(features)
        while taken < count:
            if self._skip:
                step = min(self._skip, count - taken)
                self._skip -= step
                self._skipped += step
                self._first += step
            else:
                step = min(self.time_steps - self._held, count - taken)
                into, outof = slice(self._held, self._held + step), slice(taken, taken + step)
                self._features[into], self._level_db[into] = features[outof], level_db[outof]
                self._flags[into] = flags[outof]
                self._held += step
                self._fresh += step
                if self._held == self.time_steps:
                    complete.append(self._window())
                    self._advance()
            taken += step
        return complete

    def reset(self) -> None:
        """As before the first frame, but for the account."""
        self.restart(0)
        self._pending = 0
        self._lasting[:] = 0

    def restart(self, frame: int) -> None:
        """Drop what is held: the next frame pushed is number `frame`, and begins a window."""
        self._windows += -(-self._held // self.window_hop)
        self._interrupted += self._fresh
        self._first, self._held, self._fresh, self._skip = frame, 0, 0, 0

    def _window(self) -> Window:
        flags = np.bitwise_or.reduce(self._flags, axis=0)
        lost = (self._flags & int(SampleFlag.INVALID | SampleFlag.SILENT)) != 0
        absent = (flags & int(SampleFlag.ABSENT)) != 0
        flags = np.where(absent, flags & ~int(SampleFlag.SILENT), flags)
        # dB are averaged as power: a window with one burst has the burst's mean power.
        power = np.mean(10.0 ** (self._level_db.astype(np.float64) / 10.0), axis=0)
        with np.errstate(divide="ignore"):
            level_db = np.where(absent, np.nan, 10.0 * np.log10(power))
        window = Window(
            first_frame=self._first,
            features=self._features.transpose(1, 2, 0).copy(),
            level_db=level_db,
            flags=tuple(SampleFlag(int(value)) for value in flags),
            unusable=(lost.mean(axis=0) > 0.5) | absent,
        )
        _ = window.is_finite  # looked at while its features are still in the cache, and not by whoever runs the model
        return window

    def _advance(self) -> None:
        self._offered += self._fresh
        self._fresh = 0
        self._first += self.window_hop
        kept = max(self.time_steps - self.window_hop, 0)
        self._skip = max(self.window_hop - self.time_steps, 0)
        if self._skip:
            self._first -= self._skip  # counted while the frames are passed over
        for array in (self._features, self._level_db, self._flags):
            array[:kept] = array[self.time_steps - kept :].copy()
        self._held = kept


def frames_across(sample: int, n_fft: int, hop: int) -> int:
    """How many frames see samples of both sides of a boundary, from the one on whose new sample `sample` it lies at."""
    return -(-(sample + n_fft) // hop) - 1


def frame_groups(time_steps: int, window_hop: int, warmup: int, hop_s: float) -> tuple[int, int]:
    """Frames that a live stream may hand on at once without a window waiting for frames that it does not need.

    `warmup`: frames before the first window. Returns how many, and how many come before the first group, fewer than it.
    A group is at most an eighth of a window and `GROUP_S`: what the one that ends a window costs is what its fix waits
    for.
    """
    most = max(min(time_steps / 8.0, GROUP_S / hop_s), 1.0)
    group = max(size for size in range(1, window_hop + 1) if window_hop % size == 0 and size <= most)
    return group, (warmup + time_steps) % group


@dataclass(frozen=True)
class Framing:
    """How a contract's frames lie in time; worked out once, for contracts do so each time they are asked."""

    n_fft: int
    hop: int
    sample_rate_hz: float

    @classmethod
    def of(cls, contract: Contract) -> Framing:
        return cls(contract.n_fft, contract.hop, contract.sample_rate_hz)

    def centre(self, start: tuple[int, float], time_steps: int) -> datetime:
        """Middle of all samples that a window of `time_steps` frames has seen.

        `start`: time of the first sample of its first hop, whole seconds since 1970 and the rest; frames reach before
        it.
        """
        half_s = (time_steps * self.hop - (self.n_fft - self.hop)) / 2.0 / self.sample_rate_hz
        # Frames reach before the start: with a clock that begins at 0, to before there was time.
        return max(EPOCH + timedelta(seconds=start[0], microseconds=(start[1] + half_s) * 1e6), EPOCH)
