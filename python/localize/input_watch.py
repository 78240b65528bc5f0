"""What a block does that reads several inputs, any of which may fall silent for good."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

IDLE_S = 0.004
"""How long to wait where no input has anything: the scheduler can wait for one input only, which may be a dead one."""
END_S = 1.0


class InputWatch:
    """Which input the scheduler is to wait for, if any.

    While it waits for one, the others are not read, which stops whoever fills them all. So nothing is asked for, and
    the block waits itself. Where nothing has come for END_S it asks for the input that was heard last: if that has
    ended, the scheduler ends the block, for it does not say which inputs have.
    """

    def __init__(self) -> None:
        self._heard, self._heard_s = 0, 0.0
        self._asks = False

    def start(self) -> None:
        """The flowgraph starts."""
        self._heard_s, self._asks = time.monotonic(), False

    def needed(self, noutput_items: int, ninputs: int) -> list[int]:
        """For `forecast`: how many samples of each input."""
        needed = [0] * ninputs
        if self._asks:
            needed[self._heard] = 1
            self._asks = noutput_items > 1  # the scheduler asks for less and less before it gives up
        return needed

    def look(self, input_items: Sequence[np.ndarray], *, is_idle: bool) -> None:
        """Called whatever has come: wait a little where that is nothing, and find out whether it will stay so.

        `is_idle`: the call before brought nothing out.
        """
        now_s = time.monotonic()
        heard = [index for index, samples in enumerate(input_items) if len(samples)]
        if heard:
            self._heard, self._heard_s = heard[-1], now_s
        elif is_idle:
            self._asks = now_s - self._heard_s > END_S
            time.sleep(IDLE_S)
