"""A model and baselines on the same labelled windows: answers, figures, and how far the physics is away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localize_core.dataset.windows import Label, WindowSource
from localize_core.errors import ConfigError
from localize_core.evaluation.baselines import (
    NEIGHBOURS,
    ClassicalTdoa,
    Locator,
    ModelLocator,
    NearestNeighbours,
    WeightedCentroid,
    receivers_enu_m,
)
from localize_core.evaluation.bound import position_bound, rmse_bound_m, squared_bound_m2
from localize_core.evaluation.metrics import Accuracy, Answers, Figures, Truth, accuracy, errors_m, figures, plain
from localize_core.model.base import Model
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.contract import Contract
from localize_core.types.fix import ModelIdentity

BATCH = 64
"""Windows at a time: 21 channels of 128 rows and 32 frames are 22 MB."""
MODEL = "model"
"""Name of the model among the baselines."""


@dataclass(frozen=True)
class Bound:
    """The Cramér–Rao bound of the scene, over the windows with an emitter in the area of known SNR and bandwidth.

    `rmse_m`: the classical one, over the windows where it is finite; `unbounded` windows have none, and no estimate
    without knowledge of the area could locate them. `with_area_rmse_m`: the one that knows the area, over all.
    `ratio` and `with_area_ratio`: RMSE of the model and of each baseline, over the same windows where it answers, in
    multiples of that bound over them.
    """

    windows: int
    unbounded: int
    rmse_m: float | None
    with_area_rmse_m: float | None
    ratio: dict[str, float]
    with_area_ratio: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What came out. `answers` and `figures` by name, the model's under `MODEL` and first.

    `same_windows`: for each baseline, the model's accuracy over only the windows that the baseline answers. `bound` is
    None where `no_bound` says why. `notes`: why a baseline is missing, by its name. `least_squared_m2` (n,): the bound
    with the area, NaN where unknown.
    """

    model: ModelIdentity
    contract: Contract
    source: Contract
    time_steps: int
    truth: Truth
    answers: dict[str, Answers]
    figures: dict[str, Figures]
    same_windows: dict[str, Accuracy | None]
    bound: Bound | None
    no_bound: str | None
    notes: dict[str, str]
    least_squared_m2: np.ndarray

    @property
    def windows(self) -> dict[str, int]:
        """How many windows there are, and of each kind."""
        label = self.truth.label
        kinds = {"inside": Label.INSIDE, "no_emitter": Label.NONE, "outside": Label.OUTSIDE}
        return {"all": len(label)} | {name: int((label == kind).sum()) for name, kind in kinds.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; None for what is not finite."""
        return {
            "model": {**vars(self.model), "provenance": self.contract.provenance},
            "windows": self.windows,
            "window": {
                "time_steps": self.time_steps,
                "duration_s": window_s(self.source, self.time_steps),
                "channels": {key: _count(self.source, key) for key in self.source.parameters},
            },
            "figures": plain(self.figures),
            "model_on_the_same_windows": plain(self.same_windows),
            "bound": plain(self.bound),
            "no_bound": self.no_bound,
            "notes": self.notes,
        }


def _count(contract: Contract, feature: str) -> int:
    return sum(channel.feature == feature for channel in contract.channels)


def window_s(contract: Contract, time_steps: int) -> float:
    """Time that a window spans."""
    return ((time_steps - 1) * contract.hop + contract.n_fft) / contract.sample_rate_hz


def box_around(contract: Contract) -> np.ndarray:
    """A box for emitters where no area is known: the receivers' own with half its size around, (2, 2) metres."""
    places = receivers_enu_m(contract)[:, :2]
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.5 * max(float((high - low).max()), 1000.0)
    return np.stack([low - margin, high + margin])


def usual_baselines(
    source: WindowSource,
    *,
    box_m: np.ndarray,
    compiled: Model | None = None,
    noise_dbfs: Sequence[float | None] | None = None,
    training: WindowSource | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Locator], dict[str, str]]:
    """The baselines that the windows allow, by name, and why others are missing.

    `box_m`: see `ClassicalTdoa`. `compiled`: the station's compiled model. `noise_dbfs`: see `Levels`. `training`:
    windows that are not evaluated, for the nearest neighbours to know; `progress` is called with the number of each
    batch of them.
    """
    found: dict[str, Locator] = {}
    missing: dict[str, str] = {}

    def add(name: str, make: Callable[[], Locator]) -> None:
        try:
            found[name] = make()
        except ConfigError as error:
            missing[name] = str(error)

    if compiled is not None:
        add("compiled", lambda: ModelLocator(compiled, source))
    else:
        missing["compiled"] = "there is no station to compile"
    add("tdoa", lambda: ClassicalTdoa(source.contract, box_m))
    neighbours = f"knn{NEIGHBOURS}"
    if training is not None:
        add(
            neighbours,
            lambda: NearestNeighbours(source.contract, noise_dbfs=noise_dbfs).fit_windows(training, progress=progress),
        )
    else:
        missing[neighbours] = "there are no training windows to be near to"
    add("centroid", lambda: WeightedCentroid(source.contract, noise_dbfs=noise_dbfs))
    return found, missing


def evaluate(
    model: Model,
    source: WindowSource,
    *,
    baselines: Mapping[str, Locator] | None = None,
    notes: Mapping[str, str] | None = None,
    spec: LikelihoodSpec | None = None,
    no_bound: str | None = None,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer all windows of `source`, `batch` at a time, and make figures of it.

    `baselines`: by name; `notes`: why others are missing. `spec`: what is so of the scene, for the bound; without it
    `no_bound` says why there is none. `progress` is called with the number of windows of each batch.

    Raises ConfigError where model and windows do not fit together or there is no window, EngineError when inference
    fails.
    """
    locators: dict[str, Locator] = {MODEL: ModelLocator(model, source), **(baselines or {})}
    if spec is not None and (names := [r.name for r in spec.receivers]) != [r.name for r in source.contract.receivers]:
        raise ConfigError(f"the bound is for receivers {', '.join(names)}, the windows are of others")
    answers: dict[str, list[Answers]] = {name: [] for name in locators}
    known: dict[str, list[np.ndarray]] = {name: [] for name in ("truth_m", "label", "snr_db", "bandwidth_hz", "usable")}
    for windows in source.batches(batch):
        for name, locator in locators.items():
            answers[name].append(locator.locate(windows))
        for name, values in known.items():
            values.append(getattr(windows, name))
        if progress is not None:
            progress(len(windows))
    if not known["label"]:
        raise ConfigError("there is no window to evaluate")
    position_m, label, snr_db, bandwidth_hz, usable = (np.concatenate(values) for values in known.values())
    truth = Truth(position_m, label, snr_db, bandwidth_hz, usable, source.contract.sample_rate_hz)
    whole = {name: Answers.concatenate(parts) for name, parts in answers.items()}
    bound, least_m2, reason = None, np.full(len(label), np.nan), no_bound
    if spec is not None:
        bound, least_m2 = _bound(spec, truth, whole, window_s(source.contract, source.time_steps))
        if bound is None:
            reason = "no window has an emitter in the area of known SNR and bandwidth"
    elif reason is None:
        reason = "nothing is known of the scene"
    return Evaluation(
        model=model.identity,
        contract=model.contract,
        source=source.contract,
        time_steps=source.time_steps,
        truth=truth,
        answers=whole,
        figures={name: figures(found, truth, least_m2) for name, found in whole.items()},
        same_windows={name: _same_windows(whole, name, truth) for name in whole if name != MODEL},
        bound=bound,
        no_bound=reason if bound is None else None,
        notes=dict(notes or {}),
        least_squared_m2=least_m2,
    )


def _same_windows(answers: dict[str, Answers], baseline: str, truth: Truth) -> Accuracy | None:
    """The model's accuracy over the windows that a baseline answers."""
    error_m, others_m = errors_m(answers[MODEL], truth), errors_m(answers[baseline], truth)
    return accuracy(error_m[np.isfinite(error_m) & np.isfinite(others_m)], None)


def _bound(
    spec: LikelihoodSpec, truth: Truth, answers: dict[str, Answers], duration_s: float
) -> tuple[Bound | None, np.ndarray]:
    """The bound, None where nothing is known for it, and the one with the area for each window, (n,) m²."""
    least_m2, classical_m2 = np.full((2, len(truth.label)), np.nan)
    snr_db = np.where(truth.usable, truth.snr_db, -np.inf)
    known = np.flatnonzero(truth.inside & np.isfinite(truth.bandwidth_hz) & ~np.isnan(snr_db).any(axis=1))
    if len(known) == 0:
        return None, least_m2
    found = position_bound(
        spec, truth.position_m[known], snr_db[known], truth.bandwidth_hz[known], duration_s=duration_s
    )
    classical_m2[known] = squared_bound_m2(found.covariance_m2)
    least_m2[known] = squared_bound_m2(found.with_area_m2)
    bound = Bound(
        windows=len(known),
        unbounded=int(np.isinf(classical_m2).sum()),
        rmse_m=rmse_bound_m(found.covariance_m2),
        with_area_rmse_m=rmse_bound_m(found.with_area_m2),
        ratio=_ratios(answers, truth, classical_m2),
        with_area_ratio=_ratios(answers, truth, least_m2),
    )
    return bound, least_m2


def _ratios(answers: dict[str, Answers], truth: Truth, squared_m2: np.ndarray) -> dict[str, float]:
    """RMSE over bound, both over the windows that are answered and have a bound."""
    ratios = {}
    for name, found in answers.items():
        error_m = errors_m(found, truth)
        both = np.isfinite(error_m) & np.isfinite(squared_m2)
        if both.any():
            ratios[name] = float(np.sqrt(np.mean(error_m[both] ** 2) / np.mean(squared_m2[both])))
    return ratios
