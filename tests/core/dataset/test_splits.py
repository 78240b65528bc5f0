from __future__ import annotations

import numpy as np
import pytest
from localize_core.dataset.splits import SHARES, SPLITS, assign, place_blocks, split_rows, time_blocks
from localize_core.errors import ConfigError

PLACES = np.random.default_rng(1).uniform(0.0, 700.0, (1500, 2))


@pytest.mark.parametrize("kind", ["place", "time"])
def test_no_block_stands_on_two_sides(kind):
    split = split_rows(PLACES, kind, seed=3)
    for block in np.unique(split.group):
        assert len(np.unique(split.part[split.group == block])) == 1


def test_blocks_of_place_are_squares():
    group = place_blocks(PLACES, 70.0)
    for block in np.unique(group):
        assert np.ptp(PLACES[group == block], axis=0).max() < 70.0


def test_blocks_of_time_are_stretches():
    group = time_blocks(1000, 20)
    assert np.bincount(group).tolist() == [50] * 20
    assert (np.diff(group) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_met_to_a_block(seed):
    split = split_rows(PLACES, "place", seed=seed)
    largest = np.bincount(split.group).max() / len(PLACES)
    shares = [len(split.rows(name)) / len(PLACES) for name in SPLITS]
    np.testing.assert_allclose(shares, SHARES, atol=largest)
    assert sorted(np.concatenate([split.rows(name) for name in SPLITS])) == list(range(len(PLACES)))


def test_the_seed_decides():
    first, same, other = (split_rows(PLACES, "place", seed=seed).part for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_rows_flatter_and_say_so():
    assert "flatters" in split_rows(PLACES, "row", seed=1).description


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: split_rows(PLACES, "colour", seed=1), "split='colour': must be 'place', 'time' or 'row'"),
        (lambda: place_blocks(PLACES, -1.0), "block_m=-1.0: must be above 0"),
        (lambda: time_blocks(10, 11), "blocks=11: must lie between 1 and the 10 rows"),
        (lambda: assign(np.zeros(10), seed=1), "1 blocks cannot be split into 4 parts"),
        (lambda: split_rows(PLACES, "place", seed=1).rows("exam"), "split='exam': must be one of train"),
    ],
)
def test_what_cannot_be_split(make, message):
    with pytest.raises(ConfigError, match=message.split("'")[0].split("(")[0]):
        make()
