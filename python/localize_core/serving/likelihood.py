"""How probable each part of a station's area is: what a heat map shows beside the fix."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from localize_core.model.contract import LikelihoodGrid


@dataclass(frozen=True)
class Likelihood:
    """The posterior of one window over the cells of `grid`, before it is made a position and an ellipse.

    `probability`: float32 (rows, columns), rows from south to north, columns from west to east, summing to one.
    `timestamp`: UTC time of the window's centre, as in the fix with the same stream and sequence.
    """

    station: str
    stream: str
    sequence: int
    timestamp: datetime
    grid: LikelihoodGrid
    probability: np.ndarray
