from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pmt
import pytest
from gnuradio.localize.pmt_codec import fix_from_pmt, fix_to_pmt
from localize_core.errors import ConfigError
from localize_core.types.fix import Alignment, Peak, Position, ReceiverReport, TrackReport, Uncertainty
from localize_core.wire.fix_json import fix_to_dict

ELLIPSE = Uncertainty(45.0, 38.0, 25.0)
PEAK = Peak(Position(45.2, 7.5), ELLIPSE, 0.4, "emitter")
ROWS = ((4.0, 0.0, 1.0, 0.0), (0.0, 4.0, 0.0, 1.0), (1.0, 0.0, 2.0, 0.0), (0.0, 1.0, 0.0, 2.0))
TRACK = TrackReport(3, "confirmed", Position(45.1, 7.4), ELLIPSE, -3.0, 4.0, ROWS, 7, 1.4, 0.0, 0.2, 1.3)


def get(message, *path):
    for name in path:
        message = pmt.dict_ref(message, pmt.intern(name), pmt.from_bool(False))
    return message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reason": "silence"},
        {"receivers": ()},
        {"receivers": (ReceiverReport("north", None, False, ("silent", "gap")), ReceiverReport("süd", -3.0, True))},
        {"alignment": Alignment(None)},
        {"alignment": Alignment(12.5, 3, 4), "frequency_hz": None, "cache_hit": True},
        {"peaks": (PEAK,), "tracks": (TRACK, replace(TRACK, id=4, nis=None, state="coasting"))},
    ],
)
def test_every_fix_comes_back(make_fix, changes):
    fix = make_fix(**changes)
    message = fix_to_pmt(fix)
    assert fix_from_pmt(message) == fix
    seconds, fraction = pmt.to_python(pmt.dict_ref(message, pmt.intern("timestamp"), pmt.PMT_NIL))
    assert datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=round(fraction * 1e6)) == fix.timestamp
    assert {**pmt.to_python(message), "timestamp": fix_to_dict(fix)["timestamp"]} == fix_to_dict(fix)
    assert fix_from_pmt(pmt.to_pmt(fix_to_dict(fix))) == fix  # a timestamp in words will do
    assert fix_from_pmt(pmt.deserialize_str(pmt.serialize_str(message))) == fix


def test_message_is_laid_out_like_the_json(make_fix):
    message = fix_to_pmt(make_fix())
    assert pmt.is_real(get(message, "position", "latitude"))
    assert pmt.to_double(get(message, "position", "latitude")) == 45.123
    assert pmt.to_double(get(message, "uncertainty", "semi_major_m")) == pytest.approx(110.2, abs=0.1)
    assert pmt.symbol_to_string(get(message, "status")) == "ok"
    assert pmt.to_long(get(message, "sequence")) == 412
    assert pmt.is_null(get(message, "reason"))
    receiver = pmt.vector_ref(get(message, "receivers"), 0)
    assert pmt.symbol_to_string(get(receiver, "name")) == "north"


def test_microseconds_survive(make_fix):
    fix = make_fix()
    for microsecond in (0, 1, 7, 123_457, 999_999):
        changed = replace(fix, timestamp=fix.timestamp.replace(microsecond=microsecond))
        assert fix_from_pmt(fix_to_pmt(changed)) == changed


def test_a_time_before_1970_is_that_of_a_clock_that_starts_at_0(make_fix):
    early = replace(make_fix(), timestamp=datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=timezone.utc))
    assert fix_from_pmt(fix_to_pmt(early)).timestamp == datetime(1970, 1, 1, tzinfo=timezone.utc)


def test_fixes_leave_no_symbols_behind(make_fix):
    """GNU Radio keeps every symbol for good: a station that runs for months must not make new ones."""

    def resident_kib() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    fix = make_fix()
    growth = []
    for turn in range(3):
        before = resident_kib()
        for number in range(4000):
            moment = fix.timestamp + timedelta(microseconds=4000 * turn + number)
            changed = replace(fix, timestamp=moment, sequence=number, confidence=0.5 + number * 1e-5)
            fix_from_pmt(fix_to_pmt(changed))
        growth.append(resident_kib() - before)
    assert min(growth) < 100  # as symbols, 4000 timestamps take 560 KiB


def test_no_fix_has_nil_for_a_position(make_fix):
    message = fix_to_pmt(make_fix(reason="silence"))
    assert pmt.is_null(get(message, "position"))
    assert pmt.is_null(get(message, "uncertainty"))


def test_what_cannot_be_published_is_refused(make_fix):
    with pytest.raises(ConfigError, match="confidence"):
        fix_to_pmt(make_fix(confidence=math.nan))


GARBAGE = {
    "nil": pmt.PMT_NIL,
    "true": pmt.PMT_T,
    "number": pmt.from_long(3),
    "symbol": pmt.intern("fix"),
    "pdu": pmt.cons(pmt.make_dict(), pmt.init_u8vector(2, [1, 2])),
    "list": pmt.list2(pmt.from_long(1), pmt.from_long(2)),
    "other dict": pmt.to_pmt({"latitude": 0.0}),
    "keys that cannot be hashed": pmt.dict_add(pmt.make_dict(), pmt.init_u8vector(1, [1]), pmt.from_long(1)),
    "value without a Python form": pmt.dict_add(pmt.make_dict(), pmt.intern("s"), pmt.init_u64vector(1, [1])),
}


@pytest.mark.parametrize("message", GARBAGE.values(), ids=GARBAGE)
def test_anything_else_is_refused(message):
    with pytest.raises(ConfigError):
        fix_from_pmt(message)


@pytest.mark.parametrize(
    ("name", "value"), [("confidence", math.nan), ("position", None), ("reason", "silence"), ("sequence", 1.5)]
)
def test_fix_with_a_wrong_field_is_refused_by_name(make_fix, name, value):
    with pytest.raises(ConfigError, match=name):
        fix_from_pmt(pmt.dict_add(fix_to_pmt(make_fix()), pmt.intern(name), pmt.to_pmt(value)))
