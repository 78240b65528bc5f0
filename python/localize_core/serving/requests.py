"""Questions beside the streams: features or samples that someone brings, as windows that a model can answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.windows import Window, WindowAssembler
from localize_core.errors import ConfigError
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import Contract
from localize_core.types.time import shift_time

MAX_REQUESTS = 100
"""In one batch."""


@dataclass(frozen=True)
class Request:
    """One question.

    `data`: features, float32 (channels, rows, time_steps), or samples, complex64 (receivers, samples); or either of
    them flattened in that order. `receivers`: whose they are, in their order, as names of the contract; all of the
    contract's where left out. Of features, channels come in the contract's order as far as their receivers are there.
    `start`: time of the first sample, whole seconds since 1970 and the rest; now where left out. `stream`: decides
    which arm of an experiment answers. `cache`: whether an answer that was given before will do, and this one is kept.
    """

    id: str
    data: np.ndarray
    receivers: tuple[str, ...] | None = None
    stream: str = "requests"
    start: tuple[int, float] | None = None
    frequency_hz: float | None = None
    cache: bool = True


def request_window(request: Request, contract: Contract, time_steps: int) -> tuple[Window, tuple[int, float]]:
    """The window of a request, and the time of the first sample of its first hop.

    Samples become the first `time_steps` frames that lie wholly inside them, or all of them where it is 0. Receivers
    that are missing count as silent. Raises ConfigError saying what does not fit.
    """
    data, present = fit_request(request, contract, time_steps)
    start = request.start or _now()
    if np.iscomplexobj(data):
        time_steps = time_steps or data.shape[1] // contract.hop - warmup_frames(contract)
        return _from_samples(data, present, contract, time_steps, start)
    return _from_features(data, present, contract), start


def fit_request(request: Request, contract: Contract, time_steps: int) -> tuple[np.ndarray, list[str]]:
    """The data in its dimensions, and whose it is. Takes no time worth mentioning.

    Raises ConfigError saying what does not fit; the message begins with `receivers` where it is about their names.
    """
    names = [receiver.name for receiver in contract.receivers]
    present = list(request.receivers) if request.receivers is not None else names
    if unknown := [name for name in present if name not in names]:
        raise ConfigError(f"receivers: {', '.join(unknown)} unknown to the model, it knows {', '.join(names)}")
    if len(set(present)) < len(present) or not present:
        raise ConfigError(f"receivers: each once, found {', '.join(present) or 'none'}")
    data = np.asarray(request.data)
    if np.iscomplexobj(data):
        return _fit_samples(data, present, contract, time_steps), present
    return _fit_features(data, present, contract), present


def empty_window(contract: Contract) -> Window:
    """What stands for a request that no window can be made of."""
    receivers = len(contract.receivers)
    return Window(
        first_frame=0,
        features=np.zeros((len(contract.channels), contract.rows, 0), np.float32),
        level_db=np.full(receivers, np.nan),
        flags=(SampleFlag(0),) * receivers,
        unusable=np.ones(receivers, bool),
    )


def _channels_of(present: list[str], contract: Contract) -> list[int]:
    return [index for index, channel in enumerate(contract.channels) if set(channel.receivers) <= set(present)]


def _fit_features(data: np.ndarray, present: list[str], contract: Contract) -> np.ndarray:
    here = _channels_of(present, contract)
    if not here:
        raise ConfigError(f"receivers {', '.join(present)}: no channel of the model comes from them alone")
    per_step = len(here) * contract.rows
    if data.ndim == 1 and data.size and data.size % per_step == 0:
        data = data.reshape(len(here), contract.rows, -1)
    if data.ndim != 3 or data.shape[:2] != (len(here), contract.rows) or data.shape[2] == 0:
        raise ConfigError(
            f"features of shape {data.shape}: wanted ({len(here)}, {contract.rows}, time_steps) or all of them in a row"
        )
    steps = data.shape[2]
    if contract.time_steps not in (None, steps) or steps < contract.min_time_steps:
        wanted = contract.time_steps or f"{contract.min_time_steps} or more"
        raise ConfigError(f"features of {steps} frames: the model {contract.name} wants {wanted}")
    return data


def _from_features(data: np.ndarray, present: list[str], contract: Contract) -> Window:
    here = _channels_of(present, contract)
    if len(here) == len(contract.channels):
        features = np.ascontiguousarray(data, np.float32)
    else:
        features = np.zeros((len(contract.channels), contract.rows, data.shape[2]), np.float32)
        features[here] = data
    missing = np.array([receiver.name not in present for receiver in contract.receivers])
    return Window(
        first_frame=0,
        features=features,
        level_db=np.full(len(missing), np.nan),
        flags=_missing_flags(missing),
        unusable=missing,
    )


def samples_needed(contract: Contract, time_steps: int) -> int:
    """Samples of each receiver that a window of so many frames is made of; 0: of the fewest that the model takes."""
    return (warmup_frames(contract) + (time_steps or contract.min_time_steps)) * contract.hop


def _fit_samples(data: np.ndarray, present: list[str], contract: Contract, time_steps: int) -> np.ndarray:
    if data.ndim == 1 and data.size and data.size % len(present) == 0:
        data = data.reshape(len(present), -1)
    if data.ndim != 2 or len(data) != len(present):
        raise ConfigError(f"samples of shape {data.shape}: wanted ({len(present)}, samples) or all of them in a row")
    needed = samples_needed(contract, time_steps)
    if data.shape[1] < needed:
        frames = time_steps or contract.min_time_steps
        raise ConfigError(f"{data.shape[1]} samples of each receiver: {frames} frames need {needed}")
    return data


def _from_samples(
    data: np.ndarray, present: list[str], contract: Contract, time_steps: int, start: tuple[int, float]
) -> tuple[Window, tuple[int, float]]:
    warmup, needed = warmup_frames(contract), samples_needed(contract, time_steps)
    names = [receiver.name for receiver in contract.receivers]
    samples = np.zeros((len(names), needed), np.complex64)
    samples[[names.index(name) for name in present]] = data[:, :needed]
    frames, level_db, flags = FeatureFrames(contract).push(samples)
    assembler = WindowAssembler(
        len(contract.channels), contract.rows, len(samples), time_steps=time_steps, window_hop=time_steps
    )
    (window,) = assembler.push(frames[warmup:], level_db[warmup:], flags[warmup:])
    return window, shift_time(*start, warmup * contract.hop / contract.sample_rate_hz)


def _missing_flags(missing: np.ndarray) -> tuple[SampleFlag, ...]:
    return tuple(SampleFlag.SILENT if absent else SampleFlag(0) for absent in missing)


def _now() -> tuple[int, float]:
    now = time.time()
    return int(now), now % 1.0
