"""What an open radio is to the graph that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Radio:
    """A device's source block, set and not yet in a flowgraph.

    `outputs`: block and port of each receiver's complex stream, in the order of the device's receivers. `blocks`: to be
    kept for as long as the streams run. `time_source`: where the streams' times come from: "rx_time" for the tags of a
    hardware clock, "host" where this computer has to stamp them. `sample_rate_hz`: as the driver says.
    """

    name: str
    outputs: tuple[tuple[Any, int], ...]
    blocks: tuple[Any, ...]
    time_source: Literal["rx_time", "host"]
    sample_rate_hz: float
    closers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """End the streams, even those whose driver waits for samples, and let the device go. Again does nothing.

        A flowgraph is stopped first, and waited for only afterwards.
        """
        while self.closers:
            self.closers.pop()()
