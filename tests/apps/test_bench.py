"""The benchmarks, in short: what they say and count, never how fast."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from localize_apps.bench import BEGIN, END, read_figures, write_markdown
from localize_apps.main import main
from localize_benchmarks import BENCHMARKS, figures, machine, turns
from localize_benchmarks.figures import Figure, Growth, Missing, Settings, figure_from_dict
from localize_core.errors import ConfigError

SHORT = Settings(rounds=1, seconds=1.0, turn_s=0.01)
RATES = {
    "mel": {"FFTW": "pyfftw", "FFTW and overlap": "pyfftw", "librosa": "librosa", "torch": "torch", "kernel": None},
    "correlation": {"FFTW": "pyfftw", "kernel": None},
}


def measured(name: str) -> list[figures.Found]:
    module = importlib.import_module(f"localize_benchmarks.{BENCHMARKS[name][0]}")
    found = list(module.measure(SHORT))
    for each in found:
        line = json.loads(figures.to_json(each.as_dict()))
        assert line["benchmark"] == name
        assert figure_from_dict(line).as_dict().keys() == each.as_dict().keys()
    return found


@pytest.mark.parametrize("name", RATES)
def test_rates_name_every_peer_or_say_that_it_is_missing(name: str) -> None:
    found = measured(name)
    missing = {each.peer for each in found if isinstance(each, Missing)}
    compared = [each for each in found if isinstance(each, Figure)]
    assert all(each.value > 0.0 and each.peer_value and each.ratio and each.ratio > 0.0 for each in compared)
    named = {each.peer for each in compared}
    for peer, module in RATES[name].items():
        assert (peer in named) != (module in missing)
    if name == "mel":
        assert "GNU Radio's C++ chain" in named
    else:
        assert {each.details["receivers"] for each in compared} == {2, 4, 8}


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from localize_benchmarks import correlation_speed

    monkeypatch.setattr(correlation_speed, "RECEIVERS", (2,))
    found_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyfftw" else found_spec(name))
    missing, *found = correlation_speed.measure(SHORT)
    assert missing == Missing("correlation", "pyfftw", "pip install pyfftw")
    assert [each.peer for each in found if isinstance(each, Figure)] == ["kernel"]
    assert list(figures.notes([missing])) == [
        "correlation: without pyfftw, which is not installed (pip install pyfftw)"
    ]


def test_inference_is_beside_a_bare_loop() -> None:
    found = [each for each in measured("inference") if isinstance(each, Figure)]
    assert len(found) == 9
    assert {each.peer for each in found} == {"bare session.run", "bare session.run of 100"}


def test_growth_covers_all_that_grows() -> None:
    found = [each for each in measured("growth") if isinstance(each, Growth)]
    assert {each.over for each in found} == {"receivers", "n_fft", "sample rate, Hz", "frames in a window"}
    for each in found:
        assert len(each.sizes) == len(each.seconds) >= 4
        assert math.isfinite(each.exponent)
        assert each.standard_error > 0.0


def test_latency_is_that_of_fixes_which_a_subscriber_got() -> None:
    found = [each for each in measured("latency") if isinstance(each, Figure)]
    assert [each.goal for each in found] == ["≤ 4", "≤ 10", "≤ 25"] * 2
    for start in (0, 3):
        p50, p95, p99 = (each.value for each in found[start : start + 3])
        assert 0.0 < p50 <= p95 <= p99
        assert found[start].details["fixes"] > 0


def test_realtime_accounts_for_every_block() -> None:
    found = [each for each in measured("realtime") if isinstance(each, Figure)]
    details = found[0].details
    assert details["windows"] > 0
    assert set(details["cores_by_block"]) == {
        *("paced_source", "time_align", "station_features", "onnx_inference"),
    }
    assert all(share > 0.0 for share in details["cores_by_block"].values())


def test_memory_is_that_of_a_station_that_runs() -> None:
    (found,) = [each for each in measured("memory") if isinstance(each, Figure)]
    assert found.value > 50.0
    assert found.details["fixes"] > 1


def test_fan_out_counts_what_each_subscriber_got(monkeypatch: pytest.MonkeyPatch) -> None:
    from localize_benchmarks import fan_out, redis_server

    if (why := redis_server.missing()) is not None:
        pytest.skip(why)
    monkeypatch.setattr(fan_out, "FIXES_PER_S", {2: 200.0})
    found = [each for each in measured("fan_out") if isinstance(each, Figure)]
    lost = [each for each in found if each.unit == "fixes"]
    assert [(each.value, each.details["lost"]) for each in lost] == [(0, [0, 0])] * 2
    assert all(each.value > 0.0 for each in found if each.unit == "ms")


def test_the_service_answers_its_clients() -> None:
    from localize_benchmarks import http_load

    load = http_load.Load("mixed", "json", 2.0, clients=3, batch_share=0.2, batch=2, cached_share=0.5, samples=4096)
    found = http_load.run(load)
    assert found["errors"] == {}
    assert set(found["requests"]) == {"single", "cached", "batch of 2"}
    assert all(each["count"] > 0 and each["errors"] == {} for each in found["requests"].values())
    assert found["health"]["count"] > 0
    assert found["late_mib"] > 50.0


def test_standard_output_has_json_alone() -> None:
    command = "import sys; from localize_apps.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", command, "bench", "--json", "--rounds", "1", "--seconds", "1", "--only", "overload"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["figure"] == "machine"
    assert first["cpu"]
    assert {"numpy", "scipy", "numba", "pyfftw", "onnxruntime", "gnuradio"} <= set(first["versions"])
    assert first["versions"]["numpy"] == np.__version__
    assert {line["benchmark"] for line in others} == {"overload"}
    # Every window is accounted for.
    account = figure_from_dict(others[0])
    assert isinstance(account, Figure)
    details = account.details
    assert details["served"] + details["dropped"] == details["offered"]
    assert details["dropped_as_fixes_say"] == details["dropped"] > 0
    assert account.met is True


def test_a_benchmark_that_fails_is_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # its process knows no benchmark of that name
    monkeypatch.setitem(BENCHMARKS, "broken", ("broken", "Of the test."))
    command = importlib.import_module("localize_apps.bench").command
    names = next(option for option in command.params if option.name == "names")
    monkeypatch.setattr(names.type, "choices", (*BENCHMARKS,))
    assert main(["bench", "--only", "broken"]) == 1
    assert "benchmark broken: ended with status 1" in capsys.readouterr().err


def test_list_and_wrong_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)
    assert main(["bench", "--only", "nonsense"]) == 2


def test_exponent_of_a_power_with_noise() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    off = []
    for _ in range(400):
        power, error = turns.exponent(sizes, 3e-3 * sizes**1.5 * np.exp(0.05 * rng.standard_normal(6)))
        off.append((power - 1.5) / error)
    # Student's t with 4 degrees of freedom: 68 % within 1.13
    assert abs(np.median(off)) < 0.2
    assert np.mean(np.abs(off) < 1.13) == pytest.approx(0.68, abs=0.08)
    power, error = turns.exponent(sizes, 3e-3 * sizes**2)
    assert (power, error) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9))
    assert math.isnan(turns.exponent([1.0, 2.0], [1.0, 2.0])[1])


@pytest.mark.parametrize("sizes", [[3.0], [3.0, 3.0]])
def test_exponent_needs_two_sizes(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="two different"):
        turns.exponent(sizes, sizes)


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that changes its pace between rounds changes no ratio."""
    paces = {"fast": iter([1.0, 1.0, 4.0, 0.5, 2.0]), "slow": iter([1.0, 1.0, 4.0, 0.5, 2.0])}
    found = turns.rates({"fast": lambda: 6.0 * next(paces["fast"]), "slow": lambda: 3.0 * next(paces["slow"])}, 4)
    assert turns.ratio(found, "fast", "slow") == 2.0
    assert turns.quartiles(found, "fast", "slow") == [2.0, 2.0]


def test_goals() -> None:
    def figure(goal: str | None, value: float, ratio: float | None = None) -> bool | None:
        return Figure("mel", "x", value, "", ratio=ratio, goal=goal).met

    assert [figure("≥ 2", 9.0, 1.9), figure("≤ 4", 4.0), figure("= 1", 9.0, 1.0), figure(None, 1.0)] == [
        *(False, True, True, None),
    ]


def test_what_is_no_number_is_null() -> None:
    assert figures.to_json({"a": math.nan, "b": [math.inf, 1.0]}) == '{"a": null, "b": [null, 1.0]}'


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    found = [
        Figure("mel", "kernel", 40e6, "MS/s", peer="FFTW", peer_value=80e6, ratio=0.4, goal="≥ 0.5", note="as planned"),
        Figure("latency", "window complete to subscriber, 1 receiver, P50", 3.0, "ms", goal="≤ 4"),
        Missing("mel", "torch", "pip install torch"),
        Growth("growth", "mel", "n_fft", [1.0, 2.0, 4.0], [1e-6, 2e-6, 4.1e-6], 1.02, 0.01),
    ]
    path = tmp_path / "run.jsonl"
    lines = [machine.describe(), *(each.as_dict() for each in found)]
    path.write_text("".join(figures.to_json(line) + "\n" for line in lines))
    return path


def test_earlier_figures_as_table_page_and_pictures(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    pictures = tmp_path / "pictures"
    assert main(["bench", "--from", str(earlier), "--markdown", str(page), "--plot", str(pictures)]) == 0
    assert "missed" in capsys.readouterr().out
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert "| mel: kernel | 40000000 MS/s | FFTW: 80000000 MS/s | 0.4 | ≥ 0.5 | **missed** |" in written
    assert "- mel: without torch, which is not installed (pip install torch)" in written
    assert "1.02 ± 0.01" in written
    names = {"performance_rates.png", "performance_growth.png", "performance_latency.png"}
    assert {each.name for each in pictures.iterdir()} == names
    assert all(f"](pictures/{name})" in written for name in names)


def test_earlier_figures_come_out_as_they_went_in(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--from", str(earlier)]) == 0
    assert capsys.readouterr().out == earlier.read_text()
    assert main(["bench", "--json", "--from", str(earlier), "--only", "latency"]) == 0
    kept = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("benchmark") for line in kept] == [None, "latency"]


@pytest.mark.parametrize("text", ["no JSON", '{"figure": "measured"}', "", "[]"])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_figures(path)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ConfigError, match="no place for figures"):
        write_markdown(page, "text")
    assert page.read_text() == "nothing"
