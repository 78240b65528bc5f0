"""What a running station shows to those who come and ask."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from localize_apps.demo import demo_station
from localize_apps.runner import run_station
from localize_core.errors import ConfigError, PublishError
from localize_core.station.config import FileTable, HttpTable, MetricsTable, PublishTable
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_dict

DURATION_S = 1.5


def ask(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10.0) as answer:
        return str(answer.read().decode())


def station(tmp_path: Path, **changes: Any) -> Any:
    publish = PublishTable(file=[FileTable(path=tmp_path / name) for name in ("one.jsonl", "two.jsonl")])
    return demo_station(None).model_copy(update={"publish": publish, **changes})


def test_fixes_and_metrics_are_there_while_it_runs(model_cache: Path, tmp_path: Path) -> None:
    served: dict[str, str] = {}
    fixes: list[Fix] = []
    answers: dict[str, str] = {}

    def on_fix(fix: Fix) -> None:
        fixes.append(fix)
        if len(fixes) == 3:
            for path in ("fixes", "stations", "metrics", "stations/demo/likelihood", ""):
                answers[path] = ask(served["map"] + path)
            answers["alone"] = ask(served["metrics"])

    wanted = station(tmp_path, http=HttpTable(port=0), metrics=MetricsTable(port=0))
    result = run_station(wanted, on_fix=on_fix, duration_s=DURATION_S, live=False, on_serving=served.__setitem__)
    assert result.failure is None
    shown = [entry["fix"] for entry in json.loads(answers["fixes"])["fixes"]]
    assert shown[::-1] == [json.loads(json.dumps(fix_to_dict(fix))) for fix in fixes[:3]]
    (told,) = json.loads(answers["stations"])["stations"]
    assert (told["name"], told["likelihood"]) == ("demo", True)
    assert told["state"] in ("ready", "stopped")  # a simulation that nothing holds back may be over by then
    assert [each["name"] for each in told["receivers"]] == [each.name for each in wanted.receiver]
    probability = json.loads(answers["stations/demo/likelihood"])["probability"]
    assert sum(probability) == pytest.approx(1.0, abs=1e-3)
    assert "<html" in answers[""]
    for text in (answers["metrics"], answers["alone"]):
        assert 'localize_fixes_total{reason="",station="demo",status="ok"}' in text
        assert 'localize_sink_sent_total{sink="file",station="demo"}' in text
        assert 'localize_sink_sent_total{sink="file-2",station="demo"}' in text
    with pytest.raises(OSError, match="refused"):
        ask(served["map"])


def test_whoever_started_it_may_let_it_serve_longer(model_cache: Path, tmp_path: Path) -> None:
    served: dict[str, str] = {}
    with ExitStack() as serving:
        result = run_station(
            station(tmp_path, http=HttpTable(port=0)),
            on_fix=lambda fix: None,
            duration_s=DURATION_S,
            live=False,
            on_serving=served.__setitem__,
            serving=serving,
        )
        assert len(json.loads(ask(served["map"] + "fixes"))["fixes"]) == result.fixes
    with pytest.raises(OSError, match="refused"):
        ask(served["map"])
    assert not [thread for thread in threading.enumerate() if thread.name == "localize-http"]


def test_an_address_that_cannot_be_had_ends_it_before_it_starts(model_cache: Path, tmp_path: Path) -> None:
    fixes: list[Fix] = []

    def run(**changes: Any) -> None:
        run_station(station(tmp_path, **changes), on_fix=fixes.append, duration_s=DURATION_S, live=False)

    with pytest.raises(ConfigError, match="token"):
        run(http=HttpTable(host="0.0.0.0", port=0))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PublishError, match=r"cannot listen at 127\.0\.0\.1 port"),
    ):
        run(http=HttpTable(port=taken.getsockname()[1]))
    assert fixes == []
