"""Where an evaluation's windows come from: a scene, a channel data set or recordings, made as the model wants them.

Everything that a model is held against comes out of one call: windows of the wanted part, windows to train baselines
on, the station to compile, what is so of the scene, and in words what data and which split that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from localize_core.dataset.drawn import INSIDE_ONLY, ChannelWindows, SceneWindows, channel_station, usual_draws
from localize_core.dataset.recordings import recording_windows
from localize_core.dataset.splits import SPLITS, SplitKind, assign, split_rows
from localize_core.dataset.windows import Windows, WindowSource
from localize_core.errors import ConfigError
from localize_core.evaluation.bound import area_box_m
from localize_core.evaluation.evaluate import window_s
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.propagation import PathDelay
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.contract import Contract
from localize_core.simulation.channels import load_channels
from localize_core.simulation.scene import SceneConfig
from localize_core.station.config import Station, load_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position

SCENE_WINDOWS = 1000
PARTS = (*SPLITS, "all")
EVALUATED_SEED = 1_000_003
"""Scenes of an evaluation are drawn from seeds from here on."""


@dataclass(frozen=True)
class Data:
    """Windows and what belongs to them.

    `source`: what is evaluated. `training`: windows for baselines to learn, None where nothing is left for that.
    `station`: the likelihood of the compiled model on the same features. `scene`: what is so, for the bound; None where
    `no_bound` says why. `box_m`: corners of the area in the windows' plane, (2, 2). `description`, `split`: in words.
    """

    source: WindowSource
    training: WindowSource | None
    station: LikelihoodSpec
    scene: LikelihoodSpec | None
    no_bound: str | None
    box_m: np.ndarray
    description: str
    split: str


class Part:
    """Some windows of a source, a `WindowSource`; `which` (n,): a mask over all of them."""

    def __init__(self, source: WindowSource, which: np.ndarray) -> None:
        self._source, self._which = source, which

    @property
    def contract(self) -> Contract:
        return self._source.contract

    @property
    def time_steps(self) -> int:
        return self._source.time_steps

    def __len__(self) -> int:
        return int(np.count_nonzero(self._which))

    def batches(self, size: int) -> Iterator[Windows]:
        """The windows of the part in order, up to `size` at a time."""
        first = 0
        waiting: list[Windows] = []
        for windows in self._source.batches(size):
            waiting.append(windows.select(self._which[first : first + len(windows)]))
            first += len(windows)
            if sum(map(len, waiting)) >= size:
                whole = Windows.concatenate(waiting)
                yield whole.select(np.arange(size))
                waiting = [whole.select(np.arange(size, len(whole)))]
        if sum(map(len, waiting)):
            yield Windows.concatenate(waiting)


def station_for(station: Station, contract: Contract) -> Station:
    """The station with the features that a model wants, and windows as long.

    Raises ConfigError where the rates differ or the model's features are not ones that a station can have.
    """
    rate_hz = station.station.sample_rate_hz
    if contract.sample_rate_hz != rate_hz:
        raise ConfigError(
            f"station.sample_rate_hz={rate_hz:g}: the model {contract.name} wants {contract.sample_rate_hz:g}"
        )
    mel, correlation = contract.mel_config, contract.correlation_config
    if mel is not None and correlation is not None and mel.n_fft != correlation.n_fft:
        raise ConfigError(
            f"the model {contract.name} has n_fft={mel.n_fft} in log_mel and {correlation.n_fft} in cross_correlation: "
            "a station has one for both"
        )
    changes: dict[str, Any] = {
        "channels": list(contract.parameters),
        "rows": contract.rows,
        "n_fft": contract.n_fft,
        "hop": contract.hop,
    }
    if correlation is not None:
        changes |= {key: getattr(correlation, key) for key in ("lag_step", "signal", "weighting")}
    if contract.time_steps is not None:
        # Half a hop more than needed: rounding must not cost the last frame.
        changes["window_s"] = window_s(contract, contract.time_steps) + 0.5 * contract.hop / rate_hz
    return station.model_copy(update={"features": station.features.model_copy(update=changes)})


def open_scene(
    path: Path,
    contract: Contract,
    *,
    part: str = "test",
    windows: int | None = None,
    seed: int = 1,
    snr_db: tuple[float, float] | None = None,
) -> Data:
    """Windows of a station's scene, every one drawn anew: places, shadowing, errors of clocks, SNR, missing receivers.

    No part shares a window with another or with a training, which draws from other seeds. `windows`: SCENE_WINDOWS if
    left out. `snr_db`: range of the median receiver's; as training draws it if left out.

    Raises ConfigError for a station that cannot work or does not suit the model.
    """
    station = station_for(load_station(path), contract)
    draws = usual_draws(station, snr_db)
    count = SCENE_WINDOWS if windows is None else windows
    source = SceneWindows(station, count=count, seed=_seed(seed, part), draws=draws)
    others = replace(draws, none=0.0, outside=0.0)
    training = None
    if part not in ("train", "all"):
        training = SceneWindows(station, count=max(count, SCENE_WINDOWS), seed=_seed(seed, "train"), draws=others)
    spec = source.spec
    scene = source.draw(0).scene.config
    if station.scene is not None:
        scene = station.scene
    else:
        scene = scene.model_copy(update={"path_loss_exponent": station.propagation.path_loss_exponent})
    strength = (
        "emitters as strong as it states" if draws.snr_db is None else "SNR {:g} to {:g} dB".format(*draws.snr_db)
    )
    return Data(
        source=source,
        training=training,
        station=spec,
        scene=scene_spec(spec, scene, duration_s=window_s(source.contract, source.time_steps)),
        no_bound=None,
        box_m=area_box_m(spec.area),
        description=f"the scene of {path.name}, {strength}",
        split=f"{part}: every window is drawn anew, from a seed (evaluation {seed}) that no training uses",
    )


def _seed(seed: int, part: str) -> int:
    return EVALUATED_SEED + len(PARTS) * seed + PARTS.index(part)


def scene_spec(spec: LikelihoodSpec, scene: SceneConfig, *, duration_s: float) -> LikelihoodSpec:
    """A station's specification with what is so in a scene instead of what a model assumes, for the bound.

    Shadowing that all receivers share is as unknown as the emitter's power, and costs nothing more. Within a window a
    clock is off by its offset, its wander, and half of what it drifts meanwhile.
    """
    timing, level = spec.timing, spec.level
    if timing is not None:
        drift_ns = 0.5 * scene.clock_drift_ppb * duration_s
        clock_ns = math.hypot(scene.clock_offset_ns, scene.timing_jitter_ns, drift_ns)
        sigma_m = clock_ns * 1e-9 * SPEED_OF_LIGHT_MPS
        timing = replace(timing, receiver_sigma_m=(sigma_m,) * len(spec.receivers), path=PathDelay(0.0))
    if level is not None:
        level = replace(
            level,
            gain_sigma_db=(scene.gain_error_db,) * len(spec.receivers),
            shadowing_db=scene.shadowing_db * math.sqrt(1.0 - scene.shadowing_correlation),
            exponent=scene.path_loss_exponent,
            level_dbfs_at_1km=None,
        )
    return replace(spec, timing=timing, level=level)


def open_channels(
    path: Path,
    contract: Contract,
    *,
    part: str = "test",
    by: SplitKind | None = None,
    windows: int | None = None,
    seed: int = 1,
) -> Data:
    """Windows of a channel data set, of the rows that a split keeps for `part`.

    The split is the one in the model's provenance under `split` (keys `kind`, `seed`, `block_m`, `blocks`); without
    one, or with another kind in `by`, it is made anew, by place if nothing else is said. `windows`: about so many, by
    repeating rows or taking some of them evenly; one for each row if left out.

    Raises ConfigError for a split that leaves a part empty or a station that does not suit the model, SourceError for a
    set that is damaged.
    """
    channels = load_channels(path)
    station = channel_station(channels, name=path.stem, sample_rate_hz=contract.sample_rate_hz, rows=contract.rows)
    station = station_for(station, contract)
    told = split_settings(contract)
    kind = by or told.get("kind", "place")
    if kind != told.get("kind", kind):
        told = {}
    split = split_rows(
        channels.transmitters_enu_m[:, :2],
        kind,
        seed=told.get("seed", seed),
        block_m=told.get("block_m"),
        blocks=told.get("blocks", 20),
    )
    rows = split.rows(part)
    if windows is not None and windows < len(rows):
        rows = rows[np.linspace(0.0, len(rows) - 1.0, windows).round().astype(int)]
    repeats = 1 if windows is None else max(round(windows / len(rows)), 1)
    source = ChannelWindows(channels, station, rows, group=split.group, repeats=repeats, seed=_seed(seed, part))
    training = None
    if part not in ("train", "all"):
        training = ChannelWindows(
            channels,
            station,
            split.rows("train"),
            group=split.group,
            repeats=1,
            seed=_seed(seed, "train"),
            draws=INSIDE_ONLY,
        )
    return Data(
        source=source,
        training=training,
        station=source.spec,
        scene=None,
        no_bound="measured or ray-traced channels have no closed form",
        box_m=area_box_m(source.spec.area),
        description=f"{path.name}, {len(rows):,} of {len(channels):,} places",
        split=f"{part}, {split.description}" + ("" if told else "; not the model's own, it states none of this kind"),
    )


def split_settings(contract: Contract) -> Mapping[str, Any]:
    """What the model's provenance says of the split that it was made with; empty where it says nothing."""
    told = contract.provenance.get("split")
    return told if isinstance(told, Mapping) and "kind" in told else {}


def open_recordings(
    path: Path,
    truth: Sequence[Position | Path],
    contract: Contract,
    *,
    part: str | None = None,
    windows: int | None = None,
    seed: int = 1,
) -> Data:
    """Windows of a station's recordings, of the blocks of time that a split keeps for `part`.

    `path`: a station file, or a folder of some, of the same receivers, in order of their names. `truth`: one for all or
    one each. `part`: "all" if left out and the model was compiled, so that nothing was tuned on any of it, else "test".
    `windows`: at most so many, taken evenly.

    Raises ConfigError and SourceError as `recording_windows` does, ConfigError where a part stays empty.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: no station file (*.toml) in this folder")
    stations = [load_station(file) for file in files]
    source = recording_windows(stations, list(truth), contract=contract)
    if part is None:
        part = "all" if contract.provenance.get("kind") == "compiled" else "test"
    told = split_settings(contract)
    group = source.group
    which, training, blocks = np.ones(len(group), bool), None, len(np.unique(group))
    if part != "all":
        parts = assign(group, seed=told.get("seed", seed))
        which = parts == SPLITS.index(part)
        if part != "train":
            training = Part(source, parts == SPLITS.index("train"))
    if windows is not None and windows < which.sum():
        kept = np.flatnonzero(which)[np.linspace(0.0, which.sum() - 1.0, windows).round().astype(int)]
        which = np.isin(np.arange(len(which)), kept)
    spec = plan_station(station_for(stations[0], contract)).spec
    return Data(
        source=Part(source, which),
        training=training,
        station=spec,
        scene=None,
        no_bound="the SNR of recordings is not known",
        box_m=_box_in(contract, spec),
        description=f"the recordings of {path.name}, {which.sum():,} of {len(which):,} windows",
        split="all recordings" if part == "all" else f"{part}, by time: {blocks} blocks of windows that share no frame",
    )


def _box_in(contract: Contract, spec: LikelihoodSpec) -> np.ndarray:
    """The area's corners in the plane of the contract, which need not be the area's own."""
    own, wanted = spec.area.frame, contract.frame
    south_west, north_east = area_box_m(spec.area)
    corners = np.array([[e, n] for e in (south_west[0], north_east[0]) for n in (south_west[1], north_east[1])])
    places = wanted.local.to_enu_m(*own.to_wgs84(corners), wanted.altitude_m)[:, :2]
    return np.stack([places.min(axis=0), places.max(axis=0)])
