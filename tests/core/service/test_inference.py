"""Questions over HTTP: the engine's own answers, every refusal in one shape."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest
from localize_core.errors import UnavailableError
from localize_core.service.service import Service, model_service
from localize_core.serving.engine import Engine
from localize_core.serving.requests import Request
from localize_core.wire.fix_json import fix_from_dict, fix_to_dict

PREDICT = "/api/v1/inference/predict"
BATCH = "/api/v1/inference/predict/batch"
MODEL = "/api/v1/inference/model"
BINARY = {"Content-Type": "application/octet-stream"}
VOLATILE = ("sequence", "inference_time_ms", "latency_ms", "id", "cache_hit")
EXTRA = ("model_version", "session_id")
WHEN, START = "2026-01-02T03:04:05.5Z", (1_767_323_045, 0.5)


def as_json(samples: np.ndarray) -> list[Any]:
    return np.stack([samples.real, samples.imag], axis=-1).tolist()


def steady(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in VOLATILE + EXTRA}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "field", "received"}
    assert error["message"]
    return error


@pytest.fixture
def engine(make_engine) -> Engine:
    return make_engine()


@pytest.fixture
def http(client, engine) -> httpx.Client:
    return client(engine)


def test_json_and_samples_are_answered_as_the_engine_does(engine, client, samples):
    service, iq = model_service(engine), samples(engine)
    http = client(service)
    (wanted,) = engine.predict([Request("x", iq, start=START, cache=False)])
    asked = {"iq_data": as_json(iq), "timestamp": WHEN, "session_id": "s", "id": "mine"}
    first = http.post(PREDICT, json=asked)
    assert first.status_code == 200, first.text
    answer = first.json()
    assert steady(answer) == steady(fix_to_dict(wanted)) | {"stream": "s"}
    assert (answer["status"], answer["cache_hit"]) == ("ok", False)
    assert (answer["id"], answer["session_id"], answer["model_version"]) == ("mine", "s", wanted.model.version)
    query = {"timestamp": WHEN, "session_id": "s", "receivers": "r0,r1"}
    second = http.post(PREDICT, content=iq.tobytes(), params=query, headers=BINARY).json()
    assert steady(second) == steady(answer)
    assert second["cache_hit"]
    third = http.post(PREDICT, json=asked | {"cache_enabled": False}).json()
    assert (steady(third), third["cache_hit"]) == (steady(answer), False)
    shown = [entry.fix.id for entry in service.history.backwards()]
    assert shown == [third["id"], second["id"], "mine"]
    fix_from_dict({key: value for key, value in answer.items() if key not in EXTRA})


def test_features(engine, http):
    shape = (len(engine.contract.channels), engine.contract.rows, engine.time_steps)
    features = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (wanted,) = engine.predict([Request("x", features, start=START)])
    answer = http.post(PREDICT, json={"features": features.ravel().tolist(), "timestamp": WHEN})
    assert answer.status_code == 200, answer.text
    assert steady(answer.json()) == steady(fix_to_dict(wanted))


def test_receivers_come_in_their_own_order_or_not_at_all(engine, http, samples):
    iq = samples(engine)
    straight = http.post(PREDICT, json={"iq_data": as_json(iq), "timestamp": WHEN}).json()
    swapped = {"iq_data": as_json(iq[::-1]), "receivers": ["r1", "r0"], "timestamp": WHEN}
    assert steady(http.post(PREDICT, json=swapped).json()) == steady(straight)
    one = http.post(PREDICT, json={"iq_data": as_json(iq[0]), "receivers": ["r0"], "timestamp": WHEN}).json()
    assert [report["flags"] for report in one["receivers"]] == [[], ["silent"]]


def test_no_fix_is_an_answer(make_engine, client, samples):
    engine = make_engine(confidence=(0.1,))
    answer = client(engine).post(PREDICT, json={"iq_data": as_json(samples(engine))})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["status"], found["reason"], found["position"], found["session_id"]) == (
        "no_fix",
        "no_emitter",
        None,
        None,
    )


def test_samples_that_are_not_finite_are_no_fix(engine, http, samples):
    iq = samples(engine)
    iq[:] = np.nan
    found = http.post(PREDICT, content=iq.tobytes(), headers=BINARY).json()
    assert (found["status"], found["reason"]) == ("no_fix", "invalid_samples")


def test_each_question_of_a_batch_fails_alone(engine, http, samples):
    iq = [samples(engine, seed) for seed in range(3)]
    items = [
        {"iq_data": as_json(iq[0]), "id": "a", "session_id": "own"},
        {"iq_data": [[1.0, 2.0], [3.0, "x"]]},
        {"iq_data": as_json(iq[1]), "receivers": ["r0", "nobody"]},
        7,
        {"iq_data": as_json(iq[2]), "timestamp": WHEN},
        {"iq_data": as_json(iq[2][:, :10])},
    ]
    response = http.post(BATCH, json={"items": items, "session_id": "all"})
    assert response.status_code == 200, response.text
    found = response.json()
    assert [each["ok"] for each in found["results"]] == [True, False, False, False, True, False]
    assert found["total_time_ms"] > 0.0
    assert found["samples_per_second"] > 0.0
    first, last = found["results"][0]["fix"], found["results"][4]["fix"]
    assert (first["id"], first["session_id"], last["session_id"]) == ("a", "own", "all")
    (wanted,) = engine.predict([Request("x", iq[2], start=START)])
    assert steady(last) == steady(fix_to_dict(wanted)) | {"stream": "all"}
    fields = [each["error"]["field"] for each in found["results"] if not each["ok"]]
    assert fields == ["items[1].iq_data[1][1]", "receivers", "items[3]", "iq_data"]


def test_a_batch_in_its_other_forms(engine, http, samples):
    iq = np.stack([samples(engine, seed) for seed in range(3)])
    plain = http.post(BATCH, json={"iq_samples": [as_json(each) for each in iq], "session_id": "s"}).json()
    query = {"count": 3, "session_id": "s"}
    binary = http.post(BATCH, content=iq.tobytes(), params=query, headers=BINARY).json()
    positions = [[each["fix"]["position"] for each in found["results"]] for found in (plain, binary)]
    assert positions[0] == positions[1]
    assert len({json.dumps(each) for each in positions[0]}) == 3
    assert [each["fix"]["cache_hit"] for each in binary["results"]] == [True] * 3


BODIES: list[Any] = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b'{"iq_data": [[1, NaN]]}', 400, "body"),
    (b'{"iq_data": [[1, 2],]}', 400, "body"),
    (b'{"session_id": "\xff", "iq_data": [[1, 2]]}', 400, "body"),
    (b'{"session_id": "\\ud800", "iq_data": [[1, 2]]}', 400, "body"),
    (b'{"iq_data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "body"),
    (b"[]", 422, "body"),
    (b"{}", 422, "iq_data"),
    (b'{"iq_data": []}', 422, "iq_data"),
    (b'{"iq_data": [[1, 2]], "features": [1]}', 422, "iq_data"),
    (b'{"iq_data": [[1, 2], [3]]}', 422, "iq_data[1]"),
    (b'{"iq_data": [[1, 2, 3], [4]]}', 422, "iq_data[0]"),
    (b'{"iq_data": [[[1, 2]], [[1, 2], [3, 4]]]}', 422, "iq_data[1]"),
    (b'{"iq_data": [[1, null]]}', 422, "iq_data[0][1]"),
    (b'{"iq_data": [[1, 1e400]]}', 422, "iq_data[0][1]"),
    (b'{"iq_data": [[1, 1e39]]}', 422, "iq_data"),
    (b'{"iq_data": [[1, 2]]}', 422, "iq_data"),
    (b'{"iq_data": [[1, 2]], "receivers": ["x"]}', 422, "receivers"),
    (b'{"iq_data": [[1, 2]], "receivers": ["r0", "r0"]}', 422, "receivers"),
    (b'{"iq_data": [[1, 2]], "receivers": []}', 422, "receivers"),
    (b'{"iq_data": [[1, 2]], "session_id": ""}', 422, "session_id"),
    (b'{"iq_data": [[1, 2]], "cache_enabled": 1}', 422, "cache_enabled"),
    (b'{"iq_data": [[1, 2]], "timestamp": "2026-01-02T03:04:05"}', 422, "timestamp"),
    (b'{"iq_data": [[1, 2]], "timestamp": "1969-12-31T00:00:00Z"}', 422, "timestamp"),
    (b'{"iq_data": [[1, 2]], "frequency_hz": -1}', 422, "frequency_hz"),
    (b'{"iq_data": [[1, 2]], "colour": "red"}', 422, "colour"),
    (b'{"features": [1, 2, 3]}', 422, "features"),
    (b'{"features": []}', 422, "features"),
]


def test_bodies_that_cannot_be_answered(http):
    for body, status, field in BODIES:
        response = http.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
        error = error_of(response, status)
        assert (body, error["field"]) == (body, field)
        assert error["code"] == ("malformed" if status == 400 else "invalid")


BATCHES: list[Any] = [
    ({}, 422, "items"),
    ({"items": []}, 422, "items"),
    ({"items": [{}] * 101}, 422, "items"),
    ({"items": [{}], "iq_samples": [[[1, 2]]]}, 422, "items"),
    ({"items": {"a": {}}}, 422, "items"),
    ({"iq_samples": []}, 422, "iq_samples"),
    ({"items": [1], "session_id": {"a": 1}}, 422, "session_id"),
    (b'{"items": [{}, {}], "items": [{}]}', 400, "items"),
    (b'{"items": [{"iq_data": [[1, 2]]}', 400, "body"),
    (b"{" * 30_000, 422, "body"),
]


def test_batches_that_cannot_be_answered(http):
    for body, status, field in BATCHES:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        error = error_of(http.post(BATCH, content=content, headers={"Content-Type": "application/json"}), status)
        assert (body, error["field"]) == (body, field)


SAMPLES: list[Any] = [
    (PREDICT, b"", {}, 400, "body"),
    (PREDICT, b"1234567", {}, 400, "body"),
    (PREDICT, b"12345678", {}, 422, "iq_data"),
    (PREDICT, b"12345678", {"receivers": "r0,x"}, 422, "receivers"),
    (PREDICT, b"12345678", {"receivers": ""}, 422, "receivers[0]"),
    (PREDICT, b"12345678", {"frequency_hz": "nan"}, 422, "frequency_hz"),
    (PREDICT, b"12345678", {"cache_enabled": "maybe"}, 422, "cache_enabled"),
    (PREDICT, b"12345678", {"colour": "red"}, 422, "colour"),
    (BATCH, b"12345678", {}, 422, "count"),
    (BATCH, b"12345678", {"count": "0"}, 422, "count"),
    (BATCH, b"12345678", {"count": "2"}, 400, "body"),
    (BATCH, b"12345678" * 2, {"count": "2", "id": "x"}, 422, "id"),
]


def test_samples_that_cannot_be_answered(http):
    for path, content, query, status, field in SAMPLES:
        error = error_of(http.post(path, content=content, params=query, headers=BINARY), status)
        assert (content, query, error["field"]) == (content, query, field)


def test_other_kinds_of_body(http):
    assert error_of(http.post(PREDICT, data={"iq_data": "1"}), 415)["field"] == "Content-Type"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    zipped = http.post(PREDICT, content=gzip.compress(b"{}"), headers=headers)
    assert error_of(zipped, 415)["field"] == "Content-Encoding"
    assert error_of(http.post(PREDICT, json={}, params={"session_id": "s"}), 422)["field"] == "session_id"


def test_routes_that_are_not_there(http):
    assert error_of(http.get("/nowhere"), 404)["code"] == "not_found"
    response = http.get(PREDICT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


def test_what_the_model_is(engine, http):
    info = http.get(f"{MODEL}/info").json()
    assert info["station"] == "site"
    assert info["receivers"] == ["r0", "r1"]
    assert info["samples"] == engine.reader.samples_needed
    versions = http.get(f"{MODEL}/versions").json()
    assert versions["arms"]["champion"]["serving"]["version"] == info["version"]
    assert (versions["arms"]["champion"]["previous"], versions["fallback"]) == (None, None)


def test_performance(engine, http, samples):
    serving = http.get(f"{MODEL}/performance").json()["arms"]["champion"]
    assert (serving["windows"], serving["inference_time_ms"]["p95"]) == (0, None)
    http.post(PREDICT, json={"iq_data": as_json(samples(engine))})
    found = http.get(f"{MODEL}/performance").json()
    assert found["arms"]["champion"]["windows"] == 1
    assert found["arms"]["champion"]["inference_time_ms"]["p95"] > 0.0
    assert found["cache"] is not None


def test_a_reload_serves_the_new_file_or_says_what_is_wrong(make_engine, make_model, make_contract, client, samples):
    engine = make_engine()
    http, question = client(engine), {"iq_data": as_json(samples(engine))}
    make_model(make_contract(2, name="site", model_version="2"), position=(12.0, 13.0))
    assert http.post(f"{MODEL}/reload").json()["version"] == "2"
    answer = http.post(PREDICT, json=question).json()
    assert (answer["model_version"], answer["position"]) == ("2", {"latitude": 12.0, "longitude": 13.0})
    make_model(make_contract(3, name="site"))
    error = error_of(http.post(f"{MODEL}/reload"), 409)
    assert error["code"] == "refused"
    assert "receivers" in error["message"]
    assert http.post(PREDICT, json=question).json()["model_version"] == "2"
    assert http.get("/api/v1/inference/health").json()["state"] == "degraded"
    assert error_of(http.post(f"{MODEL}/reload", params={"arm": "challenger"}), 409)["code"] == "refused"
    assert error_of(http.post(f"{MODEL}/reload", params={"arm": "other"}), 422)["field"] == "arm"


def test_health_of_a_life(make_engine, client, samples):
    engine = make_engine(start=False)
    http, question = client(engine), {"iq_data": as_json(samples(engine))}
    routes = [f"/api/v1/inference/{name}" for name in ("health", "live", "ready")]
    assert [http.get(route).status_code for route in routes] == [503, 200, 503]
    error = error_of(http.post(PREDICT, json=question), 503)
    assert (error["code"], error["received"]) == ("not_ready", "starting")
    engine.start()
    assert [http.get(route).status_code for route in routes] == [200, 200, 200]
    assert http.post(PREDICT, json=question).status_code == 200
    health = http.get(routes[0]).json()
    assert (health["state"], health["service"]["fixes"]) == ("ready", 1)
    engine.health.fail("the antenna fell")
    assert [http.get(route).status_code for route in routes] == [503, 503, 503]
    assert http.get(routes[0]).json()["failure"] == "the antenna fell"


def test_without_a_model(client):
    http = client(Service())
    assert http.get("/api/v1/inference/live").status_code == 200
    assert http.get("/api/v1/inference/health").json()["state"] == "no_model"
    for response in (http.post(PREDICT, json={}), http.get(f"{MODEL}/info"), http.post(f"{MODEL}/reload")):
        assert error_of(response, 503)["code"] == "no_model"
        assert int(response.headers["Retry-After"]) > 0


def test_a_server_that_does_not_answer_is_503(engine, http, samples, monkeypatch):
    """The model is replaced by one that is away: everything from the locator up is the real thing."""

    def away(*_: Any) -> Any:
        raise UnavailableError("nobody there")

    monkeypatch.setattr(engine._champion.current.locator.model, "run", away)
    question = {"iq_data": as_json(samples(engine))}
    assert error_of(http.post(PREDICT, json=question), 503)["code"] == "model_unavailable"
    found = http.post(BATCH, json={"items": [question]}).json()["results"][0]
    assert found["error"]["code"] == "model_unavailable"
    assert http.get("/fixes").json()["fixes"] == []
