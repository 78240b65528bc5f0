"""The map of a site against scikit-learn's Gaussian processes, and its fix against the posterior in plain numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from localize_core.dataset.windows import Label
from scipy.spatial.distance import cdist
from scipy.stats import t as student
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

torch = pytest.importorskip("torch")

from localize_core.training import radio_map as module  # noqa: E402
from localize_core.training.fit import FitConfig, fit_folds, folds_of, predict  # noqa: E402
from localize_core.training.network import LEVEL_SCALE_DB, Answer, Calibrated, Ensemble, Layout, mixture  # noqa: E402
from localize_core.training.radio_map import FREEDOM, RadioMap, cross_fitted, fit_radio_map, map_fixes  # noqa: E402
from localize_core.training.summaries import Summaries  # noqa: E402
from localize_core.training.train import share_of_networks  # noqa: E402

RECEIVERS = ((-400.0, -400.0, 20.0), (400.0, -400.0, 20.0), (400.0, 400.0, 20.0), (-400.0, 400.0, 20.0))
LAYOUT = Layout(
    centre_m=(0.0, 0.0),
    half_sizes_m=(400.0, 300.0),
    scale_m=400.0,
    receivers=4,
    rows=64,
    has_level=True,
    has_timing=True,
    noise_power=(1.0,) * 4,
    bank_width=(1.0,) * 64,
    log_offset=1e-10,
    n_core=200,
    squared=True,
    lag_m=30.0,
    receivers_enu_m=RECEIVERS,
    has_prior=True,
)
LEVELS = dataclasses.replace(LAYOUT, has_timing=False)
SIGMA_DB, LENGTH_M, NOISE_DB = 8.0, 100.0, 1.0


def site(
    count: int,
    seed: int = 1,
    *,
    late_rows: float = 0.0,
    layout: Layout = LAYOUT,
    shadowed: bool = True,
    beyond: bool = False,
) -> Summaries:
    """Windows of places on a site whose shadowing is a Gaussian process, and on which receiver 0 hears everything
    `late_rows` late. Strong everywhere. `beyond`: places between 1.2 and 1.9 half sizes from the middle instead."""
    rng = np.random.default_rng(seed)
    places = rng.uniform([-400.0, -300.0], [400.0, 300.0], (count, 2))
    if beyond:
        places *= (rng.uniform(1.2, 1.9, count) / np.abs(places / [400.0, 300.0]).max(axis=1))[:, None]
    receivers = np.array(RECEIVERS)
    distance = np.hypot(cdist(places, receivers[:, :2]), 20.0)
    covariance = SIGMA_DB**2 * np.exp(-cdist(places, places) / LENGTH_M) + 1e-9 * np.eye(count)
    shadow = np.linalg.cholesky(covariance) @ rng.standard_normal((count, 4)) * shadowed
    level_db = 120.0 - 30.0 * np.log10(distance) + shadow + NOISE_DB * rng.standard_normal((count, 4))
    profile = np.zeros((count, len(layout.pairs), layout.rows), np.float32)
    lag = np.arange(layout.rows) - layout.rows // 2
    late = np.array([late_rows, 0.0, 0.0, 0.0])
    for number, (i, j) in enumerate(layout.pairs):
        middle = (distance[:, i] - distance[:, j]) / layout.lag_m + late[i] - late[j]
        profile[:, number] = 3.0 * np.exp(-0.5 * ((lag - middle[:, None]) / 1.5) ** 2)
    cells = np.floor((places + 400.0) / 100.0).astype(int)
    return Summaries(
        spectrum=np.zeros((count, 4, layout.rows), np.float32),
        level=np.stack([level_db / LEVEL_SCALE_DB, np.zeros_like(level_db)], axis=2).astype(np.float32),
        profile=profile,
        present=np.ones((count, 4), np.float32),
        fix=np.zeros((count, 6), np.float32),
        truth_m=places.astype(np.float32),
        label=np.full(count, Label.INSIDE),
        group=cells[:, 0] * 8 + cells[:, 1],
        source=np.arange(count),
        snr_db=level_db.astype(np.float32),
    )


def errors_m(summaries: Summaries) -> np.ndarray:
    return np.linalg.norm(summaries.fix[:, :2] - summaries.truth_m, axis=1)


def test_map_is_the_gaussian_process_of_scikit_learn():
    known = site(150, layout=LEVELS)
    grid = module._grid(LEVELS)[::37]
    met, _, _ = module._level_base(LEVELS, known, grid)
    mean, variance = module._maps(met, grid, (40.0, 90.0, 4.0), np.random.default_rng(1))
    kernel = kernels.ConstantKernel(40.0) * kernels.Matern(90.0, nu=0.5)
    for receiver in range(4):
        reference = GaussianProcessRegressor(kernel, alpha=4.0, optimizer=None)
        reference.fit(met.places_m, module._winsorised(met)[:, receiver])
        expected, deviation = reference.predict(grid, return_std=True)
        np.testing.assert_allclose(mean[receiver], expected, atol=1e-6)
        np.testing.assert_allclose(variance[receiver], deviation**2 + 4.0, rtol=1e-6)


def test_scales_are_found():
    met, _, _ = module._level_base(LEVELS, site(600, layout=LEVELS), module._grid(LEVELS))
    variance, length_m, rest = module._scales(met, np.random.default_rng(1))
    assert 0.5 < variance / SIGMA_DB**2 < 1.6
    assert 0.5 < length_m / LENGTH_M < 2.0
    assert rest < 6.0


def drawn_map(rng):
    """A map of levels of random values, and the places of its area and its surroundings."""
    places, around = module._grid(LEVELS), module._surroundings(LEVELS)
    count = len(places) + len(around)
    mean, variance = rng.normal(30.0, 6.0, (4, count)), rng.uniform(2.0, 9.0, (4, count))
    straight = rng.normal(30.0, 6.0, (4, len(around))), rng.uniform(2.0, 9.0, (4, 1))
    radio_map = RadioMap(LEVELS, np.concatenate([places, around]), len(places), mean, variance, straight)
    return radio_map, places, mean, variance, straight


def test_fix_is_the_posterior_under_students_t():
    rng = np.random.default_rng(3)
    radio_map, places, mean, variance, straight = drawn_map(rng)
    some = site(5, layout=LEVELS)
    some = dataclasses.replace(some, present=np.array([[1, 1, 1, 1]] * 4 + [[1, 0, 1, 1]], np.float32))
    fix = map_fixes(radio_map, some).fix
    for window in range(5):
        present = np.flatnonzero(some.present[window])
        value = some.level[window, present, 0] * LEVEL_SCALE_DB
        each = student.logpdf(value[:, None], FREEDOM, mean[present], np.sqrt(variance[present]))
        own, gone = np.split(each.sum(axis=0), [len(places)])
        share = np.exp(own - own.max())
        share /= share.sum()
        middle = share @ places
        np.testing.assert_allclose(fix[window, :2], middle, atol=0.05)
        covariance = np.cov(places.T, aweights=share, ddof=0)
        axes = np.sqrt(np.linalg.eigvalsh(covariance)[::-1] + (radio_map.cell_variance * LEVELS.scale_m**2))
        np.testing.assert_allclose(fix[window, 2:4], axes, rtol=2e-3)
        # The surroundings' cells are four times as large, heard by the one way or the other.
        free = student.logpdf(value[:, None], FREEDOM, straight[0][present], np.sqrt(straight[1][present])).sum(axis=0)
        here = np.exp(own).sum() / (np.exp(own).sum() + 2.0 * (np.exp(gone).sum() + np.exp(free).sum()))
        middling = student.logpdf(0.0, FREEDOM) - 0.5 * np.log(variance[present][:, : len(places)])
        surprise = (middling - each[:, : len(places)]).sum(axis=0) @ share / len(present)
        assert fix[window, 5] == pytest.approx(np.exp(-surprise) * np.tanh(len(present)) * here, rel=1e-3)


def test_surroundings_are_a_frame_round_the_grid():
    own, around = (
        each / np.array(LEVELS.half_sizes_m) for each in (module._grid(LEVELS), module._surroundings(LEVELS))
    )
    assert np.abs(own).max() == pytest.approx(1.0 + module.BORDER)
    assert (np.abs(around) > 1.0 + module.BORDER).any(axis=1).all()
    assert np.abs(around).max(axis=0) == pytest.approx([module.BEYOND, module.BEYOND])


def test_an_emitter_beyond_the_area_is_no_fit():
    """Free space: what comes from outside by straight paths fits nowhere inside."""
    known, new = site(400, shadowed=False), site(200, seed=2, shadowed=False)
    radio_map = fit_radio_map(LAYOUT, known, seed=1)
    fits = map_fixes(radio_map, new).fix[:, 5]
    gone = map_fixes(radio_map, site(200, seed=3, shadowed=False, beyond=True)).fix[:, 5]
    assert np.quantile(fits, 0.1) > 10.0 * np.quantile(gone, 0.9)


def test_the_file_says_zero_where_the_network_does(tmp_path):
    """Runtimes round small numbers differently: an emitter far outside is not silence, in neither."""
    radio_map = fit_radio_map(LAYOUT, site(300, shadowed=False), seed=1).eval()
    radio_map.sharpness = 3.0
    some = Summaries.concatenate([site(50, seed=2, shadowed=False), site(50, seed=3, shadowed=False, beyond=True)])
    _, level, profile, present, _ = some.tensors()
    file = tmp_path / "map.onnx"
    torch.onnx.export(radio_map, (level, profile, present), file, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]
    given = dict(zip(("level", "profile", "present"), (level, profile, present), strict=True))
    (fix,) = session.run(None, {name: given[name].numpy() for name in names})
    own = map_fixes(radio_map, some).fix
    assert (fix[:, 5] > 0.0).all()
    assert (own[:, 5] > 0.0).all()
    np.testing.assert_allclose(fix[:, 5], own[:, 5], rtol=0.02)


def test_networks_weigh_as_much_as_they_deserve():
    """Both right about themselves and as good: half; a network that knows nothing: nothing."""
    rng = np.random.default_rng(1)
    known = site(3000)
    sigma_m, truth = 20.0, known.truth_m
    fix = np.column_stack([truth + rng.normal(0.0, sigma_m, truth.shape), np.full((3000, 2), sigma_m), np.zeros(3000)])
    known = dataclasses.replace(known, fix=np.column_stack([fix, np.ones(3000)]).astype(np.float32))
    for error_m, low, high in ((sigma_m, 0.3, 0.7), (20.0 * sigma_m, 0.0, 0.1)):
        place = torch.from_numpy((truth + rng.normal(0.0, error_m, truth.shape)) / LAYOUT.scale_m).float()
        spread = torch.tensor([[1.0, 0.0, 1.0]]).expand(3000, -1) * (error_m / LAYOUT.scale_m) ** 2
        assert low <= share_of_networks(LAYOUT, (place, spread, place), known) <= high


def test_a_window_in_which_nobody_hears_anything_deserves_no_confidence():
    radio_map = fit_radio_map(LAYOUT, site(200), seed=1)
    model = Calibrated(LAYOUT, Answer(LAYOUT, hidden=16), radio_map).eval()
    spectrum, level, profile, present, fix = site(4).tensors()
    model.summary.forward = lambda features: (spectrum, level * 0.0 - 1.0, profile * 0.0, present)
    with torch.no_grad():
        assert float(model(torch.zeros(4, 10, 64, 3), fix)[2].max()) == 0.0
        model.summary.forward = lambda features: (spectrum, level, profile, present)
        assert float(model(torch.zeros(4, 10, 64, 3), fix)[2].min()) > 0.0


def test_map_learns_what_geometry_does_not_know():
    known = site(900, late_rows=4.0)
    fold = folds_of(known.group, 6, seed=1)
    learned = errors_m(cross_fitted(LAYOUT, known, fold, seed=1)[0])
    geometry = errors_m(map_fixes(fit_radio_map(LAYOUT, site(60), seed=1), known))
    assert np.median(learned) < 0.5 * np.median(geometry)


def test_a_fold_is_judged_by_a_map_that_has_not_seen_it():
    known = site(300, layout=LEVELS)
    fold = folds_of(known.group, 3, seed=1)
    other = dataclasses.replace(known, level=np.where((fold == 0)[:, None, None], 0.5, known.level).astype(np.float32))
    before, after = (cross_fitted(LEVELS, each, fold, seed=1) for each in (known, other))
    own = fit_radio_map(LEVELS, known.select(fold != 0), seed=1)
    own.sharpness = before[1]
    alone = map_fixes(own, known.select(fold == 0)).fix
    np.testing.assert_array_equal(before[0].fix[fold == 0], alone)
    assert not np.array_equal(before[0].fix[fold == 1], after[0].fix[fold == 1])


def test_folds_hold_whole_blocks():
    group = np.random.default_rng(1).integers(0, 40, 1000)
    fold = folds_of(group, 6, seed=2)
    assert sorted(np.unique(fold)) == list(range(6))
    for block in range(40):
        assert len(np.unique(fold[group == block])) == 1


def test_what_is_said_of_a_fold_comes_from_the_network_that_has_not_seen_it():
    known = map_fixes(fit_radio_map(LEVELS, site(300, layout=LEVELS), seed=1), site(300, layout=LEVELS))
    fold = folds_of(known.group, 3, seed=1)
    answer, said, history = fit_folds(LEVELS, known, fold, FitConfig(epochs=2, hidden=16))
    assert isinstance(answer, Ensemble)
    assert len(answer.members) == 3
    for number in range(3):
        part = predict(answer.members[number], known.select(fold == number))
        for whole, own in zip(said, part, strict=True):
            torch.testing.assert_close(whole[torch.from_numpy(fold == number)], own)
    assert len(history) == 6


def test_an_ensemble_is_the_mixture_of_its_members():
    torch.manual_seed(1)
    members = [Answer(LEVELS, hidden=16).eval() for _ in range(3)]
    inputs = map_fixes(fit_radio_map(LEVELS, site(100, layout=LEVELS), seed=1), site(20, layout=LEVELS)).tensors()
    with torch.no_grad():
        position, covariance, logit = (part.double().numpy() for part in Ensemble(members)(*inputs))
        said = [[part.double().numpy() for part in member(*inputs)] for member in members]
    means = np.array([each[0] for each in said])
    np.testing.assert_allclose(position, means.mean(axis=0), atol=1e-6)
    for window in range(20):
        whole = np.zeros((2, 2))
        for mean, each in zip(means[:, window], said, strict=True):
            xx, xy, yy = each[1][window]
            offset = mean - position[window]
            whole += (np.array([[xx, xy], [xy, yy]]) + np.outer(offset, offset)) / 3.0
        np.testing.assert_allclose(covariance[window], whole[[0, 0, 1], [0, 1, 1]], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logit, np.mean([each[2] for each in said], axis=0), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_mixture_has_the_moments_of_its_draws(share):
    """Against draws from both normal distributions in proportion."""
    rng = np.random.default_rng(1)
    own, fix = np.array([0.3, -0.2]), np.array([120.0, 40.0, 60.0, 20.0, 30.0, 1.0])
    covariance = np.array([[0.02, 0.005], [0.005, 0.01]])
    angle = np.radians(fix[4])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    other = turn @ np.diag((fix[2:4] / LAYOUT.scale_m) ** 2) @ turn.T
    count = 400_000
    first = rng.uniform(size=count) < share
    draws = np.where(
        first[:, None],
        rng.multivariate_normal(own, covariance, count),
        rng.multivariate_normal((fix[:2] - LAYOUT.centre_m) / LAYOUT.scale_m, other, count),
    )
    mean, spread = mixture(
        LAYOUT, *(torch.tensor(v[None]) for v in (own, covariance[[0, 0, 1], [0, 1, 1]], fix)), share
    )
    np.testing.assert_allclose(mean[0], draws.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(spread[0], np.cov(draws.T)[[0, 0, 1], [0, 1, 1]], atol=2e-4)
