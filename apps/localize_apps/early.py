"""Signals to a command that runs for long, while its libraries are loaded."""

from __future__ import annotations

import signal
import sys
from typing import Any


def leave(number: int, _: Any) -> None:
    """End well: nothing has begun yet."""
    sys.exit(0)


def mind_signals() -> None:
    """SIGINT and SIGTERM end the process well until `commands.signals` has them. SIGHUP does nothing until then: no
    station file has been read that another could take the place of.
    """
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
