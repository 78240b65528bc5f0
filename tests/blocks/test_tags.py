from __future__ import annotations

import pmt
import pytest
from gnuradio.localize import tags
from localize_core.types.fix import Alignment


def test_time_goes_both_ways():
    assert tags.time_from_pmt(tags.time_to_pmt(1_700_000_000, 0.125)) == (1_700_000_000, 0.125)
    assert tags.time_from_pmt(pmt.make_tuple(pmt.from_long(7), pmt.from_double(0.5))) == (7, 0.5)


@pytest.mark.parametrize(
    "value",
    [
        pmt.PMT_NIL,
        pmt.from_double(1.0),
        pmt.make_tuple(pmt.from_uint64(1)),
        pmt.make_tuple(pmt.from_double(1.0), pmt.from_double(0.0)),
        pmt.make_tuple(pmt.from_uint64(1), pmt.intern("x")),
        pmt.cons(pmt.from_uint64(1), pmt.from_double(0.0)),
    ],
)
def test_what_is_no_time(value):
    assert tags.time_from_pmt(value) is None


@pytest.mark.parametrize("alignment", [Alignment(12.5, 3, 4), Alignment(None), Alignment(0.0, 0, 1)])
def test_alignment_goes_both_ways(alignment):
    value = tags.alignment_to_pmt(alignment)
    assert tags.alignment_from_pmt(value) == alignment
    assert ("time" in pmt.to_python(value)) == (alignment.residual_ns is None)


@pytest.mark.parametrize(
    "value", [pmt.PMT_NIL, pmt.intern("x"), pmt.cons(pmt.PMT_T, pmt.PMT_F), pmt.to_pmt({"gaps_filled": 1})]
)
def test_what_is_no_alignment(value):
    assert tags.alignment_from_pmt(value) is None


@pytest.mark.parametrize("value", [pmt.PMT_NIL, pmt.from_long(3), pmt.to_pmt({"feature": "log_mel"})])
def test_what_is_no_features_tag(value):
    assert tags.features_from_pmt(value) is None


@pytest.mark.parametrize("source", ["rx_time", "host"])
def test_time_source_goes_both_ways(source):
    assert tags.time_source_from_pmt(tags.time_source_to_pmt(source)) == source


@pytest.mark.parametrize("value", [pmt.PMT_NIL, pmt.intern("none"), pmt.from_double(1.0)])
def test_what_is_no_time_source(value):
    assert tags.time_source_from_pmt(value) is None


@pytest.mark.parametrize("lost", [None, 0, 2**40])
def test_restart_goes_both_ways(lost):
    assert tags.restart_from_pmt(tags.restart_to_pmt(lost)) == lost


@pytest.mark.parametrize("value", [pmt.intern("many"), pmt.from_double(3.0), pmt.from_long(-3)])
def test_a_restart_that_says_nothing(value):
    assert tags.restart_from_pmt(value) is None


@pytest.mark.parametrize("reason", ["gap", "receiver", "restart", "retune"])
@pytest.mark.parametrize("frames", [0, 1, 700])
def test_boundary_goes_both_ways(reason, frames):
    assert tags.boundary_from_pmt(tags.boundary_to_pmt(reason, frames)) == (reason, frames)


@pytest.mark.parametrize(
    "value",
    [
        pmt.PMT_NIL,
        pmt.intern("end"),
        pmt.from_long(3),
        pmt.cons(pmt.intern("gap"), pmt.from_double(1.0)),
        pmt.cons(pmt.from_uint64(1), pmt.intern("gap")),
    ],
)
def test_what_is_no_boundary(value):
    assert tags.boundary_from_pmt(value) is None
