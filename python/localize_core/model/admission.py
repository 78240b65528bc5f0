"""What a model must show before it serves: it fits the station, answers as when it was made, and is warm."""

from __future__ import annotations

import numpy as np

from localize_core.errors import EngineError, ModelError, UnavailableError
from localize_core.model.base import Model, ModelOutput
from localize_core.model.contract import Contract, moved_receivers
from localize_core.model.golden import check_golden, golden_features
from localize_core.model.onnx_model import OnnxModel

PROBE_SEED = 0


def admit(model: Model, *, time_steps: int, like: Contract | None = None) -> None:
    """Let a model serve windows of `time_steps` frames, made for the contract `like` where one serves already.

    It answers a window of the length that will come, so that nothing is slow the first time, and its golden vector.
    Raises ModelError naming what is wrong, UnavailableError where a remote model does not answer.
    """
    check_window(model.contract, time_steps)
    if like is not None:
        check_same_inputs(model, like)
    probe = golden_features(model.contract, seed=PROBE_SEED, time_steps=time_steps)
    try:
        answer = model.run(model.contract.normalisation.apply(probe[0])[None])
    except UnavailableError:
        raise
    except EngineError as error:
        raise ModelError(str(error)) from error
    if not _is_finite(answer):
        raise ModelError(f"{model.label}: answers a plain window with values that are not finite{_flaws(model)}")
    check_golden(model)


def check_window(contract: Contract, time_steps: int) -> None:
    """Raise ModelError where the model takes no windows of so many frames."""
    if contract.time_steps not in (None, time_steps):
        raise ModelError(f"time_steps={time_steps}: the model {contract.name} wants {contract.time_steps}")
    if time_steps < contract.min_time_steps:
        raise ModelError(
            f"time_steps={time_steps}: the model {contract.name} takes windows of {contract.min_time_steps} frames or "
            "more, say how many"
        )


def check_same_inputs(model: Model, like: Contract) -> None:
    """Raise ModelError where the windows made for the contract `like` are not those that the model takes."""
    contract = model.contract
    pairs: list[tuple[str, object, object]] = [
        ("sample_rate_hz", contract.sample_rate_hz, like.sample_rate_hz),
        ("receivers", [r.name for r in contract.receivers], [r.name for r in like.receivers]),
        ("channels", _features(contract), _features(like)),
    ]
    for feature in dict.fromkeys(_features(contract)):
        own, theirs = contract.parameters[feature], like.parameters.get(feature, {})
        pairs += [(f"{feature}.{key}", own[key], theirs.get(key)) for key in own]
    differing = [f"{key}={own!r} (here {theirs!r})" for key, own, theirs in pairs if own != theirs]
    if differing:
        raise ModelError(f"{model.label}: a model of another station: it wants {', '.join(differing)}")
    for place, _, apart_m in moved_receivers(like.receivers, contract.receivers):
        raise ModelError(
            f"{model.label}: a model of another station: its receiver {place.name} stands {apart_m:.0f} m away"
        )


def _features(contract: Contract) -> list[str]:
    return [channel.feature for channel in contract.channels]


def _is_finite(answer: ModelOutput) -> bool:
    return all(np.isfinite(values).all() for values in (answer.position, answer.uncertainty, answer.confidence))


def _flaws(model: Model) -> str:
    """Which weights are to blame, as far as the file is here."""
    flawed = model.flawed_weights() if isinstance(model, OnnxModel) else []
    return f"; there is NaN in {', '.join(flawed[:3])}" if flawed else ""
