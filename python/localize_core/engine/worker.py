"""Threads between the scheduler, which must not wait, and inference, which takes as long as it takes."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from localize_core.errors import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")
Policy = Literal["block", "drop-oldest"]
DELIVERIES = 2
"""Results that may wait to be delivered before no more jobs are taken."""
LOW_PRIORITY = 10
"""Niceness of a thread whose work can wait."""


class _Slot(Generic[Job, Result]):
    """A job that a thread has taken, and its result once there is one."""

    def __init__(self, job: Job, dropped: int) -> None:
        self.job, self.dropped = job, dropped
        self.done = False
        self.result: Result
        self.error: Exception | None = None


class InferenceWorker(Generic[Job, Result]):
    """Answers jobs in threads of its own and hands each result to `deliver`, in the order in which the jobs came.

    `answer` gets a job and the number of jobs that were dropped since the one before it. `threads`: jobs answered at a
    time; more than one pays where an answer comes over a network. `deliver` has a thread to itself: what it does with
    one result goes on beside the next inference, which mostly leaves the interpreter alone.

    `policy` says what happens when `capacity` jobs wait: "block" holds the caller back (files: nothing is lost),
    "drop-oldest" lets the job go that has waited longest (radios: the stream must not stall). Every dropped job is
    counted. An exception of `answer` or `deliver` ends the worker and is kept in `failure`. `low_priority`: other
    threads of the process come first.
    """

    def __init__(
        self,
        answer: Callable[[Job, int], Result],
        deliver: Callable[[Result], None],
        *,
        policy: Policy = "drop-oldest",
        capacity: int = 8,
        threads: int = 1,
        low_priority: bool = False,
        name: str = "localize-infer",
    ) -> None:
        if policy not in ("block", "drop-oldest"):
            raise ConfigError(f"policy={policy!r}: must be 'block' or 'drop-oldest'")
        for label, value in (("capacity", capacity), ("threads", threads)):
            if value < 1:
                raise ConfigError(f"{label}={value}: must be at least 1")
        self._answer, self._deliver, self._policy, self._capacity = answer, deliver, policy, capacity
        self._low_priority = low_priority
        self._waiting: deque[Job] = deque()
        self._taken: deque[_Slot[Job, Result]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._unreported = 0
        self.dropped = 0
        self.failure: Exception | None = None
        self._most_taken = threads + DELIVERIES
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(threads)]
        self._threads.append(threading.Thread(target=self._deliver_all, name=f"{name}-out", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises what ended the worker, if it has ended."""
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self.failure is not None)
            elif len(self._waiting) == self._capacity:
                self._waiting.popleft()
                self.dropped += 1
                self._unreported += 1
            self._raise_failure()
            self._waiting.append(job)
            self._changed.notify_all()

    def offer(self, job: Job) -> bool:
        """Queue a job unless the queue is full. Raises what ended the worker, if it has ended."""
        with self._changed:
            self._raise_failure()
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting.append(job)
            self._changed.notify_all()
            return True

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until every job has been answered, the worker has failed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._taken) or self.failure is not None, timeout_s)

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
        while (slot := self._take()) is not None:
            try:
                slot.result = self._answer(slot.job, slot.dropped)
            except Exception as error:  # its turn comes when what was asked before is delivered
                slot.error = error
            with self._changed:
                slot.done = True
                self._changed.notify_all()
            if slot.error is not None:
                return

    def _take(self) -> _Slot[Job, Result] | None:
        """The next job; None at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    (self._waiting and len(self._taken) < self._most_taken)
                    or (self._stopping and not self._waiting)
                    or self.failure is not None
                )
            )
            if not self._waiting or self.failure is not None:
                return None
            slot: _Slot[Job, Result] = _Slot(self._waiting.popleft(), self._unreported)
            self._unreported = 0
            self._taken.append(slot)
            self._changed.notify_all()
            return slot

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
                self._changed.notify_all()
