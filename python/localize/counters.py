"""How busy the blocks of a running flowgraph are, by GNU Radio's performance counters."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from gnuradio import gr

MOST_CORES = 2.0
"""More than a block's one thread can keep busy."""
LEAST_S = 0.5
"""Over a shorter time, what one call of work() took is all there is to tell."""
SWITCH = "GR_CONF_PERFCOUNTERS_ON"


def switch_on() -> None:
    """Have flowgraphs that start from now on count, unless somebody has decided already."""
    os.environ.setdefault(SWITCH, "True")


class BlockCounters:
    """What `blocks` have done since they were last asked; empty while GNU Radio does not count.

    Several may ask: the same is told to all for LEAST_S, or there would be nothing for the second.
    """

    def __init__(self, blocks: Iterable[Any] = ()) -> None:
        self._blocks: list[Any] = []
        self._lock = threading.Lock()
        self._since_s = time.monotonic()
        self._told: dict[str, dict[str, float]] = {}
        self._work_s: dict[str, float] = {}
        self.add(*blocks)

    def add(self, *blocks: Any) -> None:
        for block in blocks:
            counting = block.to_basic_block() if hasattr(block, "to_basic_block") else block
            # Not every C++ block passes them on to Python.
            if hasattr(counting, "pc_work_time_total"):
                self._blocks.append(counting)

    def __call__(self) -> dict[str, dict[str, float]]:
        """By block, since the last call: `cores`, time spent in work() over time; `input_full` and `output_full`, how
        full its fullest buffers are on average, 0 to 1. A full input says that the block is slower than what feeds it.
        `work_s`: all time spent in work() so far.
        """
        with self._lock:
            now_s = time.monotonic()
            if not self._told or now_s - self._since_s >= LEAST_S:
                passed_s, self._since_s = max(now_s - self._since_s, 1e-9), now_s
                self._told = self._read(passed_s)
            return self._told

    def _read(self, passed_s: float) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        if not gr.prefs().get_bool("PerfCounters", "on", False):
            return found  # the counters hold whatever was in memory
        for block in self._blocks:
            cores = block.pc_work_time_total() * 1e-9 / passed_s
            name = block.identifier()
            idle = cores == 0.0 and name in self._work_s
            if idle or 0.0 < cores < MOST_CORES:  # else it has not worked yet, and they hold whatever was in memory
                self._work_s[name] = self._work_s.get(name, 0.0) + cores * passed_s
                found[name] = {
                    "cores": cores,
                    "input_full": _fullest(block.pc_input_buffers_full_avg()),
                    "output_full": _fullest(block.pc_output_buffers_full_avg()),
                    "work_s": self._work_s[name],
                }
            # They add up nanoseconds in single precision, which after some seconds no longer notices small ones.
            block.reset_perf_counters()
        return found


def _fullest(buffers: Any) -> float:
    return min(max([0.0, *map(float, buffers)]), 1.0)
