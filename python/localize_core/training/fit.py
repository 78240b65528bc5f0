"""Training by likelihood, with early stopping, and checkpoints to go on from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from localize_core.errors import ConfigError, ModelError
from localize_core.training.network import Answer, Ensemble, Jitter, Layout, gaussian_nll
from localize_core.training.summaries import Summaries

GRADIENT_LIMIT = 1.0
CONFIDENCE_STEPS, CONFIDENCE_RATE, CONFIDENCE_DECAY = 1000, 1e-2, 0.05
"""The confidence's: steps over all windows, learning rate and weight decay."""
CONFIDENCE_LOOKS = 10
"""Steps from one look at the windows that stop it to the next."""
NLL_LIMIT = 30.0
"""A single window counts no more than this: an impossible one must not undo what the others teach."""


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained. Raises ConfigError if a value cannot work.

    `level_jitter_db`: standard deviation of what is added to each receiver's level anew in every epoch: no place shall
    be known by tenths of a decibel; `profile_jitter` does the same to correlation profiles, in the network's units.
    `patience`: epochs without a better validation loss after which training ends.
    """

    epochs: int = 40
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    hidden: int = 128
    dropout: float = 0.4
    level_jitter_db: float = 2.0
    profile_jitter: float = 0.2
    patience: int = 12
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, 100_000),
            ("batch", 2, 65_536),
            ("learning_rate", 1e-7, 1.0),
            ("weight_decay", 0.0, 10.0),
            ("hidden", 8, 4096),
            ("dropout", 0.0, 0.9),
            ("level_jitter_db", 0.0, 20.0),
            ("profile_jitter", 0.0, 2.0),
            ("patience", 1, 100_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)}: must lie between {low} and {high}")


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: mean losses (nats), the median error on the validation windows, and whether it is the
    best so far. `network`: which one was trained, from 0."""

    number: int
    train_loss: float
    validation_loss: float
    validation_median_m: float
    is_best: bool
    network: int = 0


OnEpoch = Callable[[Epoch], None]


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    layout: Layout,
    train: Summaries,
    validation: Summaries,
    config: FitConfig,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
) -> tuple[Answer, list[Epoch]]:
    """Train a network on `train`, keep the weights that did best on `validation`.

    `checkpoint`: written after every epoch, whole or not at all. `resume`: go on from it; without one training begins.
    Same data, seed and machine, same result, interrupted or not.
    Raises ConfigError without windows that have a place, ModelError for a checkpoint of another training.
    """
    if not train.inside.any() or not validation.inside.any():
        raise ConfigError("no window of the training or of the validation split has an emitter in the area")
    torch.manual_seed(config.seed)
    where = device()
    jitter = Jitter(config.level_jitter_db, config.profile_jitter)
    answer = Answer(layout, hidden=config.hidden, dropout=config.dropout, jitter=jitter).to(where)
    optimiser = torch.optim.AdamW(answer.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    placed, held = (part.select(part.inside) for part in (train, validation))
    steps = math.ceil(len(placed) / config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * steps, pct_start=0.1
    )
    history: list[Epoch] = []
    best, best_weights = math.inf, _copied(answer)
    fingerprint = {
        "layout": asdict(layout),
        "config": asdict(config),
        "windows": [len(train), len(validation)],
        "network": {name: list(weight.shape) for name, weight in answer.state_dict().items()},
    }
    if resume and checkpoint is not None and checkpoint.exists():
        state = _loaded(checkpoint, fingerprint)
        answer.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        best, best_weights = state["best"], state["best_weights"]
        history = [Epoch(**epoch) for epoch in state["history"]]
    data, held_data = _on(placed, layout, where), _on(held, layout, where)
    for number in range(len(history), config.epochs):
        if history and number - _best_number(history) > config.patience:
            break
        # Everything random in an epoch follows from its number: a resumed training draws what it would have drawn.
        torch.manual_seed(hash((config.seed, number)) % 2**31)
        order = np.random.default_rng([config.seed, number]).permutation(len(placed))
        answer.train()
        total = 0.0
        for start in range(0, len(order), config.batch):
            index = torch.from_numpy(order[start : start + config.batch]).to(where)
            batch = tuple(part[index] for part in data)
            loss, _ = _loss(answer, batch)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(answer.parameters(), GRADIENT_LIMIT)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        validation_loss, median_m = _validate(answer, held_data, layout)
        is_best = validation_loss < best
        if is_best:
            best, best_weights = validation_loss, _copied(answer)
        history.append(Epoch(number, total / len(order), validation_loss, median_m, is_best))
        if checkpoint is not None:
            _save(
                checkpoint,
                {
                    "fingerprint": fingerprint,
                    "weights": answer.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "best": best,
                    "best_weights": best_weights,
                    "history": [asdict(epoch) for epoch in history],
                },
            )
        if on_epoch is not None:
            on_epoch(history[-1])
    answer.load_state_dict(best_weights)
    _fit_confidence(answer, train, validation, where)
    return answer.cpu().eval(), history


def _fit_confidence(answer: Answer, train: Summaries, validation: Summaries, where: torch.device) -> None:
    """The confidence, which shares no weights with the place: on all windows at once, kept at what did best on others.

    In the epochs of the place, which tell far more nats, it would be stopped when that is done.
    """
    best, best_weights = math.inf, _copied(answer.valid)
    optimiser = torch.optim.AdamW(answer.valid.parameters(), CONFIDENCE_RATE, weight_decay=CONFIDENCE_DECAY)
    seen, label = _evidence(answer, train, where)
    held_seen, held_label = _evidence(answer, validation, where)
    for step in range(CONFIDENCE_STEPS):
        loss = _balanced(answer.valid(seen), label)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % CONFIDENCE_LOOKS:
            continue
        with torch.no_grad():
            found = float(_balanced(answer.valid(held_seen), held_label))
        if found < best:
            best, best_weights = found, _copied(answer.valid)
    answer.valid.load_state_dict(best_weights)


def _evidence(answer: Answer, summaries: Summaries, where: torch.device) -> tuple[Tensor, Tensor]:
    """What the confidence is learned from, (n, e), and whether each deserves it, (n,).

    Recordings of an emitter that was always on have no windows without: then the same with nothing to hear stand for
    them.
    """
    _, *inputs = (part.to(where) for part in summaries.tensors())
    seen = answer.evidence(*inputs).detach()
    label = torch.from_numpy(summaries.answerable.astype(np.float32)).to(where)
    if bool((label > 0.0).all()):
        seen, label = torch.cat([seen, answer.silence(seen)]), torch.cat([label, torch.zeros_like(label)])
    return seen, label


def _balanced(logit: Tensor, label: Tensor) -> Tensor:
    """Mean loss of a confidence, both kinds of window weighing as much: who knows how rare either will be?"""
    weight = label / label.sum().clamp_min(1.0) + (1.0 - label) / (1.0 - label).sum().clamp_min(1.0)
    loss = functional.binary_cross_entropy_with_logits(logit[:, 0], label, reduction="none")
    return (weight * loss).sum() / weight.sum()


def folds_of(group: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Numbers of `count` folds into which whole blocks fall at random: int (n,)."""
    blocks, number = np.unique(group, return_inverse=True)
    fold = np.random.default_rng([seed, len(blocks)]).permutation(len(blocks)) % count
    return np.asarray(fold[np.asarray(number).reshape(-1)])


def fit_folds(
    layout: Layout,
    summaries: Summaries,
    fold: np.ndarray,
    config: FitConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
) -> tuple[Ensemble, tuple[Tensor, Tensor, Tensor], list[Epoch]]:
    """One network for each fold, which has seen nothing of it: trained on the others but the next, which stops it.

    Returns all of them as one, what each said of its own fold's windows (as `predict`), and the epochs of all.
    `fold` (n,): number of each window's, from 0. `folder`: for checkpoints. Raises as `fit`.
    """
    count = int(fold.max()) + 1
    members, history = [], []
    said = (torch.zeros(len(fold), 2), torch.zeros(len(fold), 3), torch.zeros(len(fold), 1))
    for number in range(count):

        def told(epoch: Epoch, network: int = number) -> None:
            if on_epoch is not None:
                on_epoch(replace(epoch, network=network))

        stops = fold == (number + 1) % count
        member, epochs = fit(
            layout,
            summaries.select((fold != number) & ~stops),
            summaries.select(stops),
            replace(config, seed=config.seed + number),
            checkpoint=None if folder is None else folder / f"checkpoint-{number}.pt",
            resume=resume,
            on_epoch=told,
        )
        for whole, part in zip(said, predict(member, summaries.select(fold == number)), strict=True):
            whole[torch.from_numpy(fold == number)] = part
        members.append(member)
        history += [replace(epoch, network=number) for epoch in epochs]
    return Ensemble(members), said, history


def predict(answer: nn.Module, summaries: Summaries, batch: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n, 2) and covariances (n, 3) in half sizes of the area, and logits of the confidence (n, 1)."""
    answer.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(summaries), batch):
            parts.append(answer(*summaries.select(np.arange(start, min(start + batch, len(summaries)))).tensors()))
    position, covariance, logit = (torch.cat(part) for part in zip(*parts, strict=True))
    return position, covariance, logit


def scaled_truth(layout: Layout, truth_m: np.ndarray) -> Tensor:
    """Places in metres as the network has them, (n, 2)."""
    return torch.from_numpy(((truth_m - np.array(layout.centre_m)) / layout.scale_m).astype(np.float32))


def _on(summaries: Summaries, layout: Layout, where: torch.device) -> tuple[Tensor, ...]:
    return tuple(part.to(where) for part in (*summaries.tensors(), scaled_truth(layout, summaries.truth_m)))


def _loss(answer: Answer, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood of the places, and how far off each is, (n, 2)."""
    *inputs, truth = batch
    position, covariance, _ = answer(*inputs)
    return gaussian_nll(position, covariance, truth).clamp_max(NLL_LIMIT).mean(), (position - truth).detach()


def _validate(answer: Answer, data: tuple[Tensor, ...], layout: Layout) -> tuple[float, float]:
    answer.eval()
    with torch.no_grad():
        nll, offset = _loss(answer, data)
    return float(nll), float(torch.linalg.vector_norm(offset, dim=1).median()) * layout.scale_m


def _best_number(history: list[Epoch]) -> int:
    return max(epoch.number for epoch in history if epoch.is_best)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _save(path: Path, state: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    torch.save(state, draft)
    draft.replace(path)


def _loaded(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises what pickle, zip and its own reader raise
        raise ModelError(f"{path}: not a checkpoint: {error}") from error
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise ModelError(f"{path}: not a checkpoint of a training")
    differing = [key for key, value in fingerprint.items() if repr(state["fingerprint"].get(key)) != repr(value)]
    if differing:
        raise ModelError(
            f"{path}: belongs to another training, its {', '.join(differing)} differ; train with the same options or "
            "without --resume"
        )
    return state
