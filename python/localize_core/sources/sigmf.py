"""SigMF recordings: samples of any complex type beside JSON that says their rate, tuning and times.

Times are those of `core:datetime` in the recording's captures. A capture that begins later than the samples before
it say is a gap; how exactly times are known is how many digits they are written with. Format: sigmf.org, 1.2.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import re
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import MissingExtraError, SourceError
from localize_core.sources.recording import Gap

SUFFIXES = (".sigmf-meta", ".sigmf-data", ".sigmf", ".sigmf.gz", ".sigmf.xz", ".sigmf.zip")
CHECKED_BYTES = 64 << 20
"""Up to this much data is held against its checksum when it is opened: a fraction of a second."""

CUT_OFF = "cut off, its data are no whole number of samples of all channels"

_DATATYPE = re.compile(r"c([fiu](32|16)|f64)_[lb]e|c[iu]8(_[lb]e)?")
_DATATYPES = "cf32, cf64, ci16, ci32, cu16, cu32, each with _le or _be, ci8, cu8"
_DATETIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?")


@dataclass(frozen=True)
class Segment:
    """Sample `first` was taken at `seconds` since 1970 and `fraction`, those after it at the pace of the rate."""

    first: int
    seconds: int
    fraction: float


@dataclass(frozen=True)
class SigmfRecording:
    """One channel of a recording; samples are read from the file when they are asked for.

    Sample n of a segment was taken (n - first) / `sample_rate_hz` after the segment's time; without segments no time
    is known. `time_error_ns`: standard deviation of times that are rounded as those of the file are.
    """

    path: Path
    channel: int
    sample_rate_hz: float
    segments: tuple[Segment, ...]
    gaps: tuple[Gap, ...]
    tunings: tuple[tuple[int, float], ...]
    time_error_ns: float
    _file: Any

    def __len__(self) -> int:
        return int(self._file.sample_count)

    @property
    def start_time(self) -> tuple[int, float] | None:
        """Whole UTC seconds since 1970 and the fraction, of sample 0; None where no capture says a time."""
        return self.time(0) if self.segments else None

    @property
    def time_valid(self) -> bool:
        return bool(self.segments)

    @property
    def duration_s(self) -> float:
        """From the first sample to just after the last, gaps included."""
        if not self.segments:
            return len(self) / self.sample_rate_hz
        (start_s, start), (end_s, end) = self.time(0), self.time(len(self))
        return end_s - start_s + end - start

    def time(self, index: int) -> tuple[int, float]:
        """Whole seconds and fraction of sample `index`. Raises SourceError where no capture says a time."""
        if not self.segments:
            raise SourceError(f"{self.path}: no capture has core:datetime, so its times are not known")
        return _time(self.segments, index, self.sample_rate_hz)

    def read(self, first: int, count: int) -> NDArray[np.complex64]:
        """Samples [first, first + count), fewer at the end; full scale 1.

        Raises SourceError if the file can no longer be read.
        """
        count = min(count, len(self) - first)
        if count <= 0:
            return np.empty(0, np.complex64)
        try:
            samples = self._file.read_samples(first, count)
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if samples.ndim == 2:
            samples = samples[:, self.channel]
        if len(samples) < count:
            raise SourceError(f"{self.path}: has become shorter while it was read")
        return np.ascontiguousarray(samples, np.complex64)


def read_sigmf(path: str | Path, *, channel: int = 0) -> SigmfRecording:
    """Open a SigMF recording: either of its two files, or an archive of them (`.sigmf`, also compressed).

    `channel`: which of the interleaved streams. Compressed archives are held in memory, everything else stays on disk.
    Raises SourceError, naming the file, if it cannot be read or lacks what is needed, MissingExtraError without the
    library that reads it.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise SourceError(f"{path}: no SigMF recording, whose name ends in {', '.join(SUFFIXES)}")
    file = _open(path)
    fields = file.get_global_info()
    rate_hz = _number(path, fields, "core:sample_rate")
    if rate_hz is None:
        raise SourceError(f"{path}: no core:sample_rate")
    if rate_hz <= 0.0:
        raise SourceError(f"{path}: core:sample_rate={rate_hz:g}: must be above 0")
    if not 0 <= channel < file.num_channels:
        raise SourceError(f"{path}: channel={channel}: it has {file.num_channels}, counted from 0")
    _check_data(path, file)
    captures = _captures(path, file)
    segments, gaps, digits = _time_line(path, captures, rate_hz)
    return SigmfRecording(
        path=path,
        channel=channel,
        sample_rate_hz=rate_hz,
        segments=segments,
        gaps=gaps,
        tunings=tuple(
            (first, frequency_hz)
            for first, capture in captures
            if (frequency_hz := _number(path, capture, "core:frequency")) is not None
        ),
        time_error_ns=10.0 ** (9 - digits) / math.sqrt(12.0) if segments else 0.0,
        _file=file,
    )


def _open(path: Path) -> Any:
    """The recording as the library has it, of a data type that can be read."""
    try:
        import sigmf
    except ImportError as error:
        raise MissingExtraError("reading SigMF recordings", "sigmf") from error
    if not path.is_file():
        raise SourceError(f"{path}: cannot be read: No such file or directory")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is checked here
            file = sigmf.fromfile(path, skip_checksum=True)
            datatype = file.get_global_info().get("core:datatype")
    except ValueError as error:
        if "reshape" in str(error):  # by channels and by I and Q, when the data are mapped
            raise SourceError(f"{path}: {CUT_OFF}") from error
        raise SourceError(f"{path}: no readable SigMF recording: {_first_line(error)}") from error
    except Exception as error:  # the library lets a dozen unrelated types through: the file is no good
        raise SourceError(f"{path}: no readable SigMF recording: {_first_line(error)}") from error
    if not isinstance(datatype, str) or not _DATATYPE.fullmatch(datatype):
        raise SourceError(f"{path}: core:datatype={datatype!r}: cannot be read, only {_DATATYPES}")
    if file.data_file is None and file.data_buffer is None:
        raise SourceError(f"{path}: its samples, {path.with_suffix('.sigmf-data').name}, are not there")
    return file


def _check_data(path: Path, file: Any) -> None:
    """Raise SourceError where the data are cut off, changed, or not samples alone."""
    headers = any(capture.get("core:header_bytes") for capture in file.get_captures())
    if headers or file.get_global_info().get("core:trailing_bytes"):
        raise SourceError(
            f"{path}: core:header_bytes or core:trailing_bytes: files with more than samples are not read"
        )
    size = file.data_size_bytes  # known of archives
    if size is None:
        size = file.data_file.stat().st_size
    if size % (file.get_sample_size() * file.num_channels):
        raise SourceError(f"{path}: {CUT_OFF}")
    if file.sample_count == 0:
        raise SourceError(f"{path}: no samples")
    told = file.get_global_info().get("core:sha512")
    if told is not None and size <= CHECKED_BYTES and _sha512(file, size) != told:
        raise SourceError(f"{path}: its data are not those that core:sha512 was made of: cut off or changed")


def _sha512(file: Any, size: int) -> str:
    if file.data_file is None:
        return hashlib.sha512(file.data_buffer.getbuffer()[file.data_offset : file.data_offset + size]).hexdigest()
    with file.data_file.open("rb") as data:
        data.seek(file.data_offset)
        return hashlib.sha512(data.read(size)).hexdigest()


def _captures(path: Path, file: Any) -> list[tuple[int, dict[str, Any]]]:
    """First sample of each capture, counted from the file's first, and what it says."""
    offset = file.get_global_info().get("core:offset", 0)
    found: list[tuple[int, dict[str, Any]]] = []
    for capture in file.get_captures():
        start = capture.get("core:sample_start")
        if not isinstance(start, int) or start < (found[-1][0] + offset + 1 if found else offset):
            raise SourceError(f"{path}: core:sample_start={start!r}: captures must begin one after the other")
        if start - offset >= file.sample_count:
            raise SourceError(
                f"{path}: cut off, its data end after {file.sample_count} samples, a capture begins at {start - offset}"
            )
        found.append((start - offset, capture))
    return found


def _time_line(
    path: Path, captures: list[tuple[int, dict[str, Any]]], rate_hz: float
) -> tuple[tuple[Segment, ...], tuple[Gap, ...], int]:
    """Segments between which samples were lost, the gaps, and the most digits that a fraction of a second has."""
    times = [(first, *_datetime(path, c["core:datetime"])) for first, c in captures if c.get("core:datetime")]
    if not times:
        return (), (), 0
    # A fraction that ends in zeros may be written shorter.
    digits = max(digits for *_, digits in times)
    # Rounded times say no more than this of what lies between two of them.
    slack = max(10.0**-digits * rate_hz, 0.01)
    segments = [Segment(*times[0][:3])]
    gaps = []
    for first, seconds, fraction, _ in times[1:]:
        due_s, due = _time(segments, first, rate_hz)
        missing = (seconds - due_s + fraction - due) * rate_hz
        lost = round(missing)
        if missing < -slack:
            raise SourceError(
                f"{path}: the capture at sample {first} begins {-missing / rate_hz:.6g} s before the previous one ends"
            )
        if abs(missing) <= slack:
            continue
        if abs(missing - lost) <= slack:  # whole samples, as receivers lose them
            carry, fraction = divmod(due + lost / rate_hz, 1.0)
            seconds = due_s + int(carry)
        segments.append(Segment(first, seconds, fraction))
        gaps.append(Gap(first, lost))
    return tuple(segments), tuple(gaps), digits


def _time(segments: list[Segment] | tuple[Segment, ...], index: int, rate_hz: float) -> tuple[int, float]:
    segment = segments[max(bisect.bisect_right(segments, index, key=lambda each: each.first) - 1, 0)]
    carry, fraction = divmod(segment.fraction + (index - segment.first) / rate_hz, 1.0)
    return segment.seconds + int(carry), fraction


def _datetime(path: Path, text: Any) -> tuple[int, float, int]:
    """Whole seconds since 1970, fraction, and its number of digits. SigMF wants UTC; another zone is believed."""
    match = _DATETIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if match is None:
            raise ValueError
        moment = datetime.strptime(match[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        raise SourceError(f"{path}: core:datetime={text!r}: wanted a time like 2026-01-02T03:04:05.678901Z") from None
    zone = match[3] or "Z"
    if zone != "Z":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:]))
        moment -= offset if zone[0] == "+" else -offset
    digits = match[2] or ""
    return int(moment.timestamp()), float(f"0.{digits or 0}"), len(digits)


def _number(path: Path, fields: dict[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f"{path}: {key}={value!r}: must be a finite number")
    return float(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
