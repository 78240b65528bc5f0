"""How probable each part of the area is, as an engine tells it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from localize_core.errors import EngineError, ModelError
from localize_core.model.contract import LikelihoodGrid
from localize_core.model.onnx_model import OnnxModel
from localize_core.serving.requests import Request

GRID = LikelihoodGrid(south=46.0, west=7.0, north=48.0, east=9.0, rows=2, columns=3)


@pytest.fixture
def telling(make_version):
    """A model whose grid is one cell: it is certain of it."""
    one = {"likelihood": GRID.model_copy(update={"rows": 1, "columns": 1})}
    outputs = ("position", "uncertainty", "confidence", "likelihood")
    return make_version(1, contract=one, outputs=outputs, likelihood=lambda means: _ones(means))


def _ones(means):
    import spox.opset.ai.onnx.v17 as op

    first = op.slice(means, op.const(np.array([0])), op.const(np.array([1])), op.const(np.array([1])))
    return op.unsqueeze(op.add(op.mul(first, op.const(np.float32(0.0))), op.const(np.float32(1.0))), op.const([2]))


def test_it_is_that_of_the_last_window(engines, telling, make_window, make_context):
    engine = engines(telling)
    assert engine.tells_likelihood
    with pytest.raises(EngineError, match="no window yet"):
        engine.likelihood()
    for sequence in (3, 4):
        fix = engine.locate(make_window(engine.contract), make_context(sequence))
        found = engine.likelihood()
        assert (found.station, found.stream, found.sequence) == (fix.station, fix.stream, sequence)
        assert found.timestamp == fix.timestamp
        assert found.grid == engine.contract.likelihood
        assert found.probability.tolist() == [[1.0]]
    size = len(engine.contract.channels) * engine.contract.rows * 4
    (fix,) = engine.predict([Request("mine", np.zeros(size, np.float32), stream="asked")])
    assert (engine.likelihood().stream, engine.likelihood().timestamp) == ("asked", fix.timestamp)


def test_too_few_receivers_have_none(engines, telling, make_window, make_context):
    engine = engines(telling)
    window = make_window(engine.contract)
    engine.locate(replace(window, unusable=np.ones(2, bool)), make_context())
    with pytest.raises(EngineError, match="no likelihood: too_few_receivers"):
        engine.likelihood()


def test_a_model_without_a_grid_has_none(engines, make_version, make_window, make_context):
    engine = engines(make_version(1))
    engine.locate(make_window(engine.contract), make_context())
    assert not engine.tells_likelihood
    with pytest.raises(EngineError, match="the model tiny tells no likelihood"):
        engine.likelihood()


def test_a_grid_without_its_output_is_refused(make_version):
    with pytest.raises(ModelError, match="output 'likelihood' of the contract is missing"):
        OnnxModel(make_version(1, contract={"likelihood": GRID}))
