"""Threads between the scheduler, which must not wait, and inference, which takes as long as it takes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from localize_core.errors import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")
Policy = Literal["block", "drop-oldest", "drop-newest"]
DELIVERIES = 2
"""Results that may wait to be delivered before no more jobs are taken."""
LOW_PRIORITY = 10
"""Niceness of a thread whose work can wait."""


@dataclass(frozen=True)
class QueueState:
    """What has become of all jobs: offered = served + dropped + waiting + answering.

    `age_s`: how long the oldest of those that wait has waited.
    """

    offered: int
    served: int
    dropped: int
    waiting: int
    answering: int
    age_s: float


class _Waiting(Generic[Job]):
    """A job in the queue. `dropped`: jobs that were dropped since the one before it."""

    def __init__(self, job: Job, dropped: int) -> None:
        self.job, self.dropped, self.since_s = job, dropped, time.monotonic()


class _Batch(Generic[Job, Result]):
    """Jobs that a thread has taken, and their result once there is one."""

    def __init__(self, taken: Sequence[_Waiting[Job]]) -> None:
        self.jobs, self.dropped = [each.job for each in taken], [each.dropped for each in taken]
        self.done = False
        self.result: Result
        self.error: Exception | None = None


class InferenceWorker(Generic[Job, Result]):
    """Answers jobs in threads of its own and hands the results to `deliver`, in the order in which the jobs came.

    `answer` gets one or more jobs, at most `max_batch`, and for each of them the number of jobs that were dropped since
    the one before it. Jobs that wait are taken together; a job that waits alone is kept for others to join it while it
    is not older than `max_delay_s` - with 0 it is not, and batches form only where jobs come faster than they are
    answered. `threads`: batches answered at a time; more than one pays where an answer comes over a network. `deliver`
    has a thread to itself: what it does with one result goes on beside the next inference, which mostly leaves the
    interpreter alone.

    `policy` says what happens when `capacity` jobs wait: "block" holds the caller back (files: nothing is lost),
    "drop-oldest" lets the job go that has waited longest (radios: the stream must not stall, and the latest counts),
    "drop-newest" the one that comes (those that wait are answered without a gap between them). Every dropped job is
    counted. An exception of `answer` or `deliver` ends the worker and is kept in `failure`. `low_priority`: other
    threads of the process come first.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Job], Sequence[int]], Result],
        deliver: Callable[[Result], None],
        *,
        policy: Policy = "drop-oldest",
        capacity: int = 8,
        threads: int = 1,
        max_batch: int = 1,
        max_delay_s: float = 0.0,
        low_priority: bool = False,
        name: str = "localize-infer",
    ) -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"policy={policy!r}: must be one of {', '.join(get_args(Policy))}")
        for label, value in (("capacity", capacity), ("threads", threads), ("max_batch", max_batch)):
            if value < 1:
                raise ConfigError(f"{label}={value}: must be at least 1")
        if max_delay_s < 0.0:
            raise ConfigError(f"max_delay_s={max_delay_s}: must not be negative")
        self._answer, self._deliver, self._policy, self._capacity = answer, deliver, policy, capacity
        self._max_batch, self._max_delay_s = min(max_batch, capacity), max_delay_s
        self._low_priority = low_priority
        self._waiting: deque[_Waiting[Job]] = deque()
        self._taken: deque[_Batch[Job, Result]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._settling = 0  # callers that wait for an empty queue: nothing is kept back meanwhile
        self._unreported = 0
        self._offered = self._served = 0
        self.dropped = 0
        self.failure: Exception | None = None
        self._most_taken = threads + DELIVERIES
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        self._threads.append(threading.Thread(target=self._deliver_all, name=f"{name}-out", daemon=True))

    @property
    def state(self) -> QueueState:
        with self._changed:
            return QueueState(
                offered=self._offered,
                served=self._served,
                dropped=self.dropped,
                waiting=len(self._waiting),
                answering=sum(len(batch.jobs) for batch in self._taken),
                age_s=time.monotonic() - self._waiting[0].since_s if self._waiting else 0.0,
            )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, or drop one. Raises what ended the worker, if it has ended."""
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self.failure is not None)
            self._raise_failure()
            self._offered += 1
            if len(self._waiting) < self._capacity:
                self._append(job)
                return
            self.dropped += 1
            if self._policy == "drop-newest":
                self._unreported += 1
                return
            oldest = self._waiting.popleft()
            lost = oldest.dropped + 1
            if self._waiting:
                self._waiting[0].dropped += lost
            else:
                self._unreported += lost
            self._append(job)

    def offer(self, job: Job) -> bool:
        """Queue a job unless the queue is full. Raises what ended the worker, if it has ended."""
        with self._changed:
            self._raise_failure()
            if len(self._waiting) >= self._capacity:
                return False
            self._offered += 1
            self._append(job)
            return True

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until every job has been answered, the worker has failed, or the time is over."""
        with self._changed:
            self._settling += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(
                    lambda: not (self._waiting or self._taken) or self.failure is not None, timeout_s
                )
            finally:
                self._settling -= 1

    def drain(self) -> None:
        """Wait until every job has been answered. Raises what ended the worker, if it has ended."""
        self.settle()
        with self._changed:
            self._raise_failure()

    def stop(self) -> None:
        """Answer what waits, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _append(self, job: Job) -> None:
        self._waiting.append(_Waiting(job, self._unreported))
        self._unreported = 0
        self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        self._guarded(self._answer_all)

    def _deliver_all(self) -> None:
        self._guarded(self._deliver_in_order)

    def _guarded(self, loop: Callable[[], None]) -> None:
        if self._low_priority and sys.platform == "linux":
            # It keeps a niceness for each thread; elsewhere it is one of the process.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        try:
            loop()
        except Exception as error:  # kept for whoever submits or drains next
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def _answer_all(self) -> None:
        while (batch := self._take()) is not None:
            try:
                batch.result = self._answer(batch.jobs, batch.dropped)
            except Exception as error:  # its turn comes when what was asked before is delivered
                batch.error = error
            with self._changed:
                batch.done = True
                self._changed.notify_all()
            if batch.error is not None:
                return

    def _take(self) -> _Batch[Job, Result] | None:
        """The next jobs; None at the end."""
        with self._changed:
            while self.failure is None and not (self._stopping and not self._waiting):
                patience_s = self._patience_s()
                if patience_s == 0.0:
                    count = min(len(self._waiting), self._max_batch)
                    batch: _Batch[Job, Result] = _Batch([self._waiting.popleft() for _ in range(count)])
                    self._taken.append(batch)
                    self._changed.notify_all()
                    return batch
                self._changed.wait(patience_s)
            return None

    def _patience_s(self) -> float | None:
        """How long the jobs that wait are kept for others to join them; None while there are none to take."""
        if not self._waiting or len(self._taken) >= self._most_taken:
            return None
        if len(self._waiting) >= self._max_batch or self._stopping or self._settling:
            return 0.0
        return max(self._waiting[0].since_s + self._max_delay_s - time.monotonic(), 0.0)

    def _deliver_in_order(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        (self._taken and self._taken[0].done)
                        or (self._stopping and not self._waiting and not self._taken)
                        or self.failure is not None
                    )
                )
                if not self._taken or self.failure is not None:
                    return
                head = self._taken[0]
            if head.error is not None:
                raise head.error
            self._deliver(head.result)
            with self._changed:
                self._taken.popleft()
                self._served += len(head.jobs)
                self._changed.notify_all()
