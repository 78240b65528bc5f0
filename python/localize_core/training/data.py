"""What a model is trained on: windows for each part of a split, from a scene, a channel data set or recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from localize_core.dataset.drawn import ChannelWindows, Draws, SceneWindows, channel_station, usual_draws
from localize_core.dataset.recordings import recording_windows
from localize_core.dataset.splits import SPLITS, SplitKind, assign, split_rows
from localize_core.dataset.windows import WindowSource
from localize_core.errors import ConfigError
from localize_core.evaluation.data import Part
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.simulation.channels import load_channels
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position

LARGEST_SEED = 100_000
"""Evaluations draw their scenes from seeds beyond those that come of this one."""
HELD_REPEATS = 3
"""Windows of each row of a channel data set in the test."""
SCENE_SHARES = {"train": 1.0, "validation": 0.1, "calibration": 0.15, "test": 0.1}
FEWEST_PLACES = 100
"""For a map of a site."""
FEWEST_BLOCKS = 12
"""Of places or time, for that: each of the folds must be several."""
FEWEST_WINDOWS = 200
"""In every part of a scene's windows."""


@dataclass(frozen=True)
class TrainingData:
    """`parts`: windows by name of the split's part. `spec`: the station's likelihood. `split`: for the provenance, with
    what it takes to make it again. `description`, `split_description`: in words. `made_from`: all else that the windows
    depend on. `has_map`: whether there are places enough for a map of the site."""

    parts: dict[str, WindowSource]
    spec: LikelihoodSpec
    split: dict[str, Any]
    description: str
    split_description: str
    made_from: str
    has_map: bool = False


def scene_data(
    path: Path,
    *,
    windows: int,
    seed: int,
    snr_db: tuple[float, float] | None = None,
    waveforms: tuple[str, ...] = (),
) -> TrainingData:
    """`windows` for training from a station file, and a part of that for each of the others, all drawn anew."""
    _check_seed(seed)
    station = load_station(path)
    draws = replace(usual_draws(station, snr_db), waveforms=waveforms)
    parts: dict[str, WindowSource] = {
        name: SceneWindows(
            station,
            count=max(round(windows * SCENE_SHARES[name]), FEWEST_WINDOWS),
            seed=len(SPLITS) * seed + number,
            draws=draws,
        )
        for number, name in enumerate(SPLITS)
    }
    told = "every window is drawn anew; each part from a seed of its own"
    spec = plan_station(station).spec
    return TrainingData(
        parts, spec, {"kind": "draw", "seed": seed}, f"the scene of {path.name}", told, repr((station, draws))
    )


def channel_data(
    path: Path,
    *,
    repeats: int,
    seed: int,
    kind: SplitKind | None = None,
    block_m: float | None = None,
    blocks: int = 20,
    sample_rate_hz: float | None = None,
    rows: int | None = None,
    draws: Draws | None = None,
) -> TrainingData:
    """`repeats` windows of each row, with new phases of their paths; of those for the test three, as they are.

    `kind`: place where the set has delays, else time, if left out.
    """
    _check_seed(seed)
    channels = load_channels(path)
    station = channel_station(channels, name=path.stem, sample_rate_hz=sample_rate_hz, rows=rows)
    kind = kind or ("place" if channels.has_delays else "time")
    if block_m is not None and kind != "place":
        raise ConfigError(f"block_m={block_m:g}: is for a split by place, and this one is by {kind}")
    split = split_rows(channels.transmitters_enu_m[:, :2], kind, seed=seed, block_m=block_m, blocks=blocks)
    draws = draws or Draws()
    parts: dict[str, WindowSource] = {
        name: ChannelWindows(
            channels,
            station,
            split.rows(name),
            group=split.group,
            repeats=HELD_REPEATS if name == "test" else repeats,
            seed=len(SPLITS) * seed + number,
            draws=draws if name == "test" else replace(draws, fading=True),
        )
        for number, name in enumerate(SPLITS)
    }
    told = {"kind": kind, "seed": seed, "block_m": block_m, "blocks": blocks}
    spec = plan_station(station).spec
    made_from = repr((_digest(path), station, draws, repeats))
    return TrainingData(
        parts,
        spec,
        told,
        f"{path.name}, {len(channels):,} places",
        split.description,
        made_from,
        has_map=len(channels) >= FEWEST_PLACES and len(np.unique(split.group)) >= FEWEST_BLOCKS,
    )


def recording_data(path: Path, truth: Sequence[Position | Path], *, seed: int) -> TrainingData:
    """Recordings of a station file, or of all in a folder, split by blocks of time."""
    _check_seed(seed)
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: no station file (*.toml) in this folder")
    stations = [load_station(file) for file in files]
    source = recording_windows(stations, list(truth))
    part = assign(source.group, seed=seed)
    parts: dict[str, WindowSource] = {name: Part(source, part == number) for number, name in enumerate(SPLITS)}
    blocks = len(np.unique(source.group))
    told = f"by time: {blocks} blocks of windows that share no frame"
    spec = plan_station(stations[0]).spec
    made_from = repr((stations, [_digest(each) if isinstance(each, Path) else each for each in truth]))
    return TrainingData(
        parts,
        spec,
        {"kind": "time", "seed": seed},
        f"the recordings of {path.name}",
        told,
        made_from,
        has_map=len(np.unique(source.places_m.round(), axis=0)) >= FEWEST_PLACES and blocks >= FEWEST_BLOCKS,
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed={seed}: must lie between 0 and {LARGEST_SEED}")
