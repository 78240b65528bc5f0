"""The description says what is so: a tool that knows nothing else asks by it, and what it gets is as described."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import jsonschema
import pytest
from localize_core.service.schemas import components
from localize_core.service.service import Service

PREDICT = "/api/v1/inference/predict"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.fixture
def http(make_engine, client, samples) -> httpx.Client:
    """A server that has answered a question."""
    engine = make_engine()
    http = client(engine, max_body_bytes=1 << 20)
    answer = http.post(PREDICT, content=samples(engine).tobytes(), headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 200
    return http


def test_whatever_is_asked_the_answer_is_as_described(http, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{http.base_url}openapi.json"),
            *("--phases", "coverage,fuzzing", "--max-examples", "2", "--seed", "1", "--generation-database", "none"),
            *("--exclude-path", "/fixes/stream"),  # it has no end
            *("--checks", ",".join(CHECKS)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # where it leaves its report
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "Tested: 16" in done.stdout
    assert http.get("/api/v1/inference/health").status_code == 200


def test_every_route_is_described(http):
    described = http.get("/openapi.json").json()
    assert set(described["paths"]) == {
        *(f"/api/v1/inference/{name}" for name in ("predict", "predict/batch", "health", "live", "ready")),
        *(f"/api/v1/inference/model/{name}" for name in ("info", "versions", "performance", "reload")),
        *("/fixes", "/fixes/latest", "/fixes.geojson", "/fixes.kml", "/fixes/stream"),
        *("/stations", "/stations/{name}/likelihood", "/map/settings"),
    }
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path}"


def test_references_lead_somewhere(http):
    text = http.get("/openapi.json").text
    described = json.loads(text)
    wanted = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert wanted <= set(described["components"]["schemas"])


def test_the_schema_of_an_answer(http, make_fix):
    schemas = components()
    answer = {"components": {"schemas": schemas}, **schemas["Answer"]}
    fix = http.get("/fixes/latest").json()
    jsonschema.validate({**fix, "model_version": "1", "session_id": None}, answer)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(fix, answer)


def test_its_page_needs_nothing_from_elsewhere(client):
    page = client(Service()).get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.lower().replace("http-equiv", "")
