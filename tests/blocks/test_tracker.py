"""Fixes that pass the tracker block."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import pmt
import pytest
from gnuradio import gr, localize
from gnuradio.localize.pmt_codec import fix_from_pmt, fix_to_pmt
from localize_core.errors import ConfigError
from localize_core.types.fix import Position


@pytest.fixture
def passed(monkeypatch):
    """A function that has a block handle messages, and returns what it publishes."""

    def run(block, messages):
        published = []
        assert block.start()
        monkeypatch.setattr(block, "message_port_pub", lambda port, message: published.append(message), raising=False)
        for message in messages:
            block._handle_fix(message)
        assert block.stop()
        return published

    return run


def fixes(make_fix, count, **changes):
    first = make_fix().timestamp
    return [make_fix(timestamp=first + timedelta(seconds=k), sequence=k, **changes) for k in range(count)]


def test_fixes_go_on_with_their_tracks(make_fix, passed):
    sent = [*fixes(make_fix, 5), make_fix(timestamp=make_fix().timestamp + timedelta(seconds=5), reason="silence")]
    found = [fix_from_pmt(message) for message in passed(localize.tracker(), map(fix_to_pmt, sent))]
    assert [fix.sequence for fix in found] == [fix.sequence for fix in sent]
    assert [len(fix.tracks) for fix in found] == [0, 0, 1, 1, 1, 1]
    assert [track.state for fix in found[2:] for track in fix.tracks] == ["confirmed"] * 3 + ["coasting"]
    assert found[0] == sent[0]


@pytest.mark.parametrize("message", [pmt.PMT_NIL, pmt.from_long(3), pmt.intern("fix"), pmt.make_dict()])
def test_what_is_no_fix_goes_no_further(make_fix, passed, message):
    block = localize.tracker()
    assert passed(block, [message, message]) == []
    assert block.malformed == 2
    assert block.failure is None
    assert len(passed(block, map(fix_to_pmt, fixes(make_fix, 3)))) == 3
    assert block.malformed == 2


def test_a_failure_is_kept_and_fixes_go_on(make_fix, passed):
    def share(position: Position, uncertainty: object) -> float:
        raise ZeroDivisionError("no share")

    block = localize.tracker(common=share)
    sent = fixes(make_fix, 2)
    assert [fix_from_pmt(message) for message in passed(block, map(fix_to_pmt, sent))] == sent
    assert isinstance(block.failure, ZeroDivisionError)


def test_a_share_may_depend_on_the_place(make_fix, passed):
    asked = []
    block = localize.tracker(common=lambda position, uncertainty: asked.append((position, uncertainty)) or 0.5)
    passed(block, map(fix_to_pmt, fixes(make_fix, 2)))
    assert asked == [(make_fix().position, make_fix().uncertainty)] * 2


def test_a_live_one_does_not_fall_behind(make_fix, passed, monkeypatch):
    module = sys.modules[localize.tracker.__module__]
    monkeypatch.setattr(module, "BURST_S", 0.0)
    monkeypatch.setattr(module, "BUSY", 0.0)
    sent = [*map(fix_to_pmt, fixes(make_fix, 6))]
    block = localize.tracker(live=True)
    assert passed(block, sent)[1:] == sent[1:]
    assert block.passed == 5
    patient = localize.tracker()
    assert len(fix_from_pmt(passed(patient, sent)[-1]).tracks) == 1
    assert patient.passed == 0


def test_a_flowgraph_that_starts_again_begins_anew(make_fix):
    graph = gr.top_block()
    block = localize.tracker()
    seen = []

    class listener(gr.sync_block):
        def __init__(self):
            gr.sync_block.__init__(self, "listener", None, None)
            self.message_port_register_in(pmt.intern("fix"))
            self.set_msg_handler(pmt.intern("fix"), self.take)

        def take(self, message):
            seen.append(fix_from_pmt(message))

    listening = listener()
    graph.msg_connect(block, "fix", listening, "fix")
    port = pmt.intern("fix")
    for turn in (1, 2):
        graph.start()
        for fix in fixes(make_fix, 4):
            block.to_basic_block()._post(port, fix_to_pmt(fix))
        deadline_s = time.monotonic() + 30.0
        while len(seen) < 4 * turn and time.monotonic() < deadline_s:
            time.sleep(0.01)
        graph.stop()
        graph.wait()
    assert [[track.id for track in fix.tracks] for fix in seen] == [[], [], [1], [1]] * 2
    assert block.late == 0


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("acceleration_mps2", 0.0),
        ("max_speed_mps", float("inf")),
        ("gate", 1.0),
        ("confirm", 1),
        ("lost_s", -1.0),
        ("common", 1.0),
        ("lag_s", -0.1),
        ("max_tracks", 0),
    ],
)
def test_a_parameter_that_cannot_work_is_named(parameter, value):
    with pytest.raises(ConfigError, match=parameter):
        localize.tracker(**{parameter: value})
