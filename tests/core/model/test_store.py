"""Compiled models between runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import localize_core.model.compiled.compile as compiler
import pytest
from localize_core.errors import ModelError
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.store import cache_folder, compiled_model_path
from localize_core.station.config import parse_station
from localize_core.station.plan import plan_station

STATION = """
[station]
name = "cached"
sample_rate_hz = 8000.0
frequency_hz = 100e6
[[receiver]]
name = "only"
latitude = 47.0
longitude = 8.0
source = { kind = "scene" }
[area]
south = 46.9
west = 7.9
north = 47.1
east = 8.1
[scene]
track = [[47.0, 8.0]]
"""


@pytest.fixture(scope="module")
def spec() -> LikelihoodSpec:
    return plan_station(parse_station(STATION, folder=Path())).spec


@pytest.fixture
def compilations(monkeypatch, tmp_path) -> list[Path]:
    """Where models were compiled to, with a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done: list[Path] = []
    compile_model = compiler.compile_model

    def counting(spec: LikelihoodSpec, path: Path):
        done.append(path)
        return compile_model(spec, path)

    monkeypatch.setattr(compiler, "compile_model", counting)
    return done


def test_found_again_unless_damaged_or_of_another_station(spec, compilations, tmp_path):
    path = compiled_model_path(spec)
    assert path.parent == tmp_path / "gr-localize"
    check_golden(OnnxModel(path))
    assert compiled_model_path(spec) == path
    assert len(compilations) == 1
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert compiled_model_path(spec) == path
    assert len(compilations) == 2
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert compiled_model_path(replace(spec, probability=0.9)) != path


def test_a_cache_that_cannot_be_written(spec, monkeypatch, tmp_path):
    (tmp_path / "gr-localize").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"gr-localize.* cannot be kept: .*XDG_CACHE_HOME"):
        compiled_model_path(spec)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "gr-localize"
