"""What fixes, sinks and requests come to in a scrape, and what a scrape looks like."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import pytest
from localize_core.errors import ConfigError, PublishError
from localize_core.metrics.metrics import MOST_VALUES, OTHER, Metrics
from localize_core.metrics.server import MetricsServer
from localize_core.sinks.file_sink import FileFixSink
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.types.fix import Alignment, Position, TrackReport, Uncertainty
from prometheus_client.openmetrics import parser as openmetrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("s")


# fixes


def test_fixes_of_a_stream(metrics, make_fix, scrape):
    ellipse = Uncertainty(200.0, 100.0, 30.0)
    for latency_ms, confidence in ((4.0, 0.6), (40.0, 0.8)):
        metrics.fix(make_fix(uncertainty=ellipse, confidence=confidence, latency_ms=latency_ms))
    found = scrape(metrics)
    assert found("fix_latency_seconds_count", station="demo") == 2
    assert found("fix_latency_seconds_sum") == pytest.approx(0.044)
    assert [found("fix_latency_seconds_bucket", le=le) for le in ("0.0025", "0.005", "0.05")] == [0, 1, 2]
    assert found("fix_confidence_ratio_sum") == pytest.approx(1.4)
    # A circle of chi-square with 2 degrees of freedom holds 95 % within 2.4477 standard deviations.
    assert found("ellipse_semi_major_metres_sum") == pytest.approx(2 * 200.0 * 2.4477, rel=1e-4)
    assert found("window_duration_seconds") == 0.008


def test_a_fix_without_position_has_no_ellipse(metrics, make_fix, scrape):
    metrics.fix(make_fix(reason="silence", confidence=0.0))
    metrics.fix(make_fix(reason="no_emitter", confidence=0.2))
    found = scrape(metrics)
    assert found("fix_latency_seconds_count") == 2
    assert found("ellipse_semi_major_metres_count") == 0
    assert found("fix_confidence_ratio_sum") == pytest.approx(0.2)  # nobody was asked about silence
    assert found("fix_confidence_ratio_count") == 1


def test_tracks_of_the_latest_fix(metrics, make_fix, scrape):
    metrics.fix(make_fix())
    assert scrape(metrics)("tracks") is None
    rows = ((1.0, 0.0, 0.0, 0.0),) * 4
    where = Position(45.0, 7.0), Uncertainty(10.0, 5.0, 0.0)
    near = TrackReport(1, "confirmed", *where, 1.0, 0.0, rows, 5, 2.0, 0.0, nis=1.5)
    lost = TrackReport(2, "coasting", *where, 1.0, 0.0, rows, 5, 2.0, 1.0, nis=9.0)
    now = make_fix().timestamp
    metrics.fix(make_fix(sequence=413, timestamp=now, tracks=(near, lost)))
    metrics.fix(make_fix(sequence=414, timestamp=now - timedelta(seconds=1.0)))  # late
    found = scrape(metrics)
    assert found.by("tracks", "state") == {"confirmed": 1, "coasting": 1}
    assert found("track_semi_major_metres_sum") == pytest.approx(2 * 10.0 * 2.4477, rel=1e-4)
    assert (found("track_nis_ratio_count"), found("track_nis_ratio_sum")) == (1, 1.5)
    metrics.fix(make_fix(sequence=415, timestamp=now + timedelta(seconds=60.0)))
    assert scrape(metrics).by("tracks", "state") == {"confirmed": 0, "coasting": 0}


@pytest.mark.parametrize("begun", [{"sequence": 0}, {"sequence": 414, "stream": "c3d4"}])
def test_a_stream_that_begins_anew_at_an_earlier_time_has_its_own_tracks(metrics, make_fix, scrape, begun):
    rows = ((1.0, 0.0, 0.0, 0.0),) * 4
    near = TrackReport(1, "confirmed", Position(45.0, 7.0), Uncertainty(10.0, 5.0, 0.0), 1.0, 0.0, rows, 5, 2.0, 0.0)
    now = make_fix().timestamp
    metrics.fix(make_fix(sequence=413, timestamp=now, tracks=(near,)))
    metrics.fix(make_fix(**begun, timestamp=now - timedelta(seconds=60.0)))
    assert scrape(metrics).by("tracks", "state") == {"confirmed": 0, "coasting": 0}
    later = {**begun, "sequence": begun["sequence"] + 1, "timestamp": now - timedelta(seconds=59.0)}
    metrics.fix(make_fix(**later, tracks=(near,)))
    assert scrape(metrics).by("tracks", "state") == {"confirmed": 1, "coasting": 0}


def test_age_of_the_latest_fix(metrics, make_fix, scrape):
    assert scrape(metrics)("fix_age_seconds") is None
    now = datetime.now(timezone.utc)
    metrics.fix(make_fix(timestamp=now - timedelta(seconds=30.0)))
    metrics.fix(make_fix(timestamp=now - timedelta(seconds=20.0), reason="no_emitter"))
    ages = scrape(metrics).by("fix_age_seconds", "status")
    assert ages == pytest.approx({"ok": 30.0, "no_fix": 20.0}, abs=5.0)
    time.sleep(0.01)
    assert scrape(metrics).by("fix_age_seconds", "status")["ok"] > ages["ok"]


def test_a_request_says_nothing_of_its_station(metrics, make_fix, scrape):
    metrics.fix(make_fix(id="mine"))
    found = scrape(metrics)
    assert found("fix_confidence_ratio_count") == found("ellipse_semi_major_metres_count") == 1
    assert found("fix_latency_seconds_count") == 0
    assert (found("fix_age_seconds"), found("window_duration_seconds")) == (None, None)


def test_alignment_over_two_starts(metrics, make_fix, scrape):
    metrics.fix(make_fix(sequence=0, alignment=Alignment(None)))
    assert scrape(metrics)("alignment_residual_seconds") is None
    metrics.fix(make_fix(sequence=1, alignment=Alignment(80.0, gaps_filled=2, gaps_skipped=1)))
    metrics.fix(make_fix(sequence=2, alignment=Alignment(50.0, gaps_filled=5, gaps_skipped=1)))
    found = scrape(metrics)
    assert found("alignment_residual_seconds") == pytest.approx(50e-9)
    assert found.by("alignment_gaps_total", "kind") == {"filled": 5, "skipped": 1}
    metrics.fix(make_fix(sequence=0, alignment=Alignment(60.0, gaps_filled=6)))
    assert scrape(metrics).by("alignment_gaps_total", "kind") == {"filled": 11, "skipped": 1}


def test_fixes_of_too_many_stations_are_not_measured(metrics, make_fix, scrape):
    for number in range(150):
        metrics.fix(make_fix(station=f"station {number}"))
    assert len(scrape(metrics).by("fix_latency_seconds_count", "station")) == 100


# sinks


def test_sinks(metrics, make_fix, scrape, tmp_path):
    file, zmq = FileFixSink(tmp_path / "fixes.jsonl"), ZmqFixSink("tcp://127.0.0.1:*")
    metrics.watch_sink("file", file)
    metrics.watch_sink("zmq-2", zmq)
    file.open()
    for _ in range(3):
        file.publish(make_fix())
    file.close()
    file.publish(make_fix())
    found = scrape(metrics)
    assert found.by("sink_sent_total", "sink") == {"file": 3, "zmq-2": 0}
    assert found.by("sink_dropped_total", "sink") == {"file": 1, "zmq-2": 0}
    assert found.by("sink_backlog", "sink") == {"file": 0, "zmq-2": 0}
    file.open()
    file.publish(make_fix())
    file.close()
    assert scrape(metrics)("sink_sent_total", sink="file") == 4
    with pytest.raises(ConfigError, match="'file'"):
        metrics.watch_sink("file", zmq)


# requests to a service


def test_requests(metrics, scrape):
    metrics.request_started("/predict")
    metrics.request_started("/predict")
    metrics.request_started("/fixes")
    assert scrape(metrics)("requests_active") == 3
    metrics.request_finished("/predict", None, 0.02)
    metrics.request_finished("/predict", "malformed", 0.002)
    found = scrape(metrics)
    assert found("requests_active") == 1
    assert found.by("requests_total", "endpoint") == {"/predict": 2, "/fixes": 1}
    assert found("request_errors_total", endpoint="/predict", type="malformed") == found("request_errors_total") == 1
    assert found("request_duration_seconds_count", endpoint="/predict") == 2
    assert found("request_duration_seconds_sum") == pytest.approx(0.022)


def test_labels_from_outside_are_bounded(metrics, scrape):
    for number in range(3 * MOST_VALUES):
        metrics.request_started(f"/{number}")
        metrics.request_finished(f"/{number}", f"error {number}", 0.1)
    found = scrape(metrics)
    endpoints = found.by("requests_total", "endpoint")
    assert len(endpoints) == MOST_VALUES + 1
    assert endpoints["/0"] == 1
    assert endpoints[OTHER] == 2 * MOST_VALUES
    assert found("request_errors_total", type=OTHER) == 2 * MOST_VALUES


# the scrape itself


def test_nothing_is_known_before_there_is_an_engine(metrics, scrape):
    found = scrape(metrics)
    assert found("build_info", station="s") == 1
    assert found("health_state") is None
    assert not [sample for sample in found.samples if sample.name.startswith("localize_") and "_total" in sample.name]


def test_two_stations_in_one_process_have_nothing_to_do_with_each_other(metrics, scrape):
    other = Metrics("other")
    metrics.request_started("/fixes")
    assert scrape(metrics)("requests_total", station="s") == 1
    assert scrape(other)("requests_total") is None


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/plain"),
        ("*/*", "text/plain"),
        (OPENMETRICS, "application/openmetrics-text"),
        (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.3", "application/openmetrics-text"),
    ],
)
def test_what_the_header_asks_for(metrics, accept, kind):
    text, content_type = metrics.render(accept)
    assert content_type.startswith(kind)
    assert text.endswith(b"# EOF\n") == (kind == "application/openmetrics-text")


def test_names_units_and_help(make_version, watched, make_fix):
    station = watched(make_version(1))
    station.metrics.fix(make_fix(alignment=Alignment(50.0)))
    station.metrics.request_started("/fixes")
    families = list(openmetrics.text_string_to_metric_families(station.metrics.render(OPENMETRICS)[0].decode()))
    ours = [family for family in families if not family.name.startswith(("process_", "python_"))]
    assert len(ours) > 45
    for family in ours:
        assert family.name.startswith("localize_")
        assert family.documentation.endswith("."), family.name
        unit = family.name.rpartition("_")[2]
        assert family.unit == (unit if unit in ("seconds", "bytes", "metres", "ratio") else "")
        for word in ("_ms", "millisecond", "_m_", "percent"):
            assert word not in family.name
        for sample in family.samples:
            assert sample.labels.keys().isdisjoint({"stream", "sequence", "id"})
            assert "station" in sample.labels


def test_a_server(metrics):
    server = MetricsServer(metrics)
    server.start()
    try:
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        request = urllib.request.Request(server.url, headers={"Accept": OPENMETRICS})
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            assert b"localize_build_info{" in answer.read()
        with pytest.raises(PublishError, match=f"127.0.0.1:{server.port}: Address already in use"):
            MetricsServer(metrics, port=server.port).start()
    finally:
        server.stop()
    server.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url, timeout=10.0)
    again = MetricsServer(metrics, port=server.port)
    again.start()
    again.stop()


def test_an_address_that_is_not_here(metrics):
    with pytest.raises(PublishError, match=r"192\.0\.2\.1"):
        MetricsServer(metrics, "192.0.2.1").start()


def test_the_rest_goes_without_the_library():
    program = """
import sys
import localize_core.serving.engine, localize_core.station.config
assert "prometheus_client" not in sys.modules
sys.modules["prometheus_client"] = None
from localize_core.errors import MissingExtraError
try:
    import localize_core.metrics.metrics
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("metrics needs an optional package: ")
    assert done.stdout.endswith("pip install 'gr-localize[metrics]'\n")
