"""Windows reduced to what the network sees, computed once, on all cores, and kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from localize_core.dataset.drawn import DrawnWindows
from localize_core.dataset.windows import Label, Windows, WindowSource
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.onnx_model import OnnxModel
from localize_core.training.network import HEARD_DB, Layout, Summary

BATCH = 32

Progress = Callable[[int], None]
"""Told how many windows more are done."""


@dataclass(frozen=True)
class Summaries:
    """n windows as the network sees them; float32, shapes as in `Summary`. `fix` (n, 6): of the compiled model,
    zeros without one. `truth_m` (n, 2), `label`, `group`, `source` (n,), `snr_db` (n, R): as in `Windows`."""

    spectrum: np.ndarray
    level: np.ndarray
    profile: np.ndarray
    present: np.ndarray
    fix: np.ndarray
    truth_m: np.ndarray
    label: np.ndarray
    group: np.ndarray
    source: np.ndarray
    snr_db: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def select(self, which: np.ndarray) -> Summaries:
        """Those of a mask or of indices."""
        return Summaries(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @staticmethod
    def concatenate(parts: list[Summaries]) -> Summaries:
        """All of `parts`, in order."""
        return Summaries(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Summaries)}
        )

    @property
    def inside(self) -> np.ndarray:
        """Windows that have a place to learn, (n,) bool."""
        return np.asarray((self.label == Label.INSIDE) & np.isfinite(self.truth_m).all(axis=1))

    @property
    def answerable(self) -> np.ndarray:
        """Windows whose fix deserves confidence, (n,) bool: the emitter is in the area, and some receiver hears it."""
        heard = np.isnan(self.snr_db) | (self.snr_db >= HEARD_DB)
        return np.asarray((self.label == Label.INSIDE) & heard.any(axis=1))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The inputs of `Answer`."""
        return tuple(torch.from_numpy(getattr(self, name)) for name in NETWORK_INPUTS)


NETWORK_INPUTS = ("spectrum", "level", "profile", "present", "fix")


def prior_spec(spec: LikelihoodSpec) -> LikelihoodSpec | None:
    """What the compiled first stage is made from: times where there are any, else levels; None for too few receivers.

    Beside times to some metres, levels move a compiled fix by nothing and cost most of its time.
    """
    if len(spec.receivers) < 3:
        return None
    return replace(spec, level=None) if spec.timing is not None else spec


class Summariser:
    """Windows to summaries. `prior`: file of the compiled first stage, None without."""

    def __init__(self, layout: Layout, prior: Path | None) -> None:
        self.layout = layout
        self._summary = Summary(layout)
        self._prior = None if prior is None else OnnxModel(prior)

    def __call__(self, windows: Windows) -> Summaries:
        layout = self.layout
        with torch.no_grad():
            spectrum, level, profile, present = self._summary(torch.from_numpy(windows.features))
        return Summaries(
            spectrum=spectrum.numpy(),
            level=level.numpy(),
            profile=profile.numpy(),
            present=present.numpy(),
            fix=compiled_fix(self._prior, layout, windows.features),
            truth_m=windows.truth_m.astype(np.float32),
            label=windows.label,
            group=windows.group,
            source=windows.source,
            snr_db=windows.snr_db.astype(np.float32),
        )


def compiled_fix(prior: OnnxModel | None, layout: Layout, features: np.ndarray) -> np.ndarray:
    """Answers of the compiled first stage, float32 (n, 6); zeros without one."""
    if prior is None:
        return np.zeros((len(features), 6), np.float32)
    first = layout.receivers if layout.has_level and layout.has_timing else 0
    output = prior.run(np.ascontiguousarray(features[:, first:]))
    return np.concatenate([output.position, output.uncertainty, output.confidence], axis=1)


_worker: tuple[DrawnWindows, Summariser] | None = None


def _start(source: DrawnWindows, layout: Layout, prior: Path | None) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = source, Summariser(layout, prior)


def _do(indices: list[int]) -> Summaries:
    assert _worker is not None
    source, summarise = _worker
    return summarise(Windows.concatenate([source.window(index) for index in indices]))


def summarise(
    source: WindowSource, layout: Layout, prior: Path | None, *, workers: int = 0, progress: Progress | None = None
) -> Summaries:
    """Summaries of all windows of a source, in order. `workers`: processes, 0 for as many as there are cores.

    Windows drawn from a simulator are made in parallel, others in turn.
    """
    count = len(source)
    workers = workers or len(os.sched_getaffinity(0))
    done: list[Summaries] = []
    if not isinstance(source, DrawnWindows) or workers == 1:
        summariser = Summariser(layout, prior)
        for windows in source.batches(BATCH):
            done.append(summariser(windows))
            if progress is not None:
                progress(len(windows))
        return Summaries.concatenate(done)
    pieces = [list(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH)]
    # Not forked: a process that has run PyTorch or ONNX Runtime holds threads that a fork would lose.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(source, layout, prior)) as pool:
        with _uninterrupted():  # a Ctrl-C reaches the whole group; workers leave it to this process
            parts = pool.map(_do, pieces)
        try:
            for part in parts:
                done.append(part)
                if progress is not None:
                    progress(len(part))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Summaries.concatenate(done)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started within ignore SIGINT from their first moment on, which they inherit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
