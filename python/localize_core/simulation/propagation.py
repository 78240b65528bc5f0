"""How an emitter is heard: along one path in free space, or along those of a channel data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError
from localize_core.geodesy import GEOD, SPEED_OF_LIGHT_MPS
from localize_core.simulation.blocks import Floats, Purpose
from localize_core.simulation.channels import ChannelSet
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.fields import SmoothField
from localize_core.simulation.track import Track, distance_m
from localize_core.types.place import Placed

NEAREST_M = 1.0
METRES_PER_DEGREE = 111_320.0
GROUP = 16
"""Blocks whose geometry is worked out in one go."""
SAME_PLACE_M = 100.0
"""A station and a channel data set mean the same receiver if their places differ by less."""
SAME_FREQUENCY = 0.01
COMMON = -1
"""Index of the shadowing that all receivers share."""


class Paths(NamedTuple):
    """How a stretch of the signal reaches R receivers along P paths, from its first sample to the one after its last.

    `gains`: complex128 (R, P), 0 where there is no path. `delay_s`: (R, P, 2), at both ends. `amplitude` and `cycles`:
    (R, 2), what all paths of a receiver have in common besides.
    """

    gains: NDArray[np.complex128]
    delay_s: Floats
    amplitude: Floats
    cycles: Floats


class Propagation(Protocol):
    """What a scene asks. Times are seconds after its start, arrays of them (n,)."""

    @property
    def path_rate(self) -> float:
        """Largest speed at which delays change, seconds per second; 0: everything stands still within a dwell."""
        ...

    @property
    def dwell(self) -> int | None:
        """Samples after which everything changes at once; None: it never does."""
        ...

    def paths(self, first: int, size: int, visit: int) -> Paths:
        """Of samples [first, first + size), `first` a multiple of `size`, where everything is as in dwell `visit`."""
        ...

    def delay_s(self, elapsed_s: Floats) -> Floats:
        """Of the first path to every receiver, (R, n)."""
        ...

    def level_dbfs(self, elapsed_s: Floats) -> Floats:
        """Mean received power, (R, n)."""
        ...

    def position(self, elapsed_s: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude of the emitter, (n,) each."""
        ...

    def along(self, count: int) -> tuple[Floats, Floats]:
        """`count` places of the emitter, from its first to its last."""
        ...


class Shadowing:
    """Level in dB around the path loss as a smooth function of the emitter's place, for every receiver.

    Zero mean, standard deviation `shadowing_db` over seeds and places, correlation exp(-(d / distance)^2) over the
    way of the emitter and `shadowing_correlation` between receivers.
    """

    def __init__(self, config: SceneConfig, receivers: int) -> None:
        origin = np.array(config.track[0])
        metres = METRES_PER_DEGREE * np.array([1.0, math.cos(math.radians(origin[0]))])
        self._origin, self._scale = origin, metres / config.shadowing_distance_m
        share = config.shadowing_correlation
        self._own_db = config.shadowing_db * math.sqrt(1.0 - share)
        self._common_db = config.shadowing_db * math.sqrt(share)
        self._own = [SmoothField(config.seed, Purpose.SHADOWING, index, 2) for index in range(receivers)]
        self._common = SmoothField(config.seed, Purpose.SHADOWING, COMMON, 2)

    def __call__(self, latitude: Floats, longitude: Floats) -> Floats:
        """dB, (R, n)."""
        place = (np.stack([latitude, longitude], axis=-1) - self._origin) * self._scale
        own = np.stack([field(place) for field in self._own])
        result: Floats = self._own_db * own + self._common_db * self._common(place)
        return result


class FreeSpace:
    """One straight path to each receiver, of an emitter on its track: path loss, shadowing, Doppler."""

    def __init__(
        self, config: SceneConfig, receivers: Sequence[Placed], *, sample_rate_hz: float, frequency_hz: float
    ) -> None:
        self._config = config
        places = np.array([(r.latitude, r.longitude, r.altitude_m) for r in receivers], np.float64)
        self._places = (places[:, :1], places[:, 1:2], places[:, 2:])
        self._rate_hz, self._frequency_hz = sample_rate_hz, frequency_hz
        self._track = Track(config.track, speed_mps=config.speed_mps, loop=config.loop)
        self._shadowing = Shadowing(config, len(receivers)) if config.shadowing_db else None
        self._group: tuple[int, Floats, Floats] | None = None

    dwell = None

    @property
    def path_rate(self) -> float:
        return self._config.speed_mps / SPEED_OF_LIGHT_MPS if self._track.moving else 0.0

    def paths(self, first: int, size: int, visit: int) -> Paths:
        delay_s, amplitude = self._between(first, size)
        gains = np.ones((len(delay_s), 1), np.complex128)
        return Paths(gains, delay_s[:, None], amplitude, -self._frequency_hz * delay_s)

    def _between(self, first: int, size: int) -> tuple[Floats, Floats]:
        """Delays and amplitudes at both ends of a block, (R, 2)."""
        group, index = divmod(first // size, GROUP) if self._track.moving else (0, 0)
        if self._group is None or self._group[0] != group:
            edges_s = (group * GROUP + np.arange(GROUP + 1)) * (size / self._rate_hz)
            if not self._track.moving:
                edges_s = np.zeros(1)
            paths_m = self._distance_m(edges_s)
            level_dbfs = self._level_dbfs(edges_s, paths_m)
            self._group = group, paths_m / SPEED_OF_LIGHT_MPS, 10.0 ** (level_dbfs / 20.0)
        _, delay_s, amplitude = self._group
        ends = [index, index + 1] if self._track.moving else [0, 0]
        return delay_s[:, ends], amplitude[:, ends]

    def delay_s(self, elapsed_s: Floats) -> Floats:
        return self._distance_m(elapsed_s) / SPEED_OF_LIGHT_MPS

    def level_dbfs(self, elapsed_s: Floats) -> Floats:
        return self._level_dbfs(elapsed_s, self._distance_m(elapsed_s))

    def _level_dbfs(self, elapsed_s: Floats, paths_m: Floats) -> Floats:
        distance_km = np.maximum(paths_m, NEAREST_M) / 1000.0
        level_dbfs: Floats = self._config.level_dbfs_at_1km - 10.0 * self._config.path_loss_exponent * np.log10(
            distance_km
        )
        if self._shadowing is not None:
            level_dbfs += self._shadowing(*self.position(elapsed_s))
        return level_dbfs

    def position(self, elapsed_s: Floats) -> tuple[Floats, Floats]:
        return self._track.position(elapsed_s)

    def along(self, count: int) -> tuple[Floats, Floats]:
        return self._track.along(np.linspace(0.0, self._track.length_m, count))

    def _distance_m(self, elapsed_s: Floats) -> Floats:
        sent_s = elapsed_s
        for _ in range(2 if self._track.moving else 1):
            # What is heard now was sent a delay ago, from where the emitter was then.
            paths_m = distance_m(*self.position(sent_s), self._config.altitude_m, self._places)
            sent_s = elapsed_s - paths_m / SPEED_OF_LIGHT_MPS
        return np.broadcast_to(paths_m, (len(self._places[0]), *np.shape(elapsed_s)))


class Recorded:
    """The paths of a channel data set, row after row, scaled so that `noise_dbfs` stands for the set's noise.

    Raises ConfigError if a receiver is not one of the set's or stands elsewhere, the frequency is another, or a row
    is not there.
    """

    def __init__(
        self,
        config: SceneConfig,
        channels: ChannelSet,
        receivers: Sequence[Placed],
        *,
        sample_rate_hz: float,
        frequency_hz: float,
    ) -> None:
        if abs(frequency_hz / channels.frequency_hz - 1.0) > SAME_FREQUENCY:
            raise ConfigError(
                f"frequency_hz={frequency_hz:g}: the channel data set holds for {channels.frequency_hz:g} Hz"
            )
        self._channels, self._loop = channels, config.loop
        self._columns = _columns(channels, receivers)
        self._rows = config.channel_rows or tuple(range(len(channels)))
        if max(self._rows) >= len(channels):
            raise ConfigError(
                f"scene.channel_rows={max(self._rows)}: the channel data set has rows 0 to {len(channels) - 1}"
            )
        self._rate_hz = sample_rate_hz
        self.dwell = max(round(config.dwell_s * sample_rate_hz), 1)
        self._level_db = config.noise_dbfs + config.emitter_gain_db
        self._scale = 10.0 ** (self._level_db / 20.0) / channels.noise_gain

    path_rate = 0.0

    def paths(self, first: int, size: int, visit: int) -> Paths:
        row = self._visited(visit)
        delay_s = 1e-9 * self._channels.tap_delay_ns[row, self._columns].astype(np.float64)
        count = len(self._columns)
        return Paths(
            gains=self._channels.tap_gain[row, self._columns].astype(np.complex128) * self._scale,
            delay_s=np.repeat(delay_s[:, :, None], 2, axis=2),
            amplitude=np.ones((count, 2)),
            cycles=np.zeros((count, 2)),
        )

    def delay_s(self, elapsed_s: Floats) -> Floats:
        """NaN where there is no path."""
        rows = self._rows_at(elapsed_s)[:, None]
        is_path = self._channels.tap_gain[rows, self._columns] != 0
        delay_ns = np.min(self._channels.tap_delay_ns[rows, self._columns], axis=-1, where=is_path, initial=np.inf)
        result: Floats = 1e-9 * np.where(np.isfinite(delay_ns), delay_ns, np.nan).T.astype(np.float64)
        return result

    def level_dbfs(self, elapsed_s: Floats) -> Floats:
        """-inf where there is no path."""
        gain = self._channels.tap_gain[self._rows_at(elapsed_s)[:, None], self._columns].astype(np.complex128)
        with np.errstate(divide="ignore"):
            result: Floats = 10.0 * np.log10(np.sum(np.abs(gain * self._scale) ** 2, axis=-1)).T
        return result

    def position(self, elapsed_s: Floats) -> tuple[Floats, Floats]:
        rows = self._rows_at(elapsed_s)
        latitude, longitude, _ = self._channels.select(rows.ravel()).transmitters_wgs84
        return latitude.reshape(rows.shape), longitude.reshape(rows.shape)

    def along(self, count: int) -> tuple[Floats, Floats]:
        visits = np.linspace(0, len(self._rows) - 1, count).round().astype(np.int64)
        latitude, longitude, _ = self._channels.select(np.array(self._rows)[visits]).transmitters_wgs84
        return latitude, longitude

    def _rows_at(self, elapsed_s: Floats) -> NDArray[np.int64]:
        # Times are rounded: what falls on the edge of a dwell belongs to the one that begins there.
        visits = np.floor(np.asarray(elapsed_s) * (self._rate_hz / self.dwell) + 1e-9).astype(np.int64)
        visits = visits % len(self._rows) if self._loop else np.clip(visits, 0, len(self._rows) - 1)
        return np.array(self._rows)[visits]

    def _visited(self, visit: int) -> int:
        return self._rows[visit % len(self._rows) if self._loop else min(visit, len(self._rows) - 1)]


def _columns(channels: ChannelSet, receivers: Sequence[Placed]) -> NDArray[np.int64]:
    """Where the receivers stand in the set, by name."""
    found = []
    for receiver in receivers:
        if receiver.name not in channels.receiver_names:
            raise ConfigError(
                f"receiver {receiver.name}: not in the channel data set, whose receiver_names are "
                f"{', '.join(channels.receiver_names)}"
            )
        index = channels.receiver_names.index(receiver.name)
        known = channels.receivers[index]
        if receiver is not known:
            _, _, apart_m = GEOD.inv(receiver.longitude, receiver.latitude, known.longitude, known.latitude)
            if apart_m > SAME_PLACE_M:
                raise ConfigError(
                    f"receiver {receiver.name} at {receiver.latitude:.5f}, {receiver.longitude:.5f}: the channel data "
                    f"set has it {apart_m:.0f} m away, at {known.latitude:.5f}, {known.longitude:.5f}"
                )
        found.append(index)
    return np.array(found)
