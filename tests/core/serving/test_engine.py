"""One engine: which model answers, how versions change under it, and what it says of itself."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.errors import ConfigError, DigestError, EngineError, ModelError, UnavailableError
from localize_core.model.contract import METADATA_KEY, Golden, Receiver
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.registry import ModelRegistry
from localize_core.model.session import OPTIMISATIONS
from localize_core.serving.engine import Engine
from localize_core.serving.requests import MAX_REQUESTS, Request
from localize_core.serving.settings import ServingSettings, make_settings
from localize_core.serving.watcher import Watcher

STEPS = 4


def served(fix: Any) -> int:
    """The version that answered, by its answer, which must be the one that the fix names."""
    version = round(fix.position.latitude)
    assert fix.model.version == str(version)
    return version


@pytest.fixture
def ask(make_window, make_context):
    def ask(engine: Engine, **context: Any) -> Any:
        return engine.locate(make_window(engine.contract), make_context(**context))

    return ask


# loading


def test_a_file(make_version, engines, ask):
    engine = engines(make_version(1))
    fix = ask(engine)
    assert served(fix) == 1
    assert (fix.model.arm, fix.model.backend) == ("champion", "onnxruntime")
    assert engine.health.state == "ready"
    assert engine.said[0]["model"] == "tiny"


def test_the_window_must_suit_the_contract(make_version):
    engine = Engine(ServingSettings(uri=str(make_version(1, contract={"time_steps": 6}))))
    with pytest.raises(ConfigError, match="time_steps=4: the model tiny wants 6"):
        engine.prepare(4)
    engine.prepare()
    assert engine.time_steps == 6


def test_requests_alone_may_be_of_any_length(make_version):
    engine = Engine(ServingSettings(uri=str(make_version(1, contract={"min_time_steps": 3}))))
    engine.prepare_for_requests()
    contract, rng = engine.contract, np.random.default_rng(5)
    fewest = engine.reader.samples_needed
    samples = (rng.normal(size=(2, fewest + 5 * contract.hop)) + 0j).astype(np.complex64)
    lengths = [fewest, fewest + 2 * contract.hop + 1, fewest + 5 * contract.hop]
    fixes = engine.predict([Request(str(n), samples[:, :n]) for n in (*lengths, fewest - 1)])
    assert [fix.window_samples // contract.hop for fix in fixes[:3]] == [3, 5, 8]
    assert [fix.reason for fix in fixes] == [None, None, None, "invalid_request"]
    fixed = Engine(ServingSettings(uri=str(make_version(1, contract={"time_steps": 6}, name="fixed.onnx"))))
    fixed.prepare_for_requests()
    assert fixed.time_steps == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uri": "models:/x"}, "uri='models:/x': model 'models:/x': wanted models:/NAME@ALIAS"),
        ({"uri": ""}, "uri=''"),
        ({"uri": "a.onnx", "poll_s": -1.0}, "poll_s=-1.0"),
        ({"uri": "a.onnx", "challenger": {"uri": "compiled"}}, "it is no challenger"),
        ({"uri": "a.onnx", "challenger": {"uri": "b.onnx", "steps_percent": [10.0, 1.0]}}, "steps must rise"),
        ({"uri": "a.onnx", "session": {"providers": ["gpu"]}}, "'gpu' is no provider, known are cpu, cuda"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError) as raised:
        make_settings(ServingSettings, **settings)
    assert message in str(raised.value)


def test_compiled_needs_a_station():
    with pytest.raises(ConfigError, match="needs a station's geometry"):
        Engine(ServingSettings(uri="compiled"))


def test_a_missing_provider(make_version, caplog):
    path = str(make_version(1))
    with pytest.raises(ConfigError, match="tensorrt is not part of this ONNX Runtime"):
        Engine(ServingSettings(uri=path, session={"providers": ["tensorrt", "cpu"], "strict": True}))
    Engine(ServingSettings(uri=path, session={"providers": ["tensorrt"]}))
    assert "tensorrt is not part of this ONNX Runtime" in caplog.text


@pytest.mark.parametrize(
    "session",
    [
        {"threads": 2},
        {"optimisation": "none"},
        {"optimisation": "basic"},
        {"optimisation": "extended"},
        {"arena": False},
    ],
)
def test_session_settings_reach_the_session_and_leave_answers_as_they_are(make_version, engines, ask, session):
    engine = engines(make_version(1), session=session)
    assert served(ask(engine)) == 1
    options = engine._champion.current.locator.model._session.get_session_options()
    assert options.intra_op_num_threads == session.get("threads", 1)
    assert options.graph_optimization_level == OPTIMISATIONS[session.get("optimisation", "all")]
    assert options.enable_cpu_mem_arena == session.get("arena", True)


# bad models: none serves, each error names its cause


def flip(path: Path) -> None:
    """Cut short."""
    path.write_bytes(path.read_bytes()[:-20])


def external(path: Path) -> None:
    """Tensors in a file beside it, which is gone."""
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location="weights.data", size_threshold=0, convert_attribute=True
    )
    (path.parent / "weights.data").unlink()


def unknown_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type = "FluxCapacitor"
    onnx.save(model, path)


def poisoned(path: Path) -> None:
    """NaN in the weights that make the position."""
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and list(attribute.t.dims) == [1, 2]:
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 2), np.nan, np.float32)))
    onnx.save(model, path)


GOLDEN = Golden(seed=1, time_steps=STEPS, position=(1.0, 8.0), uncertainty=(200.0, 100.0, 30.0), confidence=0.9)
MOVED = tuple(Receiver(name=f"r{k}", latitude=40.0, longitude=8.0 + 0.1 * k) for k in range(2))
BAD_MODELS = {
    "cut short": ({}, flip, "damaged or cut short"),
    "not ONNX": ({}, lambda path: path.write_bytes(b"PK\x03\x04 not a model"), "no ONNX file at all"),
    "wrong shape": ({"shape": ("batch", 3, 17, "time_steps")}, None, "has shape ['batch', 3, 17"),
    "wrong names": ({"outputs": ("position", "confidence")}, None, "outputs ['position', 'uncertainty', 'confidence']"),
    "NaN weights": ({}, poisoned, "values that are not finite; there is NaN in"),
    "golden": ({"contract": {"golden": GOLDEN}, "position": (2.0, 8.0)}, None, "golden vector: expected position"),
    "external data": ({}, external, "its tensors lie in weights.data, which is missing"),
    "operator": ({}, unknown_operator, "FluxCapacitor"),
    "station": ({"contract": {"receivers": MOVED}}, None, "a model of another station: its receiver r0 stands"),
    "channels": ({"receivers": 3}, None, "a model of another station: it wants"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_never_serves(kind, make_version, engines, ask, tmp_path):
    changes, damage, cause = BAD_MODELS[kind]
    good = make_version(1)
    engine = engines(good)
    keep = good.read_bytes()
    path = make_version(2, **changes)
    if damage is not None:
        damage(path)
    with pytest.raises(ModelError) as raised:
        engine.execute("reload")
    assert cause in str(raised.value)
    assert served(ask(engine)) == 1
    assert engine.execute("info")["arms"]["champion"]["serving"]["version"] == "1"
    engine._poll()  # what the watcher does by itself
    assert [condition.name for condition in engine.health.conditions] == ["model_rejected"]
    assert cause in engine.health.conditions[0].detail
    assert engine.health.state == "degraded"
    assert served(ask(engine)) == 1
    path.write_bytes(keep)  # the alias of a file that is right again
    engine._poll()
    assert engine.health.state == "ready"


def test_a_wrong_digest_never_serves(make_version, engines, ask, tmp_path):
    registry = f"sqlite:///{tmp_path}/models.db"
    models = ModelRegistry(registry)
    first = models.register(make_version(1), "m")
    models.promote("m", first.version, "champion")
    engine = engines("models:/m@champion", registry=registry)
    second = models.register(make_version(2), "m")
    (artifact,) = [
        p for p in tmp_path.rglob("*.onnx") if p.parent != tmp_path and b'"model_version":"2"' in p.read_bytes()
    ]
    artifact.write_bytes(artifact.read_bytes().replace(b"localize", b"locolize", 1))
    models.promote("m", second.version, "champion")
    with pytest.raises(DigestError, match=r"sha256 is \w{64}, the registry says \w{64}"):
        engine.execute("reload")
    assert ask(engine).position.latitude == pytest.approx(1.0)
    engine._poll()
    assert [condition.name for condition in engine.health.conditions] == ["model_rejected"]


def test_no_first_model_no_engine(make_version, tmp_path):
    path = make_version(1)
    flip(path)
    with pytest.raises(ModelError, match="damaged or cut short"):
        Engine(ServingSettings(uri=str(path)))


# changes


def test_reload_serves_what_the_file_holds_now(make_version, engines, ask):
    engine = engines(make_version(1))
    make_version(2)
    assert served(ask(engine)) == 1
    assert engine.execute("reload")["arms"]["champion"]["serving"]["version"] == "2"
    assert served(ask(engine)) == 2


def test_the_watcher_notices_by_itself(make_version, engines, ask, wait_until):
    engine = engines(make_version(1), poll_s=0.02)
    make_version(2)
    wait_until(lambda: served(ask(engine)) == 2)
    wait_until(lambda: [status["version"] for status in engine.said][-1] == "2")


def test_rollback_is_at_hand_and_lasts_until_there_is_news(make_version, engines, ask):
    engine = engines(make_version(1))
    with pytest.raises(ConfigError, match="no version before this one"):
        engine.execute("rollback")
    make_version(2)
    engine.execute("reload")
    engine.execute("rollback")
    assert served(ask(engine)) == 1
    engine._poll()
    assert served(ask(engine)) == 1  # the file still holds what was rolled back
    make_version(3)
    engine._poll()
    assert served(ask(engine)) == 3


def test_a_version_before_the_last_is_let_go(make_version, engines):
    engine = engines(make_version(1))
    models = []
    for version in (2, 3, 4):
        models.append(weakref.ref(engine._champion.current.locator.model))
        make_version(version)
        engine.execute("reload")
    gc.collect()
    assert [model() is None for model in models] == [True, True, False]


def test_a_window_in_flight_keeps_its_version(make_version, engines, ask, make_window, make_context):
    """A swap in the middle of an inference: the fix is of the old version alone, and only then is that one let go."""
    engine = engines(make_version(1))
    inside, go_on, found = threading.Event(), threading.Event(), []
    model = engine._champion.current.locator.model
    run = model.run

    def slow(features):
        inside.set()
        assert go_on.wait(30.0)
        return run(features)

    model.run = slow
    thread = threading.Thread(target=lambda: found.append(ask(engine)))
    thread.start()
    assert inside.wait(30.0)
    make_version(2)
    engine.execute("reload")
    assert served(ask(engine)) == 2
    make_version(3)
    pending = engine.submit("reload")  # has to wait: version 1 is still in use
    assert served(ask(engine)) in (2, 3)
    go_on.set()
    pending.result(30.0)
    thread.join(30.0)
    assert served(found[0]) == 1


def test_activate_a_version_of_the_registry(make_version, engines, ask, tmp_path):
    registry = f"sqlite:///{tmp_path}/models.db"
    models = ModelRegistry(registry)
    numbers = [models.register(make_version(version), "m").version for version in (1, 2, 3)]
    models.promote("m", numbers[0], "champion")
    engine = engines("models:/m@champion", registry=registry)
    fix = ask(engine)
    assert (fix.model.name, fix.model.version) == ("m", numbers[0])
    engine.execute("activate", version=numbers[2])
    assert ask(engine).position.latitude == pytest.approx(3.0)
    engine._poll()
    assert ask(engine).position.latitude == pytest.approx(3.0)  # the alias has not moved
    models.promote("m", numbers[1], "champion")
    engine._poll()
    assert ask(engine).position.latitude == pytest.approx(2.0)


def test_configure_goes_over_to_another_source(make_version, engines, ask):
    engine = engines(make_version(1))
    other = make_version(2, name="other.onnx")
    engine.configure(engine.settings.model_copy(update={"uri": str(other)})).result()
    assert served(ask(engine)) == 2
    bad = engine.settings.model_copy(update={"uri": "nowhere.onnx"})
    with pytest.raises(ModelError, match=r"nowhere\.onnx: cannot be read"):
        engine.configure(bad).result()
    assert served(ask(engine)) == 2
    with pytest.raises(ConfigError, match="fallback"):
        engine.configure(engine.settings.model_copy(update={"fallback": str(other)})).result()


@pytest.mark.parametrize(
    ("command", "parts", "message"),
    [
        ("dance", {}, "must be one of info, health, reload"),
        ("activate", {}, "needs a version"),
        ("activate", {"version": "7"}, "a file has no versions to choose from"),
        ("reload", {"arm": "challenger"}, "there is none; there are champion"),
        ("promote", {}, "there is no challenger"),
        ("share", {}, "needs percent"),
        ("share", {"percent": 5.0}, "only a challenger in mode split"),
    ],
)
def test_commands_that_cannot_be_carried_out(make_version, engines, ask, command, parts, message):
    engine = engines(make_version(1))
    with pytest.raises(ConfigError) as raised:
        engine.execute(command, **parts)
    assert message in str(raised.value)
    assert served(ask(engine)) == 1


def test_an_engine_that_does_not_run_loads_nothing(make_version, engines):
    engine = engines(make_version(1), started=False)
    with pytest.raises(ConfigError, match="not running"):
        engine.execute("reload")
    assert engine.execute("health")["state"] == "starting"


def test_two_hundred_swaps_under_load(make_version, engines, make_window, make_context):
    """Two streams ask without a pause: every fix is there once, in order, and of one version alone."""
    engine = engines(make_version(1))
    window, ending = make_window(engine.contract), threading.Event()
    fixes: dict[str, list[Any]] = {"a": [], "b": []}

    def stream(name: str) -> None:
        while not ending.is_set():
            fixes[name].append(engine.locate(window, make_context(len(fixes[name]), stream=name)))

    threads = [threading.Thread(target=stream, args=(name,)) for name in fixes]
    for thread in threads:
        thread.start()
    for version in range(2, 91):
        make_version(version % 80 + 1)
        engine.execute("reload")
    for _ in range(111):
        engine.execute("rollback")
    ending.set()
    for thread in threads:
        thread.join(30.0)
    for name, found in fixes.items():
        assert [fix.sequence for fix in found] == list(range(len(found)))
        assert {fix.stream for fix in found} == {name}
        assert len(Counter(map(served, found))) > 10
        assert all(fix.status == "ok" for fix in found)
    assert engine.health.state == "ready"


# what it says of itself


def test_info(make_version, engines, ask):
    accuracy = {"rmse_m": 12.5, "on": "a test"}
    engine = engines(make_version(1, contract={"accuracy": accuracy}))
    for sequence in range(10):
        ask(engine, sequence=sequence)
    info = json.loads(json.dumps(engine.execute("info")))
    champion = info["arms"]["champion"]["serving"]
    assert (champion["version"], champion["windows"], champion["errors"]) == ("1", 10, 0)
    quantiles = champion["inference_time_ms"]
    assert 0.0 < quantiles["p50"] <= quantiles["p95"] <= quantiles["p99"]
    assert champion["accuracy"] == accuracy
    assert champion["contract"]["receivers"] == ["r0", "r1"]
    assert champion["contract"]["channels"] == ["log_mel r0", "log_mel r1", "cross_correlation r0-r1"]
    assert info["experiment"] is None
    assert info["fallback"] is None


def test_health_over_a_life(make_version):
    engine = Engine(ServingSettings(uri=str(make_version(1))))
    engine.prepare(STEPS)
    health = engine.health
    assert (health.state, health.live, health.ready) == ("starting", True, False)
    engine.start()
    assert (health.state, health.live, health.ready) == ("ready", True, True)
    health.report("model_error", "once")
    assert (health.state, health.live, health.ready) == ("degraded", True, True)
    assert health.as_dict()["reasons"][0]["reason"] == "model_error"
    health.clear("model_error")
    engine.stop()
    assert (health.state, health.live, health.ready) == ("stopped", False, False)
    health.fail("the worker has died")
    health.stop()
    assert (health.state, health.as_dict()["failure"]) == ("failed", "the worker has died")


def test_a_model_that_fails_is_a_condition_until_it_answers(make_version, engines, make_window, make_context):
    path = make_version(1, position=lambda means: op.sqrt(op.sub(op.const(np.float32(1.0)), first_two(means))))
    engine = engines(path)
    fix = engine.locate(make_window(engine.contract, value=2.0), make_context())
    assert fix.reason == "model_error"
    assert engine.said[-1]["reasons"][0]["reason"] == "model_error"
    assert engine.locate(make_window(engine.contract, value=-2.0), make_context()).status == "ok"
    assert engine.said[-1]["state"] == "ready"
    assert engine.execute("info")["arms"]["champion"]["serving"]["errors"] == 1


def first_two(means: Any) -> Any:
    return op.gather(means, op.const(np.array([0, 1], np.int64)), axis=1)


# requests


def features_of(engine: Engine, value: float = 0.5, steps: int = STEPS) -> np.ndarray:
    return np.full((len(engine.contract.channels), engine.contract.rows, steps), value, np.float32)


def test_a_batch_answers_each_with_its_id(make_version, engines):
    engine = engines(make_version(1))
    requests = [Request(str(n), features_of(engine, steps=STEPS + n % 3).ravel()) for n in range(MAX_REQUESTS)]
    fixes = engine.predict(requests)
    assert [fix.id for fix in fixes] == [request.id for request in requests]
    assert all(served(fix) == 1 for fix in fixes)
    assert [fix.window_samples for fix in fixes] == [64 * (STEPS + n % 3) for n in range(MAX_REQUESTS)]
    assert len({fix.sequence for fix in fixes}) == MAX_REQUESTS
    assert {fix.time_source for fix in fixes} == {"none"}


@pytest.mark.parametrize("count", [0, MAX_REQUESTS + 1])
def test_a_batch_of_another_size(make_version, engines, count):
    engine = engines(make_version(1))
    with pytest.raises(ConfigError, match="a batch has 1 to 100"):
        engine.predict([Request("x", features_of(engine))] * count)


def test_each_request_fails_alone(make_version, engines):
    engine = engines(make_version(1))
    good = features_of(engine)
    requests = [
        Request("good", good),
        Request("rows", good[:, :-1]),
        Request("nan", np.full_like(good, np.nan)),
        Request("nobody", good, receivers=("r9",)),
        Request("twice", good, receivers=("r0", "r0")),
        Request("none", good, receivers=()),
        Request("empty", good[:, :, :0]),
        Request("short", np.zeros((2, 10), np.complex64)),
        Request("odd", np.zeros(11, np.complex64)),
        Request("good too", good),
    ]
    fixes = {fix.id: fix for fix in engine.predict(requests)}
    assert served(fixes["good"]) == served(fixes["good too"]) == 1
    assert fixes["nan"].reason == "invalid_samples"
    bad = {request.id for request in requests} - {"good", "good too", "nan"}
    assert {id: fixes[id].reason for id in bad} == dict.fromkeys(bad, "invalid_request")


def test_one_windows_failure_leaves_the_batch_alone(make_version, engines, monkeypatch):
    engine = engines(make_version(1))
    model = engine._champion.current.locator.model
    run = model.run

    def picky(features: np.ndarray) -> Any:
        if (features == 7.0).any():
            raise EngineError("not this one")
        return run(features)

    monkeypatch.setattr(model, "run", picky)
    fixes = engine.predict([Request(str(n), features_of(engine, value=7.0 if n == 2 else 0.5)) for n in range(5)])
    assert [fix.reason for fix in fixes] == [None, None, "model_error", None, None]


def test_samples_give_what_their_features_give(make_contract, make_model, engines):
    """The answer is the mean of the first two channels; frames are those that lie wholly inside the samples."""
    contract = make_contract(2)
    engine = engines(make_model(contract, position=first_two))
    rng = np.random.default_rng(5)
    samples = (rng.standard_normal((2, 64 * 8)) + 1j * rng.standard_normal((2, 64 * 8))).astype(np.complex64)
    warmup = 1  # an FFT of 128 samples every 64
    mel = contract.mel_config
    from localize_core.features.mel import MelSpectrogram

    expected = [MelSpectrogram(mel)(stream)[:STEPS].mean() for stream in samples]
    start = (1_700_000_000, 0.5)
    fixes = engine.predict(
        [
            Request("flat", samples.ravel(), start=start, frequency_hz=1e6),
            Request("swapped", samples[::-1], receivers=("r1", "r0"), start=start),
            Request("one", samples[:1], receivers=("r0",), start=start),
        ]
    )
    for fix in fixes[:2]:
        assert (fix.position.latitude, fix.position.longitude) == pytest.approx(expected, abs=1e-4)
        assert fix.time_source == "rx_time"
        assert all(report.level_db is not None for report in fix.receivers)
    assert fixes[0].timestamp.timestamp() == pytest.approx(start[0] + start[1] + (warmup + STEPS) * 64 / 2 / 8000.0)
    assert fixes[0].frequency_hz == 1e6
    assert [report.used for report in fixes[2].receivers] == [True, False]
    assert fixes[2].receivers[1].flags == ("silent",)


def test_features_of_some_receivers(make_contract, make_model, engines):
    contract = make_contract(3)
    engine = engines(make_model(contract))
    part = np.zeros((3, contract.rows, STEPS), np.float32)  # log-mel of both, and their correlation
    (fix,) = engine.predict([Request("two", part, receivers=("r0", "r2"))])
    assert [report.used for report in fix.receivers] == [True, False, True]
    (fix,) = engine.predict([Request("two", part[:2], receivers=("r0", "r2"))])
    assert fix.reason == "invalid_request"


# what is out of reach


class Absent:
    """An inference server that is away while `away` is set."""

    def __init__(self, path: Path) -> None:
        self.away = threading.Event()
        self._model = OnnxModel(path)
        self.label, self.contract, self.identity = "far", self._model.contract, self._model.identity

    def run(self, features: np.ndarray) -> Any:
        if self.away.is_set():
            raise UnavailableError("far: nobody there")
        return self._model.run(features)

    def close(self) -> None:
        pass


@pytest.fixture
def far(make_version, engines):
    """An engine whose champion is swapped for one that can be away."""

    def make(**settings: Any) -> tuple[Engine, Absent]:
        path = make_version(1)
        engine = engines(path, **settings)
        model = Absent(path)
        engine._champion.current.locator.model = model
        return engine, model

    return make


def test_without_a_fallback_windows_say_so(far, ask):
    engine, model = far()
    model.away.set()
    assert ask(engine).reason == "model_unavailable"
    assert engine.said[-1]["reasons"][0]["reason"] == "model_unavailable"
    model.away.clear()
    assert served(ask(engine)) == 1
    assert engine.said[-1]["state"] == "ready"


def test_the_fallback_answers_meanwhile(far, ask, make_version):
    engine, model = far(fallback=str(make_version(9, name="local.onnx")))
    model.away.set()
    fix = ask(engine)
    assert served(fix) == 9
    assert fix.model.backend == "fallback:onnxruntime"
    assert engine.execute("info")["fallback"]["windows"] == 1
    model.away.clear()
    fix = ask(engine)
    assert (served(fix), fix.model.backend) == (1, "onnxruntime")


# the watcher


def test_a_poll_that_fails_comes_again_sooner(wait_until):
    polls: list[bool] = []
    watcher = Watcher(lambda: bool(polls.append(False)), lambda: 0.2, name="t")
    watcher.start()
    wait_until(lambda: len(polls) >= 3)
    assert watcher.do(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        watcher.do(lambda: 1 // 0).result()
    watcher.stop()
    with pytest.raises(ConfigError, match="has stopped"):
        watcher.do(lambda: 7)


def test_the_contract_may_come_from_a_file(make_contract, make_model, engines, ask, tmp_path):
    contract = make_contract(2)
    path = make_model(contract, embed=False)
    (tmp_path / "contract.json").write_text(contract.model_dump_json())
    engine = engines(path, contract=str(tmp_path / "contract.json"))
    assert ask(engine).status == "ok"
    assert METADATA_KEY not in {entry.key for entry in onnx.load(path).metadata_props}
    with pytest.raises(ConfigError, match="cannot be read"):
        Engine(ServingSettings(uri=str(path), contract="nowhere.json"))


def test_equal_numbers_of_two_models_are_two_versions(make_version, engines, ask, tmp_path):
    registry = f"sqlite:///{tmp_path}/models.db"
    models = ModelRegistry(registry)
    for name, versions in (("a", (1,)), ("b", (11, 12))):
        for version in versions:
            models.register(make_version(version), name)
    models.promote("a", "1", "champion")
    models.promote("b", "2", "champion")
    engine = engines("models:/a@champion", registry=registry)
    engine.configure(engine.settings.model_copy(update={"uri": "models:/b@champion"})).result()
    assert ask(engine).position.latitude == pytest.approx(12.0)
    models.promote("b", "1", "champion")
    engine._poll()
    fix = ask(engine)
    assert (fix.model.name, fix.model.version) == ("b", "1")
    assert fix.position.latitude == pytest.approx(11.0)


def test_a_fallback_has_to_be_here():
    with pytest.raises(ConfigError, match="it has to be on this machine"):
        make_settings(ServingSettings, uri="a.onnx", fallback="grpc://host:8001/name")


def test_a_challenger_keeps_its_own_contract(make_contract, make_model, make_version, engines, ask, tmp_path):
    contract = make_contract(2)
    (tmp_path / "contract.json").write_text(contract.model_dump_json())
    plain = make_model(contract, embed=False, name="plain.onnx")
    challenger = {"uri": str(make_version(2)), "mode": "split", "share_percent": 100.0}
    engine = engines(plain, contract=str(tmp_path / "contract.json"), challenger=challenger)
    assert ask(engine).model.arm == "challenger"


def test_refusals_name_the_model_that_serves(make_version, engines):
    engine = engines(make_version(1), fallback=str(make_version(9, name="local.onnx")))
    fix = engine.refuse(Request("x", features_of(engine)), "overloaded")
    assert (fix.model.version, fix.model.backend, fix.reason) == ("1", "onnxruntime", "overloaded")
