"""Fixes in a file: one record each, always complete, rotated by size."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from pathlib import Path
from typing import NamedTuple

from localize_core.errors import ConfigError, PublishError
from localize_core.types.fix import FIX_SCHEMA, Fix
from localize_core.wire.encoders import ENCODERS

log = logging.getLogger(__name__)


class _Format(NamedTuple):
    """Of records, which all end with a line end. `encoder`: of ENCODERS. `before`: stands in front of each record.
    `start`: how a record begins.
    """

    encoder: str
    before: bytes
    start: bytes


FORMATS = {
    "jsonl": _Format("json", b"", f'{{"schema":"{FIX_SCHEMA}"'.encode()),
    "geojson-seq": _Format("geojson", b"\x1e", b'\x1e{"type":"Feature"'),
}
"""JSON lines (schema gr-localize/fix/1), and GeoJSON text sequences (RFC 8142, application/geo+json-seq)."""


class FileFixSink:
    """Appends fixes to `path`, as records of a `format` of FORMATS.

    A record is written whole or not at all: what a crash or a full disk leaves of one is removed again. With
    `max_bytes`, a record that does not fit moves `path` to `path.1`, `path.1` to `path.2` and so on; `max_files`
    counts `path` itself, and the oldest goes. A record longer than `max_bytes` gets a file of its own. The file is
    locked while open: two writers would mend each other's records.

    Writing is done when publish() returns, so that nothing written waits in this process for a crash to lose. A file
    system that hangs (NFS) holds up the caller: no flowgraph, whose sinks have a thread each, but its end.

    Raises ConfigError for limits below 1 and an unknown format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int | None = None,
        max_files: int = 5,
        format: str = "jsonl",
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ConfigError(f"max_bytes={max_bytes}: wanted at least 1, or None for no rotation")
        if max_files < 1:
            raise ConfigError(f"max_files={max_files}: wanted at least 1")
        if not os.fspath(path):
            raise ConfigError("path is empty")
        if format not in FORMATS:
            raise ConfigError(f"format={format!r}: wanted one of {', '.join(FORMATS)}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.format = format
        self.sent = 0
        self.dropped = 0
        self._dropping = False
        self._descriptor: int | None = None

    @property
    def backlog(self) -> int:
        """Nothing waits here: a fix is in the file or lost."""
        return 0

    def open(self) -> None:
        """Open the file and remove a last record that a crash cut short.

        Raises PublishError if the file cannot be written, is being written by another sink, or holds something else
        than fixes of this format.
        """
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise PublishError(f"cannot write {self.path}: {error.strerror}") from error

    def publish(self, fix: Fix) -> bool:
        """Append the fix; False means that it could not be written, and was counted as dropped."""
        form = FORMATS[self.format]
        text = ENCODERS[form.encoder](fix)
        assert text is not None  # neither form leaves a fix out
        try:
            self._write(form.before + text.encode() + b"\n")
        except (OSError, PublishError) as error:
            self.dropped += 1
            if not self._dropping:
                log.error("dropping fixes for %s: %s", self.path, error)
            self._dropping = True
            return False
        self.sent += 1
        self._dropping = False
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, self.path)
            _mend(descriptor, self.path, self.format)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _write(self, record: bytes) -> None:
        if self._descriptor is None:
            raise PublishError("the file is not open")
        size = os.fstat(self._descriptor).st_size
        if self.max_bytes is not None and size and size + len(record) > self.max_bytes:
            self._rotate()
            size = 0
        written = os.write(self._descriptor, record)
        if written < len(record):
            os.ftruncate(self._descriptor, size)
            raise PublishError(f"only {written} of {len(record)} bytes could be written")

    def _rotate(self) -> None:
        """Move the files up and go on in a new one. If that cannot be opened, the next fix tries again."""
        if self.path.exists():
            for number in range(self.max_files - 1, 0, -1):
                if self._numbered(number - 1).exists():
                    self._numbered(number - 1).replace(self._numbered(number))
            if self.max_files == 1:
                self.path.unlink()
        descriptor = self._open()
        self.close()
        self._descriptor = descriptor

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PublishError(f"cannot write {path}: another sink is writing it") from error


def _mend(descriptor: int, path: Path, format: str) -> None:
    """Remove an unfinished last record: the file then is empty or ends with a line end."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        rest = content[end:].rstrip(b"\0")  # a power cut can leave blocks that were never written
        beginning = content[: min(end, 100)]
    for name, form in FORMATS.items():
        if name != format and (beginning or rest).startswith(form.start):
            raise PublishError(f"cannot append to {path}: it is {name}, not {format}")
    start = FORMATS[format].start
    if beginning and not beginning.startswith(start):
        raise PublishError(f"cannot append to {path}: its first line is no part of a fix")
    if not start.startswith(rest[: len(start)]):
        raise PublishError(f"cannot append to {path}: its last line is no part of a fix")
    if end < size:
        log.warning("%s: removed the last fix, which was cut short after %d bytes", path, len(rest))
        os.ftruncate(descriptor, end)
