"""What happens when a block of this project fails: the stream ends and the error stays readable.

GNU Radio ends only the thread of a block that raises; the flowgraph runs on and exits 0. A guarded `work()`
logs the error, keeps it in `failure` and ends its stream, so that the graph ends too and whoever runs it can
tell a failure from an end of file.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

WORK_DONE = -1


def guarded(method: Callable[..., int]) -> Callable[..., int]:
    """Wrap `work` or `general_work`: an exception is logged, kept in `self.failure`, and ends the stream."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> int:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.failure = error
            self.logger.error(f"{self.name()} failed: {error}\n{traceback.format_exc()}")
            return WORK_DONE

    return wrapper
