"""Channel data sets: measured or ray-traced propagation from many places of an emitter to every receiver.

A set is a `.npz` file without pickled objects. With N places of the emitter, R receivers and up to P paths:

    receivers_enu_m    (R, 3)     east, north, up of `origin_wgs84`, metres
    transmitters_enu_m (N, 3)     the same
    tap_gain           (N, R, P)  complex amplitude of each path; 0 means no path
    tap_delay_ns       (N, R, P)  travel time of each path; all 0 where receivers had no common clock
    noise_gain         ()         amplitude of the receivers' noise, in the unit of `tap_gain`
    frequency_hz       ()         carrier frequency at which the gains hold
    origin_wgs84       (3,)       latitude, longitude in degrees, altitude in metres
    receiver_names     (R,)       optional text; r0, r1, ... where it is left out
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localize_core.errors import SourceError
from localize_core.geodesy import LocalFrame
from localize_core.types.place import Place

Floats = NDArray[np.float64]

_REQUIRED = (
    "receivers_enu_m",
    "transmitters_enu_m",
    "tap_gain",
    "tap_delay_ns",
    "noise_gain",
    "frequency_hz",
    "origin_wgs84",
)


@dataclass(frozen=True, eq=False)
class ChannelSet:
    """N places of an emitter, R receivers, up to P paths between them; `load_channels` makes and checks it.

    `receivers_enu_m`: float64 (R, 3), `transmitters_enu_m`: float64 (N, 3), metres in `frame`. `tap_gain`: complex64
    (N, R, P), 0 where there is no path. `tap_delay_ns`: float32 (N, R, P), 0 where there is no path. `noise_gain`:
    amplitude of the receivers' noise in the unit of `tap_gain`. `origin_wgs84`: latitude, longitude, altitude_m.
    """

    receivers_enu_m: Floats
    transmitters_enu_m: Floats
    tap_gain: NDArray[np.complex64]
    tap_delay_ns: NDArray[np.float32]
    noise_gain: float
    frequency_hz: float
    origin_wgs84: tuple[float, float, float]
    receiver_names: tuple[str, ...]

    def __len__(self) -> int:
        """N, the number of places."""
        return len(self.transmitters_enu_m)

    @cached_property
    def frame(self) -> LocalFrame:
        """The frame of the places, at the origin and its altitude."""
        return LocalFrame(*self.origin_wgs84)

    @cached_property
    def receivers(self) -> tuple[Place, ...]:
        """The receivers on WGS84."""
        return tuple(
            Place(name, *map(float, place))
            for name, *place in zip(self.receiver_names, *self.frame.to_geodetic(self.receivers_enu_m), strict=True)
        )

    @cached_property
    def transmitters_wgs84(self) -> tuple[Floats, Floats, Floats]:
        """Latitude and longitude in degrees and altitude in metres of the emitter's places, each (N,)."""
        return self.frame.to_geodetic(self.transmitters_enu_m)

    @cached_property
    def has_delays(self) -> bool:
        """False where every path has delay 0: then only levels mean anything."""
        return bool(np.any(self.tap_delay_ns[self.tap_gain != 0] > 0.0))

    @cached_property
    def level_db(self) -> Floats:
        """Power of all paths over the receiver's noise, dB, (N, R): the SNR at 0 dB of emitter gain. -inf: no path."""
        power = np.sum(np.abs(self.tap_gain.astype(np.complex128)) ** 2, axis=-1)
        with np.errstate(divide="ignore"):
            result: Floats = 10.0 * np.log10(power / self.noise_gain**2)
        return result

    def select(self, rows: ArrayLike) -> ChannelSet:
        """The set with these places of the emitter only: indices, in their order, or a mask (N,)."""
        which = np.asarray(rows)
        return replace(
            self,
            transmitters_enu_m=self.transmitters_enu_m[which],
            tap_gain=self.tap_gain[which],
            tap_delay_ns=self.tap_delay_ns[which],
        )


def load_channels(path: str | Path) -> ChannelSet:
    """Read and check a channel data set. Raises SourceError naming file, field, what was found and what is expected."""
    fields = _read(Path(path))
    try:
        return _checked(fields)
    except _Wrong as error:
        raise SourceError(f"{path}: {error}") from None


class _Wrong(Exception):
    """What is wrong with a set: field, found, expected."""

    def __init__(self, field: str, found: object, expected: str) -> None:
        super().__init__(f"{field}: {found}; expected {expected}")


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise SourceError(f"{path}: a single array; expected a .npz archive with {', '.join(_REQUIRED)}")
        with archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file; expected a channel data set (.npz)") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read as a channel data set (.npz without pickles): {reason}") from error


def _checked(fields: dict[str, np.ndarray]) -> ChannelSet:
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise _Wrong(missing[0], f"missing, the file holds {', '.join(fields) or 'nothing'}", ", ".join(_REQUIRED))
    receivers = _places(fields, "receivers_enu_m", "R")
    transmitters = _places(fields, "transmitters_enu_m", "N")
    if len(receivers) < 1:
        raise _Wrong("receivers_enu_m", f"shape {receivers.shape}", "at least one receiver")
    if len(transmitters) < 2:
        raise _Wrong("transmitters_enu_m", f"shape {transmitters.shape}", "at least two positions")
    gain, delay_ns = _taps(fields, len(transmitters), len(receivers))
    origin = _origin(fields)
    return ChannelSet(
        receivers_enu_m=receivers,
        transmitters_enu_m=transmitters,
        tap_gain=gain,
        tap_delay_ns=delay_ns,
        noise_gain=_positive(fields, "noise_gain"),
        frequency_hz=_positive(fields, "frequency_hz"),
        origin_wgs84=origin,
        receiver_names=_names(fields.get("receiver_names"), len(receivers)),
    )


def _real(fields: dict[str, np.ndarray], name: str, expected: str) -> np.ndarray:
    values = fields[name]
    if values.dtype.kind not in "fiu":
        raise _Wrong(name, f"dtype {values.dtype}", f"real numbers, {expected}")
    return values


def _places(fields: dict[str, np.ndarray], name: str, count: str) -> Floats:
    places = _real(fields, name, f"shape ({count}, 3)")
    if places.ndim != 2 or places.shape[1] != 3:
        raise _Wrong(name, f"shape {places.shape}", f"({count}, 3)")
    _finite(name, places)
    return places.astype(np.float64)


def _taps(
    fields: dict[str, np.ndarray], places: int, receivers: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    gain = fields["tap_gain"]
    if gain.dtype.kind != "c":
        raise _Wrong("tap_gain", f"dtype {gain.dtype}", "complex64")
    if gain.ndim != 3 or gain.shape[:2] != (places, receivers) or gain.shape[2] < 1:
        raise _Wrong("tap_gain", f"shape {gain.shape}", f"(N, R, P) = ({places}, {receivers}, 1 or more)")
    delay_ns = _real(fields, "tap_delay_ns", f"shape {gain.shape}")
    if delay_ns.shape != gain.shape:
        raise _Wrong("tap_delay_ns", f"shape {delay_ns.shape}", f"{gain.shape} as tap_gain")
    _finite("tap_gain", gain)
    gain = gain.astype(np.complex64)
    is_path = gain != 0
    if not is_path.any():
        raise _Wrong("tap_gain", f"no path: all {gain.size} gains are 0", "at least one other than 0")
    delay_ns = np.where(is_path, delay_ns, 0).astype(np.float32)  # files mark missing paths by any delay
    _finite("tap_delay_ns", delay_ns)
    if delay_ns.min() < 0.0:
        at = _index(np.argmin(delay_ns), delay_ns.shape)
        raise _Wrong("tap_delay_ns", f"{delay_ns.min():g} ns at {at}", "0 or more")
    return gain, delay_ns


def _finite(name: str, values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        at = _index(np.argmax(bad), bad.shape)
        raise _Wrong(name, f"{values[at]} at {at}, {np.count_nonzero(bad)} of {bad.size} not finite", "finite numbers")


def _index(flat: np.intp, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(flat, tuple(shape))))


def _positive(fields: dict[str, np.ndarray], name: str) -> float:
    value = _real(fields, name, "one above 0")
    if value.shape not in ((), (1,)):
        raise _Wrong(name, f"shape {value.shape}", "one number")
    number = float(value.reshape(()))
    if not (np.isfinite(number) and number > 0.0):
        raise _Wrong(name, f"{number:g}", "a finite number above 0")
    return number


def _origin(fields: dict[str, np.ndarray]) -> tuple[float, float, float]:
    values = _real(fields, "origin_wgs84", "(latitude, longitude, altitude_m)")
    if values.shape != (3,):
        raise _Wrong("origin_wgs84", f"shape {values.shape}", "(3,): latitude, longitude, altitude_m")
    latitude, longitude, altitude_m = map(float, values)
    if not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0 and np.isfinite(altitude_m)):
        found = f"{latitude:g}, {longitude:g}, {altitude_m:g}"
        raise _Wrong("origin_wgs84", found, "latitude within ±90 and longitude within ±180 degrees, finite altitude")
    return latitude, longitude, altitude_m


def _names(values: np.ndarray | None, receivers: int) -> tuple[str, ...]:
    if values is None:
        return tuple(f"r{index}" for index in range(receivers))
    if values.dtype.kind != "U":
        raise _Wrong("receiver_names", f"dtype {values.dtype}", "text (numpy's U)")
    if values.shape != (receivers,):
        raise _Wrong("receiver_names", f"shape {values.shape}", f"({receivers},), one for each of receivers_enu_m")
    names = tuple(map(str, values))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise _Wrong("receiver_names", f"{repeated[0]!r} {names.count(repeated[0])} times", "names that differ")
    if not all(names):
        raise _Wrong("receiver_names", f"an empty name at {names.index('')}", "text")
    return names
