"""What waits to be sent: whatever a connection does, each item arrives once and in order, or counts as dropped."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks import outbox as module
from localize_core.sinks.outbox import BATCH, Outbox, OutboxFixSink, SendError
from localize_core.wire.fix_json import fix_to_json

WAIT_S = 20.0


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


class Destination:
    """The other side. What it does at each call is taken from `script`; then all is well.

    `script`: of the calls of connect and send, each None, an error, or a number of items that are acknowledged before
    the connection breaks. `lost`: whether the items of a call that raises an error arrive all the same, which is what
    a lost answer looks like; it knows them when they come again.
    """

    def __init__(self, script=(), *, lost=False):
        self.script, self.lost = list(script), lost
        self.received: list[int] = []
        self.connected = False
        self.calls: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = threading.Event()

    def connect(self):
        self._act("connect", [])
        self.connected = True

    def send(self, items):
        assert self.connected
        assert 1 <= len(items) <= BATCH
        self._act("send", items)
        self._take(items)

    def check(self):
        assert self.connected
        self._act("check", [])

    def close(self):
        self.connected = False
        self.closed.set()

    def _act(self, call, items):
        self.calls.append(call)
        self.gate.wait(WAIT_S)
        event = self.script.pop(0) if self.script else None
        if isinstance(event, int):
            count = min(event, len(items))
            self._take(items[:count])
            raise SendError("broke off", acknowledged=count)
        if event is not None:
            if self.lost:
                self._take(items)
            raise event

    def _take(self, items):
        self.received += [item for item in items if not self.lost or item not in self.received[-BATCH:]]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1e-4)
    monkeypatch.setattr(module, "LAST_PAUSE_S", 1e-3)


@pytest.fixture
def make_outbox():
    boxes = []

    def make(destination, name="there", **options):
        boxes.append(Outbox(name, lambda: destination, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


SCRIPTS = st.lists(st.one_of(st.none(), st.integers(0, 70), st.just(PublishError("gone")), st.just(ValueError("odd"))))


@settings(max_examples=60, deadline=None)
@given(script=SCRIPTS, count=st.integers(0, 200), capacity=st.integers(1, 150), lost=st.booleans(), early=st.booleans())
def test_each_item_once_in_order_or_dropped_never_both(script, count, capacity, lost, early):
    destination = Destination(script, lost=lost)
    box = Outbox("there", lambda: destination, capacity=capacity, linger_s=WAIT_S)
    box.open()
    for item in range(count):
        assert box.publish(item)
        assert box.sent + box.dropped + box.backlog <= item + 1  # each is read at another moment
        assert box.backlog <= capacity + BATCH
        if early and item == count // 2:
            wait_for(lambda: box.backlog == 0)
    box.close()
    assert destination.received == sorted(set(destination.received))
    assert box.sent == len(destination.received)
    assert (box.sent + box.dropped, box.backlog) == (count, 0)
    assert box.dropped == 0 or count > capacity


def test_the_oldest_gives_way(make_outbox, caplog):
    destination = Destination([PublishError("nobody there")])
    destination.gate.clear()
    box = make_outbox(destination, capacity=10)
    box.open()
    assert all(box.publish(item) for item in range(25))
    assert (box.sent, box.dropped, box.backlog) == (0, 15, 10)
    destination.gate.set()
    wait_for(lambda: box.sent == 10)
    assert destination.received == [*range(15, 25)]
    assert [record.message for record in caplog.records if "dropping" in record.message] == [
        "there: dropping the oldest of what waits: not connected yet"
    ]


def test_an_item_whose_fate_is_unknown_is_no_longer_dropped(make_outbox):
    """It may have arrived: counted as dropped it would be both."""
    destination = Destination([None, PublishError("answer lost")], lost=True)
    box = make_outbox(destination, capacity=3)
    box.open()
    wait_for(lambda: box.state == "connected")
    destination.gate.clear()
    box.publish(0)
    wait_for(lambda: destination.calls[-1] == "send")
    for item in range(1, 10):
        box.publish(item)
    assert (box.dropped, box.backlog) == (6, 4)
    destination.gate.set()
    wait_for(lambda: box.backlog == 0)
    assert destination.received == [0, 7, 8, 9]
    assert (box.sent, box.dropped) == (4, 6)


def test_what_can_never_be_sent_does_not_stop_the_rest(make_outbox):
    destination = Destination([None, SendError("too large", acknowledged=1, refused=1)])
    box = make_outbox(destination)
    destination.gate.clear()
    box.open()
    for item in range(4):
        box.publish(item)
    destination.gate.set()
    wait_for(lambda: box.backlog == 0)
    assert destination.received == [2, 3]  # besides the first, which the script only says was acknowledged
    assert (box.sent, box.dropped) == (3, 1)


def test_publishing_does_not_wait_for_the_other_side(make_outbox):
    destination = Destination()
    box = make_outbox(destination, linger_s=0.0)
    destination.gate.clear()
    box.open()
    for item in range(5):
        assert box.publish(item)
    assert (box.sent, box.backlog) == (0, 5)
    destination.gate.set()
    wait_for(lambda: box.sent == 5)


def test_one_line_of_the_log_when_it_is_lost_and_one_when_it_is_back(make_outbox, caplog):
    caplog.set_level(logging.INFO)
    refused = PublishError("redis://user:hunter2@host refuses")
    destination = Destination([refused] * 5 + [None, PublishError("full"), None, PublishError("full")])
    box = make_outbox(destination, name="redis://user:hunter2@host:1")
    box.open()
    box.publish(1)
    wait_for(lambda: box.sent == 1)
    assert destination.calls == ["connect"] * 6 + ["send", "connect"] * 2 + ["send"]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "redis://user:…@host:1: what is published waits here: redis://user:…@host refuses"),
        ("INFO", "redis://user:…@host:1: still waiting: full"),
        ("INFO", "redis://user:…@host:1: connected again"),
    ]
    assert box.state == "connected"


def test_an_error_that_nobody_expected_is_logged_with_its_origin(make_outbox, caplog):
    box = make_outbox(Destination([ValueError()]))
    box.open()
    wait_for(lambda: box.state == "connected")
    assert caplog.records[0].message == "there: what is published waits here: ValueError"
    assert caplog.records[0].exc_info is not None


def test_a_connection_that_breaks_in_a_quiet_time_is_noticed(make_outbox, monkeypatch):
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    destination = Destination([None, None, PublishError("gone")])
    box = make_outbox(destination)
    box.open()
    wait_for(lambda: destination.calls.count("connect") == 2)
    assert destination.calls[:4] == ["connect", "check", "check", "connect"]
    wait_for(lambda: box.state == "connected")


def test_closing_waits_for_what_is_on_its_way(make_outbox):
    destination = Destination([PublishError("not yet")] * 3)
    box = make_outbox(destination, linger_s=WAIT_S)
    box.open()
    for item in range(200):
        box.publish(item)
    box.close()
    assert (destination.received, box.sent, box.dropped, box.state) == ([*range(200)], 200, 0, "closed")
    assert not destination.connected


def test_closing_does_not_wait_out_a_pause(make_outbox, monkeypatch):
    """A try is due at once; here it succeeds, long before the pause of a minute is over."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 120.0)
    monkeypatch.setattr(module, "LAST_PAUSE_S", 120.0)
    destination = Destination([PublishError("not yet")])
    box = make_outbox(destination, linger_s=WAIT_S)
    box.open()
    box.publish(1)
    wait_for(lambda: box.state == "not yet")
    box.close()
    assert destination.received == [1]


def test_closing_gives_up_on_who_does_not_answer_and_counts(make_outbox, caplog):
    destination = Destination()
    destination.close = lambda: (destination.gate.set(), destination.closed.set())
    box = make_outbox(destination, linger_s=0.01)
    destination.gate.clear()
    box.open()
    for item in range(3):
        box.publish(item)
    wait_for(lambda: destination.calls)
    box.close()
    assert destination.closed.is_set()
    assert (box.sent, box.dropped, box.backlog) == (0, 3, 0)
    assert "closed with 3 not sent: not connected yet" in caplog.text
    assert not box.publish(4)
    assert box.dropped == 4
    box.close()


def test_it_opens_again_with_a_connection_of_its_own(make_outbox):
    """What the one of before still does then counts no more."""
    hung = Destination()
    hung.gate.clear()
    later = Destination()
    makes = [hung, later]
    box = Outbox("there", lambda: makes.pop(0), linger_s=0.0)
    box.open()
    box.open()
    box.publish(1)
    wait_for(lambda: hung.calls)
    hung.close = hung.gate.set
    box.close()
    box.open()
    box.publish(2)
    wait_for(lambda: box.sent == 1)
    box.close()
    assert (hung.received, later.received) == ([], [2])
    assert (box.sent, box.dropped, makes) == (1, 1, [])


def test_no_thread_before_it_opens_nor_after_it_closes(make_outbox):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "localize-outbox"]

    before = threads()
    box = make_outbox(Destination())
    assert not box.publish(1)
    assert threads() == before
    box.open()
    assert len(threads()) == len(before) + 1
    box.close()
    assert threads() == before


@pytest.mark.parametrize("options", [{"capacity": 0}, {"linger_s": -0.1}, {"linger_s": float("inf")}])
def test_bad_parameter_is_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Outbox("there", Destination, **options)


def test_a_sink_encodes_when_a_fix_is_published(make_fix):
    destination = Destination()
    sink = OutboxFixSink("there", lambda: destination, fix_to_json, capacity=5, linger_ms=1000)
    sink.open()
    with pytest.raises(ConfigError, match="confidence"):
        sink.publish(make_fix(confidence=7.0))
    assert sink.publish(make_fix())
    sink.close()
    assert not sink.publish(make_fix())
    assert destination.received == [fix_to_json(make_fix())]
    assert (sink.sent, sink.dropped, sink.backlog, sink.state) == (1, 1, 0, "closed")


def test_fixes_of_several_threads_leave_in_the_order_in_which_they_were_encoded(make_fix):
    destination = Destination()
    numbers = iter(range(1000))
    sink = OutboxFixSink("there", lambda: destination, lambda fix: next(numbers), capacity=1000, linger_ms=10_000)
    sink.open()
    fix = make_fix()
    threads = [threading.Thread(target=lambda: [sink.publish(fix) for _ in range(250)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert destination.received == [*range(1000)]


def test_a_linger_time_below_zero_is_named():
    with pytest.raises(ConfigError, match="linger_ms=-1"):
        OutboxFixSink("there", Destination, fix_to_json, capacity=5, linger_ms=-1)
