"""One receiver's samples as a SigMF recording in parts that can be read up to the last flush, whatever happens.

Order keeps a part whole: samples are written first, then the metadata that tell of them, put into the place of the old
ones by a rename. Only what breaks the line of time or the tuning is told before the samples after it are written: a
reader that finds samples which were not flushed yet knows them for what they are.

Each tag of the stream begins a capture, which holds it exactly under the namespace `localize`; docs/recording.md.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localize_core import __version__
from localize_core.errors import ConfigError
from localize_core.sources.recording import Mark
from localize_core.sources.sigmf_marks import HOLDS, NAMESPACE, STREAM
from localize_core.types.time import seconds_between, shift_time

EXTENSION_VERSION = "1.0.0"
SIGMF_VERSION = "1.2.0"
SAMPLE_BYTES = {"cf32_le": 8, "ci16_le": 4, "ci8": 2}
FULL_SCALE = {"ci16_le": 32768, "ci8": 128}
"""What amplitude 1 is written as; cf32_le holds the samples as they are."""
MAX_CAPTURES = 1000
"""In a part: all of its metadata are written anew at each flush."""
BREAK_SAMPLES = 0.1
"""An `rx_time` so far off the line of those before it tells of lost samples."""
PART_BYTES = 1 << 30
MIN_PART_BYTES = 4096
MIN_FREE_BYTES = 1 << 28


@dataclass(frozen=True)
class About:
    """What a recording says of itself. `latitude`, `longitude`: WGS84 degrees; `frequency_hz`: until a tag says it."""

    receiver: str
    sample_rate_hz: float
    frequency_hz: float | None = None
    latitude: float | None = None
    longitude: float | None = None
    altitude_m: float = 0.0
    hardware: str = ""
    description: str = ""
    author: str = ""
    collection: str = ""


@dataclass(frozen=True)
class Limits:
    """When a part ends and an old one goes: each limit is for one receiver, None for none.

    `max_bytes`, `max_parts`: of all parts together, the one that is being written among them, but for its metadata.
    `min_free_bytes`: what stays free on the disk. Raises ConfigError for limits that cannot be kept.
    """

    max_part_bytes: int = PART_BYTES
    max_part_s: float | None = None
    max_bytes: int | None = None
    max_parts: int | None = None
    min_free_bytes: int = MIN_FREE_BYTES

    def __post_init__(self) -> None:
        if self.max_part_bytes < MIN_PART_BYTES:
            raise ConfigError(f"max_part_bytes={self.max_part_bytes}: wanted at least {MIN_PART_BYTES}")
        if self.max_part_s is not None and not self.max_part_s > 0.0:
            raise ConfigError(f"max_part_s={self.max_part_s}: wanted more than 0")
        if self.max_bytes is not None and self.max_bytes < 2 * self.max_part_bytes:
            raise ConfigError(
                f"max_bytes={self.max_bytes}: holds no two parts of max_part_bytes={self.max_part_bytes}, so the "
                "oldest could not go before the next is whole"
            )
        if self.max_parts is not None and self.max_parts < 2:
            raise ConfigError(f"max_parts={self.max_parts}: wanted at least 2, one whole and one being written")
        if self.min_free_bytes < 0:
            raise ConfigError(f"min_free_bytes={self.min_free_bytes}: wanted 0 or more")


@dataclass
class _Part:
    """A part that is being written."""

    number: int
    data: Path
    descriptor: int
    rate_hz: float
    samples: int = 0
    captures: list[str] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha512)
    told: int = 0
    """Captures of which a power cut takes none away any more."""


class SigmfWriter:
    """Writes one stream to `folder`, as NAME-0001.sigmf-meta and .sigmf-data, NAME-0002 and so on.

    `datatype`: cf32_le is exact, ci16_le and ci8 take amplitude 1 for 32768 and 128, round, and clip (`clipped`
    counts). `flush_s`: from one flush to the next while samples come. `stream`: what the parts of one recording share.
    `on_part`: told of a part that is whole, and of one that went. Parts that the folder has already stay: numbers go on
    after theirs. But `earlier`, metadata of whole parts wherever they are, oldest first, count for the limits like its
    own, and go before them. Nothing here is for several threads.

    Raises ConfigError for a datatype or time that cannot be, OSError where the first file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        about: About,
        *,
        stream: str,
        datatype: str = "cf32_le",
        flush_s: float = 1.0,
        limits: Limits | None = None,
        earlier: Sequence[Path] = (),
        on_part: Callable[[], None] = lambda: None,
    ) -> None:
        self.check(datatype, flush_s)
        self.name, self.about = name, about
        self.index = self.recorded = self.flushed = self.clipped = 0
        self.begun = self.removed = 0
        """Parts that were begun, and that had to go, those of `earlier` too."""
        self.seen_free: tuple[float, int] | None = None
        """When it was last looked at (monotonic, s), and how many bytes of the disk were free."""
        self.parts = list(earlier)
        """Metadata of the parts that are whole, oldest first."""
        self._folder, self._stream, self._datatype = folder, stream, datatype
        self._flush_s, self._limits, self._on_part = flush_s, limits or Limits(), on_part
        self._sample_bytes = SAMPLE_BYTES[datatype]
        self._first_number = self._number = _highest(folder, name) + 1
        self._part: _Part | None = None
        self._flushed_s = time.monotonic()
        # What the stream has said last, and what of it was in samples that were not kept.
        self._rate_hz: float | None = None
        self._frequency_hz: float | None = None
        self._time_source: str | None = None
        self._time_error_s: float | None = None
        self._line: tuple[int, tuple[int, float]] | None = None
        self._missed = Mark(0)
        self._skipped = 0
        self._replace(self._meta_path(self._number), self._metadata(None), sync=True)

    @property
    def written_bytes(self) -> int:
        """Of all samples in files."""
        return self.recorded * self._sample_bytes

    @staticmethod
    def check(datatype: str, flush_s: float) -> None:
        """Raise ConfigError for what a writer would refuse."""
        if datatype not in SAMPLE_BYTES:
            raise ConfigError(f"datatype={datatype!r}: wanted one of {', '.join(SAMPLE_BYTES)}")
        if not 0.0 <= flush_s < float("inf"):
            raise ConfigError(f"flush_s={flush_s}: wanted 0 or more")

    def append(self, samples: NDArray[np.complex64], marks: Sequence[Mark] = ()) -> None:
        """The stream's next samples, and the tags on them: `index` is the place in `samples`, rising.

        Raises OSError where they cannot be written; those up to `index` have been.
        """
        bounds = sorted({0, len(samples), *(mark.index for mark in marks)})
        at = {mark.index: mark for mark in marks}
        for begin, end in itertools.pairwise(bounds):
            self._take(samples[begin:end], at.get(begin))
        if time.monotonic() >= self._flushed_s + self._flush_s:
            self.flush()

    def skip(self, count: int, marks: Sequence[Mark] = ()) -> None:
        """The stream's next `count` samples are not kept; what their tags say is."""
        for mark in marks:
            self._heed(mark, self.index + mark.index)
            self._missed = later(self._missed, mark)
        self.index += count
        self._skipped += count

    def flush(self) -> None:
        """Have everything on disk, and the metadata tell of it. Raises OSError."""
        self._flushed_s = time.monotonic()
        part = self._part
        if part is None or self.flushed == self.recorded:
            return
        os.fdatasync(part.descriptor)
        if part.told < len(part.captures):
            self._tell(part, sync=True)
        self.flushed = self.recorded

    def close(self) -> None:
        """End the part: it gets its checksum. What comes after begins another. Raises OSError, the part closed."""
        part, self._part = self._part, None
        if part is None:
            return
        try:
            os.fdatasync(part.descriptor)
            meta = part.data.with_suffix(".sigmf-meta")
            self._replace(meta, self._metadata(part, digest=part.digest.hexdigest()), sync=True)
            self.flushed = self.recorded
        finally:
            os.close(part.descriptor)
            self.parts.append(part.data.with_suffix(".sigmf-meta"))
            self._on_part()

    def make_room(self) -> None:
        """Let the oldest parts go, so that there is room for one more. Raises OSError."""
        limits = self._limits
        sizes = [_size(meta) for meta in self.parts]
        gone = 0
        while gone < len(self.parts) and (
            (limits.max_parts is not None and len(self.parts) - gone >= limits.max_parts)
            or (limits.max_bytes is not None and sum(sizes[gone:]) + limits.max_part_bytes > limits.max_bytes)
        ):
            # Samples without metadata are nothing to a reader, metadata without samples are a broken recording.
            for path in (self.parts[gone], self.parts[gone].with_suffix(".sigmf-data")):
                path.unlink(missing_ok=True)
            gone += 1
        if gone:
            del self.parts[:gone]
            self.removed += gone
            self._on_part()

    # Samples

    def _take(self, samples: NDArray[np.complex64], mark: Mark | None) -> None:
        """Samples of which only the first may have tags."""
        while len(samples):
            part = self._part
            full = part is not None and (
                self._room(part) == 0
                or (len(part.captures) >= MAX_CAPTURES and (mark is not None or self._skipped > 0))
            )
            if full:
                self.close()
                part = None
            breaks = self._skipped > 0 or (mark is not None and self._breaks(mark))
            if mark is not None:
                self._heed(mark, self.index)
            told = self._told(mark)
            if part is None:
                count = self._begin(samples, told)
            else:
                count = min(len(samples), self._room(part))
                self._go_on(part, samples[:count], told, breaks)
            self._skipped, self._missed = 0, Mark(0)
            self.index += count
            self.recorded += count
            samples, mark = samples[count:], None

    def _begin(self, samples: NDArray[np.complex64], told: Mark | None) -> int:
        """A new part and its first samples; how many. None of it is left behind where it raises OSError."""
        self.make_room()
        number = self._number
        data = self._meta_path(number).with_suffix(".sigmf-data")
        # Data without a sample cannot be opened, and metadata without data are a recording without samples.
        draft = data.with_name(f".{data.name}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        part = _Part(number, data, descriptor, self._rate_hz or self.about.sample_rate_hz)
        count = min(len(samples), self._room(part))
        part.captures.append(self._capture(part, told or Mark(0), first=True))
        try:
            self._write(part, samples[:count])
            self._tell(part, sync=False)
            draft.replace(data)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        self._part, self._number = part, number + 1
        self.begun += 1
        return count

    def _go_on(self, part: _Part, samples: NDArray[np.complex64], told: Mark | None, breaks: bool) -> None:
        if told is None:
            self._write(part, samples)
            return
        part.captures.append(self._capture(part, told))
        try:
            if breaks:
                self._tell(part, sync=False)
            self._write(part, samples)
        except OSError:
            part.captures.pop()
            raise

    def _room(self, part: _Part) -> int:
        """Samples that still fit in."""
        most = max(self._limits.max_part_bytes // self._sample_bytes, 1)
        if self._limits.max_part_s is not None:
            most = min(most, max(round(self._limits.max_part_s * part.rate_hz), 1))
        return most - part.samples

    def _write(self, part: _Part, samples: NDArray[np.complex64]) -> None:
        """All samples or none. Raises OSError."""
        content = memoryview(self._encoded(samples)).cast("B")  # type: ignore[arg-type]
        floor = self._limits.min_free_bytes
        disk = os.statvfs(self._folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        self.seen_free = time.monotonic(), free_bytes
        if floor and free_bytes < floor + len(content):
            raise OSError(errno.ENOSPC, f"less than min_free_bytes={floor} would be left on the disk")
        done = 0
        try:
            while done < len(content):
                done += os.write(part.descriptor, content[done:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(part.descriptor, part.samples * self._sample_bytes)
            raise
        part.digest.update(content)
        part.samples += len(samples)

    def _encoded(self, samples: NDArray[np.complex64]) -> NDArray:
        if self._datatype == "cf32_le":
            return np.ascontiguousarray(samples, "<c8")
        scale = FULL_SCALE[self._datatype]
        values = np.round(np.ascontiguousarray(samples).view(np.float32) * np.float32(scale))
        kept = np.clip(np.nan_to_num(values, nan=0.0), -scale, scale - 1)
        self.clipped += int(np.count_nonzero((kept != values).reshape(-1, 2).any(axis=1)))
        return kept.astype("<i2" if self._datatype == "ci16_le" else np.int8)

    # Tags

    def _breaks(self, mark: Mark) -> bool:
        """Whether what the stream has said so far does not hold after this."""
        if mark.restart or (mark.time_source is not None and mark.time_source != self._time_source):
            return True
        if mark.rx_freq_hz is not None and mark.rx_freq_hz != self._frequency_hz:
            return True
        now = self._now(self.index)
        if mark.rx_time is None or now is None:
            return False
        jump_s = seconds_between(now, mark.rx_time)
        return abs(jump_s) * (self._rate_hz or self.about.sample_rate_hz) > BREAK_SAMPLES

    def _heed(self, mark: Mark, index: int) -> None:
        """Take note of tags at sample `index` of the stream."""
        if mark.rx_rate_hz is not None:
            if self._line is not None and (now := self._now(index)) is not None:
                self._line = (index, now)
            self._rate_hz = mark.rx_rate_hz
        if mark.rx_freq_hz is not None:
            self._frequency_hz = mark.rx_freq_hz
        if mark.time_source is not None:
            self._time_source = mark.time_source
        if mark.time_error_s is not None:
            self._time_error_s = mark.time_error_s
        if mark.restart:
            self._line = None
        if mark.rx_time is not None:
            self._line = (index, mark.rx_time)

    def _now(self, index: int) -> tuple[int, float] | None:
        """Time of a sample, as far as the last tag tells."""
        if self._line is None:
            return None
        since, time_ = self._line
        return shift_time(*time_, (index - since) / (self._rate_hz or self.about.sample_rate_hz))

    def _told(self, mark: Mark | None) -> Mark | None:
        """What the next capture says: the tags on its first sample, and what a gap of the recording adds to them."""
        if not self._skipped:
            return mark
        said = self._missed if mark is None else later(self._missed, mark)
        unknown = said.restart and said.lost is None
        return replace(
            said,
            rx_time=self._now(self.index) if mark is None or mark.rx_time is None else mark.rx_time,
            restart=True,
            lost=None if unknown else self._skipped + (said.lost or 0),
        )

    # Metadata

    def _capture(self, part: _Part, told: Mark, *, first: bool = False) -> str:
        now = self._now(self.index)
        capture: dict[str, Any] = {"core:sample_start": part.samples, "core:global_index": self.index}
        if now is not None:
            capture["core:datetime"] = iso_time(*now)
        frequency_hz = self.about.frequency_hz if self._frequency_hz is None else self._frequency_hz
        if frequency_hz is not None:
            capture["core:frequency"] = frequency_hz
        capture |= {f"{NAMESPACE}:{key}": value for key, value in _tags(told).items()}
        if first and part.number > self._first_number:
            holds = Mark(
                0,
                rx_time=now,
                rx_rate_hz=self._rate_hz,
                rx_freq_hz=self._frequency_hz,
                time_source=self._time_source,
                time_error_s=self._time_error_s,
            )
            capture[HOLDS] = _tags(holds)
        return json.dumps(capture, allow_nan=False)

    def _metadata(self, part: _Part | None, digest: str | None = None) -> str:
        about = self.about
        said: dict[str, Any] = {
            "core:datatype": self._datatype,
            "core:version": SIGMF_VERSION,
            "core:sample_rate": about.sample_rate_hz if part is None else part.rate_hz,
            "core:num_channels": 1,
            "core:recorder": f"gr-localize {__version__}",
            "core:author": about.author,
            "core:description": about.description,
            "core:hw": about.hardware,
            "core:collection": about.collection,
            "core:extensions": [{"name": NAMESPACE, "version": EXTENSION_VERSION, "optional": True}],
            f"{NAMESPACE}:receiver": about.receiver,
            STREAM: self._stream,
            f"{NAMESPACE}:part": self._number if part is None else part.number,
        }
        if about.latitude is not None and about.longitude is not None:
            place = [about.longitude, about.latitude, about.altitude_m]
            said["core:geolocation"] = {"type": "Point", "coordinates": place}
        if self._datatype in FULL_SCALE:
            said[f"{NAMESPACE}:full_scale"] = FULL_SCALE[self._datatype]
        if digest is not None:
            said["core:sha512"] = digest
        if part is None:
            said["core:metadata_only"] = True
        kept = json.dumps({key: value for key, value in said.items() if value != ""}, indent=4)
        captures = ",\n".join([] if part is None else part.captures)
        return f'{{"global": {kept},\n"captures": [\n{captures}\n],\n"annotations": []}}\n'

    def _tell(self, part: _Part, *, sync: bool) -> None:
        self._replace(part.data.with_suffix(".sigmf-meta"), self._metadata(part), sync=sync)
        if sync:
            part.told = len(part.captures)

    def _replace(self, path: Path, text: str, *, sync: bool) -> None:
        """Put a file into the place of another, whole or not at all. `sync`: it survives a power cut."""
        draft = path.with_name(f".{path.name}.new")
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        if sync:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _meta_path(self, number: int) -> Path:
        return self._folder / f"{self.name}-{number:04d}.sigmf-meta"


def iso_time(seconds: int, fraction: float) -> str:
    """A time as SigMF wants it, with 15 digits: femtoseconds, which is finer than a float64 fraction has to be."""
    digits = min(f"{fraction:.15f}", "0.999999999999999")
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}{digits[1:]}Z"


def later(before: Mark, after: Mark) -> Mark:
    """What two marks say together, the later where both say something; lost samples add up. A time counts for the place
    that it was said at, and not over a restart.
    """
    restart = before.restart or after.restart
    unknown = any(mark.restart and mark.lost is None for mark in (before, after))
    keeps_time = after.rx_time is None and before.rx_time is not None and not after.restart
    return Mark(
        before.index if keeps_time else after.index,
        rx_time=before.rx_time if keeps_time else after.rx_time,
        rx_rate_hz=before.rx_rate_hz if after.rx_rate_hz is None else after.rx_rate_hz,
        rx_freq_hz=before.rx_freq_hz if after.rx_freq_hz is None else after.rx_freq_hz,
        time_source=before.time_source if after.time_source is None else after.time_source,
        time_error_s=before.time_error_s if after.time_error_s is None else after.time_error_s,
        restart=restart,
        lost=None if unknown or not restart else (before.lost or 0) + (after.lost or 0),
    )


def _tags(mark: Mark) -> dict[str, Any]:
    """As JSON has them: numbers with all their digits, so that they come back bit by bit."""
    said: dict[str, Any] = {
        "rx_time": None if mark.rx_time is None else list(mark.rx_time),
        "rx_rate": mark.rx_rate_hz,
        "rx_freq": mark.rx_freq_hz,
        "time_source": mark.time_source,
        "time_error": mark.time_error_s,
    }
    found = {key: value for key, value in said.items() if value is not None}
    return found | ({"restart": mark.lost} if mark.restart else {})


def _highest(folder: Path, name: str) -> int:
    """Number of the last part that the folder has, 0 for none."""
    numbered = re.compile(rf"{re.escape(name)}-(\d+)\.sigmf-(?:meta|data)")
    found = (numbered.fullmatch(path.name) for path in folder.iterdir())
    return max((int(each[1]) for each in found if each), default=0)


def _size(meta: Path) -> int:
    """Of both files of a part, bytes."""
    total = 0
    for path in (meta, meta.with_suffix(".sigmf-data")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
