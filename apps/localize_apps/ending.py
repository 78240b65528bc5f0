"""The end of a process in which something is still at work that cannot be ended."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from typing import Any

from localize_apps import logs

abandoned: list[Future[Any]] = []
"""What other threads still work out, though nobody waits for it any more."""


def leave(code: int) -> None:
    """End the process at once where there is such work.

    The interpreter's own end would tear its threads out of C++, which aborts the process.
    """
    if all(future.done() for future in abandoned):
        return
    logs.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
