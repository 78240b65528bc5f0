from __future__ import annotations

import numpy as np
import pytest
from localize_core.dataset.windows import Label, Windows
from localize_core.errors import ConfigError
from localize_core.evaluation.baselines import (
    ClassicalTdoa,
    Levels,
    ModelLocator,
    NearestNeighbours,
    WeightedCentroid,
    chan_ho,
)
from localize_core.evaluation.bound import area_box_m
from localize_core.evaluation.metrics import covariance_of, squared_mahalanobis
from localize_core.model.compiled.compile import compile_model, contract_of
from localize_core.model.contract import Frame, Normalisation
from localize_core.model.onnx_model import OnnxModel
from scipy.optimize import least_squares
from scipy.stats import chi2
from sklearn.neighbors import KNeighborsRegressor

PLACES_M = np.array([[-3000.0, -2500.0], [3000.0, -2800.0], [2600.0, 3100.0], [-2900.0, 2700.0], [200.0, -3500.0]])


def windows_of(source, count=None):
    return next(source.batches(count or len(source)))


def path_m(spec, places_m):
    return np.linalg.norm(spec.receivers_enu_m - np.column_stack([places_m, np.zeros(len(places_m))])[:, None], axis=2)


def pair_differences(length_m):
    count = length_m.shape[1]
    return np.stack([length_m[:, i] - length_m[:, j] for i in range(count) for j in range(i + 1, count)], axis=1)


@pytest.fixture
def tdoa(make_spec):
    def make(places_m=PLACES_M[:4], **fields):
        spec = make_spec(places_m, **fields)
        return spec, ClassicalTdoa(contract_of(spec), area_box_m(spec.area))

    return make


@pytest.mark.parametrize("receivers", [3, 4, 5])
def test_chan_is_exact_without_noise(receivers):
    rng = np.random.default_rng(4)
    receivers_m = np.column_stack([PLACES_M[:receivers], rng.uniform(5.0, 60.0, receivers)])
    for _ in range(50):
        place = rng.uniform(-1800.0, 1800.0, 2)
        length_m = np.linalg.norm(receivers_m - [*place, 0.0], axis=1)
        found = chan_ho(receivers_m, length_m - 777.0)
        if receivers == 3:  # there can be two: the one found explains the lags as well
            length_found = np.linalg.norm(receivers_m - [*found, 0.0], axis=1)
            assert np.ptp(length_found - length_m) < 1e-4
        else:
            assert found == pytest.approx(place, abs=1e-3)


def test_chan_comes_close_to_the_best_there_is():
    """Small errors: the scatter is that of the Cramér–Rao bound (Chan & Ho 1994, section III)."""
    rng = np.random.default_rng(4)
    receivers_m = np.column_stack([PLACES_M, np.zeros(5)])
    place, sigma_m = np.array([800.0, -600.0]), 1.0
    offset = place - PLACES_M
    distance = np.linalg.norm(offset, axis=1)
    slope = offset / distance[:, None]
    slope -= slope.mean(axis=0)
    bound = np.trace(np.linalg.inv(slope.T @ slope)) * sigma_m**2
    error = [chan_ho(receivers_m, distance + sigma_m * rng.standard_normal(5)) - place for _ in range(2000)]
    assert np.mean(np.sum(np.square(error), axis=1)) == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("receivers_m", [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
def test_chan_with_receivers_in_a_line(receivers_m):
    assert chan_ho(np.array(receivers_m), np.array([0.0, 0.5, 1.2])) is None


@pytest.mark.parametrize("receivers", [3, 4, 5])
def test_tdoa_is_exact_without_noise(tdoa, receivers):
    spec, baseline = tdoa(PLACES_M[:receivers], height_m=40.0)
    places_m = np.random.default_rng(2).uniform(-1800.0, 1800.0, (60, 2))
    lags = pair_differences(path_m(spec, places_m))
    answers = baseline.solve(lags, np.ones(lags.shape, bool))
    if receivers == 3:
        lags_found = pair_differences(path_m(spec, answers.position_m))
        assert lags_found == pytest.approx(lags, abs=0.05)
    else:
        assert answers.position_m == pytest.approx(places_m, abs=0.05)
    assert np.isnan(answers.confidence).all()


def test_tdoa_finds_the_least_absolute_residuals(tdoa):
    """Against SciPy's own search from the truth, with lags of which one in ten is wild."""
    rng = np.random.default_rng(6)
    spec, baseline = tdoa(PLACES_M)
    places_m = rng.uniform(-2500.0, 2500.0, (40, 2))
    lags = pair_differences(path_m(spec, places_m)) + rng.normal(0.0, 10.0, (40, 10))
    lags += rng.uniform(-3000.0, 3000.0, lags.shape) * (rng.uniform(size=lags.shape) < 0.1)
    answers = baseline.solve(lags, np.ones(lags.shape, bool))

    def cost(place, lag):
        return np.abs(lag - pair_differences(path_m(spec, place[None]))[0]).sum()

    for own, start, lag in zip(answers.position_m, places_m, lags, strict=True):
        found = least_squares(
            lambda place, lag=lag: lag - pair_differences(path_m(spec, place[None]))[0],
            start,
            loss="soft_l1",
            f_scale=0.1,
        ).x
        assert cost(own, lag) <= 1.005 * cost(found, lag)
    assert np.median(np.linalg.norm(answers.position_m - places_m, axis=1)) < 15.0


def test_tdoa_ellipse_is_that_of_its_errors(tdoa):
    rng = np.random.default_rng(3)
    spec, baseline = tdoa(PLACES_M)
    places_m = rng.uniform(-1500.0, 1500.0, (1500, 2))
    lags = pair_differences(path_m(spec, places_m) + rng.normal(0.0, 200.0, (1500, 5)))
    answers = baseline.solve(lags, np.ones(lags.shape, bool))
    squared = squared_mahalanobis(answers.position_m - places_m, answers.covariance_m2)
    # Two residuals estimate the variance: squared/2 is nearly F-distributed with 2 and 2 degrees, not chi-square.
    assert np.median(squared) / 2.0 == pytest.approx(1.0, abs=0.35)


def test_tdoa_leaves_out_what_is_not_to_be_used(tdoa):
    spec, baseline = tdoa(PLACES_M)
    place = np.array([[500.0, 700.0]])
    lags = pair_differences(path_m(spec, place))
    used = np.ones((1, 10), bool)
    used[0, [0, 4, 5]] = False
    lags[~used] = 9e3
    assert baseline.solve(lags, used).position_m == pytest.approx(place, abs=0.05)
    # receivers 0-1-2 and 3-4 are two islands: three are enough, two more in between would not help
    island = np.zeros((1, 10), bool)
    island[0, [0, 1, 4, 9]] = True
    assert np.isfinite(baseline.solve(lags, island).position_m).all()
    nothing = np.zeros((1, 10), bool)
    nothing[0, [0, 9]] = True
    assert np.isnan(baseline.solve(lags, nothing).position_m).all()


def test_tdoa_locates_by_signals(make_source):
    source = make_source(20, snr_db=10.0, period=100)
    windows = windows_of(source)
    baseline = ClassicalTdoa(source.contract, area_box_m(source.spec.area))
    answers = baseline.locate(windows)
    error = np.linalg.norm(answers.position_m - windows.truth_m, axis=1)
    assert np.median(error) < 10.0  # a sample is 150 m
    assert error.max() < 60.0
    _, used = baseline.differences_m(windows)
    assert used.all()


def test_tdoa_drops_pairs_without_a_peak(make_source):
    source = make_source(20, period=2)  # half noise alone, half too far for their lags
    windows = windows_of(source)
    baseline = ClassicalTdoa(source.contract, area_box_m(source.spec.area))
    noise = windows.label == Label.NONE
    assert baseline.differences_m(windows)[1][noise].mean() < 0.02
    assert np.isnan(baseline.locate(windows.select(noise)).position_m).all()


def test_tdoa_does_without_missing_receivers(make_source):
    source = make_source(6, period=100, spec=None)
    windows = windows_of(source)
    usable = np.ones((6, 4), bool)
    usable[:, 2] = False
    usable[3, 3] = False
    windows = Windows(**{**vars(windows), "usable": usable})
    baseline = ClassicalTdoa(source.contract, area_box_m(source.spec.area))
    _, used = baseline.differences_m(windows)
    assert used[0].tolist() == [True, False, True, False, True, False]
    answered = np.isfinite(baseline.locate(windows).position_m).all(axis=1)
    assert answered.tolist() == [True, True, True, False, True, True]


def test_tdoa_needs_correlation_of_three(make_spec):
    for spec in (make_spec(PLACES_M[:2]), make_spec(timing=False, level=True)):
        with pytest.raises(ConfigError, match="time differences need cross_correlation of three receivers or more"):
            ClassicalTdoa(contract_of(spec), area_box_m(spec.area))


@pytest.mark.parametrize("k", [2, 5])
def test_neighbours_are_those_of_scikit_learn(make_spec, k):
    rng = np.random.default_rng(1)
    known, places_m, asked = (
        rng.normal(-60.0, 9.0, (300, 4)),
        rng.normal(size=(300, 2)),
        rng.normal(-60.0, 9.0, (50, 4)),
    )
    reference = KNeighborsRegressor(k).fit(known, places_m).predict(asked)
    baseline = NearestNeighbours(contract_of(make_spec(level=True, timing=False)), k=k).fit(known, places_m)
    assert baseline.predict(asked).position_m == pytest.approx(reference)


def test_neighbours_spread_is_the_ellipse(make_spec):
    rng = np.random.default_rng(1)
    contract = contract_of(make_spec(level=True, timing=False))
    places_m = rng.normal(size=(8000, 2)) * [300.0, 20.0]
    levels = rng.normal(size=(8000, 4))  # say nothing of the place
    asked, truth = rng.normal(size=(2000, 4)), rng.normal(size=(2000, 2)) * [300.0, 20.0]
    answers = NearestNeighbours(contract, k=40).fit(levels, places_m).predict(asked)
    squared = squared_mahalanobis(answers.position_m - truth, answers.covariance_m2)
    assert np.mean(squared <= chi2.ppf(0.9, 2)) == pytest.approx(0.9, abs=0.025)


def test_neighbours_compare_receivers_that_both_have(make_spec):
    contract = contract_of(make_spec(level=True, timing=False))
    known = np.array(
        [[0.0, 0.0, np.nan, 9.0], [1.0, 0.0, 0.0, 9.0], [5.0, 5.0, 5.0, 9.0], [np.nan, np.nan, np.nan, 9.0]]
    )
    places_m = np.array([[0.0, 0.0], [10.0, 0.0], [50.0, 0.0], [90.0, 0.0]])
    baseline = NearestNeighbours(contract, k=2).fit(known, places_m)
    answers = baseline.predict(np.array([[0.1, 0.0, 3.0, np.nan], [np.nan] * 4]))
    assert answers.position_m[0] == pytest.approx([5.0, 0.0])
    assert np.isnan(answers.position_m[1]).all()


def test_neighbours_need_enough_of_a_training(make_spec):
    contract = contract_of(make_spec(level=True, timing=False))
    with pytest.raises(ConfigError, match="k=5: needs as many training windows with an emitter, found 4"):
        NearestNeighbours(contract).fit(np.zeros((9, 4)), np.vstack([np.zeros((4, 2)), np.full((5, 2), np.nan)]))
    with pytest.raises(ConfigError, match="k=1"):
        NearestNeighbours(contract, k=1)
    with pytest.raises(ConfigError, match="no training windows yet"):
        NearestNeighbours(contract).predict(np.zeros((1, 4)))


@pytest.fixture
def level_source(make_source, make_spec):
    def make(count, **changes):
        return make_source(count, make_spec(PLACES_M, timing=False, level=True), exponent=3.0, **changes)

    return make


def test_levels_are_those_of_the_signal(level_source):
    """Of known noise, they are the emitter's without it, also below it."""
    source = level_source(12, snr_db=3.0, time_steps=40, period=100)
    windows = windows_of(source)
    levels = Levels(source.contract, (-50.0,) * 5)
    found = levels.level_db(windows)
    expected = windows.snr_db - 50.0  # the noise is at -50 dBFS
    clear = windows.snr_db > -6.0
    assert clear.sum() > 30
    assert found[clear] == pytest.approx(expected[clear], abs=1.0)
    assert 10.0 * np.log10(levels.signal(windows)[clear]) == pytest.approx(expected[clear], abs=1.0)
    silent = windows_of(level_source(2, time_steps=40, period=1))
    assert levels.level_db(silent) == pytest.approx(np.full((2, 5), -63.0), abs=0.02)
    assert levels.signal(silent) == pytest.approx(0.0)


@pytest.mark.parametrize("bandwidth", [0.2, 0.4])
def test_unknown_noise_is_read_off_quiet_bands(level_source, bandwidth):
    source = level_source(12, snr_db=3.0, time_steps=40, period=100, bandwidth=bandwidth)
    windows = windows_of(source)
    levels = Levels(source.contract)
    clear = windows.snr_db > 0.0
    assert 10.0 * np.log10(levels.signal(windows)[clear]) == pytest.approx(windows.snr_db[clear] - 50.0, abs=1.0)
    # nothing is taken out of levels then: they are the power that is there
    assert levels.level_db(windows) == pytest.approx(windows.level_db, abs=0.3)


def test_levels_without_log_mel_are_the_mean_power(make_source):
    source = make_source(3)
    windows = windows_of(source)
    usable = np.array([[True, True, False, True]] * 3)
    found = Levels(source.contract).level_db(Windows(**{**vars(windows), "usable": usable}))
    assert np.isnan(found[:, 2]).all()
    assert found[:, [0, 1, 3]] == pytest.approx(windows.level_db[:, [0, 1, 3]])


def test_neighbours_learn_a_site(level_source):
    known, asked = level_source(400, period=1000, seed=1), windows_of(level_source(40, period=1000, seed=2))
    baseline = NearestNeighbours(known.contract).fit_windows(known)
    answers = baseline.locate(asked)
    error = np.linalg.norm(answers.position_m - asked.truth_m, axis=1)
    assert np.median(error) < 400.0  # 400 windows on 25 km²: five neighbours lie within 315 m
    centroid = WeightedCentroid(known.contract).locate(asked)
    of_centroid = np.linalg.norm(centroid.position_m - asked.truth_m, axis=1)
    assert np.median(error) < 0.5 * np.median(of_centroid)


def test_neighbours_know_only_emitters_in_the_area(level_source):
    known = level_source(60, period=3)  # a third inside, a third outside, a third of noise
    baseline = NearestNeighbours(known.contract, k=20).fit_windows(known)
    windows = windows_of(known)
    inside = windows.label == Label.INSIDE
    found = baseline.locate(windows).position_m
    assert found == pytest.approx(np.broadcast_to(windows.truth_m[inside].mean(axis=0), found.shape))


def test_centroid_is_weighted_by_power(make_spec, level_source):
    source = level_source(30, snr_db=30.0, period=1000)
    windows = windows_of(source)
    power = 10.0 ** (windows.snr_db / 10.0)
    expected = power @ source.spec.receivers_enu_m[:, :2] / power.sum(axis=1, keepdims=True)
    answers = WeightedCentroid(source.contract).locate(windows)
    assert answers.position_m == pytest.approx(expected, abs=60.0)
    assert np.isnan(answers.covariance_m2).all()
    one = np.zeros((30, 5), bool)
    one[:, 1] = True
    alone = WeightedCentroid(source.contract).locate(Windows(**{**vars(windows), "usable": one}))
    assert alone.position_m == pytest.approx(np.broadcast_to(source.spec.receivers_enu_m[1, :2], (30, 2)), abs=1e-6)
    nobody = Windows(**{**vars(windows), "usable": ~one & False})
    assert np.isnan(WeightedCentroid(source.contract).locate(nobody).position_m).all()


@pytest.fixture
def compiled(tmp_path):
    def make(spec):
        compile_model(spec, tmp_path / "model.onnx")
        return OnnxModel(tmp_path / "model.onnx")

    return make


def test_a_model_takes_its_own_channels(make_source, make_spec, compiled):
    """One of correlation alone, on windows that hold levels too, answers as on windows of correlation alone."""
    model = compiled(make_spec())
    both, own = make_source(4, make_spec(level=True)), make_source(4)
    answers = ModelLocator(model, both).locate(windows_of(both))
    expected = model.run(windows_of(own).features)
    assert answers.position_m == pytest.approx(expected.position, abs=1e-3)
    assert answers.covariance_m2 == pytest.approx(covariance_of(expected.uncertainty), rel=1e-4)
    assert answers.confidence == pytest.approx(expected.confidence[:, 0], abs=1e-5)


def test_answers_come_in_the_frame_of_the_windows(make_source, make_spec, make_model):
    source = make_source(2)
    contract = source.contract
    latitude, longitude = contract.frame.local.to_wgs84(np.array([1000.0, -500.0]))
    wgs84 = contract.model_copy(update={"frame": Frame(kind="wgs84_deg")})
    model = OnnxModel(make_model(wgs84, position=(float(latitude), float(longitude)), uncertainty=(90.0, 30.0, 20.0)))
    answers = ModelLocator(model, source).locate(windows_of(source))
    assert answers.position_m == pytest.approx(np.array([[1000.0, -500.0]] * 2), abs=0.5)  # float32 degrees
    assert answers.covariance_m2[0] == pytest.approx(covariance_of(np.array([[90.0, 30.0, 20.0]]))[0], rel=1e-4)
    # Another origin, 90 degrees of longitude from the pole's other side: north there is west here.
    other = contract.model_copy(update={"frame": Frame(kind="enu_m", latitude=90.0, longitude=98.0)})
    here = other.frame.local.to_enu_m(latitude, longitude, 0.0)[:2].tolist()
    model = OnnxModel(make_model(other, position=here, uncertainty=(90.0, 30.0, 0.0), name="polar.onnx"))
    answers = ModelLocator(model, source).locate(windows_of(source))
    assert answers.position_m == pytest.approx(np.array([[1000.0, -500.0]] * 2), abs=2.0)
    assert answers.covariance_m2[0, 0, 0] == pytest.approx(900.0, rel=0.01)
    assert answers.covariance_m2[0, 1, 1] > 8100.0  # 40 degrees from its origin, that plane is foreshortened


@pytest.mark.parametrize("kind", ["joint", "constants"])
def test_windows_are_normalised_as_the_contract_says(make_source, make_model, kind):
    source = make_source(3)
    windows = windows_of(source)
    normalisation = Normalisation(kind=kind, mean=0.1, std=0.5)
    contract = source.contract.model_copy(update={"normalisation": normalisation})

    def first_two(means):
        import spox.opset.ai.onnx.v17 as op

        return op.gather(means, op.const(np.array([0, 1])), axis=1)

    answers = ModelLocator(OnnxModel(make_model(contract, position=first_two)), source).locate(windows)
    scaled = [normalisation.apply(window)[:2].mean(axis=(1, 2)) for window in windows.features]
    assert answers.position_m == pytest.approx(np.array(scaled), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"places_m": PLACES_M},
            "the windows are of receivers r0, r1, r2, r3: the model compiled-test wants r0, r1, r2, r3, r4",
        ),
        (
            {"places_m": PLACES_M[:4] + 70.0},
            r"receiver r0 of the windows at .*: the model compiled-test was made for .* 99 m",
        ),
        ({"level": True}, "the windows have no log_mel: the model compiled-test wants it"),
    ],
)
def test_a_model_for_other_windows_is_refused(make_source, make_spec, compiled, changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelLocator(compiled(make_spec(**changes)), make_source(2))


def test_a_model_for_other_frames_is_refused(make_source, make_model):
    source = make_source(2)
    short = source.contract.model_copy(update={"time_steps": 20})
    with pytest.raises(ConfigError, match="the windows have 8 frames: the model compiled-test wants 20"):
        ModelLocator(OnnxModel(make_model(short)), source)
    parameters = source.contract.correlation_config.as_dict() | {"lag_step": 0.5}
    channels = tuple(c.model_copy(update={"parameters": parameters}) for c in source.contract.channels)
    other = source.contract.model_copy(update={"channels": channels})
    with pytest.raises(ConfigError, match=r"cross_correlation: the windows have lag_step=1\.0, .* wants 0\.5"):
        ModelLocator(OnnxModel(make_model(other, name="other.onnx")), source)
