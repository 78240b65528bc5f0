"""The thread that runs inference: order, what is dropped, and how it fails and ends."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.engine.worker import InferenceWorker
from localize_core.errors import ConfigError, EngineError
from localize_core.features.quality import SampleFlag
from localize_core.types.fix import Fix

WAIT_S = 20.0
WINDOW = Window(0, np.zeros((1, 1, 1), np.float32), np.zeros(1), (SampleFlag(0),), np.zeros(1, bool))


def context(sequence: int, dropped: int = 0) -> WindowContext:
    return WindowContext("s", "t", sequence, (0, 0.0), "host", None, None, 0.0, dropped)


class GatedLocator:
    """Answers a window once the gate is open; says when it has begun."""

    def __init__(self, make_fix: Any) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.fail_at: int | None = None
        self._make_fix = make_fix

    def locate(self, window: Window, context: WindowContext) -> Fix:
        self.began.set()
        assert self.gate.wait(WAIT_S)
        if context.sequence == self.fail_at:
            raise EngineError("no more")
        stamp = datetime.now(timezone.utc)
        return self._make_fix(sequence=context.sequence, dropped_windows=context.dropped, timestamp=stamp)


@pytest.fixture
def locator(make_fix):
    return GatedLocator(make_fix)


@pytest.fixture
def fixes() -> list[Fix]:
    return []


def worker_of(locator, fixes, **options) -> InferenceWorker:
    worker = InferenceWorker(
        lambda jobs, dropped: [
            locator.locate(window, replace(context, dropped=context.dropped + lost))
            for (window, context), lost in zip(jobs, dropped, strict=True)
        ],
        fixes.extend,
        **options,
    )
    worker.start()
    return worker


def test_block_keeps_order_and_loses_nothing(locator, fixes):
    worker = worker_of(locator, fixes, policy="block", capacity=2)
    submitted = threading.Event()

    def feed():
        for sequence in range(50):
            worker.submit((WINDOW, context(sequence)))
        submitted.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert locator.began.wait(WAIT_S)
    assert not submitted.is_set()  # one is being answered and two wait: the rest is held back
    locator.gate.set()
    feeder.join(WAIT_S)
    worker.drain()
    assert [fix.sequence for fix in fixes] == list(range(50))
    assert worker.dropped == 0
    worker.stop()


def test_drop_oldest_counts_what_it_drops_and_the_next_fix_says_so(locator, fixes):
    worker = worker_of(locator, fixes, policy="drop-oldest", capacity=3)
    worker.submit((WINDOW, context(0)))
    assert locator.began.wait(WAIT_S)  # 0 is being answered
    for sequence in range(1, 11):
        worker.submit((WINDOW, context(sequence)))
    assert worker.dropped == 7
    locator.gate.set()
    worker.drain()
    worker.submit((WINDOW, context(11)))
    worker.drain()
    assert [fix.sequence for fix in fixes] == [0, 8, 9, 10, 11]
    assert [fix.dropped_windows for fix in fixes] == [0, 7, 0, 0, 0]
    assert len(fixes) + worker.dropped == 12
    worker.stop()


def test_what_a_window_lost_before_it_came_is_added(locator, fixes):
    locator.gate.set()
    worker = worker_of(locator, fixes)
    worker.submit((WINDOW, context(0, dropped=4)))
    worker.stop()
    assert fixes[0].dropped_windows == 4


def test_stop_answers_what_waits(locator, fixes):
    worker = worker_of(locator, fixes, policy="block", capacity=8)
    for sequence in range(5):
        worker.submit((WINDOW, context(sequence)))
    assert locator.began.wait(WAIT_S)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    locator.gate.set()
    stopper.join(WAIT_S)
    assert not stopper.is_alive()
    assert [fix.sequence for fix in fixes] == list(range(5))


def test_settle_gives_up_after_its_time(locator, fixes):
    worker = worker_of(locator, fixes)
    worker.submit((WINDOW, context(0)))
    worker.settle(0.01)
    assert fixes == []
    locator.gate.set()
    worker.settle()
    assert len(fixes) == 1
    worker.stop()


def test_drop_newest_keeps_what_waits_and_the_next_fix_says_what_was_lost(locator, fixes):
    worker = worker_of(locator, fixes, policy="drop-newest", capacity=3)
    worker.submit((WINDOW, context(0)))
    assert locator.began.wait(WAIT_S)
    for sequence in range(1, 11):
        worker.submit((WINDOW, context(sequence)))
    assert worker.dropped == 7
    locator.gate.set()
    worker.drain()
    worker.submit((WINDOW, context(11)))
    worker.drain()
    assert [fix.sequence for fix in fixes] == [0, 1, 2, 3, 11]
    assert [fix.dropped_windows for fix in fixes] == [0, 0, 0, 0, 7]
    worker.stop()


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "block"])
@pytest.mark.parametrize("max_batch", [1, 3])
def test_offered_is_served_and_dropped_exactly(make_fix, policy, max_batch):
    # A model that is slower than its stream by chance, with two threads and batches.
    rng, fixes = np.random.default_rng(4), []

    def answer(jobs, dropped):
        time.sleep(float(rng.uniform(0.0, 2e-3)))
        return [(job, lost) for job, lost in zip(jobs, dropped, strict=True)]

    worker = InferenceWorker(answer, fixes.extend, policy=policy, capacity=4, threads=2, max_batch=max_batch)
    worker.start()
    for sequence in range(400):
        worker.submit(sequence)
        if sequence % 7 == 0:
            time.sleep(1e-3)
        state = worker.state
        assert state.offered == state.served + state.dropped + state.waiting + state.answering == sequence + 1
        assert state.waiting <= 4
    worker.drain()
    state = worker.state
    worker.stop()
    assert (state.offered, state.waiting, state.answering, state.age_s) == (400, 0, 0, 0.0)
    assert len(fixes) == state.served == 400 - state.dropped
    served = [job for job, _ in fixes]
    assert served == sorted(served)
    # Each fix tells of exactly those that are missing in front of it.
    np.testing.assert_array_equal([lost for _, lost in fixes], np.diff([-1, *served]) - 1)


def test_jobs_that_wait_are_taken_together(locator, fixes):
    sizes: list[int] = []

    def answer(jobs, dropped):
        sizes.append(len(jobs))
        return [locator.locate(*job) for job in jobs]

    worker = InferenceWorker(answer, fixes.extend, policy="block", capacity=10, max_batch=4)
    worker.start()
    worker.submit((WINDOW, context(0)))
    assert locator.began.wait(WAIT_S)
    for sequence in range(1, 8):
        worker.submit((WINDOW, context(sequence)))
    locator.gate.set()
    worker.stop()
    assert sizes == [1, 4, 3]
    assert [fix.sequence for fix in fixes] == list(range(8))


def test_a_job_waits_for_others_no_longer_than_it_may(locator, fixes):
    locator.gate.set()
    sizes: list[int] = []

    def answer(jobs, dropped):
        sizes.append(len(jobs))
        return [locator.locate(*job) for job in jobs]

    worker = InferenceWorker(answer, fixes.extend, max_batch=3, max_delay_s=2.0)
    worker.start()
    began_s = time.monotonic()
    worker.submit((WINDOW, context(0)))
    while not fixes:
        assert time.monotonic() < began_s + WAIT_S
        time.sleep(0.005)
    assert time.monotonic() - began_s >= 2.0  # alone, it waited its time
    for sequence in (1, 2, 3):
        worker.submit((WINDOW, context(sequence)))
    worker.settle()
    began_s = time.monotonic()
    worker.submit((WINDOW, context(4)))
    worker.drain()  # who waits for the end keeps nobody waiting
    assert time.monotonic() - began_s < 2.0
    worker.stop()
    assert sizes[0] == 1
    assert 3 in sizes
    assert [fix.sequence for fix in fixes] == list(range(5))


def test_the_age_of_what_waits_is_known(locator, fixes):
    worker = worker_of(locator, fixes, capacity=3)
    worker.submit((WINDOW, context(0)))
    assert locator.began.wait(WAIT_S)
    worker.submit((WINDOW, context(1)))
    time.sleep(0.05)
    worker.submit((WINDOW, context(2)))
    state = worker.state
    assert (state.waiting, state.answering) == (2, 1)
    assert state.age_s >= 0.05
    locator.gate.set()
    worker.stop()


@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
def test_a_failure_of_the_locator_reaches_the_caller(locator, fixes, policy):
    locator.fail_at = 1
    worker = worker_of(locator, fixes, policy=policy, capacity=4)
    for sequence in range(4):
        worker.submit((WINDOW, context(sequence)))
    locator.gate.set()
    with pytest.raises(EngineError, match="no more"):
        worker.drain()
    with pytest.raises(EngineError, match="no more"):
        worker.submit((WINDOW, context(4)))
    assert [fix.sequence for fix in fixes] == [0]
    worker.stop()
    assert isinstance(worker.failure, EngineError)


def test_a_failure_lets_go_of_a_caller_that_is_held_back(locator, fixes):
    locator.fail_at = 0
    worker = worker_of(locator, fixes, policy="block", capacity=1)
    worker.submit((WINDOW, context(0)))
    assert locator.began.wait(WAIT_S)
    worker.submit((WINDOW, context(1)))
    raised: list[Exception] = []

    def feed():
        try:
            worker.submit((WINDOW, context(2)))
        except EngineError as error:
            raised.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    locator.gate.set()
    feeder.join(WAIT_S)
    assert not feeder.is_alive()
    assert len(raised) == 1
    worker.stop()


def test_a_failure_of_deliver_counts_too(locator):
    def deliver(fix: Fix) -> None:
        raise ConfigError("nobody wants it")

    locator.gate.set()
    worker = InferenceWorker(lambda jobs, dropped: locator.locate(*jobs[0]), deliver)
    worker.start()
    worker.submit((WINDOW, context(0)))
    with pytest.raises(ConfigError, match="nobody"):
        worker.drain()
    worker.stop()


@pytest.mark.parametrize(
    "options", [{"policy": "newest"}, {"capacity": 0}, {"threads": 0}, {"max_batch": 0}, {"max_delay_s": -1.0}]
)
def test_bad_options(locator, fixes, options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        InferenceWorker(locator, fixes.append, **options)
