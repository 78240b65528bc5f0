"""KiwiSDR IQ recordings: RIFF/WAVE files whose blocks of samples each carry a GNSS time stamp.

Every `data` chunk (usually 512 samples, 16-bit I and Q interleaved) follows a `kiwi` chunk: u8 seconds since the
last GNSS fix, u8 unused, u32 GPS second of week, u32 nanosecond, little-endian: the time of its first sample.
The header's rate is rounded, and single stamps can be stale, zero or wrong: the true rate and the start are
fitted to all stamps.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.clock import ClockFit, fit_clock
from localize_core.errors import SourceError
from localize_core.sources.recording import Gap

GPS_EPOCH_S = 315_964_800
"""1980-01-06 in UTC seconds since 1970."""
GPS_MINUS_UTC_S = 18
"""Leap seconds since 2017-01-01; KiwiSDRs write time stamps since 2017."""
WEEK_S = 604_800

_NAME = re.compile(r"^(\d{8}T\d{6})Z_(\d+)_")
_MAX_RATE_ERROR = 5e-4
_MIN_AGREEMENT = 0.1
_TOLERANCES_S = (20e-6, 100e-6, 500e-6, 2e-3)
_MOST = 0.8


@dataclass(frozen=True)
class KiwiRecording:
    """A recording and its time line: sample n was taken `position(n) / sample_rate_hz` after `start_time`.

    `samples`: complex64, full scale 1. `sample_rate_hz`: the true rate, or the header's where the time is not valid.
    `start_time`: whole UTC seconds since 1970 and the fraction, of sample 0; None where no stamps agree; seconds
    since the start of an unknown GPS week where the file's name holds no date (`date_known`). `stamp_residual_ns`:
    standard deviation of the stamps used about the line, `time_error_ns`: largest standard error of the line
    itself, both 0 without time. `frequency_hz`: from the file's name, or None.
    """

    path: Path
    samples: NDArray[np.complex64]
    header_rate_hz: float
    sample_rate_hz: float
    start_time: tuple[int, float] | None
    date_known: bool
    stamp_residual_ns: float
    time_error_ns: float
    stamps_used: int
    stamps_rejected: int
    gaps: tuple[Gap, ...]
    frequency_hz: float | None

    @property
    def time_valid(self) -> bool:
        return self.start_time is not None

    @property
    def tunings(self) -> tuple[tuple[int, float], ...]:
        """The frequency that the file's name says, from sample 0 on."""
        return () if self.frequency_hz is None else ((0, self.frequency_hz),)

    @property
    def marks(self) -> None:
        """The stamps are noisy: their line counts."""
        return None

    @property
    def duration_s(self) -> float:
        """From the first sample to just after the last, gaps included."""
        return (len(self.samples) + sum(gap.missing for gap in self.gaps)) / self.sample_rate_hz

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, first: int, count: int) -> NDArray[np.complex64]:
        """Samples [first, first + count), fewer at the end."""
        return self.samples[first : first + count]

    def position(self, index: int) -> int:
        """Place of sample `index` in a stream without gaps, samples."""
        return index + sum(gap.missing for gap in self.gaps if gap.index <= index)

    def time(self, index: int) -> tuple[int, float]:
        """Whole seconds and fraction of sample `index`. Raises SourceError where the time is not valid."""
        if self.start_time is None:
            raise SourceError(f"{self.path}: its time stamps are not valid")
        seconds, fraction = self.start_time
        whole, rest = divmod(fraction + self.position(index) / self.sample_rate_hz, 1.0)
        return seconds + int(whole), rest


@dataclass(frozen=True)
class _Stamps:
    """Time stamps as they stand in the file."""

    index: NDArray[np.int64]
    age_s: NDArray[np.int64]
    second_of_week: NDArray[np.int64]
    nanosecond: NDArray[np.int64]


def read_kiwi_wav(path: str | Path, *, max_fix_age_s: int = 120) -> KiwiRecording:
    """Read a KiwiSDR IQ recording.

    Stamps taken more than `max_fix_age_s` after the last GNSS fix are not used. A file whose stamps do not agree
    is read without time (`start_time` None). Raises SourceError if the file cannot be read or is no such recording.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    header_rate_hz, samples, stamps, block = _parse(path, content)
    name = _NAME.match(path.name)
    frequency_hz = float(name[2]) if name else None
    named_s = _utc_s(path, name[1]) if name else None

    usable = (
        (stamps.age_s <= max_fix_age_s)
        & ((stamps.second_of_week > 0) | (stamps.nanosecond > 0))
        & (stamps.second_of_week < WEEK_S)
        & (stamps.nanosecond < 1_000_000_000)
    )
    fit, base_s = None, 0
    gaps: tuple[Gap, ...] = ()
    if usable.any():
        index = stamps.index[usable]
        seconds = stamps.second_of_week[usable]
        if named_s is None:
            base_s = int(seconds[0])
        else:
            base_s = _nearest_week(int(seconds[0]), named_s + GPS_MINUS_UTC_S - GPS_EPOCH_S)
        # A week has no order across its end: the shorter way round is meant.
        whole = (seconds - base_s + WEEK_S // 2) % WEEK_S - WEEK_S // 2
        fit, gaps = _time_line(index, whole + stamps.nanosecond[usable] * 1e-9, header_rate_hz, block)
    if fit is None:
        return KiwiRecording(
            path=path,
            samples=samples,
            header_rate_hz=header_rate_hz,
            sample_rate_hz=header_rate_hz,
            start_time=None,
            date_known=False,
            stamp_residual_ns=0.0,
            time_error_ns=0.0,
            stamps_used=0,
            stamps_rejected=len(stamps.index),
            gaps=(),
            frequency_hz=frequency_hz,
        )
    if named_s is not None:
        base_s += GPS_EPOCH_S - GPS_MINUS_UTC_S
    whole_s = math.floor(fit.offset_s)
    return KiwiRecording(
        path=path,
        samples=samples,
        header_rate_hz=header_rate_hz,
        sample_rate_hz=fit.rate_hz,
        start_time=(base_s + whole_s, fit.offset_s - whole_s),
        date_known=named_s is not None,
        stamp_residual_ns=fit.scatter_s * 1e9,
        time_error_ns=fit.standard_error_s * 1e9,
        stamps_used=fit.used,
        stamps_rejected=len(stamps.index) - fit.used,
        gaps=gaps,
        frequency_hz=frequency_hz,
    )


def _parse(path: Path, content: bytes) -> tuple[float, NDArray[np.complex64], _Stamps, int]:
    """Header rate, samples, stamps and the usual number of samples in a block."""
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise SourceError(f"{path}: no RIFF/WAVE file")
    rate_hz = None
    blocks: list[bytes] = []
    stamps: list[tuple[int, int, int, int]] = []
    count, offset = 0, 12
    while offset + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, offset)
        body = content[offset + 8 : offset + 8 + size]
        if kind == b"fmt " and len(body) >= 16:
            _, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if (channels, bits) != (2, 16):
                raise SourceError(f"{path}: {channels} channels of {bits} bits; an IQ recording has 2 of 16")
        elif kind == b"kiwi" and len(body) >= 10:
            age, _, second, nanosecond = struct.unpack_from("<BBII", body)
            stamps.append((count, age, second, nanosecond))
        elif kind == b"data":
            blocks.append(body[: len(body) // 4 * 4])
            count += len(blocks[-1]) // 4
        offset += 8 + size + size % 2
    if rate_hz is None:
        raise SourceError(f"{path}: no fmt chunk, so no sample rate")
    if not stamps:
        raise SourceError(f"{path}: no kiwi chunks, so it is no KiwiSDR IQ recording (kiwirecorder --modulation=iq)")
    if count == 0:
        raise SourceError(f"{path}: no samples")
    raw = np.frombuffer(b"".join(blocks), dtype="<i2")
    samples = (raw.astype(np.float32) / np.float32(32768.0)).view(np.complex64)
    # A stamp at the very end, its block cut off, or one that another follows at once, belongs to no sample.
    last = {stamp[0]: stamp for stamp in stamps if stamp[0] < count}
    columns = np.array(list(last.values()), dtype=np.int64).reshape(-1, 4).T
    sizes = np.array([len(block) // 4 for block in blocks])
    return float(rate_hz), samples, _Stamps(*columns), int(np.median(sizes))


def _time_line(
    index: NDArray[np.int64], time_s: NDArray[np.float64], header_rate_hz: float, block: int
) -> tuple[ClockFit | None, tuple[Gap, ...]]:
    """The line of time against sample and the gaps in it; lost samples are whole blocks, so lines are."""
    nominal_hz = _nominal_rate_hz(index, time_s, header_rate_hz)
    fits = [
        (tolerance_s, fit)
        for tolerance_s in _TOLERANCES_S
        if (
            fit := fit_clock(
                index, time_s, nominal_hz, tolerance_s=tolerance_s, max_rate_error=_MAX_RATE_ERROR, step_unit=block
            )
        )
    ]
    if not fits:
        return None, ()
    # Stamps of some receivers jitter: the closest agreement counts that has most of those that agree at all.
    most = max(fit.used for _, fit in fits)
    tolerance_s, rough = next((t, fit) for t, fit in fits if fit.used >= _MOST * most)
    gaps = tuple(Gap(step.index, round(step.seconds * rough.rate_hz / block) * block) for step in rough.steps)
    if not gaps:
        return rough, ()
    lost = np.zeros_like(index)
    for gap in gaps:
        lost[index >= gap.index] += gap.missing
    good = rough.inliers
    fit = fit_clock(
        (index + lost)[good], time_s[good], nominal_hz, tolerance_s=tolerance_s, max_rate_error=_MAX_RATE_ERROR
    )
    return fit, gaps


def _nominal_rate_hz(index: NDArray[np.int64], time_s: NDArray[np.float64], header_rate_hz: float) -> float:
    """The rate that most neighbouring stamps say, to 0.1 %; the header's where hardly any two agree."""
    with np.errstate(divide="ignore"):
        rates = np.sort(np.diff(index) / np.diff(time_s))
    rates = rates[np.isfinite(rates) & (rates > 0.0)]
    if len(rates) == 0:
        return header_rate_hz
    reach = np.searchsorted(rates, rates * 1.001, side="right") - np.arange(len(rates))
    at = int(np.argmax(reach))
    if reach[at] < max(3.0, _MIN_AGREEMENT * len(index)):
        return header_rate_hz
    return float(np.median(rates[at : at + reach[at]]))


def _nearest_week(second_of_week: int, gps_s: int) -> int:
    """The GPS second with this second of week that lies nearest to `gps_s`."""
    return second_of_week + round((gps_s - second_of_week) / WEEK_S) * WEEK_S


def _utc_s(path: Path, text: str) -> int | None:
    try:
        return int(datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc).timestamp())
    except ValueError:
        return None
