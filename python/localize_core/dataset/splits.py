"""Splits that do not flatter: whole blocks of the map or of the time go to one side, never single rows of a drive.

Rows that are neighbours in place or time resemble each other. A model that has seen one knows the other, and a split
by random rows measures how well it remembers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from localize_core.errors import ConfigError

SPLITS = ("train", "validation", "calibration", "test")
SHARES = (0.6, 0.1, 0.15, 0.15)
"""Of the rows, for training, early stopping, calibration, and the figures that are reported."""

SplitName = Literal["train", "validation", "calibration", "test"]
SplitKind = Literal["place", "time", "row", "draw"]


@dataclass(frozen=True)
class Split:
    """Which rows are for what.

    `kind`: what the blocks are made of. `part` (n,): index into `SPLITS` for each row. `group` (n,): the row's block.
    `description`: for reports, in words.
    """

    kind: SplitKind
    part: np.ndarray
    group: np.ndarray
    description: str

    def rows(self, name: str) -> np.ndarray:
        """Indices of the rows of one part, or of all. Raises ConfigError for another name."""
        if name == "all":
            return np.arange(len(self.part))
        if name not in SPLITS:
            raise ConfigError(f"split={name!r}: must be one of {', '.join(SPLITS)} or all")
        return np.flatnonzero(self.part == SPLITS.index(name))


def place_blocks(places_m: np.ndarray, size_m: float) -> np.ndarray:
    """Numbers of the square blocks of a map in which places (n, 2) lie: int (n,), counted from 0."""
    if not (math.isfinite(size_m) and size_m > 0.0):
        raise ConfigError(f"block_m={size_m}: must be above 0")
    cells = np.floor((places_m - places_m.min(axis=0)) / size_m).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    return np.asarray(group).reshape(-1)


def time_blocks(count: int, blocks: int) -> np.ndarray:
    """Numbers of `blocks` equal stretches of `count` rows in order of time: int (count,)."""
    if not 1 <= blocks <= count:
        raise ConfigError(f"blocks={blocks}: must lie between 1 and the {count} rows there are")
    return np.arange(count) * blocks // count


def assign(group: np.ndarray, *, seed: int, shares: tuple[float, ...] = SHARES) -> np.ndarray:
    """Parts for whole blocks: int (n,), index into `SPLITS` of each row.

    Blocks come in random order; each goes where most is missing from the share of rows wanted. Raises ConfigError
    where a part stays empty.
    """
    blocks, number, counts = np.unique(group, return_inverse=True, return_counts=True)
    wanted = np.array(shares) * len(group)
    have = np.zeros(len(shares))
    chosen = np.zeros(len(blocks), np.int64)
    for block in np.random.default_rng([seed, len(blocks)]).permutation(len(blocks)):
        part = int(np.argmax((wanted - have) / wanted))
        chosen[block] = part
        have[part] += counts[block]
    if not have.all():
        raise ConfigError(f"{len(blocks)} blocks cannot be split into {len(shares)} parts; take smaller blocks")
    result: np.ndarray = chosen[np.asarray(number).reshape(-1)]
    return result


def split_rows(
    places_m: np.ndarray,
    kind: SplitKind,
    *,
    seed: int,
    block_m: float | None = None,
    blocks: int = 20,
) -> Split:
    """Split the rows of a data set whose emitters stood at `places_m` (n, 2), in order of time.

    `kind`: "place" by square blocks of `block_m`, by default a tenth of the map's longer side; "time" by `blocks`
    stretches of rows; "row" by single rows, for comparison only.
    """
    count = len(places_m)
    if kind == "place":
        size_m = block_m or float(np.ptp(places_m, axis=0).max()) / 10.0
        if size_m == 0.0:
            raise ConfigError("places: all are the same one, which cannot be split")
        group = place_blocks(places_m, size_m)
        told = f"by place: {group.max() + 1} blocks of {size_m:.0f} m"
    elif kind == "time":
        group = time_blocks(count, blocks)
        told = f"by time: {blocks} stretches of about {count // blocks} rows"
    elif kind == "row":
        group = np.arange(count)
        told = "by random rows, which flatters: neighbours of test rows were trained on"
    else:
        raise ConfigError(f"split={kind!r}: must be 'place', 'time' or 'row'")
    return Split(kind, assign(group, seed=seed), group, told)
