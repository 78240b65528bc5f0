"""The compiled model on features of known emitters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from localize_core.errors import ConfigError
from localize_core.features.correlation import CrossCorrelation
from localize_core.features.mel import MelSpectrogram
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, path_length_m, surface_up_m
from localize_core.model.base import ModelOutput
from localize_core.model.compiled.compile import compile_model
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel
from scipy.optimize import least_squares

MakeSpec = Callable[..., LikelihoodSpec]
FRAMES = 24


_COMPILED: dict[str, bytes] = {}


def compiled(spec: LikelihoodSpec, folder: Path) -> OnnxModel:
    path = folder / "model.onnx"
    if repr(spec) not in _COMPILED:
        compile_model(spec, path)
        _COMPILED[repr(spec)] = path.read_bytes()
    path.write_bytes(_COMPILED[repr(spec)])
    return OnnxModel(path)


def lengths_m(spec: LikelihoodSpec, east_north_m: np.ndarray) -> np.ndarray:
    up = surface_up_m(spec.area.frame, east_north_m)
    return path_length_m(np.append(east_north_m, up), spec.receivers_enu_m, along_surface=spec.along_surface)


def iq(
    spec: LikelihoodSpec,
    arrival_m: np.ndarray,
    rng: np.random.Generator,
    *,
    snr_db: np.ndarray | float | None,
    bandwidth: float = 0.6,
    noise_dbfs: float = -50.0,
) -> np.ndarray:
    """Receivers' samples of a Gaussian emitter with those path lengths, complex64 (receivers, samples)."""
    count = 2048 * FRAMES
    frequency = np.fft.fftfreq(count)
    spectrum = (rng.standard_normal(count) + 1j * rng.standard_normal(count)) * (np.abs(frequency) < bandwidth / 2)
    spectrum /= np.linalg.norm(spectrum) / count
    delay = (arrival_m - arrival_m.mean()) / SPEED_OF_LIGHT_MPS * spec.sample_rate_hz
    signal = np.fft.ifft(spectrum * np.exp(-2j * np.pi * frequency * delay[:, None]))
    noise = (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape)) / np.sqrt(2.0)
    amplitude = 0.0 if snr_db is None else 10.0 ** (np.broadcast_to(snr_db, len(arrival_m)) / 20.0)[:, None]
    return (10.0 ** (noise_dbfs / 20.0) * (amplitude * signal + noise)).astype(np.complex64)


def features(spec: LikelihoodSpec, samples: np.ndarray) -> np.ndarray:
    channels = []
    if spec.level is not None:
        mel = MelSpectrogram(spec.level.config)
        channels += [mel(stream).T for stream in samples]
    if spec.timing is not None:
        channels += list(CrossCorrelation(spec.timing.config)(samples).transpose(0, 2, 1))
    return np.ascontiguousarray(np.stack(channels)[None], np.float32)


def squared_distance(answer: ModelOutput, truth_m: np.ndarray) -> float:
    """Squared Mahalanobis distance of the truth."""
    sigma_x, sigma_y, theta = answer.uncertainty[0].astype(float)
    offset = truth_m - answer.position[0]
    along = np.array([np.cos(np.radians(theta)), np.sin(np.radians(theta))])
    return float((offset @ along / sigma_x) ** 2 + (offset @ [-along[1], along[0]] / sigma_y) ** 2)


def test_position_and_covariance_equal_an_independent_fit(make_spec: MakeSpec, tmp_path: Path) -> None:
    """At high SNR the posterior is that of weighted least squares on arrival times, solved here by SciPy."""
    spec = make_spec(receivers=5, sigma_m=30.0)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(5)
    truth_m = np.array([800.0, -400.0])
    arrival_m = lengths_m(spec, truth_m) + rng.normal(0.0, 30.0, 5)
    answer = model.run(features(spec, iq(spec, arrival_m, rng, snr_db=30.0)))

    def residual(x: np.ndarray) -> np.ndarray:
        r = arrival_m - lengths_m(spec, x)
        return (r - r.mean()) / 30.0

    fit = least_squares(residual, truth_m, x_scale=100.0)
    covariance = np.linalg.inv(fit.jac.T @ fit.jac)
    major, minor = np.sqrt(np.linalg.eigvalsh(covariance))[::-1]
    assert np.hypot(*(answer.position[0] - fit.x)) < 0.05 * minor
    assert answer.uncertainty[0, :2] == pytest.approx([major, minor], rel=0.05)
    vector = np.linalg.eigh(covariance)[1][:, 1]
    turned = (answer.uncertainty[0, 2] - np.degrees(np.arctan2(vector[1], vector[0])) + 90.0) % 180.0 - 90.0
    assert abs(turned) < 5.0


@pytest.mark.parametrize(("signal", "bandwidth"), [("iq", 0.08), ("iq", 0.8), ("envelope", 0.08), ("envelope", 0.4)])
def test_truth_lies_in_the_ellipse(make_spec: MakeSpec, tmp_path: Path, signal: str, bandwidth: float) -> None:
    spec = make_spec(signal=signal)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(7)
    squared = []
    for _ in range(20):
        truth_m = rng.uniform(-2500.0, 2500.0, 2)
        arrival_m = lengths_m(spec, truth_m) + rng.normal(0.0, 3.0, 4)
        answer = model.run(features(spec, iq(spec, arrival_m, rng, snr_db=10.0, bandwidth=bandwidth)))
        assert answer.confidence[0, 0] > 0.9
        squared.append(squared_distance(answer, truth_m))
    # 20 draws of a chi-square with 2 degrees: mean 2 ± 0.45, largest below 17 in 99.6 % of all sets.
    assert np.mean(squared) < 4.0
    assert np.max(squared) < 17.0


def test_emitters_to_the_side_of_all_receivers_are_found(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    model, rng = compiled(spec, tmp_path), np.random.default_rng(9)
    for truth_m in np.array([[-3900.0, 3800.0], [3900.0, 0.0], [0.0, -3900.0]]):
        answer = model.run(features(spec, iq(spec, lengths_m(spec, truth_m), rng, snr_db=10.0, bandwidth=0.1)))
        assert squared_distance(answer, truth_m) < 17.0


def test_ellipse_widens_as_the_signal_weakens(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(sigma_m=0.5)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(11)
    truth_m = np.array([500.0, 300.0])
    sizes = [
        model.run(features(spec, iq(spec, lengths_m(spec, truth_m), rng, snr_db=snr_db))).uncertainty[0, 0]
        for snr_db in (20.0, 0.0, -10.0)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def cells_m(spec: LikelihoodSpec, model: OnnxModel) -> tuple[np.ndarray, float]:
    """Plane coordinates of the likelihood's cells, (rows, columns, 2), and half the diagonal of one."""
    grid = model.contract.likelihood
    assert grid is not None
    lat = grid.south + (np.arange(grid.rows) + 0.5) / grid.rows * (grid.north - grid.south)
    lon = grid.west + (np.arange(grid.columns) + 0.5) / grid.columns * (grid.east - grid.west)
    places = spec.area.frame.to_enu_m(*np.meshgrid(lat, lon, indexing="ij"), spec.area.altitude_m)[..., :2]
    return places, float(np.linalg.norm(places[1, 1] - places[0, 0])) / 2.0


def test_the_likelihood_peaks_at_the_emitter(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    model, rng = compiled(spec, tmp_path), np.random.default_rng(31)
    places, half_m = cells_m(spec, model)
    for truth_m in np.array([[-2900.0, 1800.0], [2100.0, -3000.0], [50.0, 700.0]]):
        windows = features(spec, iq(spec, lengths_m(spec, truth_m), rng, snr_db=15.0, bandwidth=0.4))
        (probability,) = model.likelihood(windows)
        assert probability.sum() == pytest.approx(1.0, abs=1e-4)
        peak_m = places.reshape(-1, 2)[probability.argmax()]
        assert np.linalg.norm(peak_m - truth_m) < 2.0 * half_m


def test_the_likelihood_has_the_answers_mean_and_spread(make_spec: MakeSpec, tmp_path: Path) -> None:
    """Of a posterior that is wide beside a cell, as levels give it, and lies inside the area."""
    spec = make_spec(receivers=5, timing=False, level=True)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(33)
    places, half_m = cells_m(spec, model)
    level_db = 25.0 - 27.0 * np.log10(lengths_m(spec, np.array([150.0, 100.0])) / 1000.0)
    windows = features(spec, iq(spec, np.zeros(5), rng, snr_db=level_db, bandwidth=0.2))
    (probability,), answer = model.likelihood(windows), model.run(windows)
    mean_m = np.tensordot(probability, places, 2)
    offset = places - mean_m
    covariance = np.einsum("rc,rci,rcj->ij", probability, offset, offset)
    sigma_m = np.sqrt(np.linalg.eigvalsh(covariance))[::-1]
    assert np.linalg.norm(mean_m - answer.position[0]) < half_m
    assert sigma_m == pytest.approx(answer.uncertainty[0, :2], rel=0.15)  # the answer's is scaled to hold 95 %


@pytest.mark.parametrize("kind", [{"timing": True}, {"timing": False, "level": True}, {"timing": True, "level": True}])
def test_no_emitter_means_no_confidence(make_spec: MakeSpec, tmp_path: Path, kind: dict[str, bool]) -> None:
    spec = make_spec(**kind)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(13)
    nowhere = np.zeros(4)
    confidence = [model.run(features(spec, iq(spec, nowhere, rng, snr_db=None))).confidence[0, 0] for _ in range(40)]
    assert np.max(confidence) < 0.5
    assert np.quantile(confidence, 0.95) < 0.1


def test_arrival_times_that_fit_no_place_cost_confidence(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(receivers=5)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(15)
    arrival_m = lengths_m(spec, np.array([100.0, 200.0])) + np.array([0.0, 900.0, 0.0, -700.0, 500.0])
    assert model.run(features(spec, iq(spec, arrival_m, rng, snr_db=20.0))).confidence[0, 0] < 0.1


def test_lags_that_do_not_add_up_cost_confidence(make_spec: MakeSpec, tmp_path: Path) -> None:
    """Three receivers always meet somewhere; only the sum round their triangle tells that a peak is false."""
    spec = make_spec(receivers=3)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(27)
    samples = iq(spec, lengths_m(spec, np.array([300.0, -200.0])), rng, snr_db=20.0)
    channels = features(spec, samples)
    assert model.run(channels).confidence[0, 0] > 0.9
    channels[0, 0] = np.roll(channels[0, 0], 12, axis=0)  # six samples in one pair
    assert model.run(channels).confidence[0, 0] < 0.1


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_receiver_leaves_a_wider_true_ellipse(make_spec: MakeSpec, tmp_path: Path, lost: int) -> None:
    spec = make_spec(receivers=5)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(17)
    truth_m = np.array([-700.0, 900.0])
    samples = iq(spec, lengths_m(spec, truth_m) + rng.normal(0.0, 3.0, 5), rng, snr_db=10.0)
    whole = model.run(features(spec, samples))
    samples[lost] = 0.0
    answer = model.run(features(spec, samples))
    assert answer.uncertainty[0, 0] > whole.uncertainty[0, 0]
    assert squared_distance(answer, truth_m) < 17.0


@pytest.mark.parametrize("rows", [256, 32])
def test_of_levels_a_lost_receiver_says_nothing(make_spec: MakeSpec, tmp_path: Path, rows: int) -> None:
    specs = [make_spec(receivers=count, timing=False, level=True, reference_dbfs=-20.0) for count in (5, 4)]
    config = replace(specs[0].level.config, n_mels=rows)
    specs = [replace(spec, level=replace(spec.level, config=config)) for spec in specs]
    level_db = 30.0 - 27.0 * np.log10(lengths_m(specs[0], np.array([-700.0, 900.0])) / 1000.0)
    samples = iq(specs[0], np.zeros(5), np.random.default_rng(20), snr_db=level_db, bandwidth=0.2)
    samples[4] = 0.0
    answers = []
    for spec in specs:
        (folder := tmp_path / f"{len(spec.receivers)}").mkdir()
        answers.append(compiled(spec, folder).run(features(spec, samples[: len(spec.receivers)])))
    lost, without = answers
    assert lost.position == pytest.approx(without.position, abs=0.01 * without.uncertainty[0, 1])
    assert lost.uncertainty[0, :2] == pytest.approx(without.uncertainty[0, :2], rel=0.01)


def test_levels_locate_coarsely_and_honestly(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(receivers=5, timing=False, level=True)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(19)
    squared = []
    for _ in range(30):
        truth_m = rng.uniform(-3500.0, 3500.0, 2)
        distance_km = lengths_m(spec, truth_m) / 1000.0
        level_db = 20.0 - 27.0 * np.log10(distance_km) + rng.normal(0.0, np.hypot(6.0, 1.0), 5)
        samples = iq(spec, np.zeros(5), rng, snr_db=level_db, bandwidth=0.2)
        answer = model.run(features(spec, samples))
        squared.append(squared_distance(answer, truth_m))
    assert np.mean(np.array(squared) < 5.99) >= 0.8
    assert np.mean(squared) < 4.0


def test_one_receiver_of_known_power_gives_a_ring(make_spec: MakeSpec, tmp_path: Path) -> None:
    """Nothing says in which direction: the ellipse is centred on the receiver and reaches beyond the true distance."""
    spec = make_spec(receivers=1, timing=False, level=True, reference_dbfs=-20.0)
    spec = replace(spec, receivers=(spec.receivers[0].model_copy(update={"latitude": 50.036, "longitude": 8.056}),))
    model, rng = compiled(spec, tmp_path), np.random.default_rng(21)
    level_db = -20.0 + 50.0 - 27.0 * np.log10(1.5)
    answer = model.run(features(spec, iq(spec, np.zeros(1), rng, snr_db=level_db, bandwidth=0.2)))
    assert np.hypot(*answer.position[0]) < 200.0
    assert 1500.0 < 2.45 * answer.uncertainty[0, 1] < 8000.0


def test_batches_answer_as_single_windows_do(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(level=True)
    model, rng = compiled(spec, tmp_path), np.random.default_rng(23)
    windows = np.concatenate(
        [
            features(spec, iq(spec, lengths_m(spec, rng.uniform(-2000.0, 2000.0, 2)), rng, snr_db=snr_db))
            for snr_db in (-5.0, 10.0, 30.0)
        ]
    )
    together = model.run(windows)
    for index, window in enumerate(windows):
        alone = model.run(window[None])
        minor_m = alone.uncertainty[0, 1]
        assert together.position[index] == pytest.approx(alone.position[0], abs=0.01 * minor_m)
        assert together.uncertainty[index] == pytest.approx(alone.uncertainty[0], rel=0.01)


def test_file_is_plain_onnx_and_holds_its_golden_vector(make_spec: MakeSpec, tmp_path: Path) -> None:
    model = compiled(make_spec(), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain for entry in graph.opset_import} == {""}
    assert model.path.stat().st_size < 2e6
    assert model.contract.golden is not None
    check_golden(model)


def test_features_that_share_no_hop_are_refused(make_spec: MakeSpec) -> None:
    spec = make_spec(level=True)
    with pytest.raises(ConfigError, match="share rows and hop"):
        replace(spec, level=replace(spec.level, config=replace(spec.level.config, hop=1024)))
    with pytest.raises(ConfigError, match="no feature"):
        replace(spec, level=None, timing=None)
    with pytest.raises(ConfigError, match="at least two receivers"):
        replace(spec, receivers=spec.receivers[:1], level=None)
