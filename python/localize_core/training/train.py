"""The whole way from labelled windows to a model file: summaries, network, calibration, export, figures."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from localize_core.errors import ConfigError, ModelError
from localize_core.evaluation.evaluate import MODEL, evaluate
from localize_core.evaluation.metrics import plain
from localize_core.model.compiled.compile import compile_model, save_model
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import OnnxModel
from localize_core.training.calibrate import Calibration, apply, calibrate, check_enough
from localize_core.training.data import TrainingData
from localize_core.training.export import Parity, export, provenance
from localize_core.training.fit import Epoch, FitConfig, OnEpoch, fit, fit_folds, folds_of, predict, scaled_truth
from localize_core.training.network import Calibrated, Layout, Stacked, mixture, squared_distance
from localize_core.training.radio_map import cross_fitted, fit_radio_map
from localize_core.training.summaries import Summaries, prior_spec, summarise

Step = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Begins a step of so many windows; what it gives is told how many more are done."""

MEMORY = ("train", "validation", "calibration")
SHARES = tuple(k / 10 for k in range(11))
"""Weights of a site's networks beside its map that are tried."""
FOLDS = 6
"""Networks that a site's model is made of; each has one fold to be judged by and one to stop by."""


@dataclass(frozen=True)
class Trained:
    """What came out: the contract as written, and how each step went."""

    contract: Contract
    history: list[Epoch]
    calibration: Calibration
    parity: Parity


def train(
    data: TrainingData,
    output: Path,
    *,
    name: str,
    version: str = "1",
    config: FitConfig | None = None,
    resume: bool = False,
    workers: int = 0,
    step: Step | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train, calibrate and export a model to `output`.

    What is done so far lies beside it, in a folder of its name and `.train`, until the model is written: `resume` goes
    on from there. Raises ConfigError or SourceError for data that cannot be learned from; ModelError, without writing a
    model, where calibration or parity fails, or the folder belongs to another training.
    """
    config = config or FitConfig()
    step = step or (lambda text, total: nullcontext(lambda count: None))
    work = output.with_name(output.name + ".train")
    if work.exists() and not (work / "data").is_file():
        raise ConfigError(f"{work}: is in the way, and no training's; remove it or choose another output")
    if not resume and work.exists():
        shutil.rmtree(work)
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    _check_same(work / "data", data)

    source = data.parts["train"]
    layout = Layout.of(source.contract, data.spec)
    prior = None if data.has_map else prior_spec(data.spec)
    layout = replace(layout, has_prior=data.has_map or prior is not None)
    first = None if prior is None else work / "first-stage.onnx"
    if first is not None and prior is not None:
        compile_model(prior, first)
    summaries = {}
    for part in MEMORY:
        kept = work / f"{part}.npz"
        if kept.exists():
            summaries[part] = _load(kept)
            continue
        with step(f"windows for {part}", len(data.parts[part])) as advance:
            summaries[part] = summarise(data.parts[part], layout, first, workers=workers, progress=advance)
        _keep(summaries[part], kept)
    judged = summaries.values() if data.has_map else [summaries["calibration"]]
    check_enough(sum(int(part.inside.sum()) for part in judged))
    learn = _learn_site if data.has_map else _learn
    network, history, calibration = learn(layout, summaries, config, work, resume=resume, on_epoch=on_epoch)
    apply(calibration, network)
    told = provenance(
        "trained",
        data=data.description,
        split=data.split,
        split_description=data.split_description,
        windows={part: len(found) for part, found in summaries.items()},
        epochs=len(history),
        fit=asdict(config),
        first_stage="radio map" if data.has_map else None if prior is None else "compiled",
        networks=FOLDS if data.has_map else 1,
        share_of_networks=network.answer.share if isinstance(network.answer, Stacked) else None,
        calibration={"windows": calibration.windows, "containment": calibration.containment},
    )
    contract = source.contract.model_copy(
        update={"name": name, "model_version": version, "likelihood": None, "provenance": told}
    )
    draft = work / "model.onnx"
    test = data.parts["test"]
    with step("comparing file and network", 0):
        contract, parity = export(network, contract, prior, draft, test)
    with step("windows for the figures", len(test)) as advance:
        found = evaluate(OnnxModel(draft), test, progress=advance)
    accuracy = {"split": data.split_description, "windows": found.windows, **plain(found.figures[MODEL].accuracy)}
    contract = contract.model_copy(update={"accuracy": accuracy})
    save_model(onnx.load(str(draft)), contract, draft)
    draft.replace(output)
    shutil.rmtree(work)
    return Trained(contract, history, calibration, parity)


def _learn(
    layout: Layout,
    summaries: dict[str, Summaries],
    config: FitConfig,
    work: Path,
    *,
    resume: bool,
    on_epoch: OnEpoch | None,
) -> tuple[Calibrated, list[Epoch], Calibration]:
    """One network, calibrated on the part that is for it."""
    checkpoint = work / "checkpoint.pt"
    train, validation, held = (summaries[part] for part in MEMORY)
    answer, history = fit(layout, train, validation, config, checkpoint=checkpoint, resume=resume, on_epoch=on_epoch)
    return Calibrated(layout, answer), history, calibrate(layout, predict(answer, held), held)


def _learn_site(
    layout: Layout,
    summaries: dict[str, Summaries],
    config: FitConfig,
    work: Path,
    *,
    resume: bool,
    on_epoch: OnEpoch | None,
) -> tuple[Calibrated, list[Epoch], Calibration]:
    """A map of the site and several networks behind it.

    A site has few blocks, and a split that sets some of them aside for calibration judges by too few. So all but the
    test is shared out to folds: each is judged by a map and a network that have seen nothing of it, and on all of these
    judgements rest the weights of map and networks and the calibration.
    """
    known = Summaries.concatenate([summaries[part] for part in MEMORY])
    fold = folds_of(known.group, FOLDS, seed=config.seed)
    if set(fold[known.inside]) != set(range(FOLDS)):
        raise ConfigError(f"one of {FOLDS} shares of the blocks has no window with an emitter in the area; record more")
    radio_map = fit_radio_map(layout, known, seed=config.seed)
    known, radio_map.sharpness = cross_fitted(layout, known, fold, seed=config.seed)
    answer, said, history = fit_folds(layout, known, fold, config, folder=work, resume=resume, on_epoch=on_epoch)
    share = share_of_networks(layout, said, known)
    position, covariance = mixture(layout, said[0], said[1], torch.from_numpy(known.fix), share)
    calibration = calibrate(layout, (position, covariance, said[2]), known)
    return Calibrated(layout, Stacked(layout, answer, share), radio_map), history, calibration


def share_of_networks(layout: Layout, said: tuple[Tensor, Tensor, Tensor], summaries: Summaries) -> float:
    """The weight of what networks said beside the map's fixes under which the truth is likeliest, the ellipses' common
    scale left free."""
    inside = torch.from_numpy(summaries.inside)
    truth = scaled_truth(layout, summaries.truth_m[summaries.inside])
    fix = torch.from_numpy(summaries.fix)[inside]

    def surprise(share: float) -> float:
        position, covariance = mixture(layout, said[0][inside], said[1][inside], fix, share)
        squared, volume = squared_distance(position, covariance, truth)
        return float(torch.log(squared.mean()) + 0.5 * volume.mean())

    return min(SHARES, key=surprise)


def _check_same(path: Path, data: TrainingData) -> None:
    """Raise ModelError where the folder holds windows of other data."""
    told = {name: len(part) for name, part in data.parts.items()}
    digest = hashlib.sha256(f"{data.spec!r} {data.split!r} {data.made_from} {told}".encode()).hexdigest()
    if path.exists() and path.read_text() != digest:
        raise ModelError(f"{path.parent}: belongs to a training on other data; remove it or train without --resume")
    path.write_text(digest)


def _keep(summaries: Summaries, path: Path) -> None:
    draft = path.with_suffix(".draft.npz")
    np.savez(draft, **{field.name: getattr(summaries, field.name) for field in fields(Summaries)})
    draft.replace(path)


def _load(path: Path) -> Summaries:
    with np.load(path) as kept:
        return Summaries(**{field.name: kept[field.name] for field in fields(Summaries)})
