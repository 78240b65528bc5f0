"""Live streams whose windows get the answer of a recent one: when they do, and when the model is asked all the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from localize_core.cache.settings import CacheSettings, SimilaritySettings
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.serving.engine import Engine
from localize_core.serving.requests import Request
from localize_core.types.fix import Fix

STEPS = 24


@pytest.fixture
def alike(make_version) -> Callable[..., Engine]:
    """A maker of engines whose live streams may repeat answers, which say the version of their model as latitude."""
    made: list[Engine] = []

    def make(uri: Any = None, *, live: bool = True, **settings: Any) -> Engine:
        from localize_core.serving.settings import ServingSettings

        cache = CacheSettings(similar=SimilaritySettings())
        engine = Engine(ServingSettings(uri=str(uri or make_version(1)), poll_s=0.0, **settings), cache=cache)
        engine.prepare(STEPS)
        engine.start(live=live)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.stop()
        engine.close()


class Stream:
    """Noisy windows of one emitter, one after the other."""

    def __init__(self, engine: Engine, seed: int = 1) -> None:
        self.engine, self.numbers = engine, itertools.count()
        self.rng = np.random.default_rng(seed)
        self.level, self.flags, self.frequency_hz = -5.0, SampleFlag(0), 433e6

    def window(self) -> Window:
        contract = self.engine.contract
        shape = (len(contract.channels), contract.rows, STEPS)
        features = self.rng.normal(size=shape).astype(np.float32) * 0.05
        for index, channel in enumerate(contract.channels):
            features[index] += self.level if channel.feature == "log_mel" else 0.3
        receivers = len(contract.receivers)
        flags = (self.flags,) * receivers
        return Window(0, features, np.full(receivers, -20.0), flags, np.zeros(receivers, bool))

    def context(self) -> WindowContext:
        number = next(self.numbers)
        return WindowContext("s", "t", number, (0, 0.0), "host", self.frequency_hz, None, time.monotonic(), 0)

    def fixes(self, count: int) -> list[Fix]:
        return [self.engine.locate(self.window(), self.context()) for _ in range(count)]


def test_a_steady_emitter_is_asked_about_now_and_then(alike):
    engine = alike()
    fixes = Stream(engine).fixes(60)
    hits = sum(fix.cache_hit for fix in fixes)
    assert not fixes[0].cache_hit
    assert hits >= 40
    assert {fix.position for fix in fixes} == {fixes[0].position}
    told = engine.status()["similar"]["champion"]
    assert told["hits"] == hits
    assert sum(told["misses"].values()) == 60 - hits
    assert engine.info()["arms"]["champion"]["serving"]["windows"] == 60


def test_one_that_changes_is_asked_about_anew(alike):
    engine = alike()
    stream = Stream(engine)
    stream.fixes(10)
    stream.level += 0.5
    assert not all(fix.cache_hit for fix in stream.fixes(3))
    reasons = engine.status()["similar"]["champion"]["misses"]
    assert reasons.get("changed", 0) + reasons.get("moved", 0) >= 1


def test_another_version_never_gives_the_answers_of_the_one_before(alike, make_version):
    engine = alike(make_version(1))
    stream = Stream(engine)
    assert {fix.position.latitude for fix in stream.fixes(10)} == {1.0}
    make_version(2)
    engine.execute("reload")
    fixes = stream.fixes(10)
    assert {fix.position.latitude for fix in fixes} == {2.0}
    assert not fixes[0].cache_hit
    engine.execute("rollback")
    assert {fix.position.latitude for fix in stream.fixes(10)} == {1.0}


def test_another_tuning_or_trouble_of_a_receiver_begins_anew(alike):
    stream = Stream(alike())
    stream.fixes(10)
    stream.frequency_hz += 25e3
    assert not stream.fixes(1)[0].cache_hit
    stream.fixes(10)
    # In the middle of a batch, too.
    pairs = [(stream.window(), stream.context()) for _ in range(3)]
    stream.frequency_hz += 25e3
    pairs += [(stream.window(), stream.context()) for _ in range(3)]
    fixes = stream.engine.begin([window for window, _ in pairs], [context for _, context in pairs])()
    assert [fix.cache_hit for fix in fixes[:4]] == [True, True, True, False]
    stream.flags = SampleFlag.SATURATED
    assert not stream.fixes(1)[0].cache_hit


def test_a_batch_of_windows_is_as_good_as_one_after_the_other(alike):
    engine = alike()
    stream = Stream(engine)
    pairs = [(stream.window(), stream.context()) for _ in range(20)]
    fixes = engine.begin([window for window, _ in pairs], [context for _, context in pairs])()
    assert [fix.sequence for fix in fixes] == list(range(20))
    assert not fixes[0].cache_hit
    assert sum(fix.cache_hit for fix in fixes) >= 10


def test_requests_and_streams_that_wait_are_not_taken_for_the_live_one(alike):
    waiting = alike(live=False)
    assert not any(fix.cache_hit for fix in Stream(waiting).fixes(10))
    assert "similar" not in waiting.status()
    live = alike()
    stream = Stream(live)
    stream.fixes(10)
    fix = live.predict([Request("r", stream.window().features)])[0]
    assert not fix.cache_hit


def test_what_was_kept_goes_with_the_run(alike):
    engine = alike()
    stream = Stream(engine)
    stream.fixes(10)
    engine.stop()
    engine.start(live=True)
    assert not stream.fixes(1)[0].cache_hit


def test_a_challenger_is_compared_on_what_was_inferred_only(alike, make_version):
    challenger = {"uri": str(make_version(5, name="challenger.onnx")), "mode": "shadow"}
    engine = alike(make_version(1), challenger=challenger)
    engine._on_shadow = (shadows := []).append
    stream = Stream(engine)
    fixes = []
    for level in (-5.0, -4.0, -3.0):
        stream.level = level
        fixes += stream.fixes(10)
    inferred = sum(not fix.cache_hit for fix in fixes)
    assert 0 < inferred < 30
    engine.stop()  # waits for the comparisons
    comparison = engine.info()["experiment"]["comparison"]
    assert comparison["windows"] + engine.shadow_dropped == inferred == len(shadows)


def test_too_few_receivers_are_no_matter_of_likeness(alike):
    engine = alike()
    stream = Stream(engine)
    stream.fixes(5)
    window = replace(stream.window(), unusable=np.ones(len(engine.contract.receivers), bool))
    fix = engine.locate(window, stream.context())
    assert (fix.status, fix.cache_hit) == ("no_fix", False)
