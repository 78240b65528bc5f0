"""Labelled windows out of the simulator: every window is drawn anew, and is a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from pydantic import ValidationError

from localize_core.dataset.windows import Label, Windows
from localize_core.engine.masking import ChannelMask
from localize_core.errors import ConfigError
from localize_core.features.correlation import CrossCorrelation
from localize_core.features.mel import MelSpectrogram
from localize_core.geodesy import GEOD, SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.compile import contract_of
from localize_core.model.compiled.spec import Area, LikelihoodSpec
from localize_core.model.contract import Contract
from localize_core.simulation.channels import ChannelSet
from localize_core.simulation.propagation import NEAREST_M
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.simulation.waveforms import MAX_BANDWIDTH, WaveformName
from localize_core.station.config import Station
from localize_core.station.plan import Plan, plan_station

WAVEFORMS = tuple(name for name in get_args(WaveformName) if name != "none")
"""What emitters may send: one that sends nothing is none."""
NEAR_OUTSIDE, FAR_OUTSIDE = 0.15, 1.0
"""How far beyond the area emitters outside it are drawn, in half sizes of the area."""
NOISE_DBFS = -60.0
"""Receiver noise where nobody says otherwise: well inside the range of single precision and of converters."""
LEVEL_ONLY_RATE_HZ, RATE_HZ = 200e3, 10e6
"""Sample rates for channel data sets without and with delays, where nobody says otherwise."""
LEAST_RATE_HZ = 1e3
FRAMES = 24
"""In a window of a channel data set."""


@dataclass(frozen=True)
class Draws:
    """What windows are drawn from, beyond what the station says.

    `snr_db`: range of the median receiver's SNR in the whole sample rate (scenes), None for the emitter's level as
    the station knows it. `emitter_sigma_db`: spread of the emitter's power (channel data sets). `waveforms`: empty for
    the scene's own, or noise. `bandwidth`: range, as a part of the scene's bandwidth or, for channel data sets, of the
    widest that the sample rate allows. `none`, `outside`, `missing`: shares of windows without emitter, with one
    outside the area, and with receivers missing. `fading`: channel data sets get new phases for their paths in every
    window, as they have a wavelength further on.
    """

    snr_db: tuple[float, float] | None = (-10.0, 35.0)
    emitter_sigma_db: float = 1.0
    waveforms: tuple[str, ...] = ()
    bandwidth: tuple[float, float] = (0.5, 1.0)
    none: float = 0.1
    outside: float = 0.1
    missing: float = 0.1
    fading: bool = False

    def __post_init__(self) -> None:
        if self.snr_db is not None and not -math.inf < self.snr_db[0] <= self.snr_db[1] < math.inf:
            raise ConfigError(f"snr_db={self.snr_db}: the lower end comes first, and both are finite")
        if not 0.0 <= self.emitter_sigma_db < math.inf:
            raise ConfigError(f"emitter_sigma_db={self.emitter_sigma_db}: must be a finite number, 0 or more")
        for name in self.waveforms:
            if name not in WAVEFORMS:
                raise ConfigError(f"waveforms={self.waveforms}: {name!r} is none of {', '.join(WAVEFORMS)}")
        if not 0.0 < self.bandwidth[0] <= self.bandwidth[1] <= 1.0:
            raise ConfigError(f"bandwidth={self.bandwidth}: must be two rising parts, above 0 and up to 1")
        for name in ("none", "outside", "missing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be a share between 0 and 1")
        if self.none + self.outside > 1.0:
            raise ConfigError(f"none={self.none}, outside={self.outside}: together they are more than all windows")


def usual_draws(station: Station, snr_db: tuple[float, float] | None = None) -> Draws:
    """What windows of a station's scene are drawn from: an SNR over a wide range, or the one given; where the station
    knows how strong emitters are, that."""
    if snr_db is not None:
        return Draws(snr_db=snr_db)
    return Draws(snr_db=None) if station.propagation.level_dbfs_at_1km is not None else Draws()


INSIDE_ONLY = Draws(none=0.0, outside=0.0, missing=0.0)


@dataclass(frozen=True)
class Drawn:
    """One window before its features: the scene, and what is true of it. Fields as in `Windows`, without the n."""

    scene: Scene
    label: Label
    truth_m: tuple[float, float]
    snr_db: np.ndarray
    bandwidth_hz: float
    group: int
    source: int


class DrawnWindows:
    """`count` windows, a `WindowSource`. Subclasses draw the scene of a window from its number."""

    def __init__(self, plan: Plan, draws: Draws, count: int, seed: int) -> None:
        if count < 1:
            raise ConfigError(f"windows={count}: must be at least 1")
        if seed < 0:
            raise ConfigError(f"seed={seed}: must not be negative")
        self.plan, self.draws, self.seed = plan, draws, seed
        self._count = count
        self._contract = contract_of(plan.spec)
        self._mask = ChannelMask(self._contract)
        mel, correlation = self._contract.mel_config, self._contract.correlation_config
        self._mel = None if mel is None else MelSpectrogram(mel)
        self._correlation = None if correlation is None else CrossCorrelation(correlation)
        self._samples = (plan.time_steps - 1) * self._contract.hop + self._contract.n_fft

    @property
    def contract(self) -> Contract:
        return self._contract

    @property
    def spec(self) -> LikelihoodSpec:
        """What the compiled model of the station is made from."""
        return self.plan.spec

    @property
    def time_steps(self) -> int:
        return self.plan.time_steps

    def __len__(self) -> int:
        return self._count

    def draw(self, index: int) -> Drawn:
        """What window `index` holds."""
        raise NotImplementedError

    def window(self, index: int) -> Windows:
        """Window `index`, of n = 1."""
        drawn = self.draw(index)
        samples = drawn.scene.samples(0, self._samples)
        parts = []
        if self._mel is not None:
            parts.append(np.stack([self._mel(stream) for stream in samples]))
        if self._correlation is not None:
            parts.append(self._correlation(samples))
        steps = self.plan.time_steps
        features = np.concatenate([part[:, :steps] for part in parts]).transpose(0, 2, 1)
        usable = self._usable(index)
        sound = np.array(
            [all(usable[name] for name in channel) for channel in self._mask.members],
        )
        with np.errstate(divide="ignore"):
            level_db = 10.0 * np.log10(np.mean(np.square(np.abs(samples)), axis=1))
        return Windows(
            features=np.ascontiguousarray(self._mask.apply(features, sound))[None],
            level_db=level_db[None].astype(np.float32),
            truth_m=np.array([drawn.truth_m]),
            label=np.array([int(drawn.label)]),
            snr_db=drawn.snr_db[None],
            bandwidth_hz=np.array([drawn.bandwidth_hz]),
            group=np.array([drawn.group]),
            source=np.array([drawn.source]),
            usable=usable[None],
        )

    def batches(self, size: int) -> Iterator[Windows]:
        """The windows in order, up to `size` at a time."""
        if size < 1:
            raise ConfigError(f"size={size}: must be at least 1")
        for first in range(0, self._count, size):
            yield Windows.concatenate([self.window(index) for index in range(first, min(first + size, self._count))])

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, purpose])

    def _kind(self, rng: np.random.Generator) -> Label:
        value = rng.uniform()
        if value < self.draws.none:
            return Label.NONE
        return Label.OUTSIDE if value < self.draws.none + self.draws.outside else Label.INSIDE

    def _usable(self, index: int) -> np.ndarray:
        """Which receivers are there; never fewer than the model asks for."""
        receivers = len(self._contract.receivers)
        usable = np.ones(receivers, bool)
        rng = self._rng(index, 1)
        spare = receivers - self._contract.min_receivers
        if spare > 0 and rng.uniform() < self.draws.missing:
            usable[rng.permutation(receivers)[: rng.integers(1, spare + 1)]] = False
        return usable


class SceneWindows(DrawnWindows):
    """Windows of a station in free space with path loss and shadowing, emitters anywhere in its area.

    What the station's `[scene]` says holds; without one, what `[propagation]` and the receivers state is what happens.
    Raises ConfigError for a station that cannot work.
    """

    def __init__(self, station: Station, *, count: int, seed: int, draws: Draws | None = None) -> None:
        super().__init__(plan_station(station), draws or Draws(), count, seed)
        self.station = station
        self._scene = station.scene or _stated_scene(station)
        if self._scene.has_channels:
            raise ConfigError("scene.channels: windows of a channel data set are drawn from its file, not from a scene")
        if self._scene.waveform == "none" and not self.draws.waveforms:
            raise ConfigError("scene.waveform='none': an emitter has to send something, else it cannot be labelled one")
        known = station.propagation.level_dbfs_at_1km is not None
        if self.draws.snr_db is None and not known and station.scene is None:
            raise ConfigError("propagation.level_dbfs_at_1km: says how strong the emitter is where no SNR is given")

    def draw(self, index: int) -> Drawn:
        rng = self._rng(index, 0)
        label = self._kind(rng)
        area, base, propagation = self.plan.spec.area, self._scene, self.station.propagation
        latitude, longitude = _place(rng, area, outside=label == Label.OUTSIDE)
        waveforms = self.draws.waveforms or (base.waveform,)
        heading, speed_mps = rng.uniform(0.0, 360.0), rng.uniform(0.0, base.speed_mps)
        half_s = 0.5 * self._samples / self.station.station.sample_rate_hz
        # In the middle of the window, which the label is of, it passes its place.
        way_m = speed_mps * half_s
        ends = [GEOD.fwd(longitude, latitude, *end)[1::-1] for end in ((heading, -way_m), (heading, way_m + 1.0))]
        changes: dict[str, object] = {
            "seed": int(rng.integers(2**62)),
            "waveform": "none" if label == Label.NONE else str(rng.choice(waveforms)),
            "bandwidth_hz": base.bandwidth_hz * rng.uniform(*self.draws.bandwidth),
            "path_loss_exponent": float(
                np.clip(rng.normal(base.path_loss_exponent, propagation.path_loss_exponent_sigma), 0.5, 8.0)
            ),
            "track": tuple(ends),
            "speed_mps": speed_mps,
            "altitude_m": self.station.area.altitude_m,
            "loop": False,
            "level_dbfs_at_1km": 0.0,
        }
        snr_db = None if self.draws.snr_db is None else rng.uniform(*self.draws.snr_db)
        scene = self._made(base.model_copy(update=changes))
        level_db = scene.level_dbfs(np.array([half_s]))[:, 0]
        if snr_db is not None:
            strength_db = base.noise_dbfs + snr_db - float(np.median(level_db))
        elif propagation.level_dbfs_at_1km is not None:
            strength_db = rng.normal(propagation.level_dbfs_at_1km, propagation.level_sigma_db)
        else:
            strength_db = base.level_dbfs_at_1km
        scene = self._made(scene.config.model_copy(update={"level_dbfs_at_1km": strength_db}))
        truth_m, heard_db = (math.nan, math.nan), np.full(len(level_db), -math.inf)
        if label != Label.NONE:
            frame = area.frame
            middle = scene.truth(*scene.time(self._samples // 2))
            truth_m = tuple(frame.to_enu_m(*middle, area.altitude_m)[:2].tolist())
            heard_db = level_db + strength_db - base.noise_dbfs
        return Drawn(scene, label, truth_m, heard_db, float(scene.config.bandwidth_hz), index, index)

    def _made(self, config: SceneConfig) -> Scene:
        table = self.station.station
        return Scene(
            config, self.station.receiver, sample_rate_hz=table.sample_rate_hz, frequency_hz=table.frequency_hz
        )


def _stated_scene(station: Station) -> SceneConfig:
    """What a station without a scene says will happen."""
    propagation, receivers = station.propagation, station.receiver
    rate_hz = station.station.sample_rate_hz
    clock_ns = [100.0 if r.timing_sigma_ns is None else r.timing_sigma_ns for r in receivers]
    noise_dbfs = [NOISE_DBFS if r.noise_dbfs is None else r.noise_dbfs for r in receivers]
    return SceneConfig.of(
        bandwidth_hz=MAX_BANDWIDTH * rate_hz,
        track=[(station.area.south, station.area.west)],
        path_loss_exponent=propagation.path_loss_exponent,
        shadowing_db=propagation.shadowing_db,
        clock_offset_ns=float(np.sqrt(np.mean(np.square(clock_ns)))),
        gain_error_db=float(np.sqrt(np.mean(np.square([r.gain_sigma_db for r in receivers])))),
        noise_dbfs=float(np.mean(noise_dbfs)),
        random_carrier_phase=True,
    )


def _place(rng: np.random.Generator, area: Area, *, outside: bool) -> tuple[float, float]:
    """Latitude and longitude, uniform over the area or over a frame round it, as far as the poles let it."""
    half_lat, half_lon = (area.north - area.south) / 2.0, (area.east - area.west) / 2.0
    reach = 1.0 + FAR_OUTSIDE if outside else 1.0
    while True:
        u, v = rng.uniform(-reach, reach, 2)
        latitude, longitude = area.south + (1.0 + u) * half_lat, area.west + (1.0 + v) * half_lon
        if abs(latitude) <= 90.0 and (not outside or max(abs(u), abs(v)) > 1.0 + NEAR_OUTSIDE):
            return latitude, longitude


class ChannelWindows(DrawnWindows):
    """Windows of a channel data set, `repeats` of each of `rows`, windows without emitter and outside among them.

    An emitter outside is heard by straight paths from beyond the area, at levels that scatter round the set's own
    path-loss line as its places do. `group` (n,): of each row of the set.
    """

    def __init__(
        self,
        channels: ChannelSet,
        station: Station,
        rows: np.ndarray,
        *,
        group: np.ndarray,
        repeats: int,
        seed: int,
        draws: Draws | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ConfigError("rows=(): a split of the data set is empty")
        super().__init__(plan_station(station), draws or Draws(), len(rows) * repeats, seed)
        self.station = station
        self._channels, self._rows, self._group = channels, np.asarray(rows), np.asarray(group)
        latitude, longitude, altitude_m = channels.transmitters_wgs84
        area = self.plan.spec.area
        self._places_m = area.frame.to_enu_m(latitude, longitude, altitude_m)[:, :2]
        self._fit = _path_loss(channels)

    def draw(self, index: int) -> Drawn:
        rng = self._rng(index, 0)
        label = self._kind(rng)
        row = int(self._rows[index % len(self._rows)])
        rate_hz = self.station.station.sample_rate_hz
        one = self._channels.select(np.array([row]))
        if label == Label.OUTSIDE:
            one = self._outside(rng, one)
        if self.draws.fading:
            turn = np.exp(2j * np.pi * rng.uniform(size=one.tap_gain.shape))
            one = replace(one, tap_gain=(one.tap_gain * turn).astype(np.complex64))
        bandwidth_hz = MAX_BANDWIDTH * rate_hz * rng.uniform(*self.draws.bandwidth)
        gain_db = float(np.clip(rng.normal(0.0, self.draws.emitter_sigma_db), -200.0, 200.0))
        waveforms = self.draws.waveforms or ("noise",)
        config = SceneConfig.of(
            seed=int(rng.integers(2**62)),
            waveform="none" if label == Label.NONE else str(rng.choice(waveforms)),
            bandwidth_hz=bandwidth_hz,
            noise_dbfs=NOISE_DBFS,
            channel_rows=(0,),
            emitter_gain_db=gain_db,
        )
        scene = Scene(
            config,
            one.receivers,
            sample_rate_hz=rate_hz,
            frequency_hz=self._channels.frequency_hz,
            channels=one,
        )
        snr_db = np.full(len(one.receivers), -math.inf)
        truth_m = (math.nan, math.nan)
        if label != Label.NONE:
            snr_db = one.level_db[0] + gain_db
        if label == Label.INSIDE:
            truth_m = tuple(self._places_m[row].tolist())
        return Drawn(scene, label, truth_m, snr_db, bandwidth_hz, int(self._group[row]), row)

    def _outside(self, rng: np.random.Generator, one: ChannelSet) -> ChannelSet:
        """Straight paths from beyond the area."""
        channels = self._channels
        receivers = len(channels.receivers_enu_m)
        area = self.plan.spec.area
        place = channels.frame.to_enu_m(*_place(rng, area, outside=True), area.altitude_m)
        distance_m = np.linalg.norm(channels.receivers_enu_m - place, axis=1)
        level, slope, spread_db = self._fit
        level_db = level + slope * np.log10(np.maximum(distance_m, NEAREST_M)) + rng.normal(0.0, spread_db, receivers)
        gain = np.zeros_like(one.tap_gain)
        gain[0, :, 0] = channels.noise_gain * 10.0 ** (level_db / 20.0)
        delay_ns = np.zeros_like(one.tap_delay_ns)
        if channels.has_delays:
            delay_ns[0, :, 0] = distance_m / SPEED_OF_LIGHT_MPS * 1e9
        return replace(one, tap_gain=gain, tap_delay_ns=delay_ns)


def _path_loss(channels: ChannelSet) -> tuple[float, float, float]:
    """Level over noise in dB at 1 m, its slope with the logarithm of distance, and the spread around that line."""
    offset = channels.transmitters_enu_m[:, None] - channels.receivers_enu_m
    distance, level = np.log10(np.maximum(np.linalg.norm(offset, axis=-1), NEAREST_M)), channels.level_db
    heard = np.isfinite(level)
    slope, first = np.polyfit(distance[heard], level[heard], 1)
    slope = min(float(slope), -20.0)
    first = float(np.mean(level[heard] - slope * distance[heard]))
    return first, slope, float(np.std(level[heard] - first - slope * distance[heard]))


def channel_station(
    channels: ChannelSet, *, name: str, sample_rate_hz: float | None = None, rows: int | None = None
) -> Station:
    """The station of a channel data set: its receivers, the box of its places, and features that suit it.

    Levels alone where the set has no delays; else correlation too, its receivers on one clock. Raises ConfigError for
    a rate that cannot work, or a set that no station can have.
    """
    both = channels.has_delays and len(channels.receivers) > 1
    rate_hz = (RATE_HZ if both else LEVEL_ONLY_RATE_HZ) if sample_rate_hz is None else sample_rate_hz
    if not LEAST_RATE_HZ <= rate_hz < math.inf:
        raise ConfigError(f"sample_rate_hz={rate_hz:g}: must be {LEAST_RATE_HZ:g} or more")
    latitude, longitude, altitude_m = channels.transmitters_wgs84
    margin = 0.03 * max(float(np.ptp(latitude)), float(np.ptp(longitude)), 1e-5)
    # A single receiver's windows have the plain form, in which most models of one spectrogram come.
    alone = len(channels.receivers) == 1
    n_fft, hop = (1024, None) if both else (512, 128) if alone else (256, 128)
    window_s = (FRAMES + 2) * (hop or n_fft) / rate_hz
    fields = {
        "station": {
            "name": name,
            "sample_rate_hz": rate_hz,
            "frequency_hz": channels.frequency_hz,
            "common_clock": channels.has_delays,
        },
        "receiver": [
            {
                "name": place.name,
                "latitude": place.latitude,
                "longitude": place.longitude,
                "altitude_m": place.altitude_m,
                "noise_dbfs": NOISE_DBFS,
                "timing_sigma_ns": 1.0,
            }
            for place in channels.receivers
        ],
        "area": {
            "south": float(latitude.min()) - margin,
            "north": float(latitude.max()) + margin,
            "west": float(longitude.min()) - margin,
            "east": float(longitude.max()) + margin,
            "altitude_m": float(np.median(altitude_m)),
        },
        "features": {
            "channels": ["log_mel", "cross_correlation"] if both else ["log_mel"],
            "rows": rows or (128 if both or alone else 64),
            "n_fft": n_fft,
            "hop": hop,
            "window_s": window_s,
        },
    }
    try:
        return Station.model_validate(fields)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{name}: {'; '.join(wrong)}") from error
