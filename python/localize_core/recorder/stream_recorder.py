"""A stream's way to its files: a bounded queue and a thread, so that no disk ever holds up a radio."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from localize_core.recorder.sigmf_writer import SigmfWriter, later
from localize_core.sources.recording import Mark, moved

log = logging.getLogger(__name__)

QUEUE_S = 4.0
"""What may wait to be written: a disk that is busy for longer costs samples."""
RETRY_S = 1.0
"""From one try to the next while nothing can be written."""
CLOSE_S = 10.0
"""How long stop() waits for what is still to be written."""

Phase = Literal["recording", "paused", "failed", "stopped"]
"""`paused`: nothing can be written, as on a full disk, and it is tried again; `failed`: it will not be any more."""


@dataclass(frozen=True)
class Account:
    """Of a receiver's recording. `samples` and `bytes` in files; `lost_queue`, `lost_disk`: samples that found no room
    while the disk was slow, and that it did not take; `files` that were begun, and those that had to go.
    """

    samples: int = 0
    lost_queue: int = 0
    lost_disk: int = 0
    bytes: int = 0
    files: int = 0
    files_removed: int = 0

    @property
    def lost(self) -> int:
        """Samples that were not kept."""
        return self.lost_queue + self.lost_disk

    def __add__(self, other: Account) -> Account:
        return Account(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


_Chunk = tuple[NDArray[np.complex64], tuple[Mark, ...]]


class StreamRecorder:
    """Writes what `push` takes, in order, in a thread of its own.

    `capacity`: samples that may wait. `live`: whether those that find no room are not kept, as no radio waits,
    or `push` waits for the disk. Samples that find no room, or that the disk does not take, are not kept: the
    recording has a gap there, which it tells of, and goes on by itself when it can. `offered` = `recorded` +
    `lost_queue` + `lost_disk` + `waiting`.
    """

    def __init__(self, writer: SigmfWriter, *, capacity: int, live: bool = True) -> None:
        self.writer = writer
        self.failure: Exception | None = None
        self.offered = self.lost_queue = self.lost_disk = 0
        self._capacity, self._live = capacity, live
        self._changed = threading.Condition()
        self._queue: deque[_Chunk | tuple[int, tuple[Mark, ...]]] = deque()
        self._waiting = 0
        self._full = self._stopping = False
        self._why, self._retry_s, self._lost_before = "", 0.0, 0
        self._thread: threading.Thread | None = None

    @property
    def recorded(self) -> int:
        return self.writer.recorded

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def state(self) -> str:
        """`recording`, or why not."""
        return self._why or "recording"

    @property
    def account(self) -> Account:
        """What has become of the samples so far."""
        writer = self.writer
        return Account(
            samples=writer.recorded,
            lost_queue=self.lost_queue,
            lost_disk=self.lost_disk,
            bytes=writer.written_bytes,
            files=writer.begun,
            files_removed=writer.removed,
        )

    @property
    def phase(self) -> Phase:
        """As a word."""
        if self.failure is not None:
            return "failed"
        if self._thread is None:
            return "stopped"
        return "paused" if self._why else "recording"

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"localize-record-{self.writer.name}", daemon=True)
        self._thread.start()

    def push(self, samples: NDArray[np.complex64], marks: Sequence[Mark] = ()) -> None:
        """The stream's next samples, which may be overwritten afterwards, and their tags."""
        count = len(samples)
        with self._changed:
            self.offered += count
            if not self._live:
                self._changed.wait_for(lambda: self._waiting == 0 or self._fits(count) or self._thread is None)
            fits = self._thread is not None and (self._fits(count) or (self._waiting == 0 and not self._live))
            if fits:
                self._queue.append((samples.copy(), tuple(marks)))
                self._waiting += count
            else:
                self.lost_queue += count
                self._leave_out(count, marks)
            first, self._full = not fits and not self._full, not fits
            self._changed.notify_all()
        if first:
            log.warning("recording %s: the disk is too slow, samples are not kept", self.writer.name)

    def _fits(self, count: int) -> bool:
        return self._waiting + count <= self._capacity

    def _leave_out(self, count: int, marks: Sequence[Mark]) -> None:
        """Have the queue say that samples are missing: once, however many pushes that are. Needs the lock."""
        before = 0
        if self._queue:
            last, earlier = self._queue[-1]
            if isinstance(last, int):
                self._queue.pop()
                before, marks = last, [*earlier, *(moved(mark, last) for mark in marks)]
        merged = (reduce(later, marks),) if marks else ()
        self._queue.append((before + count, merged))

    def stop(self) -> None:
        """Write what waits, and close the files. Stopping twice is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        thread.join(CLOSE_S)
        if thread.is_alive():
            log.error("recording %s: not written within %g s: %d samples", self.writer.name, CLOSE_S, self._waiting)

    # The thread

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # the station goes on without its recording
            log.exception("recording %s failed", self.writer.name)
            with self._changed:
                self.failure, self._why, self._thread = error, f"failed: {error}", None
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping, RETRY_S)
                chunks, stopping = list(self._queue), self._stopping
                self._queue.clear()
            for taken, marks in chunks:
                if isinstance(taken, int):
                    self.writer.skip(taken, marks)
                else:
                    self._write(taken, marks)
            if stopping and not self._queue:
                break
            if not chunks and not self._why:  # the stream is silent: what it has said is safe
                self._try(self.writer.flush)
        self._try(self.writer.close)

    def _write(self, samples: NDArray[np.complex64], marks: tuple[Mark, ...]) -> None:
        writer, start = self.writer, self.writer.index
        if not self._why or time.monotonic() >= self._retry_s:
            try:
                writer.append(samples, marks)
            except OSError as error:
                self._pause(error)
            else:
                self._resume()
        done = writer.index - start
        lost = len(samples) - done
        if lost:
            writer.skip(lost, [moved(mark, -done) for mark in marks if mark.index >= done])
        with self._changed:
            self._waiting -= len(samples)
            self.lost_disk += lost
            self._changed.notify_all()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._pause(error)

    def _pause(self, error: OSError) -> None:
        self._retry_s = time.monotonic() + RETRY_S
        first, self._why = not self._why, error.strerror or str(error)
        if not first:
            return
        self._lost_before = self.lost_disk
        log.error("recording %s pauses: %s", self.writer.name, self._why)
        with contextlib.suppress(OSError):
            self.writer.close()

    def _resume(self) -> None:
        if self._why:
            self._why = ""
            lost = self.lost_disk - self._lost_before
            log.warning("recording %s goes on: %d samples were not kept", self.writer.name, lost)
