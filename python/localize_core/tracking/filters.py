"""Stone Soup's filters, put together for fixes: the one module that imports it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from scipy.stats import chi2
from stonesoup.dataassociator.neighbour import GNNWith2DAssignment
from stonesoup.deleter.time import UpdateTimeStepsDeleter
from stonesoup.hypothesiser.distance import DistanceHypothesiser
from stonesoup.initiator.simple import MultiMeasurementInitiator
from stonesoup.measures import Mahalanobis
from stonesoup.models.measurement.linear import LinearGaussian
from stonesoup.models.transition.linear import CombinedLinearGaussianTransitionModel, ConstantVelocity
from stonesoup.predictor.kalman import KalmanPredictor
from stonesoup.smoother.kalman import KalmanSmoother
from stonesoup.types.detection import Detection, MissedDetection
from stonesoup.types.hypothesis import SingleHypothesis
from stonesoup.types.state import GaussianState
from stonesoup.types.update import GaussianStateUpdate, Update
from stonesoup.updater.kalman import KalmanUpdater

from localize_core.tracking.settings import TrackerSettings

ORDER = np.array([0, 2, 1, 3])
"""East, north, velocity east, velocity north in a state, which has each velocity after its place."""


@dataclass(frozen=True)
class Filters:
    """What a tracker is made of.

    Places and velocities lie in a plane: states are (east, velocity east, north, velocity north), metres and m/s.
    """

    associator: Any
    updater: Any
    smoother: Any
    initiator: Any


def make_filters(settings: TrackerSettings) -> Filters:
    """Constant velocity with white noise acceleration, global nearest neighbours within the gate.

    Source: Bar-Shalom, Li & Kirubarajan 2001, 6.2.2 (the model) and 5.4 (gates and consistency).
    """
    motion = CombinedLinearGaussianTransitionModel([ConstantVelocity(settings.acceleration_mps2**2)] * 2)
    updater = KalmanUpdater(None, use_joseph_cov=True)
    hypothesiser = DistanceHypothesiser(
        KalmanPredictor(motion), updater, Mahalanobis(), missed_distance=float(np.sqrt(chi2.ppf(settings.gate, 2)))
    )
    associator = GNNWith2DAssignment(hypothesiser)
    variance = (settings.max_speed_mps / 2.0) ** 2  # of each component of velocities spread evenly over a disc
    initiator = MultiMeasurementInitiator(
        GaussianState(np.zeros((4, 1)), np.diag([0.0, variance, 0.0, variance])),
        deleter=UpdateTimeStepsDeleter(settings.confirm),
        data_associator=associator,
        updater=updater,
        min_points=settings.confirm,
    )
    return Filters(associator, updater, KalmanSmoother(motion), initiator)


def detection(
    place_m: np.ndarray, covariance_m2: np.ndarray, timestamp: datetime, *, common: float, repeats: float
) -> Any:
    """A fix as what is observed of a state: (2,) metres, (2, 2). A `common` share of it is no noise of its own.

    `repeats`: so many fixes in a row have the same noise, at least 1.
    """
    model = LinearGaussian(4, (0, 2), repeats * (1.0 - common) * covariance_m2)
    shared = {"common_m2": common * covariance_m2, "fix_m2": covariance_m2}
    return Detection(place_m[:, None], timestamp=timestamp, measurement_model=model, metadata=shared)


def is_update(state: Any) -> bool:
    """Whether a state of a track has taken a fix in."""
    return isinstance(state, Update) and bool(state.hypothesis)


def coasting(state: Any) -> Any:
    """A state as a track has it: predicted ones as updates by a fix that is missing.

    Stone Soup's smoother compares a state with its prediction, which it takes a smoothed prediction itself for: later
    fixes would tell nothing of what was before a missing one.
    """
    if isinstance(state, Update):
        return state
    missing = SingleHypothesis(state, MissedDetection(timestamp=state.timestamp))
    return GaussianStateUpdate(state.state_vector, state.covar, timestamp=state.timestamp, hypothesis=missing)


def cut_history(track: Any, keep: int) -> None:
    """Let go of all but the last `keep` states of a track, and of what the others were predicted from.

    A prediction holds on to the state before it, which holds on to its own: nothing would ever be freed.
    """
    if len(track.states) > keep:
        del track.states[:-keep]
        del track.metadatas[:-keep]
    prediction = track.states[-1].hypothesis.prediction
    if prediction is not None:
        prediction.prior = None
