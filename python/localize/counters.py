"""How busy the blocks of a running flowgraph are, by GNU Radio's performance counters."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from gnuradio import gr

MOST_CORES = 2.0
"""More than a block's one thread can keep busy."""
SWITCH = "GR_CONF_PERFCOUNTERS_ON"


def switch_on() -> None:
    """Have flowgraphs that start from now on count, unless somebody has decided already."""
    os.environ.setdefault(SWITCH, "True")


class BlockCounters:
    """What `blocks` have done since they were last asked; empty while GNU Radio does not count."""

    def __init__(self, blocks: Iterable[Any] = ()) -> None:
        self._blocks: list[Any] = []
        self._since_s = time.monotonic()
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
        """
        now_s = time.monotonic()
        passed_s, self._since_s = max(now_s - self._since_s, 1e-9), now_s
        found: dict[str, dict[str, float]] = {}
        if not gr.prefs().get_bool("PerfCounters", "on", False):
            return found  # the counters hold whatever was in memory
        for block in self._blocks:
            cores = block.pc_work_time_total() * 1e-9 / passed_s
            if 0.0 < cores < MOST_CORES:  # else it has not worked yet, and they hold that too
                found[block.identifier()] = {
                    "cores": cores,
                    "input_full": _fullest(block.pc_input_buffers_full_avg()),
                    "output_full": _fullest(block.pc_output_buffers_full_avg()),
                }
            # They add up nanoseconds in single precision, which after some seconds no longer notices small ones.
            block.reset_perf_counters()
        return found


def _fullest(buffers: Any) -> float:
    return min(max([0.0, *map(float, buffers)]), 1.0)
