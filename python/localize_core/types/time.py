"""Times as radios tell them: whole seconds since 1970 and the rest, which float64 alone would round to 0.2 µs."""

from __future__ import annotations


def shift_time(seconds: int, fraction: float, offset_s: float) -> tuple[int, float]:
    """The time `offset_s` later, its fraction in [0, 1); not before (0, 0.0), as tags hold no negative time."""
    carry, rest = divmod(fraction + offset_s, 1.0)
    if rest >= 1.0:  # rounding: a hair below a whole second
        carry, rest = carry + 1.0, 0.0
    seconds += int(carry)
    return (seconds, rest) if seconds >= 0 else (0, 0.0)


def seconds_between(earlier: tuple[int, float], later: tuple[int, float]) -> float:
    """From one time to another, s: negative where `later` comes first."""
    return (later[0] - earlier[0]) + (later[1] - earlier[1])
