"""The algebra that graphs are written in, against NumPy."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import spox
from localize_core.model.compiled.algebra import expressions, smoothing_polynomials, spd_inverse
from spox import Tensor, argument


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("size", [1, 2, 4, 9, 16])
def test_spd_inverse_equals_numpys(size: int, unit: float) -> None:
    rng = np.random.default_rng(size)
    root = rng.standard_normal((3, size, size + 2))
    scale = unit * 10.0 ** rng.uniform(-1.5, 1.5, (3, size, 1))
    matrices = (root * scale) @ (root * scale).transpose(0, 2, 1)
    x = argument(Tensor(np.float64, ("batch", size, size)))
    with expressions():
        graph = spox.build({"x": x}, {"y": spd_inverse(x, size)})
    (inverse,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": matrices})
    assert np.allclose(inverse @ matrices, np.eye(size), atol=1e-6)


def test_smoothing_polynomials_reproduce_polynomials() -> None:
    shapes = [(2, 4), (5, 3)]
    table = smoothing_polynomials(shapes)
    assert table.shape == (2, 5, 11)
    x = np.arange(-5, 6)
    coefficients = np.array([1.0, -0.5, 0.25, 0.125, 0.0])
    samples = sum(c * x**k for k, c in enumerate(coefficients))
    for entry in table:
        assert np.allclose(entry @ samples, coefficients, atol=1e-9)
    assert not table[0][:, [0, 1, 2, 8, 9, 10]].any()  # no weight beyond its half width
    assert not table[1][4].any()  # no order beyond its own
