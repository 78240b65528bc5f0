"""Questions beside the streams: features or samples that someone brings, as windows that a model can answer."""

from __future__ import annotations

import time
from collections import deque
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


class RequestReader:
    """Makes windows of requests, all for one contract. Threads may share it.

    `time_steps`: frames in a window of samples; 0 for as many as the samples hold.
    """

    def __init__(self, contract: Contract, time_steps: int = 0) -> None:
        self._contract, self._time_steps = contract, time_steps
        self._names = [receiver.name for receiver in contract.receivers]
        self._hop, self._warmup = contract.hop, warmup_frames(contract)
        self._warmup_s = self._warmup * contract.hop / contract.sample_rate_hz
        self._idle: deque[FeatureFrames] = deque()  # making one takes longer than using it
        self.samples_needed = (self._warmup + (time_steps or contract.min_time_steps)) * contract.hop
        """Of each receiver, for a window of samples."""

    def warm_up(self) -> None:
        """Make a window of nothing: what loads and compiles the first time does so now."""
        nothing = np.zeros((len(self._names), self.samples_needed), np.complex64)
        self._from_samples(nothing, self._names, (0, 0.0))

    def window(self, request: Request) -> tuple[Window, tuple[int, float]]:
        """The window of a request, and the time of the first sample of its first hop.

        Samples become the frames that lie wholly inside them, the first `time_steps` of them where that is not 0.
        Receivers that are missing count as silent. Raises ConfigError saying what does not fit.
        """
        data, present = self.fit(request)
        start = request.start or _now()
        if np.iscomplexobj(data):
            return self._from_samples(data, present, start)
        return self._from_features(data, present), start

    def fit(self, request: Request) -> tuple[np.ndarray, list[str]]:
        """The data in its dimensions, and whose it is. Takes no time worth mentioning.

        Raises ConfigError saying what does not fit; the message begins with `receivers` where it is about their names.
        """
        names = self._names
        present = list(request.receivers) if request.receivers is not None else names
        if unknown := [name for name in present if name not in names]:
            raise ConfigError(f"receivers: {', '.join(unknown)} unknown to the model, it knows {', '.join(names)}")
        if len(set(present)) < len(present) or not present:
            raise ConfigError(f"receivers: each once, found {', '.join(present) or 'none'}")
        data = np.asarray(request.data)
        if np.iscomplexobj(data):
            return self._fit_samples(data, present), present
        return self._fit_features(data, present), present

    def empty(self) -> Window:
        """What stands for a request that no window can be made of."""
        receivers = len(self._names)
        return Window(
            first_frame=0,
            features=np.zeros((len(self._contract.channels), self._contract.rows, 0), np.float32),
            level_db=np.full(receivers, np.nan),
            flags=(SampleFlag(0),) * receivers,
            unusable=np.ones(receivers, bool),
        )

    def _channels_of(self, present: list[str]) -> list[int]:
        return [
            index for index, channel in enumerate(self._contract.channels) if set(channel.receivers) <= set(present)
        ]

    def _fit_features(self, data: np.ndarray, present: list[str]) -> np.ndarray:
        contract, here = self._contract, self._channels_of(present)
        if not here:
            raise ConfigError(f"receivers {', '.join(present)}: no channel of the model comes from them alone")
        per_step = len(here) * contract.rows
        if data.ndim == 1 and data.size and data.size % per_step == 0:
            data = data.reshape(len(here), contract.rows, -1)
        if data.ndim != 3 or data.shape[:2] != (len(here), contract.rows) or data.shape[2] == 0:
            raise ConfigError(
                f"features of shape {data.shape}: wanted ({len(here)}, {contract.rows}, time_steps) or all of them in "
                "a row"
            )
        steps = data.shape[2]
        if contract.time_steps not in (None, steps) or steps < contract.min_time_steps:
            wanted = contract.time_steps or f"{contract.min_time_steps} or more"
            raise ConfigError(f"features of {steps} frames: the model {contract.name} wants {wanted}")
        return data

    def _from_features(self, data: np.ndarray, present: list[str]) -> Window:
        contract, here = self._contract, self._channels_of(present)
        if len(here) == len(contract.channels):
            features = np.ascontiguousarray(data, np.float32)
        else:
            features = np.zeros((len(contract.channels), contract.rows, data.shape[2]), np.float32)
            features[here] = data
        missing = np.array([name not in present for name in self._names])
        return Window(
            first_frame=0,
            features=features,
            level_db=np.full(len(missing), np.nan),
            flags=tuple(SampleFlag.SILENT if absent else SampleFlag(0) for absent in missing),
            unusable=missing,
        )

    def _fit_samples(self, data: np.ndarray, present: list[str]) -> np.ndarray:
        if data.ndim == 1 and data.size and data.size % len(present) == 0:
            data = data.reshape(len(present), -1)
        if data.ndim != 2 or len(data) != len(present):
            raise ConfigError(
                f"samples of shape {data.shape}: wanted ({len(present)}, samples) or all of them in a row"
            )
        if data.shape[1] < self.samples_needed:
            frames = self._time_steps or self._contract.min_time_steps
            raise ConfigError(f"{data.shape[1]} samples of each receiver: {frames} frames need {self.samples_needed}")
        return data

    def _from_samples(
        self, data: np.ndarray, present: list[str], start: tuple[int, float]
    ) -> tuple[Window, tuple[int, float]]:
        steps = self._time_steps or data.shape[1] // self._hop - self._warmup
        used = (self._warmup + steps) * self._hop
        samples = np.zeros((len(self._names), used), np.complex64)
        samples[[self._names.index(name) for name in present]] = data[:, :used]
        try:
            maker = self._idle.pop()
        except IndexError:
            maker = FeatureFrames(self._contract)
        maker.restart()
        frames, level_db, flags = maker.push(samples)
        self._idle.append(maker)
        assembler = WindowAssembler(
            len(self._contract.channels), self._contract.rows, len(samples), time_steps=steps, window_hop=steps
        )
        (window,) = assembler.push(frames[self._warmup :], level_db[self._warmup :], flags[self._warmup :])
        return window, shift_time(*start, self._warmup_s)


def _now() -> tuple[int, float]:
    now = time.time()
    return int(now), now % 1.0
