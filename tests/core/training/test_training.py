"""The network's parts against closed forms, and a training that goes on as if it had never been interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from localize_core.dataset.windows import Label
from localize_core.errors import ConfigError, ModelError

torch = pytest.importorskip("torch")

from localize_core.training.calibrate import apply, calibrate  # noqa: E402
from localize_core.training.fit import FitConfig, fit, predict, scaled_truth  # noqa: E402
from localize_core.training.network import (  # noqa: E402
    LEVEL_SCALE_DB,
    Answer,
    Calibrated,
    Jitter,
    Layout,
    Summary,
    gaussian_nll,
    prior_precision,
)
from localize_core.training.summaries import Summaries  # noqa: E402

ROWS, RECEIVERS, PAIRS = 32, 4, 6
LAYOUT = Layout(
    centre_m=(100.0, -50.0),
    half_sizes_m=(1000.0, 800.0),
    scale_m=1000.0,
    receivers=RECEIVERS,
    rows=ROWS,
    has_level=True,
    has_timing=True,
    noise_power=(1.0,) * RECEIVERS,
    bank_width=(1.0,) * ROWS,
    log_offset=1e-10,
    n_core=200,
    squared=True,
    lag_m=30.0,
    receivers_enu_m=((0.0, 0.0, 0.0), (900.0, 0.0, 0.0), (0.0, 900.0, 0.0), (900.0, 900.0, 0.0)),
    has_prior=True,
)
SMALL = FitConfig(epochs=4, batch=32, hidden=16, patience=10)


def summaries(count: int, seed: int, *, understated: float = 1.0) -> Summaries:
    """Windows whose compiled fix is off by `understated` times what its ellipse says; nothing else tells the place."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-500.0, 500.0, (count, 2))
    label = np.where(rng.uniform(size=count) < 0.2, Label.NONE, Label.INSIDE)
    sigma = rng.uniform(5.0, 50.0, (count, 2))
    theta = rng.uniform(-90.0, 90.0, count)
    turn = np.stack([np.cos(np.radians(theta)), np.sin(np.radians(theta))], axis=1)
    off = rng.standard_normal((count, 2)) * sigma * understated
    place = truth + off[:, :1] * turn + off[:, 1:] * np.stack([-turn[:, 1], turn[:, 0]], axis=1)
    heard = (label == Label.INSIDE).astype(float)
    fix = np.column_stack([place, sigma, theta, heard])
    profile = rng.normal(0.0, 0.1, (count, PAIRS, ROWS)) + heard[:, None, None] * np.eye(1, ROWS, ROWS // 2)
    return Summaries(
        spectrum=rng.normal(size=(count, RECEIVERS, ROWS)).astype(np.float32),
        level=(rng.normal(size=(count, RECEIVERS, 2)) + 2.0 * heard[:, None, None]).astype(np.float32),
        profile=profile.astype(np.float32),
        present=np.ones((count, RECEIVERS), np.float32),
        fix=fix.astype(np.float32),
        truth_m=np.where(heard[:, None] > 0, truth, np.nan).astype(np.float32),
        label=label,
        group=np.arange(count),
        source=np.arange(count),
        snr_db=np.full((count, RECEIVERS), 10.0, np.float32),
    )


def network(seed: int = 1) -> Calibrated:
    torch.manual_seed(seed)
    return Calibrated(LAYOUT, Answer(LAYOUT, hidden=16)).eval()


def believing() -> Calibrated:
    """A network that believes the compiled fix as it stands, and it alone."""
    made = network()
    with torch.no_grad():
        made.answer.site.trust[-1].weight.zero_()
        made.answer.site.trust[-1].bias.zero_()
        made.answer.site.place[-1].bias[2:4] = -4.0
    return made


def covariance(sigma_x, sigma_y, theta):
    angle = np.radians(theta)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return axes @ np.diag([sigma_x**2, sigma_y**2]) @ axes.T


def test_precision_of_a_compiled_fix_is_the_inverse_of_its_covariance():
    fix = torch.tensor([[0.0, 0.0, 300.0, 20.0, 35.0, 1.0]], dtype=torch.float64)
    xx, xy, yy = (float(value) for value in prior_precision(LAYOUT, fix))
    expected = np.linalg.inv(covariance(300.0, 20.0, 35.0)) * LAYOUT.scale_m**2
    np.testing.assert_allclose([[xx, xy], [xy, yy]], expected, rtol=1e-9)


def test_answer_is_the_product_of_both_normal_distributions():
    made, some = network(), summaries(20, 2)
    inputs = some.tensors()
    fix = inputs[-1]
    with torch.no_grad():
        from localize_core.training.network import prior_features

        mean, factor, trust = (x.numpy() for x in made.answer.site(*inputs[:4], prior_features(LAYOUT, fix)))
        position, cov, _ = (x.numpy() for x in made.answer(*inputs))
    for k in range(len(some)):
        upper = np.array([[np.exp(factor[k, 0]), factor[k, 2] * np.exp(factor[k, 0])], [0.0, np.exp(factor[k, 1])]])
        own = upper.T @ upper
        geometric = np.linalg.inv(covariance(*some.fix[k, 2:5]) / LAYOUT.scale_m**2) * np.exp(trust[k])
        place = (some.fix[k, :2] - LAYOUT.centre_m) / LAYOUT.scale_m
        together = np.linalg.inv(own + geometric)
        np.testing.assert_allclose(position[k], together @ (own @ mean[k] + geometric @ place), atol=1e-4)
        np.testing.assert_allclose(cov[k], together[[0, 0, 1], [0, 1, 1]], rtol=1e-2, atol=1e-7)


def test_ellipse_has_the_axes_of_the_covariance():
    made = network()
    features = torch.rand(8, RECEIVERS + PAIRS, ROWS, 10)
    fix = torch.tensor([[0.0, 0.0, 300.0, 20.0, 35.0, 1.0]]).repeat(8, 1)
    with torch.no_grad():
        _, ellipse, _ = made(features, fix)
        _, cov, _ = made.answer(*made.summary(features), fix)
    for (major, minor, theta), (xx, xy, yy) in zip(ellipse.numpy(), cov.numpy() * LAYOUT.scale_m**2, strict=True):
        values, axes = np.linalg.eigh([[xx, xy], [xy, yy]])
        np.testing.assert_allclose([minor, major], np.sqrt(values), rtol=2e-2)
        along = [np.cos(np.radians(theta)), np.sin(np.radians(theta))]
        assert abs(np.dot(along, axes[:, 1])) == pytest.approx(1.0, abs=1e-3)


def test_what_a_missing_receiver_would_have_heard_changes_nothing():
    made, some = network(), summaries(10, 3)
    present = some.present.copy()
    present[:, 1] = 0.0
    gone = dataclasses.replace(some, present=present)
    noisy = gone.spectrum.copy(), gone.profile.copy()
    noisy[0][:, 1] += 5.0
    noisy[1][:, [0, 3, 4]] += 1.0  # pairs (0, 1), (1, 2), (1, 3)
    other = dataclasses.replace(gone, spectrum=noisy[0], profile=noisy[1])
    for ours, theirs in zip(predict(made.answer, gone), predict(made.answer, other), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(predict(made.answer, gone)[0], predict(made.answer, some)[0])


@pytest.mark.parametrize("heard", [RECEIVERS, 1, 0])
def test_silent_pairs_and_missing_receivers_leave_finite_answers(heard):
    features = torch.zeros(2, RECEIVERS + PAIRS, ROWS, 10)
    features[:, :RECEIVERS] = float(np.log(1e-10))
    features[:, :heard] = 0.0
    fix = torch.tensor([[100.0, -50.0, 0.0, 0.0, 0.0, 0.0]]).repeat(2, 1)
    with torch.no_grad():
        place, ellipse, certain = network()(features, fix)
    assert torch.isfinite(place).all()
    assert torch.isfinite(ellipse).all()
    assert (ellipse[:, 0] >= ellipse[:, 1]).all()
    assert (ellipse[:, 1] > 0.0).all()
    assert ((certain >= 0.0) & (certain <= 1.0)).all()


def test_summary_reads_levels_and_finds_missing_receivers():
    features = np.full((1, RECEIVERS + PAIRS, ROWS, 12), 0.0, np.float32)
    features[:, :RECEIVERS] = np.log(11.0 / ROWS)  # ten times the noise, and the noise
    features[:, 2] = np.log(1e-10)
    _, level, profile, present = Summary(LAYOUT)(torch.from_numpy(features))
    assert present[0].tolist() == [1.0, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(level[0, [0, 1, 3], 0] * 20.0, 10.0, atol=1e-4)
    assert torch.isfinite(profile).all()


def test_likelihood_is_that_of_a_normal_distribution():
    from scipy.stats import multivariate_normal

    cov = covariance(0.3, 0.1, 20.0)
    truth = np.array([[0.2, -0.4]])
    expected = -multivariate_normal([0.1, -0.3], cov).logpdf(truth[0]) - np.log(2.0 * np.pi)
    found = gaussian_nll(
        torch.tensor([[0.1, -0.3]], dtype=torch.float64),
        torch.from_numpy(cov[None, [0, 0, 1], [0, 1, 1]]),
        torch.from_numpy(truth),
    )
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path):
    train, validation = summaries(200, 1), summaries(60, 2)
    whole, history = fit(LAYOUT, train, validation, SMALL)

    class Stopped(Exception):
        pass

    def stop(epoch):
        if epoch.number == 1:
            raise Stopped

    with pytest.raises(Stopped):
        fit(LAYOUT, train, validation, SMALL, checkpoint=tmp_path / "c.pt", on_epoch=stop)
    resumed, again = fit(LAYOUT, train, validation, SMALL, checkpoint=tmp_path / "c.pt", resume=True)
    assert [epoch.validation_loss for epoch in again] == [epoch.validation_loss for epoch in history]
    for ours, theirs in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    other = dataclasses.replace(SMALL, seed=2)
    with pytest.raises(ModelError, match="belongs to another training, its config differ"):
        fit(LAYOUT, train, validation, other, checkpoint=tmp_path / "c.pt", resume=True)
    torch.save({"weights": {}}, tmp_path / "c.pt")
    with pytest.raises(ModelError, match="not a checkpoint of a training"):
        fit(LAYOUT, train, validation, SMALL, checkpoint=tmp_path / "c.pt", resume=True)
    (tmp_path / "c.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a checkpoint"):
        fit(LAYOUT, train, validation, SMALL, checkpoint=tmp_path / "c.pt", resume=True)


def test_nothing_to_learn_is_an_error():
    empty = summaries(40, 1)
    nobody = dataclasses.replace(empty, label=np.zeros(40, int), truth_m=np.full((40, 2), np.nan, np.float32))
    with pytest.raises(ConfigError, match="no window of the training"):
        fit(LAYOUT, nobody, empty, SMALL)


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("epochs", 1, 100_000),
        ("batch", 2, 65_536),
        ("learning_rate", 1e-7, 1.0),
        ("weight_decay", 0.0, 10.0),
        ("hidden", 8, 4096),
        ("dropout", 0.0, 0.9),
        ("level_jitter_db", 0.0, 20.0),
        ("profile_jitter", 0.0, 2.0),
        ("patience", 1, 100_000),
    ],
)
def test_options_have_bounds(field, low, high):
    for allowed in (low, high):
        assert getattr(FitConfig(**{field: allowed}), field) == allowed
    step = 1 if isinstance(low, int) else 1e-8
    for refused in (low - step, high + step, float("nan")):
        with pytest.raises(ConfigError, match=f"{field}=.*: must lie between"):
            FitConfig(**{field: refused})


def test_calibration_mends_ellipses_that_are_too_small():
    """Fixes three times as far off as they say: on new windows the ellipses hold their shares again."""
    made = believing()
    held = summaries(3000, 5, understated=3.0)
    found = calibrate(LAYOUT, predict(made.answer, held), held)
    apply(found, made)
    new = summaries(3000, 6, understated=3.0)
    inside = new.inside
    position, cov, _ = predict(made.answer, new)
    offset = (scaled_truth(LAYOUT, new.truth_m) - position).numpy()[inside]
    xx, xy, yy = made.scaled(cov).numpy()[inside].T
    e, n = offset.T
    squared = (yy * e * e - 2 * xy * e * n + xx * n * n) / (xx * yy - xy * xy)
    assert np.mean(squared < 5.991) == pytest.approx(0.95, abs=0.01)
    assert np.mean(squared < 1.0) == pytest.approx(0.3935, abs=0.03)
    assert np.exp(found.ellipse[0]) == pytest.approx(9.0, rel=0.1)


def test_calibrated_ellipse_of_95_percent_holds_as_much_where_tails_are_heavy():
    """A tenth of the fixes far off: smaller ellipses then hold more than they say, and this one what it says."""
    made = believing()
    some = summaries(4000, 7)
    far = np.random.default_rng(1).uniform(size=4000) < 0.1
    off = some.fix[:, :2] - some.truth_m
    fix = np.column_stack([some.truth_m + off * np.where(far, 2.5, 1.0)[:, None], some.fix[:, 2:]])
    held = dataclasses.replace(some, fix=np.where(np.isfinite(fix), fix, some.fix).astype(np.float32))
    found = calibrate(LAYOUT, predict(made.answer, held), held)
    assert found.containment["95"] == pytest.approx(0.95, abs=0.002)
    assert found.containment["39.35"] > 0.45


def unclear(some: Summaries, seed: int) -> Summaries:
    """The same with a first stage that knows nothing, and levels and peaks in which emitters are often mistaken."""
    rng = np.random.default_rng(seed)
    shift = 0.6 * (some.label == Label.INSIDE)[:, None, None]
    level = rng.normal(size=(len(some), 1, 1)) + shift + np.zeros((1, RECEIVERS, 2))
    fix = np.tile(np.array([[0.0, 0.0, 100.0, 100.0, 0.0, 0.5]], np.float32), (len(some), 1))
    return dataclasses.replace(some, level=level.astype(np.float32), profile=some.profile * 0.0, fix=fix)


def test_confidence_errs_as_often_either_way_however_rare_windows_without_emitter_are():
    many = summaries(6000, 8)
    few = many.select((many.label == Label.INSIDE) | (np.arange(6000) % 4 == 0))
    answer, _ = fit(LAYOUT, unclear(few, 1), unclear(summaries(2000, 9), 2), dataclasses.replace(SMALL, epochs=1))
    new = unclear(summaries(6000, 10), 3)
    yes = predict(answer, new)[2][:, 0].numpy() > 0.0
    missed, false = np.mean(~yes[new.label == Label.INSIDE]), np.mean(yes[new.label == Label.NONE])
    assert 0.25 < missed < 0.5
    assert missed == pytest.approx(false, abs=0.08)


def test_an_emitter_that_was_always_on_teaches_what_silence_is_not():
    on = summaries(600, 8)
    on = on.select(on.label == Label.INSIDE)
    answer, _ = fit(LAYOUT, on.select(np.arange(len(on)) > 99), on.select(np.arange(100)), SMALL)
    new = summaries(500, 10)
    silent = new.label == Label.NONE
    level = np.where(silent[:, None, None], -0.85, new.level).astype(np.float32)
    certain = torch.sigmoid(predict(answer, dataclasses.replace(new, level=level))[2][:, 0]).numpy()
    assert certain[~silent].min() > 0.9
    assert certain[silent].max() < 0.1


def test_jitter_is_for_training_alone_and_leaves_the_missing_alone():
    jitter = Jitter(2.0, 0.2)
    level, profile = torch.zeros(500, RECEIVERS, 2), torch.ones(500, PAIRS, ROWS)
    present = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(500, -1)
    profile[:, -1] = 0.0
    assert all(
        torch.equal(*both) for both in zip(jitter.eval()(level, profile, present), (level, profile), strict=True)
    )
    other, rough = jitter.train()(level, profile, present)
    assert float(other[:, :3, 0].std()) * LEVEL_SCALE_DB == pytest.approx(2.0, rel=0.1)
    assert float(rough[:, :-1].std()) == pytest.approx(0.2, rel=0.1)
    assert not other[:, 3].any()
    assert not other[..., 1].any()
    assert not rough[:, -1].any()


def test_calibration_refuses_what_no_scale_can_mend():
    """All fixes equally far off: the ellipse that holds 95 % leaves nothing to smaller ones."""
    made = believing()
    some = summaries(1000, 7)
    circle = np.tile(np.array([20.0, 20.0, 0.0, 1.0]), (1000, 1))
    beside = np.where(np.isfinite(some.truth_m), some.truth_m, 0.0) + np.array([100.0, 0.0])
    held = dataclasses.replace(some, fix=np.column_stack([beside, circle]).astype(np.float32))
    with pytest.raises(ModelError, match="no scale makes the ellipses hold what they say"):
        calibrate(LAYOUT, predict(made.answer, held), held)


def test_confidence_is_calibrated_as_if_both_kinds_were_as_frequent():
    """A logit that is right for half and half stays, though one kind is five times as frequent."""
    rng = np.random.default_rng(1)
    some = summaries(20_000, 7)
    inside = some.label == Label.INSIDE
    logit = torch.from_numpy(rng.normal(np.where(inside, 1.0, -1.0), np.sqrt(2.0))[:, None])  # log odds of itself
    position, spread, _ = predict(network().answer, some)
    slope, offset = calibrate(LAYOUT, (position, spread * 1e3, logit), some).confidence
    assert slope == pytest.approx(1.0, abs=0.05)
    assert offset == pytest.approx(0.0, abs=0.06)


def test_calibration_wants_windows():
    few = summaries(40, 1)
    with pytest.raises(ModelError, match="at least 50 needed"):
        calibrate(LAYOUT, predict(network().answer, few), few)


def test_calibration_refuses_what_is_not_finite():
    made = network()
    with torch.no_grad():
        made.answer.site.place[-1].bias[0] = float("nan")
    held = summaries(200, 1)
    with pytest.raises(ModelError, match="not finite"):
        calibrate(LAYOUT, predict(made.answer, held), held)
