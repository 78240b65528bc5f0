from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.types.fix import (
    REASONS,
    RECEIVER_FLAGS,
    Alignment,
    Fix,
    ModelIdentity,
    Peak,
    Position,
    ReceiverReport,
    TrackReport,
    Uncertainty,
)
from localize_core.wire.fix_json import fix_from_dict, fix_from_json, fix_schema, fix_to_dict, fix_to_json
from scipy.stats import chi2

VALIDATOR = jsonschema.Draft202012Validator(fix_schema())

DOCUMENTED = json.loads("""
{"schema": "gr-localize/fix/1", "station": "demo", "stream": "a1b2", "sequence": 412,
 "timestamp": "2026-01-02T03:04:05.678901Z", "time_source": "rx_time",
 "status": "ok", "reason": null,
 "position": {"latitude": 45.123, "longitude": 7.456},
 "uncertainty": {"sigma_x": 45.0, "sigma_y": 38.0, "theta": 25.0,
                 "covariance_m2": [[1980.0, 190.0], [190.0, 1489.0]],
                 "probability": 0.95, "semi_major_m": 110.2, "semi_minor_m": 93.0, "azimuth_deg": 65.0},
 "confidence": 0.92, "frequency_hz": 433920000.0,
 "receivers": [{"name": "north", "level_db": -71.2, "used": true, "flags": ["gap"]}],
 "model": {"name": "localization_model", "version": "3", "sha256": "", "arm": "champion", "backend": "onnxruntime"},
 "alignment": {"residual_ns": 35.0, "gaps_filled": 1, "gaps_skipped": 0},
 "cache_hit": false, "inference_time_ms": 1.9, "latency_ms": 4.2,
 "window": {"samples": 16384, "duration_s": 0.008}, "dropped_windows": 0}
""")


def finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
uncertainties = st.builds(
    Uncertainty, finite(1e-3, 1e6), finite(1e-3, 1e6), finite(-720.0, 720.0), st.sampled_from([0.3935, 0.5, 0.95, 0.99])
)
reports = st.builds(
    ReceiverReport,
    words,
    st.none() | finite(-200.0, 20.0),
    st.booleans(),
    st.lists(st.sampled_from(sorted(RECEIVER_FLAGS)), unique=True).map(tuple),
)
alignments = st.builds(Alignment, st.none() | finite(0.0, 1e9), st.integers(0, 99), st.integers(0, 99))

positions = st.builds(Position, finite(-90.0, 90.0), finite(-180.0, 180.0))
peaks = st.builds(Peak, positions, uncertainties, finite(0.0, 1.0), st.sampled_from(["emitter", "alternative"]))
rows = st.tuples(*[finite(-1e12, 1e12)] * 4)
tracks = st.builds(
    TrackReport,
    st.integers(0, 2**40),
    st.sampled_from(["confirmed", "coasting"]),
    positions,
    uncertainties,
    finite(-1e4, 1e4),
    finite(-1e4, 1e4),
    st.tuples(rows, rows, rows, rows),
    st.integers(0, 2**40),
    finite(0.0, 1e9),
    finite(0.0, 1e6),
    finite(0.0, 1e3),
    st.none() | finite(0.0, 1e9),
)


@st.composite
def fixes(draw: st.DrawFn) -> Fix:
    ok = draw(st.booleans())
    return Fix(
        station=draw(words),
        stream=draw(words),
        sequence=draw(st.integers(0, 2**62)),
        timestamp=draw(st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(timezone.utc))),
        time_source=draw(st.sampled_from(["rx_time", "host", "none"])),
        status="ok" if ok else "no_fix",
        reason=None if ok else draw(st.sampled_from(sorted(REASONS))),
        position=draw(positions) if ok else None,
        uncertainty=draw(uncertainties) if ok else None,
        confidence=draw(finite(0.0, 1.0)),
        frequency_hz=draw(st.none() | finite(0.0, 1e11)),
        receivers=tuple(draw(st.lists(reports, max_size=3))),
        model=draw(st.builds(ModelIdentity, words, words, words, words, words)),
        window_samples=draw(st.integers(0, 2**40)),
        window_duration_s=draw(finite(0.0, 1e6)),
        alignment=draw(st.none() | alignments),
        cache_hit=draw(st.booleans()),
        inference_time_ms=draw(finite(0.0, 1e6)),
        latency_ms=draw(finite(-1e6, 1e6)),
        dropped_windows=draw(st.integers(0, 2**40)),
        peaks=tuple(draw(st.lists(peaks, max_size=2))) if ok else (),
        tracks=tuple(draw(st.lists(tracks, max_size=2))),
    )


ELLIPSE = Uncertainty(45.0, 38.0, 25.0)
PEAK = Peak(Position(45.2, 7.5), ELLIPSE, 0.4, "emitter")
TRACK = TrackReport(
    id=3,
    state="confirmed",
    position=Position(45.1, 7.4),
    uncertainty=ELLIPSE,
    east_mps=-3.0,
    north_mps=4.0,
    covariance=((4.0, 0.0, 1.0, 0.0), (0.0, 4.0, 0.0, 1.0), (1.0, 0.0, 2.0, 0.0), (0.0, 1.0, 0.0, 2.0)),
    updates=7,
    age_s=1.4,
    idle_s=0.0,
    lag_s=0.2,
    nis=1.3,
)


def test_schema_is_a_valid_schema():
    VALIDATOR.check_schema(VALIDATOR.schema)


def test_documented_example_is_read_and_valid():
    VALIDATOR.validate(DOCUMENTED)
    fix = fix_from_dict(DOCUMENTED)
    assert fix.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
    assert fix.position == Position(45.123, 7.456)
    assert fix.receivers == (ReceiverReport("north", -71.2, True, ("gap",)),)
    assert fix.alignment == Alignment(35.0, 1, 0)
    assert set(fix_to_dict(fix)) == set(DOCUMENTED)


def test_timestamp_of_another_zone_is_written_in_utc(make_fix):
    local = datetime(2026, 7, 1, 1, 30, 0, 0, timezone(timedelta(hours=2)))
    assert fix_to_dict(make_fix(timestamp=local))["timestamp"] == "2026-06-30T23:30:00.000000Z"


@given(fixes())
def test_every_fix_is_valid_one_line_and_comes_back(fix):
    line = fix_to_json(fix)
    assert "\n" not in line
    VALIDATOR.validate(json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in {line}")))
    assert fix_from_json(line) == fix


@given(uncertainties)
def test_ellipse_is_the_one_of_the_covariance(uncertainty):
    fix = dataclasses.replace(fix_from_dict(DOCUMENTED), uncertainty=uncertainty)
    encoded = fix_to_dict(fix)["uncertainty"]
    variances, directions = np.linalg.eigh(np.array(encoded["covariance_m2"]))
    axes_m = np.sqrt(np.maximum(variances, 0.0) * chi2.ppf(encoded["probability"], 2))
    # the smaller variance is only as exact as the larger one's rounding
    tolerance_m = 1e-6 * axes_m[1]
    assert encoded["semi_major_m"] == pytest.approx(axes_m[1], rel=1e-9)
    assert encoded["semi_minor_m"] == pytest.approx(axes_m[0], rel=1e-6, abs=tolerance_m)
    if variances[1] > 1.001 * variances[0]:
        east, north = directions[:, 1]
        azimuth_deg = math.degrees(math.atan2(east, north))
        assert abs((encoded["azimuth_deg"] - azimuth_deg + 90.0) % 180.0 - 90.0) < 1e-6


def test_azimuth_stays_below_180(make_fix):
    encoded = fix_to_dict(make_fix(uncertainty=Uncertainty(2.0, 1.0, math.nextafter(90.0, 91.0))))
    assert encoded["uncertainty"]["azimuth_deg"] == 0.0
    VALIDATOR.validate(encoded)


def test_numpy_scalars_become_plain_numbers(make_fix):
    fix = make_fix(
        sequence=np.int64(3), confidence=np.float32(0.5), position=Position(np.float64(1.0), np.float64(2.0))
    )
    encoded = json.loads(fix_to_json(fix))
    assert (encoded["sequence"], encoded["confidence"], encoded["position"]) == (
        3,
        0.5,
        {"latitude": 1.0, "longitude": 2.0},
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("confidence", lambda v: {"confidence": v}),
        ("frequency_hz", lambda v: {"frequency_hz": v}),
        ("latency_ms", lambda v: {"latency_ms": v}),
        ("inference_time_ms", lambda v: {"inference_time_ms": v}),
        ("position.latitude", lambda v: {"position": Position(v, 0.0)}),
        ("position.longitude", lambda v: {"position": Position(0.0, v)}),
        ("uncertainty", lambda v: {"uncertainty": Uncertainty(v, 1.0, 0.0)}),
        (r"receivers\[0\].level_db", lambda v: {"receivers": (ReceiverReport("north", v, True),)}),
        ("alignment.residual_ns", lambda v: {"alignment": Alignment(v)}),
        ("window.duration_s", lambda v: {"window_duration_s": v}),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_refused_by_name(make_fix, field, changes, value):
    with pytest.raises(ConfigError, match=field):
        fix_to_json(make_fix(**changes(value)))


def changed(path: str, value: object, document: dict = DOCUMENTED) -> dict:
    document = copy.deepcopy(document)
    *parents, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner = document
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return document


def test_peaks_and_tracks_are_there_where_there_are_any(make_fix):
    assert not {"peaks", "tracks"} & set(fix_to_dict(make_fix()))
    encoded = fix_to_dict(make_fix(peaks=(PEAK,), tracks=(TRACK,)))
    assert encoded["peaks"][0]["position"] == {"latitude": 45.2, "longitude": 7.5}
    assert encoded["tracks"][0]["velocity"] == {
        "east_mps": -3.0,
        "north_mps": 4.0,
        "speed_mps": 5.0,
        "course_deg": pytest.approx(360.0 - math.degrees(math.atan2(3.0, 4.0))),
    }


@pytest.mark.parametrize("east_mps", [-1e-320, -1e-17, 0.0])
def test_course_stays_below_360(make_fix, east_mps):
    encoded = fix_to_dict(make_fix(tracks=(dataclasses.replace(TRACK, east_mps=east_mps, north_mps=1.0),)))
    assert encoded["tracks"][0]["velocity"]["course_deg"] == 0.0
    VALIDATOR.validate(encoded)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("peaks.0.weight", 1.1),
        ("peaks.0.kind", "ghost"),
        ("peaks.0.position.latitude", 91.0),
        ("peaks.0.uncertainty", None),
        ("peaks", None),
        ("tracks.0.id", -1),
        ("tracks.0.state", "lost"),
        ("tracks.0.position", None),
        ("tracks.0.velocity", None),
        ("tracks.0.velocity.east_mps", "fast"),
        ("tracks.0.velocity.speed_mps", -1.0),
        ("tracks.0.velocity.course_deg", 360.0),
        ("tracks.0.covariance", [[1.0, 0.0], [0.0, 1.0]]),
        ("tracks.0.covariance.2.1", None),
        ("tracks.0.updates", 0.5),
        ("tracks.0.age_s", -1.0),
        ("tracks.0.idle_s", -1.0),
        ("tracks.0.lag_s", None),
        ("tracks.0.nis", -1.0),
        ("tracks", {}),
    ],
)
def test_schema_and_decoder_reject_the_same_peaks_and_tracks(make_fix, path, value):
    document = fix_to_dict(make_fix(peaks=(PEAK,), tracks=(TRACK,)))
    VALIDATOR.validate(document)
    broken = changed(path, value, document)
    assert not VALIDATOR.is_valid(broken)
    with pytest.raises(ConfigError, match=re.escape(re.sub(r"\.(\d)\b", r"[\1]", path.partition(".covariance")[0]))):
        fix_from_dict(broken)


NO_FIX = {"status": "no_fix", "reason": "silence", "position": None, "uncertainty": None}
ZEROS = dict.fromkeys(DOCUMENTED["uncertainty"], 0.0) | {"covariance_m2": [[0.0, 0.0], [0.0, 0.0]], "probability": 0.95}
BROKEN = {
    "position": [
        DOCUMENTED | NO_FIX | {"position": {"latitude": 0.0, "longitude": 0.0}},
        changed("position", None),
        changed("position", {}),
        changed("position.latitude", 90.1),
        changed("position.longitude", -180.1),
        changed("position", [45.0, 7.0]),
    ],
    "uncertainty": [
        DOCUMENTED | NO_FIX | {"uncertainty": ZEROS},
        changed("uncertainty", None),
        changed("uncertainty.sigma_x", 0.0),
        changed("uncertainty.sigma_y", -1.0),
        changed("uncertainty.semi_minor_m", 0.0),
        changed("uncertainty.azimuth_deg", 180.0),
        changed("uncertainty.covariance_m2", [[1.0, 0.0]]),
        changed("uncertainty.covariance_m2", [[1.0, 0.0], [0.0, None]]),
    ],
    "probability": [changed("uncertainty.probability", 1.0)],
    "reason": [
        DOCUMENTED | NO_FIX | {"reason": "bad_weather"},
        DOCUMENTED | NO_FIX | {"reason": None},
        changed("reason", "silence"),
    ],
    "status": [changed("status", "maybe")],
    "schema": [changed("schema", "gr-localize/fix/2")],
    "station": [changed("station", ""), changed("station", None)],
    "sequence": [changed("sequence", -1), changed("sequence", "1"), changed("sequence", True)],
    "timestamp": [
        changed("timestamp", "2026-01-02T03:04:05.678901+01:00"),
        changed("timestamp", "2026-01-02T03:04:05Z"),
        changed("timestamp", "2026-01-02T03:04:05.67Z"),
        changed("timestamp", 1767323045.0),
    ],
    "time_source": [changed("time_source", "gps")],
    "confidence": [changed("confidence", 1.01), changed("confidence", -0.01), changed("confidence", None)],
    "receivers": [
        changed("receivers", None),
        changed("receivers.0.flags", ["melted"]),
        changed("receivers.0.flags", ["gap", "gap"]),
        changed("receivers.0.used", 1),
        changed("receivers.0.level_db", "loud"),
        changed("receivers.0", "north"),
    ],
    "model": [changed("model", None), changed("model.name", "")],
    "alignment": [changed("alignment.gaps_filled", -1), changed("alignment.residual_ns", -1.0)],
    "cache_hit": [changed("cache_hit", 0)],
    "window": [changed("window.samples", 0.5)],
}


@pytest.mark.parametrize(("field", "document"), [(field, d) for field, documents in BROKEN.items() for d in documents])
def test_schema_and_decoder_reject_the_same(field, document):
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ConfigError, match=field):
        fix_from_dict(document)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_field_is_required(name):
    document = {key: value for key, value in DOCUMENTED.items() if key != name}
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ConfigError, match=f"^{name}: missing"):
        fix_from_dict(document)


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_is_in_the_schema(make_fix, reason):
    encoded = fix_to_dict(make_fix(reason=reason))
    VALIDATOR.validate(encoded)
    assert encoded["position"] is None
    assert encoded["uncertainty"] is None


def test_no_fix_with_an_uncertainty_is_not_published(make_fix):
    with pytest.raises(ConfigError, match="uncertainty"):
        fix_to_dict(make_fix(reason="silence", uncertainty=Uncertainty(1.0, 1.0, 0.0)))


paths = st.sampled_from(
    [*DOCUMENTED]
    + [f"{name}.{inner}" for name, value in DOCUMENTED.items() if isinstance(value, dict) for inner in value]
    + [f"receivers.0.{inner}" for inner in DOCUMENTED["receivers"][0]]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite(-1e300, 1e300) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(paths, values)
def test_what_the_decoder_accepts_the_schema_accepts(path, value):
    document = changed(path, value)
    try:
        fix_from_dict(document)
    except ConfigError:
        return
    VALIDATOR.validate(document)


def test_fields_of_later_versions_are_ignored():
    assert fix_from_dict(DOCUMENTED | {"altitude_m": 3.0}) == fix_from_dict(DOCUMENTED)
    assert not VALIDATOR.is_valid(DOCUMENTED | {"altitude_m": 3.0})


@pytest.mark.parametrize("line", ["", "{", "[]", "3", "NaN", "null", b"\xff", "[" * 100_000, '{"confidence": 1e999}'])
def test_other_text_is_no_fix(line):
    with pytest.raises(ConfigError):
        fix_from_json(line)


def test_number_beyond_float_is_refused():
    with pytest.raises(ConfigError, match="confidence"):
        fix_from_json(json.dumps(changed("confidence", 10**400)))


def test_wire_sinks_and_score_work_without_gnuradio():
    code = (
        "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None\n"
        "import localize_core.wire.fix_json, localize_core.sinks.zmq_sink, localize_core.sinks.file_sink\n"
        "import localize_core.score; localize_core.wire.fix_json.fix_schema()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
