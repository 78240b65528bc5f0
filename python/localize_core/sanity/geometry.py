"""How a station's geometry turns errors of arrival times into errors of position.

HDOP, horizontal dilution of precision: the root of the mean squared position error for independent arrival-time errors
of one metre at every receiver. The time of emission is unknown, so only differences count; those against one receiver
have the covariance D D' (1 off the diagonal, 2 on it), and by Cramér–Rao

    HDOP² = trace (J' (D D')⁻¹ J)⁻¹ = trace (G' P G)⁻¹,    P = 1 − 11'/n,

J = D G being the slopes of the differences, G those of the path lengths by east and north. Which receiver the
differences are taken against makes no difference. Sources: Torrieri 1984 (passive location), Langley 1999 (dilution of
precision). With the station's own covariance of clocks and paths in place of one metre, it is a standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame, path_length_m, surface_up_m
from localize_core.model.compiled.propagation import PathDelay, along_surface, path_delay
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.contract import Contract

STEP_M = 1.0
"""For derivatives of path lengths."""
UNKNOWN_CLOCK_NS = 100.0
"""Standard deviation of a receiver's clock where nobody says it: disciplined by GNSS."""
POOR_HDOP = 10.0
"""A fix with more than this is not worth much: with 15 m of error in each path it is 150 m off."""
SINGULAR = 1e-9
"""Ratio of information across and along, below which there is only rounding."""


@dataclass(frozen=True)
class ArrivalGeometry:
    """Receivers, and how far their times are to be trusted.

    `receivers_m` (R, 3): in `frame`. `sigma_m` (R,): standard deviation of each receiver's clock, as a length.
    """

    names: tuple[str, ...]
    receivers_m: np.ndarray
    sigma_m: np.ndarray
    frame: LocalFrame
    along_surface: bool
    path: PathDelay

    @classmethod
    def of_spec(cls, spec: LikelihoodSpec) -> ArrivalGeometry | None:
        """The geometry of a compiled model; None where it knows no arrival times."""
        if spec.timing is None:
            return None
        return cls(
            names=tuple(receiver.name for receiver in spec.receivers),
            receivers_m=spec.receivers_enu_m,
            sigma_m=np.array(spec.timing.receiver_sigma_m),
            frame=spec.area.frame,
            along_surface=spec.along_surface,
            path=spec.timing.path,
        )

    @classmethod
    def of_contract(cls, contract: Contract) -> ArrivalGeometry | None:
        """The geometry of a model that says nothing of clocks and paths: they are taken for what is usual.

        None where it takes no correlations.
        """
        if contract.correlation_config is None:
            return None
        frame = contract.frame.local
        if contract.frame.kind == "wgs84_deg":
            latitudes, longitudes = (
                [getattr(r, axis) for r in contract.receivers] for axis in ("latitude", "longitude")
            )
            frame = LocalFrame(float(np.mean(latitudes)), longitudes[0])
        frequency_hz = contract.frequency_hz or 1e9
        places = np.array([(r.latitude, r.longitude, r.altitude_m) for r in contract.receivers])
        return cls(
            names=tuple(receiver.name for receiver in contract.receivers),
            receivers_m=frame.to_enu_m(*places.T),
            sigma_m=np.full(len(places), UNKNOWN_CLOCK_NS * 1e-9 * SPEED_OF_LIGHT_MPS),
            frame=frame,
            along_surface=along_surface(frequency_hz),
            path=path_delay(frequency_hz),
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """(P, 2): receivers of each pair, in the order of correlation channels."""
        return np.stack(np.triu_indices(len(self.names), 1), axis=1)

    @cached_property
    def incidence(self) -> np.ndarray:
        """(P, R): from arrival times to differences t_i − t_j."""
        rows = np.zeros((len(self.pairs), len(self.names)))
        for row, (i, j) in enumerate(self.pairs):
            rows[row, [i, j]] = 1.0, -1.0
        return rows

    def expected_m(self, places_m: np.ndarray) -> np.ndarray:
        """Path lengths with what the path adds on average, from places in the plane (..., 2): (..., R)."""
        lengths_m = self.lengths_m(places_m)
        return np.asarray(lengths_m + self.path.moments(lengths_m, np.sqrt)[0])

    def lengths_m(self, places_m: np.ndarray) -> np.ndarray:
        """Path lengths from places in the plane (..., 2): (..., R)."""
        up = surface_up_m(self.frame, places_m)
        places = np.concatenate([places_m, up[..., None]], axis=-1)
        return path_length_m(places, self.receivers_m, along_surface=self.along_surface)

    def path_m2(self, places_m: np.ndarray) -> np.ndarray:
        """Variance of what the path adds, (..., R)."""
        lengths_m = self.lengths_m(places_m)
        return np.broadcast_to(self.path.moments(lengths_m, np.sqrt)[1], lengths_m.shape)

    def slopes(self, places_m: np.ndarray) -> np.ndarray:
        """Derivative of `expected_m` by east and north, (..., R, 2)."""
        steps = STEP_M * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        around = self.expected_m(places_m[..., None, :] + steps)
        return np.stack([around[..., 0, :] - around[..., 1, :], around[..., 2, :] - around[..., 3, :]], axis=-1) / (
            2.0 * STEP_M
        )

    def hdop(self, places_m: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
        """HDOP at places (..., 2) with all receivers or those `used` (..., R) bool: (...), infinite with too few."""
        slopes = self.slopes(places_m)
        weight = np.ones(slopes.shape[:-1]) if used is None else np.broadcast_to(used, slopes.shape[:-1]).astype(float)
        return np.sqrt(np.trace(_inverse(_information(slopes, weight)), axis1=-2, axis2=-1))

    def covariance_m2(self, places_m: np.ndarray) -> np.ndarray:
        """Cramér–Rao bound of the position by clocks and paths alone, (..., 2, 2): what no averaging takes away."""
        variance = np.square(self.sigma_m) + self.path_m2(places_m)
        return _inverse(_information(self.slopes(places_m), 1.0 / np.maximum(variance, 1e-6)))


def _information(slopes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """G' M G, (..., 2, 2), with the precision M of independent arrival times of `weight` without their common part."""
    whole = np.maximum(weight.sum(axis=-1), 1e-30)[..., None, None]
    mean = (weight[..., None] * slopes).sum(axis=-2, keepdims=True) / whole
    centred = slopes - mean
    return np.asarray(np.swapaxes(centred, -1, -2) @ (weight[..., None] * centred))


def _inverse(information: np.ndarray) -> np.ndarray:
    """Inverse of (..., 2, 2), infinite on the diagonal where a direction is unknown."""
    xx, xy, yy = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    determinant = xx * yy - xy * xy
    singular = determinant <= SINGULAR * np.square(xx + yy)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.stack([yy, -xy, -xy, xx], axis=-1).reshape(*xx.shape, 2, 2) / determinant[..., None, None]
    inverse[singular] = np.diag([np.inf, np.inf])
    return np.asarray(inverse)
