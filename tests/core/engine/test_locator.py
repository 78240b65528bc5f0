"""One window in, one fix out: what is masked, when there is no position, and where and when there is one."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.cache.answers import AnswerCache
from localize_core.cache.lru import MemoryStore
from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.windows import Window
from localize_core.errors import ConfigError
from localize_core.features.quality import SampleFlag
from localize_core.geodesy import GEOD
from localize_core.model.base import ModelOutput
from localize_core.model.contract import Contract, Frame, Normalisation
from localize_core.model.onnx_model import OnnxModel
from localize_core.types.fix import REASONS, Alignment, Fix, Uncertainty

STEPS = 4
LOG_OFFSET = 1e-10
NONE = SampleFlag(0)
CONTEXT = WindowContext(
    station="s",
    stream="t",
    sequence=7,
    start=(1_700_000_000, 0.25),
    time_source="rx_time",
    frequency_hz=1e6,
    alignment=Alignment(5.0),
    completed_s=0.0,
    dropped=3,
)


def window_of(contract: Contract, *, flags: tuple[SampleFlag, ...] = (), unusable: tuple[int, ...] = ()) -> Window:
    """A window whose channel k holds k + 1 everywhere."""
    channels, receivers = len(contract.channels), len(contract.receivers)
    features = np.ones((channels, contract.rows, STEPS), np.float32) * np.arange(1, channels + 1)[:, None, None]
    mask = np.zeros(receivers, bool)
    mask[list(unusable)] = True
    return Window(
        first_frame=0,
        features=features.astype(np.float32),
        level_db=np.full(receivers, -20.0),
        flags=flags or (NONE,) * receivers,
        unusable=mask,
    )


def fed(answer_rows: int = 2):
    """An output that is the first means of the channels as they came, so that a test sees what the model was fed."""
    return lambda means: op.gather(means, op.const(np.arange(answer_rows, dtype=np.int64)), axis=1)


def locate(path: Path, window: Window, **options) -> Fix:
    return Locator(OnnxModel(path), **options).locate(window, CONTEXT)


def no_fix(fix: Fix) -> str | None:
    assert fix.status == "no_fix"
    assert fix.position is None
    assert fix.uncertainty is None
    return fix.reason


def test_a_fix_carries_what_is_known(make_contract, make_model):
    contract = make_contract()
    flags = (NONE, SampleFlag.SATURATED | SampleFlag.GAP, NONE)
    window = replace(window_of(contract, flags=flags), level_db=np.array([-20.0, np.nan, -30.0]))
    model = OnnxModel(make_model(contract))
    fix = Locator(model).locate(window, CONTEXT)
    assert (fix.status, fix.reason) == ("ok", None)
    assert (fix.position.latitude, fix.position.longitude) == (47.25, 8.5)
    assert fix.uncertainty == Uncertainty(200.0, 100.0, 30.0)
    assert fix.confidence == pytest.approx(0.9)
    assert (fix.station, fix.stream, fix.sequence, fix.dropped_windows) == ("s", "t", 7, 3)
    assert (fix.frequency_hz, fix.alignment, fix.time_source) == (1e6, Alignment(5.0), "rx_time")
    assert [report.name for report in fix.receivers] == ["r0", "r1", "r2"]
    assert [report.level_db for report in fix.receivers] == [-20.0, None, -30.0]
    assert [report.flags for report in fix.receivers] == [(), ("saturated", "gap"), ()]
    assert all(report.used for report in fix.receivers)
    assert fix.model == model.identity
    assert (fix.window_samples, fix.window_duration_s) == (STEPS * 64, STEPS * 64 / 8000.0)
    assert fix.inference_time_ms > 0.0
    assert fix.latency_ms > 0.0


def test_timestamp_is_the_centre_of_the_samples_seen(make_contract, make_model):
    """The first frame reaches n_fft - hop = 64 samples back: the span is 64 + 4 * 64 samples and ends with the hops."""
    fix = locate(make_model(make_contract()), window_of(make_contract()))
    centre_s = 0.25 + (-64 + 4 * 64) / 2 / 8000.0
    expected = datetime.fromtimestamp(1_700_000_000, timezone.utc).timestamp() + centre_s
    assert fix.timestamp.timestamp() == pytest.approx(expected, abs=1e-6)
    assert fix.timestamp.tzinfo is timezone.utc


@pytest.mark.parametrize("bad", ["unusable", "nan", "inf"])
def test_channels_of_a_bad_receiver_are_emptied(make_contract, make_model, bad):
    contract = make_contract()  # channels r0, r1, r2, r0-r1, r0-r2, r1-r2 hold 1 .. 6
    window = window_of(contract)
    of_r1 = [1, 3, 5]
    if bad == "unusable":
        window = window_of(contract, flags=(NONE, SampleFlag.SILENT, NONE), unusable=(1,))
    else:
        window.features[of_r1, 2, 1] = np.nan if bad == "nan" else -np.inf
    expected = np.array([1.0, math.log(LOG_OFFSET), 3.0, 0.0, 5.0, 0.0])
    for first in (0, 2, 4):
        pick = op.const(np.array([first, first + 1], np.int64))
        path = make_model(contract, position=lambda means, pick=pick: op.gather(means, pick, axis=1))
        fix = locate(path, window)
        found = (fix.position.latitude, fix.position.longitude)
        assert found == pytest.approx(expected[first : first + 2], rel=1e-6)
        assert [report.used for report in fix.receivers] == [True, False, True]


def test_an_absent_receiver_is_left_out_and_says_so(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract, position=fed())
    fix = locate(path, window_of(contract, flags=(NONE, SampleFlag.ABSENT, NONE), unusable=(1,)))
    assert fix.status == "ok"
    assert [(report.used, report.flags) for report in fix.receivers] == [(True, ()), (False, ("absent",)), (True, ())]


def test_one_channel_that_is_not_finite_costs_no_receiver(make_contract, make_model):
    contract = make_contract()
    window = window_of(contract)
    window.features[3] = np.nan  # r0-r1; both have other channels
    fix = locate(make_model(contract), window)
    assert fix.status == "ok"
    assert all(report.used for report in fix.receivers)


@pytest.mark.parametrize(
    ("unaligned", "cross", "used"),
    [
        ((1,), [0.0, 5.0, 0.0], [True, False, True]),
        ((1, 2), [0.0, 0.0, 0.0], [False, False, False]),
        ((0, 1, 2), [4.0, 5.0, 6.0], [True, True, True]),  # no one has time: as delivered, side by side
    ],
)
def test_a_receiver_without_time_is_left_out_of_correlations_only(make_contract, make_model, unaligned, cross, used):
    flags = tuple(SampleFlag.UNALIGNED if k in unaligned else NONE for k in range(3))
    mixed = make_contract()
    tail = lambda means: op.gather(means, op.const(np.array([4, 5], np.int64)), axis=1)  # noqa: E731
    fix = locate(make_model(mixed, position=tail), window_of(mixed, flags=flags))
    assert (fix.position.latitude, fix.position.longitude) == pytest.approx(cross[1:])
    assert all(report.used for report in fix.receivers)  # by their level
    timing_only = make_contract(mel=False)
    fix = locate(make_model(timing_only), window_of(timing_only, flags=flags))
    assert [report.used for report in fix.receivers] == used


INVALID, SILENT = SampleFlag.INVALID, SampleFlag.SILENT


@pytest.mark.parametrize(
    ("flags", "unusable", "reason"),
    [
        ((SILENT, SILENT, SILENT), (0, 1, 2), "silence"),
        ((SILENT | INVALID, SILENT, SILENT), (0, 1, 2), "silence"),
        ((SILENT, SILENT, INVALID), (0, 1, 2), "invalid_samples"),
        ((NONE, INVALID, INVALID), (1, 2), "invalid_samples"),
        ((INVALID, SILENT, SILENT), (1, 2), "too_few_receivers"),  # some bad frames cost the first one nothing
        ((SILENT, SILENT, SILENT), (1, 2), "too_few_receivers"),
        ((SampleFlag.UNALIGNED, SampleFlag.UNALIGNED, NONE), (), "too_few_receivers"),
        ((SampleFlag.ABSENT, SampleFlag.ABSENT, NONE), (0, 1), "too_few_receivers"),
        ((SampleFlag.ABSENT, SILENT, SILENT), (0, 1, 2), "too_few_receivers"),
    ],
)
def test_too_few_receivers_are_left(make_contract, make_model, flags, unusable, reason):
    contract = make_contract(mel=False, min_receivers=2)
    fix = locate(make_model(contract), window_of(contract, flags=flags, unusable=unusable))
    assert no_fix(fix) == reason
    assert fix.confidence == 0.0


def test_features_that_are_not_finite_anywhere(make_contract, make_model):
    contract = make_contract()
    window = window_of(contract)
    window.features[:] = np.nan
    assert no_fix(locate(make_model(contract), window)) == "invalid_samples"


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "answers",
    [
        {"position": (NAN, 8.0)},
        {"position": (47.0, INF)},
        {"position": (90.5, 8.0)},
        {"position": (47.0, 361.0)},
        {"uncertainty": (NAN, 1.0, 0.0)},
        {"uncertainty": (0.0, 1.0, 0.0)},
        {"uncertainty": (1.0, -1.0, 0.0)},
        {"uncertainty": (1.0, 1.0, INF)},
        {"confidence": (NAN,)},
    ],
)
def test_an_answer_that_is_none(make_contract, make_model, answers):
    contract = make_contract()
    assert no_fix(locate(make_model(contract, **answers), window_of(contract))) == "model_error"


def test_a_model_that_fails_while_running(make_contract, make_model):
    contract = make_contract()
    no_axis = lambda means: op.gather(means, op.cast(op.reduce_max(means, keepdims=False), to=np.int64), axis=1)  # noqa: E731
    fix = locate(make_model(contract, position=no_axis), window_of(contract))
    assert no_fix(fix) == "model_error"


def test_a_place_beyond_the_horizon(make_contract, make_model):
    contract = make_contract(frame=Frame(kind="enu_m", latitude=47.0, longitude=8.0))
    assert no_fix(locate(make_model(contract, position=(7e6, 0.0)), window_of(contract))) == "model_error"


def test_min_confidence(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract, confidence=(0.6,))
    assert locate(path, window_of(contract), min_confidence=0.59).status == "ok"
    fix = locate(path, window_of(contract), min_confidence=0.61)
    assert no_fix(fix) == "no_emitter"
    assert fix.confidence == pytest.approx(0.6)
    assert locate(make_model(contract, confidence=(1.5,)), window_of(contract)).confidence == 1.0


def test_every_reason_has_its_test_above():
    others = {"model_unavailable", "invalid_request", "overloaded"}  # what an engine says, and its tests hold
    assert set(REASONS) - others == {"silence", "invalid_samples", "too_few_receivers", "model_error", "no_emitter"}


def test_longitude_beyond_the_antimeridian(make_contract, make_model):
    contract = make_contract()
    fix = locate(make_model(contract, position=(-17.0, 181.5)), window_of(contract))
    assert fix.position.longitude == pytest.approx(-178.5, abs=1e-4)


def test_metres_become_degrees(make_contract, make_model):
    """East and north of the origin, held against geodesics of pyproj."""
    contract = make_contract(frame=Frame(kind="enu_m", latitude=47.0, longitude=8.0, altitude_m=400.0))
    fix = locate(make_model(contract, position=(3000.0, 4000.0)), window_of(contract))
    azimuth, _, distance_m = GEOD.inv(8.0, 47.0, fix.position.longitude, fix.position.latitude)
    assert distance_m == pytest.approx(5000.0, rel=1e-4)  # 400 m up, a degree is longer
    assert azimuth == pytest.approx(math.degrees(math.atan2(3.0, 4.0)), abs=0.02)
    assert fix.uncertainty.sigma_x == pytest.approx(200.0, rel=1e-4)
    assert fix.uncertainty.sigma_y == pytest.approx(100.0, rel=1e-4)
    assert fix.uncertainty.theta == pytest.approx(30.0, abs=0.05)


def test_ellipse_far_from_the_origin_is_turned_to_the_local_north(make_contract, make_model):
    """1500 km east at 60° N the meridian leans by tens of degrees: the end points of the model's major axis, brought
    to the ground one by one, lie along the major axis of the fix."""
    frame = Frame(kind="enu_m", latitude=60.0, longitude=10.0)
    contract = make_contract(frame=frame)
    centre, sigma_m, theta = np.array([1_500_000.0, 200_000.0]), 2000.0, 75.0
    path = make_model(contract, position=tuple(centre), uncertainty=(sigma_m, 500.0, theta))
    fix = locate(path, window_of(contract))
    along = sigma_m * np.array([math.cos(math.radians(theta)), math.sin(math.radians(theta))])
    (lat0, lat1), (lon0, lon1) = frame.local.to_wgs84(np.stack([centre - along, centre + along]))
    azimuth, _, length_m = GEOD.inv(lon0, lat0, lon1, lat1)
    middle = 0.5 * (azimuth + GEOD.inv(lon1, lat1, lon0, lat0)[0] - 180.0)
    assert abs((fix.uncertainty.azimuth_deg - middle + 90.0) % 180.0 - 90.0) < 0.5
    assert abs((azimuth - (90.0 - theta) + 90.0) % 180.0 - 90.0) > 15.0  # else this would test nothing
    assert fix.uncertainty.sigma_x == pytest.approx(length_m / 2.0, rel=0.01)


def test_a_needle_of_an_ellipse_keeps_a_width(make_contract, make_model):
    contract = make_contract(frame=Frame(kind="enu_m", latitude=47.0, longitude=8.0))
    fix = locate(make_model(contract, uncertainty=(1e6, 1e-3, 20.0)), window_of(contract))
    assert fix.status == "ok"
    assert fix.uncertainty.sigma_y > 0.0


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        (Normalisation(kind="constants", mean=2.0, std=4.0), (-0.25, 0.0)),
        (Normalisation(kind="joint"), (-math.sqrt(1.5), 0.0)),
    ],
)
def test_normalisation_comes_before_the_model(make_contract, make_model, normalisation, expected):
    contract = make_contract(3, correlation=False, normalisation=normalisation)
    fix = locate(make_model(contract, position=fed()), window_of(contract))
    assert (fix.position.latitude, fix.position.longitude) == pytest.approx(expected, abs=1e-6)


def test_joint_normalisation_of_a_constant_window_stays_finite(make_contract, make_model):
    contract = make_contract(1, correlation=False, normalisation=Normalisation(kind="joint"))
    path = make_model(contract, position=lambda means: op.concat([means, means], axis=1))
    assert locate(path, window_of(contract)).status == "ok"


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.5, NAN])
def test_probability_is_one(make_contract, make_model, probability):
    with pytest.raises(ConfigError, match="probability"):
        Locator(OnnxModel(make_model(make_contract())), probability=probability)


def test_probability_scales_the_axes(make_contract, make_model):
    contract = make_contract()
    fix = locate(make_model(contract), window_of(contract), probability=0.5)
    assert fix.uncertainty.semi_major_m == pytest.approx(200.0 * math.sqrt(2.0 * math.log(2.0)))


def cache_of() -> AnswerCache:
    return AnswerCache([MemoryStore(max_items=100, max_bytes=1 << 20)], ttl_s=60.0)


class Counting:
    """A model that counts the windows it is asked about."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxModel(path)
        self.contract, self.identity, self.label = self._model.contract, self._model.identity, self._model.label
        self.batches: list[int] = []

    def run(self, features: np.ndarray) -> ModelOutput:
        self.batches.append(len(features))
        return self._model.run(features)

    def close(self) -> None: ...


def test_only_what_the_cache_lacks_is_asked_and_equal_windows_once(make_contract, make_model):
    contract = make_contract()
    model = Counting(make_model(contract, position=fed()))
    locator, cache = Locator(model), cache_of()
    one = window_of(contract)
    windows = [replace(one, features=one.features * scale) for scale in (1, 2, 1, 3, 2)]
    plain = locator.conclude(locator.infer(windows), windows, [CONTEXT] * 5)
    assert model.batches.pop() == 5
    first = locator.infer(windows, cache)
    assert model.batches.pop() == 3
    assert (first.hits, first.asked) == ({2, 4}, True)
    second = locator.infer([*windows, replace(one, features=one.features * 4)], cache)
    assert model.batches.pop() == 1
    assert (second.hits, second.asked) == ({0, 1, 2, 3, 4}, True)
    third = locator.infer(windows, cache)
    assert (third.hits, third.asked) == ({0, 1, 2, 3, 4}, False)
    assert model.batches == []
    for inference in (first, second, third):
        fixes = locator.conclude(inference, windows, [CONTEXT] * 5)
        assert [fix.cache_hit for fix in fixes] == [index in inference.hits for index in range(5)]
        assert [fix.position for fix in fixes] == [fix.position for fix in plain]
        assert all(fix.inference_time_ms > 0.0 for fix in fixes)


def test_windows_that_look_alike_to_the_model_share_an_answer(make_contract, make_model):
    """A receiver's samples that mean nothing are masked: whatever they are, the model sees the same."""
    contract = make_contract()
    locator, cache = Locator(Counting(make_model(contract))), cache_of()
    one = window_of(contract, unusable=(1,))
    features = one.features.copy()
    features[1] = np.nan
    other = replace(one, features=features)
    locator.infer([one], cache)
    inference = locator.infer([other], cache)
    assert inference.hits == {0}
    (fix,) = locator.conclude(inference, [other], [CONTEXT])
    assert [receiver.used for receiver in fix.receivers] == [True, False, True]
    # The same features of sound receivers are another window.
    assert locator.infer([window_of(contract)], cache).hits == set()


def test_refusals_and_errors_are_not_kept(make_contract, make_model):
    contract = make_contract(min_receivers=3)
    cache = cache_of()
    for answer in ({"position": (95.0, 8.5)}, {"position": (np.nan, 8.5)}, {"uncertainty": (-1.0, 1.0, 0.0)}):
        locator = Locator(OnnxModel(make_model(contract, **answer)))
        windows = [window_of(contract), window_of(contract), window_of(contract, unusable=(0,))]
        for _ in range(2):
            inference = locator.infer(windows, cache)
            assert inference.hits == set()
            fixes = locator.conclude(inference, windows, [CONTEXT] * 3)
            assert [fix.reason for fix in fixes] == ["model_error", "model_error", "too_few_receivers"]
    assert cache.as_dict()["stores"]["memory"]["items"] == 0


def test_a_model_of_unknown_digest_is_always_asked(make_contract, make_model):
    contract = make_contract()
    model = Counting(make_model(contract))
    model.identity = replace(model.identity, sha256="")
    locator, cache = Locator(model), cache_of()
    for _ in range(2):
        assert locator.infer([window_of(contract)], cache).hits == set()
    assert model.batches == [1, 1]
    assert cache.as_dict()["misses"] == 0
