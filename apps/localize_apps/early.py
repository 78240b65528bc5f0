"""What signals do to a command while its libraries are loaded, before it has begun."""

from __future__ import annotations

import signal
import sys
from typing import Any


def leave(number: int, _: Any) -> None:
    """End with 0: a run that has not begun has nothing to bring to an end."""
    sys.exit(0)


def break_off(number: int, _: Any) -> None:
    """End with 130 or 143: what was asked for is not done."""
    sys.exit(128 + number)


def mind_signals() -> None:
    """SIGINT and SIGTERM end the process with 0 until `commands.signals` takes them over. SIGHUP is ignored until then:
    no station file has been read yet that could be read again.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)


def mind_interruption() -> None:
    """SIGINT and SIGTERM end a command that only looks, whenever they come: nobody is to take it for done."""
    signal.signal(signal.SIGINT, break_off)
    signal.signal(signal.SIGTERM, break_off)
