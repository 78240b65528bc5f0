"""No flood of the same log record: its beginning comes through, and then a count.

Written with the standard library: what there is on PyPI for rate limits holds nothing but a dictionary either.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from localize_apps.log_formats import fields_of

BURST = 5
INTERVAL_S = 60.0
MAX_KINDS = 1000
NUMBER = re.compile(r"\d+")


@dataclass
class _Kind:
    """Records of one kind in the interval that began at `since_s`."""

    since_s: float
    passed: int = 0
    held: int = 0
    last: logging.LogRecord | None = None


class RateLimit(logging.Filter):
    """Lets `burst` records of a kind pass in `interval_s`; then one says how many more there were.

    A kind: what one logger says at one level, numbers aside; or, `by_template`, what it says with one template, and
    then errors pass whatever they say; or, `by_topic`, all that it says with one `topic`: of a state that comes and
    goes, the last that is said is what is true. Records with a topic are for `by_topic` alone. `handler` gets the
    summaries, from the thread of the next record or, where none comes, from one of its own. At most `max_kinds` are
    kept apart; the oldest gives way.
    """

    def __init__(
        self,
        handler: logging.Handler,
        *,
        burst: int = BURST,
        by_template: bool = False,
        by_topic: bool = False,
        interval_s: float = INTERVAL_S,
        max_kinds: int = MAX_KINDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._handler, self._by_template, self._by_topic = handler, by_template, by_topic
        self._burst, self._interval_s, self._max_kinds, self._clock = burst, interval_s, max_kinds, clock
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "summary") or (self._by_template and record.levelno >= logging.ERROR):
            return True
        topic = getattr(record, "topic", None)
        if (topic is not None) != self._by_topic:
            return True
        now_s = self._clock()
        if self._by_topic:
            key = (record.name, 0, str(topic))
        else:
            text = str(record.msg) if self._by_template else record.getMessage()
            key = (record.name, record.levelno, NUMBER.sub("#", text[:500]))
        with self._lock:
            over = self._over(now_s)
            kind = self._kinds.get(key)
            if kind is None:
                if len(self._kinds) >= self._max_kinds:
                    over.append(self._kinds.popitem(last=False)[1])
                kind = self._kinds[key] = _Kind(now_s)
            passes = kind.passed < self._burst
            if passes:
                kind.passed += 1
            else:
                kind.held += 1
                kind.last = record
                self._wake_later()
        self._tell(over, now_s)
        return passes

    def flush(self, *, everything: bool = True) -> None:
        """Say what was held back: where its interval is over, or all."""
        now_s = self._clock()
        with self._lock:
            if everything:
                over = list(self._kinds.values())
                self._kinds.clear()
                if self._timer is not None:
                    self._timer.cancel()
            else:
                over = self._over(now_s)
            self._timer = None
            if any(kind.held for kind in self._kinds.values()):
                self._wake_later()
        self._tell(over, now_s)

    def _over(self, now_s: float) -> list[_Kind]:
        """Take out the kinds whose interval is over; they stand in the order in which theirs began."""
        over = []
        while self._kinds and now_s - next(iter(self._kinds.values())).since_s >= self._interval_s:
            over.append(self._kinds.popitem(last=False)[1])
        return over

    def _wake_later(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._interval_s, lambda: self.flush(everything=False))
            self._timer.daemon = True
            self._timer.start()

    def _tell(self, over: list[_Kind], now_s: float) -> None:
        for kind in over:
            if kind.last is None:
                continue
            last = kind.last
            summary = logging.makeLogRecord(
                {**fields_of(last), "name": last.name, "levelno": last.levelno, "levelname": last.levelname}
            )
            summary.msg, summary.summary, summary.held = last.getMessage(), True, kind.held
            if kind.held > 1:
                summary.msg += f" … and {kind.held} more in {now_s - kind.since_s:.0f} s"
            else:
                summary.created = last.created  # it comes late, and may be true no longer
            self._handler.handle(summary)
