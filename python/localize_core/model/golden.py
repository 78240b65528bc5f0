"""Golden vectors: a seeded input like that of an emitter among the receivers proves that a model answers as ever."""

from __future__ import annotations

import math

import numpy as np

from localize_core.errors import EngineError, ModelError, UnavailableError
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.base import Model, ModelOutput
from localize_core.model.contract import Contract

TOLERANCE = 0.02
"""Largest difference of a golden answer, see `golden_difference`."""


def golden_features(contract: Contract, *, seed: int, time_steps: int) -> np.ndarray:
    """Features of an imagined emitter near the receivers: float32 (1, channels, rows, time_steps).

    Correlation channels get a bump at the lag that the geometry gives, log-mel channels a level that falls with
    distance, both with noise. Depends on contract, seed and length only.
    """
    rng = np.random.default_rng(seed)
    first = contract.receivers[0]
    local = LocalFrame(first.latitude, first.longitude)
    places = np.stack(
        [local.to_enu_m(receiver.latitude, receiver.longitude, receiver.altitude_m) for receiver in contract.receivers]
    )
    spread = max(float(np.ptp(places[:, :2], axis=0).max()), 1000.0)
    emitter = places.mean(axis=0) + np.append(rng.uniform(-0.25, 0.25, 2) * spread, 0.0)
    distances = np.linalg.norm(places - emitter, axis=1)
    index = {receiver.name: k for k, receiver in enumerate(contract.receivers)}
    features = np.empty((len(contract.channels), contract.rows, time_steps))
    for k, channel in enumerate(contract.channels):
        noise = rng.standard_normal((contract.rows, time_steps))
        where = [index[name] for name in channel.receivers]
        if channel.feature == "log_mel":
            level = -30.0 * np.log10(distances[where[0]] / 1000.0 + 0.01) / 10.0 * np.log(10.0)
            bump = np.exp(-0.5 * ((np.arange(contract.rows) / contract.rows - 0.5) / 0.1) ** 2)
            features[k] = np.log(np.exp(level) * bump + 1e-3)[:, None] + 0.1 * noise
        else:
            config = contract.correlation_config
            assert config is not None
            lag = (distances[where[0]] - distances[where[1]]) / SPEED_OF_LIGHT_MPS
            lag_samples = (config.lags_s - lag) * config.sample_rate_hz
            features[k] = np.abs(0.7 * np.exp(-0.5 * (lag_samples / 1.5) ** 2)[:, None] + 0.01 * noise)
    return features[None].astype(np.float32)


def check_golden(model: Model) -> None:
    """Run the model on its own golden vector.

    Raises ModelError naming what differs, UnavailableError where a remote model does not answer.
    """
    golden = model.contract.golden
    if golden is None:
        return
    features = golden_features(model.contract, seed=golden.seed, time_steps=golden.time_steps)
    try:
        answer = model.run(model.contract.normalisation.apply(features[0])[None])
    except UnavailableError:
        raise
    except EngineError as error:
        raise ModelError(f"{model.label}: golden vector: {error}") from error
    difference = golden_difference(
        answer,
        golden.position,
        golden.uncertainty,
        golden.confidence,
        metres=model.contract.frame.metres_per_unit(golden.position),
    )
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{model.label}: golden vector: expected position {golden.position}, uncertainty {golden.uncertainty}, "
            f"confidence {golden.confidence}, the model answers {answer.position[0].tolist()}, "
            f"{answer.uncertainty[0].tolist()}, {float(answer.confidence[0, 0])}"
        )


def golden_difference(
    answer: ModelOutput,
    position: tuple[float, float],
    uncertainty: tuple[float, float, float],
    confidence: float,
    *,
    metres: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Largest deviation of an answer of batch 1: position in standard deviations, axes relative, their direction in
    radians (as far as the ellipse has one), confidence absolute. NaN where anything is not finite.

    `metres`: what a unit of either coordinate of the position measures.
    """
    sigma = max(min(uncertainty[0], uncertainty[1]), 1e-9)
    moved = np.abs(answer.position[0] - np.array(position)) * np.array(metres) / sigma
    axes = np.abs(answer.uncertainty[0, :2] / np.array(uncertainty[:2]) - 1.0)
    elongation = 1.0 - (sigma / max(uncertainty[0], uncertainty[1])) ** 2
    turned = abs(math.sin(math.radians(answer.uncertainty[0, 2] - uncertainty[2]))) * elongation
    surer = abs(float(answer.confidence[0, 0]) - confidence)
    return float(np.max([*moved, *axes, turned, surer]))  # unlike max(), this does not lose a NaN
