"""Champion and challenger: who answers which stream, what a shadow may and may not do, and when a canary goes back."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.errors import ConfigError, UnavailableError
from localize_core.serving.experiment import Comparison, Experiment, bucket_percent
from localize_core.serving.settings import ChallengerSettings, GateSettings, ServingSettings, make_settings
from localize_core.types.fix import Position, Uncertainty

STREAMS = [f"stream-{n}" for n in range(10_000)]


@pytest.fixture
def arms(make_version, engines):
    """An engine with version 1 as champion, and version 2 as challenger in the mode that the test names."""

    def make(mode: str, *, live: bool = False, version: Any = None, **settings: Any) -> Any:
        other = make_version(2, name="challenger.onnx", **(version or {}))
        challenger = {"uri": str(other), "mode": mode, **settings}
        return engines(make_version(1), live=live, challenger=challenger)

    return make


# shares


@pytest.mark.parametrize("percent", [0.0, 1.0, 10.0, 33.3, 50.0, 100.0])
def test_the_share_is_kept_over_ten_thousand_streams(arms, make_window, make_context, percent):
    engine = arms("split", share_percent=percent)
    window = make_window(engine.contract)
    chosen = {stream: engine.locate(window, make_context(stream=stream)).model.arm for stream in STREAMS[:500]}
    experiment = engine._experiment
    assert all(experiment.serves(stream) == (arm == "challenger") for stream, arm in chosen.items())
    deviation = np.sqrt(percent * (100.0 - percent) / len(STREAMS))  # the shares of versions are drawn by their hashes
    assert abs(100.0 * np.mean([experiment.serves(stream) for stream in STREAMS]) - percent) <= 5.0 * deviation


def test_a_stream_keeps_its_arm(arms, make_window, make_context):
    engine = arms("split", share_percent=50.0)
    window = make_window(engine.contract)
    for stream in STREAMS[:50]:
        found = {engine.locate(window, make_context(n, stream=stream)).model.arm for n in range(20)}
        assert len(found) == 1


def test_a_larger_share_takes_no_stream_back():
    experiment = Experiment(ChallengerSettings(uri="b.onnx", mode="split", share_percent=10.0))
    before = {stream for stream in STREAMS if experiment.serves(stream)}
    experiment.set_share_percent(30.0)
    assert before < {stream for stream in STREAMS if experiment.serves(stream)}


def test_another_experiment_chooses_other_streams():
    chosen = [{s for s in STREAMS if bucket_percent(s, name) < 10.0} for name in ("one", "two")]
    shared = len(chosen[0] & chosen[1]) / len(chosen[0])
    assert 0.05 < shared < 0.15  # as chance has it


def test_requests_are_shared_out_by_their_stream(arms):
    from localize_core.serving.requests import Request

    engine = arms("split", share_percent=50.0)
    features = np.full((3, 16, 4), 0.5, np.float32)
    fixes = engine.predict([Request(s, features, stream=s) for s in STREAMS[:100]])
    assert [fix.model.arm == "challenger" for fix in fixes] == [engine._experiment.serves(s) for s in STREAMS[:100]]
    assert [round(fix.position.latitude) for fix in fixes] == [1 + (fix.model.arm == "challenger") for fix in fixes]


def test_the_share_changes_while_running(arms, make_window, make_context):
    engine = arms("split", share_percent=0.0)
    window = make_window(engine.contract)
    assert engine.locate(window, make_context()).model.arm == "champion"
    engine.execute("share", percent=100.0)
    fix = engine.locate(window, make_context())
    assert (fix.model.arm, fix.model.version) == ("challenger", "2")
    with pytest.raises(ConfigError, match=r"share_percent=101\.0: must lie between"):
        engine.execute("share", percent=101.0)
    engine.execute("promote")
    fix = engine.locate(window, make_context())
    assert (fix.model.arm, fix.model.version) == ("champion", "2")
    engine.execute("rollback")
    assert engine.locate(window, make_context()).model.version == "1"


# shadow


def test_a_shadow_sees_every_window_and_decides_nothing(arms, make_window, make_context):
    engine = arms("shadow")
    window = make_window(engine.contract)
    fixes = [engine.locate(window, make_context(n)) for n in range(50)]
    engine._shadow.drain()
    assert {(fix.model.version, fix.model.arm) for fix in fixes} == {("1", "champion")}
    assert {(fix.model.version, fix.model.arm) for fix in engine.shadows} == {("2", "shadow")}
    assert [fix.sequence for fix in engine.shadows] == list(range(50))
    comparison = engine.execute("info")["experiment"]["comparison"]
    assert comparison["windows"] == 50
    assert comparison["distance_m"] == pytest.approx(110_600.0, rel=0.01)  # a degree of latitude
    assert comparison["ellipse_ratio"] == pytest.approx(1.0)


def hold(engine: Any, arm: str) -> threading.Event:
    """No window is answered by that arm before the event is set."""
    gate = threading.Event()
    model = getattr(engine, arm).current.locator.model
    run = model.run

    def held(features: np.ndarray) -> Any:
        assert gate.wait(30.0)
        return run(features)

    model.run = held
    return gate


def test_a_slow_shadow_is_dropped_and_the_stream_does_not_wait(arms, make_window, make_context):
    engine = arms("shadow", live=True)
    gate = hold(engine, "_challenger")
    window = make_window(engine.contract)
    long = replace(window, features=np.repeat(window.features, 1000, axis=2))
    fixes = [engine.locate(long, make_context(n)) for n in range(100)]
    assert len(fixes) == 100
    gate.set()
    engine._shadow.drain()
    assert engine.shadow_dropped >= 100 - 9  # one was being answered, eight waited
    assert engine.shadow_dropped + len(engine.shadows) == 100
    assert engine.execute("info")["shadow_dropped"] == engine.shadow_dropped


def test_a_stream_that_is_behind_has_the_machine_for_itself(arms, make_window, make_context):
    engine = arms("shadow", live=True)
    late = replace(make_context(), completed_s=make_context().completed_s - 10.0)
    engine.locate(make_window(engine.contract), late)
    engine._shadow.drain()
    assert engine.shadows == []
    assert engine.shadow_dropped == 1


def test_a_challenger_that_is_no_good_leaves_the_champion_alone(arms, make_window, make_context):
    engine = arms("shadow", version={"shape": ("batch", 3, 17, "time_steps")})
    assert engine.locate(make_window(engine.contract), make_context()).status == "ok"
    assert [condition.name for condition in engine.health.conditions] == ["challenger_rejected"]
    assert engine.execute("info")["arms"]["challenger"]["serving"] is None


# canary


# However busy the machine is, these models are fast enough.
GATES = {"min_windows": 20, "max_distance_sigma": 1.0, "latency_floor_ms": 1e6}
SAME = {"position": (1.0, 8.0)}


def run_canary(engine: Any, window: Any, make_context: Any, count: int, stream: str = "t") -> list[Any]:
    fixes = [engine.locate(window, make_context(n, stream=stream)) for n in range(count)]
    engine._shadow.drain()
    return fixes


def test_a_good_canary_goes_all_the_way(arms, make_window, make_context):
    engine = arms("canary", version=SAME, gates=GATES)
    window = make_window(engine.contract)
    shares = []
    for _ in range(4):
        shares.append(engine._experiment.share_percent)
        run_canary(engine, window, make_context, 20)
    assert shares == [1.0, 10.0, 50.0, 100.0]
    assert engine._experiment.state == "complete"
    fix = engine.locate(window, make_context())
    assert (fix.model.arm, fix.model.version) == ("challenger", "2")
    assert engine.health.state == "ready"


def test_a_canary_takes_streams_one_way_only(arms, make_window, make_context):
    engine = arms("canary", version=SAME, gates=GATES | {"min_windows": 100})
    window, streams = make_window(engine.contract), STREAMS[:100]
    seen: dict[str, list[str]] = {stream: [] for stream in streams}
    for _ in range(6):
        for stream in streams:
            seen[stream].append(engine.locate(window, make_context(stream=stream)).model.arm)
        engine._shadow.drain()
    assert all(arms == sorted(arms, reverse=True) for arms in seen.values())  # champion, champion, challenger, …
    counts = [Counter(arms[n] for arms in seen.values())["challenger"] for n in range(6)]
    assert counts[0] <= 5
    assert 2 <= counts[1] <= 20
    assert 35 <= counts[2] <= 65
    assert counts[3:] == [100] * 3


@pytest.mark.parametrize(
    ("version", "gates", "reason"),
    [
        ({"position": (2.0, 8.0)}, {}, "sigma from the champion's, 1 are allowed"),
        ({**SAME, "uncertainty": (900.0, 600.0, 30.0)}, {}, "its ellipses are 5.20 times the champion's"),
        ({**SAME, "uncertainty": (20.0, 10.0, 30.0)}, {}, "its ellipses are 0.10 times the champion's"),
        ({**SAME, "confidence": (0.2,)}, {}, "on 20 of 20 windows only one of the arms has a position"),
        (
            {"position": lambda means: op.sqrt(op.sub(op.const(np.float32(0.2)), pair(means)))},
            {},
            "it fails on 20 of 20",
        ),
        (SAME, {"max_latency_ratio": 1e-6, "latency_floor_ms": 0.0}, "its P95 is"),
    ],
)
def test_a_canary_that_misses_a_gate_goes_back(arms, make_window, make_context, version, gates, reason):
    engine = arms("canary", version=version, gates=GATES | gates)
    window = make_window(engine.contract)
    run_canary(engine, window, make_context, 20)
    experiment = engine.execute("info")["experiment"]
    assert experiment["state"] == "rolled_back"
    assert experiment["reason"].startswith("at 1 %: ")
    assert reason in experiment["reason"]
    assert engine.said[-1]["reasons"][0] | {"since": ""} == {
        "reason": "experiment_rolled_back",
        "detail": experiment["reason"],
        "since": "",
    }
    assert all(fix.model.arm == "champion" for fix in run_canary(engine, window, make_context, 40))


def pair(means: Any) -> Any:
    return op.gather(means, op.const(np.array([0, 1], np.int64)), axis=1)


def test_another_challenger_begins_at_the_first_step(arms, make_version, make_window, make_context):
    engine = arms("canary", version={"position": (2.0, 8.0)}, gates=GATES)
    window = make_window(engine.contract)
    run_canary(engine, window, make_context, 20)
    assert engine._experiment.state == "rolled_back"
    make_version(3, name="challenger.onnx", **SAME)
    engine._poll()
    assert (engine._experiment.state, engine._experiment.share_percent) == ("running", 1.0)
    assert engine.health.state == "ready"


def test_configure_begins_and_ends_an_experiment(make_version, engines, make_window, make_context):
    engine = engines(make_version(1))
    other = make_version(2, name="challenger.onnx")
    settings = ChallengerSettings(uri=str(other), mode="split", share_percent=100.0)
    engine.configure(engine.settings.model_copy(update={"challenger": settings})).result()
    window = make_window(engine.contract)
    assert engine.locate(window, make_context()).model.arm == "challenger"
    engine.configure(engine.settings.model_copy(update={"challenger": None})).result()
    assert engine.locate(window, make_context()).model.arm == "champion"


# the comparison itself


def test_comparison_figures(make_fix):
    """Against numbers worked out by hand: 100 m north, sigmas of 30 and 40 m along it."""
    comparison = Comparison()
    ours = make_fix(position=Position(45.0, 7.0), uncertainty=Uncertainty(10.0, 30.0, 0.0))
    theirs = make_fix(position=Position(45.0 + 100.0 / 111_131.8, 7.0), uncertainty=Uncertainty(40.0, 10.0, 90.0))
    comparison.add(ours, theirs)
    found = comparison.as_dict()
    assert found["distance_m"] == pytest.approx(100.0, rel=1e-4)
    assert found["distance_sigma"] == pytest.approx(2.0, rel=1e-4)  # of sqrt(30² + 40²)
    assert found["ellipse_ratio"] == pytest.approx((400.0 / 300.0) ** 0.5)
    comparison.add(ours, make_fix(reason="no_emitter"))
    comparison.add(make_fix(reason="no_emitter"), make_fix(reason="no_emitter"))
    comparison.add(ours, make_fix(reason="model_error"))
    comparison.add(make_fix(reason="model_error"), make_fix(reason="model_error"))
    found = comparison.as_dict()
    # That both hear nothing tells nothing, and neither does a window that the champion fails on.
    assert (found["windows"], found["errors"], found["disagreements"]) == (3, 1, 1)


def test_gates_wait_for_enough_windows(make_fix):
    settings = ChallengerSettings(uri="b.onnx", mode="canary", gates=GateSettings(min_windows=3))
    experiment = Experiment(settings)
    changes = [experiment.compare(make_fix(), make_fix()) for _ in range(12)]
    assert changes == [False, False, True] * 4
    assert experiment.state == "complete"
    assert experiment.compare(make_fix(), make_fix(reason="model_error")) is False


def test_ellipses_without_width_are_compared_too(make_fix):
    comparison = Comparison()
    comparison.add(*[make_fix(uncertainty=Uncertainty(100.0, 1e-7, 30.0))] * 2)
    assert comparison.as_dict()["distance_sigma"] == pytest.approx(0.0, abs=1e-6)


# what tells nothing, and what is away


def test_silence_lets_no_canary_pass(arms, make_window, make_context):
    engine = arms("canary", version=SAME, gates=GATES)
    silent = replace(make_window(engine.contract), unusable=np.ones(2, bool))
    run_canary(engine, silent, make_context, 100)
    experiment = engine.execute("info")["experiment"]
    assert (experiment["share_percent"], experiment["comparison"]["windows"]) == (1.0, 0)


def leave(arm: Any) -> threading.Event:
    """That arm's model is out of reach while the event is set."""
    away = threading.Event()
    model = arm.current.locator.model
    run = model.run

    def absent(features: np.ndarray) -> Any:
        if away.is_set():
            raise UnavailableError("far: nobody there")
        return run(features)

    model.run = absent
    away.set()
    return away


def test_a_challenger_that_is_away_goes_back_and_its_streams_have_their_fixes(arms, make_window, make_context):
    engine = arms("canary", version=SAME, gates=GATES, steps_percent=[100.0])
    leave(engine._challenger)
    fixes = run_canary(engine, make_window(engine.contract), make_context, 20)
    assert {(fix.status, fix.model.arm) for fix in fixes} == {("ok", "champion")}
    assert engine._experiment.state == "rolled_back"
    assert "it fails on 20 of 20" in engine._experiment.reason


def test_a_challenger_is_not_held_against_the_fallback(arms, make_version, make_window, make_context, engines):
    other = make_version(2, name="challenger.onnx")
    challenger = {"uri": str(other), "mode": "canary", "gates": GATES}
    engine = engines(make_version(1), challenger=challenger, fallback=str(make_version(9, name="local.onnx")))
    leave(engine._champion)
    run_canary(engine, make_window(engine.contract), make_context, 50)
    assert engine._experiment.state == "running"
    assert engine.execute("info")["experiment"]["comparison"]["windows"] == 0


def test_what_fails_in_comparing_ends_the_experiment_and_not_the_stream(
    arms, make_window, make_context, monkeypatch, wait_until
):
    engine = arms("shadow")

    def broken(*_: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(Comparison, "add", broken)
    window = make_window(engine.contract)
    fixes = []

    def ask_until_it_is_seen() -> bool:
        fixes.append(engine.locate(window, make_context(len(fixes))))
        return engine._experiment.state == "rolled_back"

    wait_until(ask_until_it_is_seen)
    assert "comparing has failed: ValueError: no such thing" in engine.health.conditions[0].detail
    assert all(fix.status == "ok" for fix in fixes)


def test_promote_without_a_version_changes_nothing(arms, make_window, make_context):
    engine = arms("split", version={"shape": ("batch", 3, 17, "time_steps")}, share_percent=100.0)
    with pytest.raises(ConfigError, match="challenger has no version that serves"):
        engine.execute("promote")
    assert engine._experiment is not None


def test_a_challenger_that_leaves_takes_its_conditions_along(arms, make_window, make_context):
    broken = {"position": lambda means: op.sqrt(op.sub(op.const(np.float32(0.2)), pair(means)))}
    engine = arms("shadow", version=broken)
    run_canary(engine, make_window(engine.contract), make_context, 5)
    assert [condition.name for condition in engine.health.conditions] == ["challenger_error"]
    engine.configure(engine.settings.model_copy(update={"challenger": None})).result()
    assert engine.health.state == "ready"


def test_a_promoted_version_outlives_a_reload(arms, make_window, make_context):
    engine = arms("split", share_percent=0.0)
    engine.execute("promote")
    engine.execute("reload")
    engine.configure(engine.settings).result()
    assert engine.locate(make_window(engine.contract), make_context()).model.version == "2"


def test_a_challenger_that_is_not_there_yet_is_not_held_against_anybody(arms, make_version, make_window, make_context):
    engine = arms("canary", version={"shape": ("batch", 3, 17, "time_steps")}, gates=GATES)
    fixes = [engine.locate(make_window(engine.contract), make_context(n)) for n in range(50)]
    assert all(fix.model.arm == "champion" for fix in fixes)
    assert engine._experiment.state == "running"
    make_version(2, name="challenger.onnx", **SAME)
    engine._poll()
    run_canary(engine, make_window(engine.contract), make_context, 20)
    assert engine._experiment.share_percent == 10.0


def test_a_challenger_that_was_rolled_back_is_not_promoted_in_passing(arms, make_window, make_context):
    engine = arms("canary", version={"position": (2.0, 8.0)}, gates=GATES)
    run_canary(engine, make_window(engine.contract), make_context, 20)
    with pytest.raises(ConfigError, match=r"promote: the challenger was rolled back at 1 %: its fixes lie"):
        engine.execute("promote")
    assert engine.locate(make_window(engine.contract), make_context()).model.version == "1"


@pytest.mark.parametrize(
    ("mode", "key", "value"),
    [("shadow", "share_percent", 5.0), ("split", "steps_percent", [5.0]), ("split", "gates", {})],
)
def test_settings_that_mean_nothing_are_refused(mode, key, value):
    with pytest.raises(ConfigError, match=f"{key} means nothing with mode {mode}"):
        make_settings(ServingSettings, uri="a.onnx", challenger={"uri": "b.onnx", "mode": mode, key: value})
