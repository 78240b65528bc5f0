"""SigMF recordings: samples of any complex type beside JSON that says their rate, tuning and times.

Times are those of `core:datetime` in the recording's captures. A capture that begins later than the samples before
it say is a gap; how exactly times are known is how many digits they are written with. Format: sigmf.org, 1.2.

A recording may have several parts, which are read as one. What this project's recorder wrote holds the tags of the
stream that was recorded; such a recording may also be unfinished.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import MissingExtraError, SourceError
from localize_core.sources.recording import Gap, Mark
from localize_core.sources.sigmf_marks import NAMESPACE, STREAM, gaps_of, marks_of_parts

COLLECTION = ".sigmf-collection"
META = ".sigmf-meta"
SUFFIXES = (META, ".sigmf-data", ".sigmf", ".sigmf.gz", ".sigmf.xz", ".sigmf.zip")
CHECKED_BYTES = 64 << 20
"""Up to this much data is held against its checksum when a recording is opened: a fraction of a second."""

CUT_OFF = "cut off, its data are no whole number of samples of all channels"

_DATATYPE = re.compile(r"c([fiu](32|16)|f64)_[lb]e|c[iu]8(_[lb]e)?")
_DATATYPES = "cf32, cf64, ci16, ci32, cu16, cu32, each with _le or _be, ci8, cu8"
_NUMBERED = re.compile(r"(.+)-(\d+)")
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
    is known. `time_error_ns`: standard deviation of times that are rounded as those of the file are, or what the
    recorded stream said of its times. `marks`: the tags of the recorded stream, None where the file holds none.
    """

    path: Path
    channel: int
    sample_rate_hz: float
    segments: tuple[Segment, ...]
    gaps: tuple[Gap, ...]
    tunings: tuple[tuple[int, float], ...]
    time_error_ns: float
    marks: tuple[Mark, ...] | None
    _samples: _Samples

    def __len__(self) -> int:
        return self._samples.count

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
        return self._samples.read(first, count, self.channel)


@dataclass(frozen=True)
class _Part:
    """One SigMF recording of those that follow each other. `file`: as the library has it, None without samples."""

    path: Path
    fields: dict[str, Any]
    captures: list[tuple[int, dict[str, Any]]]
    count: int
    rate_hz: float
    file: Any

    @property
    def is_ours(self) -> bool:
        """Whether it holds the tags of its stream."""
        return STREAM in self.fields


class _Samples:
    """Samples of parts that follow each other. Of many, only the file that was read last is open."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._paths = [part.path for part in parts]
        self.starts: list[int] = [0, *np.cumsum([part.count for part in parts]).tolist()]
        self.count = self.starts.pop()
        self._open = 0, parts[0].file

    def read(self, first: int, count: int, channel: int) -> NDArray[np.complex64]:
        count = min(count, self.count - first)
        if count <= 0:
            return np.empty(0, np.complex64)
        pieces = []
        while count > 0:
            number = bisect.bisect_right(self.starts, first) - 1
            end = self.starts[number + 1] if number + 1 < len(self.starts) else self.count
            size = min(count, end - first)
            pieces.append(self._piece(number, first - self.starts[number], size, channel))
            first, count = first + size, count - size
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _piece(self, number: int, first: int, count: int, channel: int) -> NDArray[np.complex64]:
        path = self._paths[number]
        if self._open[0] != number:
            self._open = number, _open(path)
        try:
            samples = self._open[1].read_samples(first, count)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
        if samples.ndim == 2:
            samples = samples[:, channel]
        if len(samples) < count:
            raise SourceError(f"{path}: has become shorter while it was read")
        return np.ascontiguousarray(samples, np.complex64)


def read_sigmf(path: str | Path, *, channel: int = 0, stream: str = "") -> SigmfRecording:
    """Open a SigMF recording: either of its two files, or an archive of them (`.sigmf`, also compressed).

    `path` may also be a pattern (`north-*.sigmf-meta`) or a collection (`.sigmf-collection`) whose recordings follow
    each other, in the order of their names; `stream`: which of a collection's, by its name without the part's number.
    With a part that this project recorded, those after it are read as well.

    `channel`: which of the interleaved streams. Compressed archives are held in memory, everything else stays on disk.
    Raises SourceError, naming the file, if it cannot be read or lacks what is needed, MissingExtraError without the
    library that reads it.
    """
    path = Path(path)
    parts: list[_Part] = []
    unchecked = CHECKED_BYTES
    for each in _paths(path, stream):
        part = _read_part(each, channel, unchecked)
        unchecked -= part.count * (0 if part.file is None else part.file.get_sample_size() * part.file.num_channels)
        if parts:
            _check_joins(parts[0], part)
        # One file stays open, as an archive in memory has to.
        parts.append(part if not parts else replace(part, file=None))
    whole, samples = parts[0], _Samples(parts)
    if whole.is_ours:
        places = zip(parts, samples.starts, strict=True)
        marks = marks_of_parts([(part.path, start, part.count, part.captures) for part, start in places])
        errors_s = [mark.time_error_s for mark in marks if mark.time_error_s is not None]
        return SigmfRecording(
            path=path,
            channel=channel,
            sample_rate_hz=whole.rate_hz,
            segments=tuple(Segment(mark.index, *mark.rx_time) for mark in marks if mark.rx_time is not None),
            gaps=gaps_of(marks, whole.rate_hz),
            tunings=tuple((mark.index, mark.rx_freq_hz) for mark in marks if mark.rx_freq_hz is not None),
            time_error_ns=max(errors_s, default=0.0) * 1e9,
            marks=marks,
            _samples=samples,
        )
    captures = [
        (start + first, capture)
        for part, start in zip(parts, samples.starts, strict=True)
        for first, capture in part.captures
    ]
    segments, gaps, digits = _time_line(path, captures, whole.rate_hz)
    return SigmfRecording(
        path=path,
        channel=channel,
        sample_rate_hz=whole.rate_hz,
        segments=segments,
        gaps=gaps,
        tunings=tuple(
            (first, frequency_hz)
            for first, capture in captures
            if (frequency_hz := _number(path, capture, "core:frequency")) is not None
        ),
        time_error_ns=10.0 ** (9 - digits) / math.sqrt(12.0) if segments else 0.0,
        marks=None,
        _samples=samples,
    )


def _paths(path: Path, stream: str) -> list[Path]:
    """The recordings that `path` stands for, in order."""
    if path.name.endswith(COLLECTION):
        return _of_collection(path, stream)
    if stream:
        raise SourceError(f"{path}: stream={stream!r}: only a collection, *{COLLECTION}, has streams")
    if not path.name.endswith(SUFFIXES):
        raise SourceError(f"{path}: no SigMF recording, whose name ends in {', '.join((*SUFFIXES, COLLECTION))}")
    if not path.exists() and any(letter in path.name for letter in "*?["):
        found = sorted(path.parent.glob(path.name), key=lambda each: _natural(each.name))
        if not found:
            raise SourceError(f"{path}: no file has such a name")
        return found
    return [path, *_following(path)]


def _following(path: Path) -> list[Path]:
    """The parts after one that this project recorded."""
    meta = path.with_suffix(META)
    stream = _stream(meta)
    found: list[Path] = []
    name = _NUMBERED.fullmatch(meta.with_suffix("").name)
    if stream is None or name is None:
        return []
    for number in itertools.count(int(name[2]) + 1):
        following = meta.with_name(f"{name[1]}-{number:0{len(name[2])}d}{META}")
        if _stream(following) != stream:
            return found
        found.append(following)
    raise AssertionError


def _stream(meta: Path) -> str | None:
    """What the parts of a recording of ours share; None for others."""
    try:
        fields = json.loads(meta.read_text(encoding="utf-8"))["global"]
        return fields.get(STREAM)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _of_collection(path: Path, stream: str) -> list[Path]:
    try:
        streams = json.loads(path.read_text(encoding="utf-8"))["collection"]["core:streams"]
        names = [str(each["name"]) for each in streams]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path}: no readable SigMF collection: {_first_line(error)}") from error
    bases = {name: named[1] if (named := _NUMBERED.fullmatch(name)) else name for name in names}
    known = sorted(set(bases.values()))
    if not stream and len(known) == 1:
        stream = known[0]
    found = [path.parent / f"{name}{META}" for name in sorted(names, key=_natural) if stream in (name, bases[name])]
    if not found:
        said = f"stream={stream!r}: no such stream; it has" if stream else "stream has to name one of its streams:"
        raise SourceError(f"{path}: {said} {', '.join(known)}")
    return [*found, *_following(found[-1])]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with their numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _check_joins(whole: _Part, part: _Part) -> None:
    """Raise SourceError where a part is no sequel of the first."""
    for key in (STREAM, f"{NAMESPACE}:receiver", "core:datatype"):
        if part.fields.get(key) != whole.fields.get(key):
            raise SourceError(
                f"{part.path}: does not follow {whole.path.name}: {key} is {part.fields.get(key)!r} and "
                f"{whole.fields.get(key)!r}"
            )
    if not whole.is_ours and part.rate_hz != whole.rate_hz:
        raise SourceError(
            f"{part.path}: does not follow {whole.path.name}: core:sample_rate is {part.rate_hz:g} and "
            f"{whole.rate_hz:g}"
        )


def _read_part(path: Path, channel: int, checked_bytes: int) -> _Part:
    """One recording, held against its checksum where it is no larger than that."""
    file = _open(path)
    fields = file.get_global_info()
    rate_hz = _number(path, fields, "core:sample_rate")
    if rate_hz is None:
        raise SourceError(f"{path}: no core:sample_rate")
    if rate_hz <= 0.0:
        raise SourceError(f"{path}: core:sample_rate={rate_hz:g}: must be above 0")
    if not 0 <= channel < file.num_channels:
        raise SourceError(f"{path}: channel={channel}: it has {file.num_channels}, counted from 0")
    if STREAM in fields and file.sample_count == 0:
        return _Part(path, fields, [], 0, rate_hz, None)
    _check_data(path, file, checked_bytes)
    return _Part(path, fields, _captures(path, file), int(file.sample_count), rate_hz, file)


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
            file = _unfinished(sigmf, path)
            if file is None:
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
    if file.data_file is None and file.data_buffer is None and STREAM not in file.get_global_info():
        raise SourceError(f"{path}: its samples, {path.with_suffix('.sigmf-data').name}, are not there")
    return file


def _unfinished(sigmf: Any, path: Path) -> Any | None:
    """A part that this project began to record, with the whole samples that there are; None for all others.

    The library would map what may be a part of a sample, or nothing at all.
    """
    meta, data = path.with_suffix(META), path.with_suffix(".sigmf-data")
    if _stream(meta) is None:
        return None
    metadata = json.loads(meta.read_text(encoding="utf-8"))
    if "core:sha512" in metadata["global"]:
        return None
    file = sigmf.SigMFFile(metadata=metadata)
    if not data.exists() or metadata["global"].get("core:metadata_only"):
        return file
    size = file.get_sample_size() * file.num_channels
    if whole := data.stat().st_size // size * size:
        file.set_data_file(data, skip_checksum=True, size_bytes=whole)
    return file


def _check_data(path: Path, file: Any, checked_bytes: int) -> None:
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
    if told is not None and size <= checked_bytes and _sha512(file, size) != told:
        raise SourceError(f"{path}: its data are not those that core:sha512 was made of: cut off or changed")


def _sha512(file: Any, size: int) -> str:
    if file.data_file is None:
        return hashlib.sha512(file.data_buffer.getbuffer()[file.data_offset : file.data_offset + size]).hexdigest()
    with file.data_file.open("rb") as data:
        data.seek(file.data_offset)
        return hashlib.sha512(data.read(size)).hexdigest()


def _captures(path: Path, file: Any) -> list[tuple[int, dict[str, Any]]]:
    """First sample of each capture, counted from the file's first, and what it says."""
    fields = file.get_global_info()
    offset = fields.get("core:offset", 0)
    found: list[tuple[int, dict[str, Any]]] = []
    for capture in file.get_captures():
        start = capture.get("core:sample_start")
        if not isinstance(start, int) or start < (found[-1][0] + offset + 1 if found else offset):
            raise SourceError(f"{path}: core:sample_start={start!r}: captures must begin one after the other")
        if start - offset >= file.sample_count:
            if STREAM in fields and "core:sha512" not in fields:
                break  # it was told of before its samples came
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
