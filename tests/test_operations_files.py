"""Dashboard, alerts and the page on metrics speak of what a station that runs really exports, and of all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pmt
import promql_parser
import pytest
import yaml
from gnuradio import gr, localize
from gnuradio.localize.counters import SWITCH
from gnuradio.localize.pmt_codec import fix_from_pmt
from gnuradio.localize.receivers import Receivers
from localize_core.metrics.metrics import Metrics
from localize_core.recorder.stream_recorder import Account
from localize_core.serving.requests import Request
from localize_core.station.config import MetricsTable, parse_station
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILES = DOCS / "operations"
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((FILES / "grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FILES / "prometheus-alerts.yml").read_text(encoding="utf-8"))
SCRAPING = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RARE = {
    "localize_similar_refused_total": {"station", "arm", "reason"},
    "localize_pair_residual_seconds": {"station", "first", "second"},
    "localize_pair_residual_deviation_seconds": {"station", "first", "second"},
    "localize_receiver_bias_seconds": {"station", "receiver"},
    "localize_receiver_bias_sigma_seconds": {"station", "receiver"},
    "localize_fix_hdop_ratio": {"station"},
    "localize_reference_offset_seconds": {"station", "receiver"},
    "localize_reference_drift_ratio": {"station", "receiver"},
    "localize_reference_residual_seconds": {"station", "receiver"},
    "localize_reference_error_seconds": {"station", "receiver"},
    "localize_reference_snr_ratio": {"station", "receiver"},
}
"""Metrics that need not have a value."""
TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""
RADIO = """
station = { name = "s", sample_rate_hz = 1e6, frequency_hz = 1e8 }
area = { south = 47.0, west = 8.0, north = 47.1, east = 8.1 }
[[receiver]]
name = "north"
latitude = 47.0
longitude = 8.0
source = { kind = "rtl-tcp", address = "127.0.0.1:1" }
"""
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
"""Of samples that only grow: a value alone says nothing."""


# what a station exports


class listener(gr.sync_block):
    """Tells metrics of fixes."""

    def __init__(self, metrics: Metrics) -> None:
        gr.sync_block.__init__(self, "listener", None, None)
        self.message_port_register_in(pmt.intern("fix"))
        self.set_msg_handler(pmt.intern("fix"), self._tell)
        self._metrics = metrics

    def _tell(self, message: Any) -> None:
        self._metrics.fix(fix_from_pmt(message))


def scrape(metrics: Metrics) -> dict[str, Metric]:
    """Families by name, without the times of their beginnings."""
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {family.name: family for family in families if not family.name.endswith("_created")}


@pytest.fixture
def families(make_contract, make_model, start_redis, tmp_path, monkeypatch) -> dict[str, Metric]:
    """Metrics of a station with everything, after a while."""
    monkeypatch.setenv(SWITCH, "True")
    contract = make_contract(2, accuracy={"median_m": 40.0})
    path = make_model(contract)
    station = localize.localizer(
        str(path), 2, time_steps=24, live=True, name="s", cache_redis=start_redis().url, cache_similar=True
    )
    engine, metrics = station.engine, Metrics("s")
    engine.observe("receivers", Receivers(parse_station(RADIO, folder=tmp_path)).report)
    account = {"receivers": {"north": {"state": "recording", **asdict(Account())}}, "free_bytes": 1}
    engine.observe("recorder", lambda: account)
    places = [(each.name, each.latitude, each.longitude) for each in contract.receivers]
    beacon = {"latitude": 47.02, "longitude": 8.02, "reference_hz": 1e6 + 2e3, "bandwidth_hz": 1e3}
    reference = localize.reference_clock(places, contract.sample_rate_hz, 1e6, block_s=1.0, **beacon)
    engine.observe("reference", reference.report)
    scene = {"bandwidth_hz": 4e3, "track": [[47.05, 8.05]]}
    source = localize.scene_source(places, contract.sample_rate_hz, 1e6, duration_s=20.0, **scene)
    sink, heard, graph = localize.file_fix_sink(str(tmp_path / "fixes.jsonl")), listener(metrics), gr.top_block()
    for port in range(2):
        graph.connect((source, port), (station, port))
    tracker = localize.tracker()
    graph.msg_connect(station, "fix", tracker, "fix")
    for block in (sink, heard):
        graph.msg_connect(tracker, "fix", block, "fix")
    metrics.watch(engine)
    metrics.watch_sink("file", sink)
    graph.start()
    make_model(contract.model_copy(update={"model_version": "2"}))
    engine.execute("reload")
    graph.wait()
    metrics.request_started("/fixes")
    metrics.request_finished("/fixes", "not_found", 0.01)
    engine.start(live=True)
    request = Request("r", np.zeros((len(contract.channels), contract.rows, 24), np.float32))
    engine.predict([request, request])
    deadline = time.monotonic() + 30.0
    while not (found := scrape(metrics))["localize_redis_memory_bytes"].samples:
        assert time.monotonic() < deadline, "Redis has not told its memory"
        time.sleep(0.01)
    engine.stop()
    engine.close()
    return found


# what the files ask for


def plain(expression: str) -> str:
    """Without what Grafana puts in."""
    return expression.replace("$__rate_interval", "5m").replace("$station", "s")


def queries() -> Iterator[tuple[str, Any]]:
    """All expressions, with the name of what asks."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], promql_parser.parse(plain(target["expr"]))
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], promql_parser.parse(plain(annotation["expr"]))
    for rule in RULES:
        yield rule["alert"], promql_parser.parse(rule["expr"])
    for expression in re.findall(r"`(rate\(.*?)`", PAGE.replace("\n", " ")):
        yield "the page", promql_parser.parse(expression)


def nodes(query: Any, kind: type) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(query, found.append)
    return [node for node in found if isinstance(node, kind)]


def test_all_of_it_is_exported_and_documented(families):
    labels: dict[str, set[str]] = {"up": set()}
    for family in families.values():
        names = {family.name, f"{family.name}_total"}
        assert family.samples or names & RARE.keys(), family.name
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
        labels.update((name, RARE[name]) for name in names & RARE.keys())
    described = set(re.findall(r"`((?:localize|process|python)_\w+)`", PAGE))
    histograms = {family.name for family in families.values() if family.type == "histogram"}
    samples = {name for name in labels if not any(name.startswith(f"{each}_") for each in histograms)}
    assert described == samples - {"up"} | histograms
    for asks, query in queries():
        selectors = nodes(query, promql_parser.VectorSelector)
        assert selectors
        known: set[str] = set()
        for selector in selectors:
            assert selector.name in labels, f"{asks}: {selector.name}"
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= labels[selector.name] | TARGET, f"{asks}: {selector.name}"
            known |= labels[selector.name] | TARGET
        for aggregation in nodes(query, promql_parser.AggregateExpr):
            assert set(aggregation.modifier.labels) <= known, asks
    rows = re.findall(r"^\| (`localize_.*?) \| (\w.*?) \|(.*?)\| .* \|$", PAGE, re.MULTILINE)
    assert len(rows) > 40
    for names, kinds, listed in rows:
        for name in re.findall(r"`(\w+)`", names):
            family = families[name.removesuffix("_total")]
            assert family.type in kinds
            if family.samples:
                assert set(re.findall(r"`(\w+)`", listed)) == labels[family.samples[0].name] - {"station", "le"}, name


def test_what_only_grows_is_asked_for_its_rate():
    for asks, query in queries():
        ranges = [node.vector_selector.name for node in nodes(query, promql_parser.MatrixSelector)]
        names = [node.name for node in nodes(query, promql_parser.VectorSelector)]
        growing = [name for name in names if name.endswith(SUFFIXES)]
        assert sorted(growing) == sorted(ranges), asks
        for call in nodes(query, promql_parser.Call):
            if call.func.name == "histogram_quantile":
                (aggregation,) = nodes(call, promql_parser.AggregateExpr)
                assert "le" in aggregation.modifier.labels, asks


def test_legends_and_messages_name_labels_that_are_there():
    told = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
    told += [(rule["expr"], text) for rule in RULES for text in rule["annotations"].values()]
    for expression, text in told:
        query = promql_parser.parse(plain(expression))
        aggregations = nodes(query, promql_parser.AggregateExpr)
        shown = set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", text))
        if isinstance(query, promql_parser.VectorSelector) or not aggregations:
            continue  # its labels are those of the metric
        assert shown <= set.union(*(set(each.modifier.labels) for each in aggregations)), text


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["schemaVersion"] >= 36  # of Grafana 10
    assert "id" not in DASHBOARD
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "station"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (row, column)
            for row in range(place["y"], place["y"] + place["h"])
            for column in range(place["x"], place["x"] + place["w"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all("$station" in target["expr"] for target in panel["targets"]), panel["title"]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Fixes",
        "Latency",
        "Windows",
        "Receivers",
        "Reference",
        "Recorder",
        "Models",
        "Cache",
        "Sinks",
        "Requests",
        "Machine",
    ]


def test_alerts_say_what_has_happened():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} == set(rule["annotations"])
        assert promql_parser.parse_duration(rule.get("for", "1m")).total_seconds() > 0.0


def test_the_example_scrapes_a_station_as_it_is_by_default():
    table = MetricsTable()
    assert SCRAPING["rule_files"] == ["prometheus-alerts.yml"]
    (job,) = SCRAPING["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{table.host}:{table.port}"]}]
    down = next(rule["expr"] for rule in RULES if rule["alert"] == "LocalizeStationDown")
    assert f'job="{job["job_name"]}"' in down


def test_the_example_runs():
    program = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=DOCS.parent, capture_output=True, text=True, check=True, timeout=60
    )
    assert 'localize_inferences_total{arm="champion",station="mine"} 1.0' in done.stdout
    assert 'localize_fix_confidence_ratio_count{station="mine"} 1.0' in done.stdout


def test_names_from_elsewhere_lead_somewhere():
    section = PAGE.split("## Names that you may look for")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert set(rows) == {
        "inference_latency_ms",
        "preprocessing_latency_ms",
        "onnx_latency_ms",
        "cache_hits_total",
        "cache_misses_total",
        "cache_hit_rate",
        "redis_memory_bytes",
        "inference_requests_total",
        "inference_errors_total",
        "inference_active_requests",
        "model_reloads_total",
        "model_loaded",
        "model_inference_count_total",
        "model_accuracy_meters",
    }
    for named in rows.values():
        assert all(f"| `{name}`" in PAGE or f", `{name}`" in PAGE for name in re.findall(r"`(localize_\w+)`", named))
