from __future__ import annotations

import math

import numpy as np
import pytest
from localize_core.dataset.windows import Label
from localize_core.evaluation.metrics import (
    PROBABILITIES,
    Answers,
    Truth,
    accuracy,
    covariance_of,
    errors_m,
    figures,
    plain,
    reliability,
    share_of,
    squared_mahalanobis,
)
from localize_core.types.fix import Uncertainty
from scipy.stats import binom

COUNT = 20_000
RATE_HZ = 1e6


def truth_of(position_m, *, label=None, snr_db=20.0, bandwidth_hz=RATE_HZ, usable=None, receivers=4):
    count = len(position_m)
    return Truth(
        position_m=np.asarray(position_m, float),
        label=np.full(count, Label.INSIDE) if label is None else np.asarray(label),
        snr_db=np.broadcast_to(np.asarray(snr_db, float), (count, receivers)),
        bandwidth_hz=np.broadcast_to(float(bandwidth_hz), (count,)),
        usable=np.ones((count, receivers), bool) if usable is None else np.asarray(usable),
        sample_rate_hz=RATE_HZ,
    )


@pytest.fixture
def honest():
    """Answers whose errors are drawn from the covariance that they claim, and their truth."""
    rng = np.random.default_rng(3)
    covariance = covariance_of(np.array([[300.0, 40.0, 30.0]]))
    offset = rng.multivariate_normal([0.0, 0.0], covariance[0], COUNT)
    place = rng.uniform(-5e3, 5e3, (COUNT, 2))
    return Answers(place + offset, np.repeat(covariance, COUNT, axis=0), np.full(COUNT, 0.99)), truth_of(place)


@pytest.mark.parametrize("ellipse", [(300.0, 40.0, 30.0), (5.0, 80.0, -170.0), (1e-3, 1e3, 90.0)])
def test_covariances_are_those_of_a_fix(ellipse):
    assert covariance_of(np.array([ellipse]))[0] == pytest.approx(Uncertainty(*ellipse).covariance_m2)


def test_mahalanobis_is_that_of_the_inverse():
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((50, 2, 2))
    covariance, offset = factor @ factor.transpose(0, 2, 1), rng.standard_normal((50, 2))
    expected = np.einsum("ni,nij,nj->n", offset, np.linalg.inv(covariance), offset)
    assert squared_mahalanobis(offset, covariance) == pytest.approx(expected)


def test_mahalanobis_of_what_is_not_there():
    singular, missing = np.zeros((1, 2, 2)), np.full((1, 2, 2), np.nan)
    assert squared_mahalanobis(np.ones((1, 2)), singular)[0] == math.inf
    assert math.isnan(squared_mahalanobis(np.ones((1, 2)), missing)[0])
    assert math.isnan(squared_mahalanobis(np.full((1, 2), np.nan), np.eye(2)[None])[0])


def test_honest_ellipses_hold_what_they_promise(honest):
    found = figures(*honest).accuracy
    for key, item in found.containment.items():
        low, high = binom.interval(0.9999, COUNT, PROBABILITIES[key])
        assert low <= item.share * COUNT <= high, key
        assert item.low <= item.share <= item.high
    assert found.mean_nees == pytest.approx(2.0, abs=4.0 * math.sqrt(4.0 / COUNT))
    error = np.linalg.norm(honest[0].position_m - honest[1].position_m, axis=1)
    assert (found.median_m, found.p90_m) == pytest.approx((np.median(error), np.percentile(error, 90)))
    assert found.rmse_m == pytest.approx(math.hypot(300.0, 40.0), rel=0.02)


def test_the_interval_is_wilsons():
    # Agresti & Coull 1998, for 0 and 5 of 10
    assert share_of(np.zeros(10, bool)).high == pytest.approx(0.2775, abs=1e-4)
    half = share_of(np.arange(10) < 5)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_no_ellipse_no_containment(honest):
    answers, truth = honest
    bare = Answers(answers.position_m, np.full((COUNT, 2, 2), np.nan), np.full(COUNT, np.nan))
    found = figures(bare, truth)
    assert found.accuracy.rmse_m == figures(answers, truth).accuracy.rmse_m
    assert found.accuracy.containment is found.accuracy.mean_nees is found.accuracy.nees_interval is None
    assert found.reliability is None


def test_only_emitters_in_the_area_have_an_error():
    truth = truth_of(np.zeros((4, 2)), label=[Label.INSIDE, Label.NONE, Label.OUTSIDE, Label.INSIDE])
    answers = Answers.nothing(4)
    answers.position_m[:3] = [[3.0, 4.0], [100.0, 0.0], [100.0, 0.0]]
    assert np.nan_to_num(errors_m(answers, truth), nan=-1.0).tolist() == [5.0, -1.0, -1.0, -1.0]
    found = figures(answers, truth)
    assert (found.windows, found.answered, found.accuracy.count, found.accuracy.rmse_m) == (2, 1, 1, 5.0)


def test_nothing_answered_is_no_figure():
    found = figures(Answers.nothing(3), truth_of(np.zeros((3, 2))))
    assert (found.windows, found.answered, found.accuracy) == (3, 0, None)
    assert accuracy(np.zeros(0), np.zeros(0)) is None


def test_confidence_that_is_the_probability_of_a_valid_fix():
    rng = np.random.default_rng(5)
    confidence = rng.uniform(size=COUNT)
    valid = rng.uniform(size=COUNT) < confidence
    position = np.where(valid[:, None], 0.0, 10.0) * np.ones(2)  # 10 sigma away, or spot on
    answers = Answers(position, np.repeat(np.eye(2)[None], COUNT, axis=0), confidence)
    found = reliability(answers, truth_of(np.zeros((COUNT, 2))))
    assert found.calibration_error < 0.02
    assert len(found.bins) == 10
    for item in found.bins:
        assert item.confidence == pytest.approx(item.valid.share, abs=0.05)
        assert item.low <= item.confidence < item.high
    assert sum(item.count for item in found.bins) == COUNT


def test_confidence_in_what_is_not_there_is_an_error():
    label = np.repeat([Label.INSIDE, Label.NONE, Label.OUTSIDE], 100)
    confidence = np.repeat([1.0, 1.0, 0.02], 100)
    answers = Answers(np.zeros((300, 2)), np.repeat(np.eye(2)[None], 300, axis=0), confidence)
    found = reliability(answers, truth_of(np.zeros((300, 2)), label=label))
    # of 200 windows at 1.0 half are valid; 100 at 0.02 are invalid
    assert found.calibration_error == pytest.approx((200 * 0.5 + 100 * 0.02) / 300)
    assert {name: group.count for name, group in found.groups.items()} == {
        "emitter": 100,
        "emitter_clear": 100,
        "no_emitter": 100,
        "outside": 100,
    }
    assert found.groups["outside"].quantiles == pytest.approx({"0.05": 0.02, "0.5": 0.02, "0.95": 0.02})
    assert (found.groups["outside"].below_01, found.groups["no_emitter"].above_09) == (1.0, 1.0)


def test_clear_emitters_are_those_of_the_median_receiver():
    snr_db = np.array([[30.0, 4.0, 5.1, -np.inf, 6.0], [30.0, 30.0, 4.9, 4.0, -np.inf]])
    answers = Answers(np.zeros((2, 2)), np.repeat(np.eye(2)[None], 2, axis=0), np.array([0.5, 0.6]))
    found = reliability(answers, truth_of(np.zeros((2, 2)), snr_db=snr_db, receivers=5))
    assert found.groups["emitter"].count == 2
    assert found.groups["emitter_clear"].quantiles["0.5"] == 0.5


def test_median_snr_is_over_receivers_that_are_there():
    snr_db = np.array([[1.0, 2.0, 9.0], [1.0, 2.0, 9.0], [-np.inf, -np.inf, 9.0], [np.nan, 2.0, 9.0], [1.0, 2.0, 9.0]])
    usable = np.ones((5, 3), bool)
    usable[1, 2] = False
    usable[4] = False
    found = truth_of(np.zeros((5, 2)), snr_db=snr_db, usable=usable, receivers=3).median_snr_db
    assert found[:3].tolist() == [2.0, 1.5, -math.inf]
    assert np.isnan(found[3:]).all()


def test_tables_sort_windows_by_snr_and_receivers():
    snr_db = np.array([[-30.0] * 3, [-np.inf] * 3, [4.9] * 3, [5.0] * 3, [20.0, 20.0, -15.0], [50.0] * 3, [np.nan] * 3])
    usable = np.ones((7, 3), bool)
    usable[3, 0] = False
    truth = truth_of(np.zeros((7, 2)), snr_db=snr_db, usable=usable, receivers=3, bandwidth_hz=RATE_HZ / 10.0)
    answers = Answers.nothing(7)
    answers.position_m[:] = np.arange(1.0, 8.0)[:, None] * [1.0, 0.0]
    found = figures(answers, truth, bound_m2=np.array([4.0, np.inf, 1.0, 1.0, 1.0, 1.0, 1.0]))
    assert [(row.label, row.windows, row.accuracy.rmse_m) for row in found.by_snr] == [
        ("below −20", 2, pytest.approx(math.sqrt(2.5))),
        ("0 to 5", 1, 3.0),
        ("5 to 10", 1, 4.0),
        ("20 to 25", 1, 5.0),
        ("40 and above", 1, 6.0),
    ]
    assert found.by_snr[0].bound_rmse_m == 2.0  # of the windows that have one
    # a tenth of the band: 10 dB more within it
    assert [(row.label, row.windows) for row in found.by_heard] == [("0", 2), ("2", 2), ("3", 2)]
    assert [(row.label, row.windows) for row in found.by_usable] == [("2", 1), ("3", 6)]


def test_many_numbers_of_receivers_share_rows():
    heard = np.arange(20)
    snr_db = np.where(np.arange(22) < heard[:, None], 10.0, -np.inf)
    found = figures(Answers.nothing(20), truth_of(np.zeros((20, 2)), snr_db=snr_db, receivers=22))
    assert [(row.label, row.windows) for row in found.by_heard] == [
        *((f"{k} to {k + 2}", 3) for k in range(0, 18, 3)),
        ("18 to 20", 2),
    ]
    assert [(row.label, row.windows) for row in found.by_usable] == [("22", 20)]


def test_plain_values_have_no_nan():
    assert plain(share_of(np.ones(4, bool)))["share"] == 1.0
    assert plain({"a": (math.nan, np.float64(2.0), math.inf), "b": None}) == {"a": [None, 2.0, None], "b": None}
