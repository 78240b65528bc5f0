from __future__ import annotations

from localize_core.wire.text import fix_line


def test_line_with_a_position(make_fix):
    assert fix_line(make_fix(dropped_windows=3)) == (
        "2026-01-02T03:04:05.678901Z ok 45.12300 7.45600 ±110 m (95 %) azimuth 65° confidence 0.92"
        " dropped 3 localization_model 3"
    )


def test_line_without_a_position_says_why(make_fix):
    assert fix_line(make_fix(reason="silence", confidence=0.0)) == (
        "2026-01-02T03:04:05.678901Z no_fix (silence) confidence 0.00 dropped 0 localization_model 3"
    )
