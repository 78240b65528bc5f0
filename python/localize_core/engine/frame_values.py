"""What is said of frames before or while they come: one row of values for each, read as the frames are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class FrameValues:
    """Rows for the frames from the next one on. What nothing was said of is `blank`.

    `merge`: what becomes of a value that is said twice, from the old and the new one. Holds no more than was said
    ahead.
    """

    def __init__(self, columns: int, blank: float, dtype: type, merge: Callable[..., NDArray]) -> None:
        self._blank, self._merge = blank, merge
        self._rows: NDArray = np.full((0, columns), blank, dtype)

    def add(self, ahead: int, values: NDArray, columns: Sequence[int]) -> None:
        """`values`, (frames, len(columns)), hold for these columns from the frame `ahead` places after the next on."""
        self._reach(ahead + len(values))
        rows = self._rows[ahead : ahead + len(values)]
        for place, column in enumerate(columns):
            rows[:, column] = self._merge(rows[:, column], values[:, place])

    def take(self, count: int) -> NDArray:
        """Rows of the next `count` frames, (count, columns), which are over then."""
        self._reach(count)
        taken, self._rows = self._rows[:count], self._rows[count:].copy()
        return taken

    def _reach(self, frames: int) -> None:
        missing = frames - len(self._rows)
        if missing > 0:
            more = np.full((missing, self._rows.shape[1]), self._blank, self._rows.dtype)
            self._rows = np.concatenate([self._rows, more])
