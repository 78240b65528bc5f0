"""A device that is not there, dies, falls silent, hangs or cannot work: what its supervisor makes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from localize_core.errors import ConfigError, RadioError
from localize_core.receivers.supervisor import MOST_HANGING, Supervisor

WAIT_S = 20.0


class Device:
    """A device under a test's command."""

    def __init__(self) -> None:
        self.streaming = True
        self.said: str | None = None
        self.hangs = threading.Event()
        self.hangs.set()
        self.closed = threading.Event()

    def trouble(self) -> str | None:
        return self.said

    def close(self) -> None:
        self.hangs.wait(WAIT_S)
        self.closed.set()


class Bench:
    """Where devices come from: `next`: what opening gives, or raises, from now on."""

    def __init__(self) -> None:
        self.next: Callable[[], Device] = Device
        self.opened: list[Device] = []
        self.tries = 0
        self.supervisor = Supervisor("radio", self._open, first_pause_s=0.01, last_pause_s=0.1, close_s=0.2)

    def _open(self) -> Device:
        self.tries += 1
        device = self.next()
        self.opened.append(device)
        return device

    def refuse(self, error: Exception) -> None:
        def raising() -> Device:
            raise error

        self.next = raising

    def wait(self, state: str, **fields: object) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self._is(state, fields):
            assert time.monotonic() < deadline, self.supervisor.state
            time.sleep(0.005)

    def _is(self, state: str, fields: dict[str, object]) -> bool:
        found = self.supervisor.state.as_dict()
        return found["state"] == state and all(found[name] == value for name, value in fields.items())


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.supervisor.stop()
    for device in bench.opened:
        device.hangs.set()
    if bench.tries:
        assert bench.supervisor.join(WAIT_S)
        assert all(device.closed.is_set() for device in bench.opened)


def test_a_device_that_dies_is_closed_and_comes_back(bench):
    bench.supervisor.start()
    bench.wait("streaming", restarts=0, error="")
    bench.refuse(RadioError("nobody answers at 1.2.3.4"))
    bench.opened[0].said = "no samples for 2 s"
    bench.wait("absent", error="nobody answers at 1.2.3.4")
    assert bench.opened[0].closed.is_set()
    since = bench.supervisor.state.since
    tries = bench.tries
    while bench.tries < tries + 3:
        time.sleep(0.01)
    assert bench.supervisor.state.since == since  # it has been away all the time
    bench.next = Device
    bench.wait("streaming", restarts=1, error="nobody answers at 1.2.3.4")


def test_a_device_that_is_not_there_at_first_is_waited_for(bench):
    bench.refuse(OSError("no such device"))
    bench.supervisor.start()
    bench.wait("absent", error="OSError: no such device")
    bench.next = Device
    bench.wait("streaming", restarts=0)


def test_a_device_streams_when_samples_come(bench):
    def silent() -> Device:
        device = Device()
        device.streaming = False
        return device

    bench.next = silent
    bench.supervisor.start()
    while not bench.opened:
        time.sleep(0.01)
    assert bench.supervisor.state.state == "connecting"
    bench.opened[0].streaming = True
    bench.wait("streaming")


def test_what_can_never_work_is_not_tried_again(bench):
    bench.refuse(ConfigError("gain_db=3000: the device has 0 to 50"))
    bench.supervisor.start()
    bench.wait("failed", error="gain_db=3000: the device has 0 to 50")
    assert bench.supervisor.join(WAIT_S)
    assert bench.tries == 1
    assert str(bench.supervisor.fatal) == "gain_db=3000: the device has 0 to 50"


def test_what_has_worked_may_work_again(bench):
    bench.supervisor.start()
    bench.wait("streaming")
    bench.refuse(ConfigError("another device has its place"))
    bench.opened[0].said = "gone"
    bench.wait("absent", error="another device has its place")
    bench.next = Device
    bench.wait("streaming", restarts=1)
    assert bench.supervisor.fatal is None


def test_pauses_grow(bench):
    bench.refuse(RadioError("away"))
    bench.supervisor.start()
    time.sleep(1.0)
    assert 8 <= bench.tries <= 30  # 10, 20, 40, 80 ms, then 100 each, less up to half


@pytest.mark.parametrize("opens", [False, True])
def test_pauses_grow_too_where_failing_takes_longer_than_the_longest(opens):
    """Only a device that has streamed for so long begins anew with the first pause."""
    bench = Bench()
    bench.supervisor = Supervisor("radio", bench._open, first_pause_s=0.02, last_pause_s=0.1)
    began_s, ended_s = [], []

    def slow() -> Device:
        began_s.append(time.monotonic())
        time.sleep(0.12)
        ended_s.append(time.monotonic())
        if opens:
            device = Device()
            device.streaming, device.said = False, "no samples"
            return device
        raise RadioError("away")

    bench.next = slow
    bench.supervisor.start()
    while len(began_s) < 6:
        time.sleep(0.01)
    bench.supervisor.stop()
    assert bench.supervisor.join(WAIT_S)
    pauses_s = [began - ended for began, ended in zip(began_s[4:], ended_s[3:], strict=False)]
    assert min(pauses_s) > 0.045 + 0.1 * opens  # half of the longest at least, and a look at an open one


def test_drivers_that_hang_are_left_behind_and_counted(bench):
    def hanging() -> Device:
        device = Device()
        device.hangs.clear()
        return device

    bench.next = hanging
    bench.supervisor.start()
    for number in range(MOST_HANGING):
        bench.wait("streaming", hanging=number)
        bench.opened[-1].said = "silent"
    bench.wait("absent", hanging=MOST_HANGING, error=f"{MOST_HANGING} attempts to close it hang in its driver")
    assert bench.tries == MOST_HANGING
    bench.next = Device
    bench.opened[0].hangs.set()
    bench.wait("streaming", restarts=MOST_HANGING, hanging=MOST_HANGING - 1)


def test_a_stop_does_not_wait_for_a_driver_that_hangs(bench):
    opening, let_go = threading.Event(), threading.Event()

    def slow() -> Device:
        opening.set()
        let_go.wait(WAIT_S)
        return Device()

    bench.next = slow
    bench.supervisor.start()
    assert opening.wait(WAIT_S)
    bench.supervisor.stop()
    assert not bench.supervisor.join(0.1)
    let_go.set()  # what was opened too late is closed all the same, as the fixture sees


def test_who_wants_to_know_is_told_of_each_change():
    told: list[str] = []
    bench = Bench()
    supervisor = Supervisor("radio", bench._open, lambda: told.append(supervisor.state.state), first_pause_s=0.01)
    bench.supervisor = supervisor
    supervisor.start()
    bench.wait("streaming")
    bench.opened[0].said = "gone"
    bench.wait("streaming", restarts=1)
    supervisor.stop()
    assert supervisor.join(WAIT_S)
    assert told == ["streaming", "absent", "streaming"]


def test_who_wants_to_know_and_fails_does_no_harm():
    def fail() -> None:
        raise ValueError("no")

    bench = Bench()
    bench.supervisor = Supervisor("radio", bench._open, fail, first_pause_s=0.01)
    bench.supervisor.start()
    bench.wait("streaming")
    bench.opened[0].said = "gone"
    bench.wait("streaming", restarts=1)
    bench.supervisor.stop()
    assert bench.supervisor.join(WAIT_S)
