"""Small pieces of array algebra for ONNX graphs, each one line of mathematics that the operator set lacks.

Graph variables are written like arrays: arithmetic works on them inside `expressions()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var
from spox._future import operator_overloading


def expressions() -> Any:
    """Context in which `+ - * /` on graph variables build nodes, with Python numbers taken as constants."""
    return operator_overloading(op, constant_promotion=True)


def const(value: Any, dtype: Any = np.float32) -> Var:
    return op.const(np.asarray(value, dtype=dtype))


def total(x: Var, axis: int, *, keep: bool = False) -> Var:
    return op.reduce_sum(x, op.const(np.array([axis], np.int64)), keepdims=keep)


def mean(x: Var, axis: int, *, keep: bool = False) -> Var:
    return op.reduce_mean(x, axes=[axis], keepdims=keep)


def highest(x: Var, axis: int, *, keep: bool = False) -> Var:
    return op.reduce_max(x, axes=[axis], keepdims=keep)


def expand_dims(x: Var, *axes: int) -> Var:
    return op.unsqueeze(x, op.const(np.array(axes, np.int64)))


def at(x: Var, axis: int, index: int) -> Var:
    """One index of an axis; the axis goes."""
    return op.gather(x, op.const(np.array(index, np.int64)), axis=axis)


def between(x: Var, axis: int, start: int, stop: int) -> Var:
    """A constant range of an axis."""
    if start == 0 and (x.unwrap_tensor().shape or ())[axis] == stop:
        return x
    bounds = [op.const(np.array([value], np.int64)) for value in (start, stop, axis)]
    return op.slice(x, bounds[0], bounds[1], bounds[2])


def double(x: Var) -> Var:
    return op.cast(x, to=np.float64)


def single(x: Var) -> Var:
    return op.cast(x, to=np.float32)


def clip(x: Var, low: float, high: float, dtype: Any = np.float32) -> Var:
    return op.clip(x, const(low, dtype), const(high, dtype))


def rank(x: Var) -> int:
    return len(x.unwrap_tensor().shape or ())


def transpose_last(x: Var) -> Var:
    """Swap the last two axes."""
    axes = list(range(rank(x)))
    return op.transpose(x, perm=[*axes[:-2], axes[-1], axes[-2]])


def diagonal(x: Var, size: int, dtype: Any = np.float64) -> Var:
    """(..., size) to diagonal matrices (..., size, size)."""
    return expand_dims(x, rank(x)) * const(np.eye(size), dtype)


def spd_inverse(matrix: Var, size: int) -> Var:
    """Inverse of symmetric positive definite matrices (..., size, size), float64, by the sweep operator.

    Source: Goodnight 1979, "A tutorial on the SWEEP operator". The operator set has no inverse of its own.
    """
    identity, last = np.eye(size), rank(matrix) - 1
    # Each pivot is set by subtraction from numbers near one: only a unit diagonal keeps its digits.
    root = op.sqrt(total(matrix * const(identity, np.float64), last, keep=True))
    scale = op.matmul(root, transpose_last(root))
    matrix = matrix / scale
    for pivot in range(size):
        column = between(matrix, last, pivot, pivot + 1)
        reduced = column - const(identity[:, pivot : pivot + 1], np.float64)
        matrix = matrix - op.matmul(reduced, transpose_last(reduced)) / between(column, last - 1, pivot, pivot + 1)
    # A swept pivot p is left as 2 - 1/p, and no later sweep looks at it.
    return (const(2.0 * identity, np.float64) - matrix) / scale


def smoothing_polynomials(shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Least-squares polynomials over 2h+1 unit-spaced samples, for every (h, order) of `shapes`.

    Returns (shapes, highest order + 1, 2·max(h) + 1): row k of an entry, applied to the samples round a point, gives
    the coefficient of x^k there. Samples beyond h have no weight, orders beyond the entry's own are zero. An order
    of 2h interpolates. Source: Savitzky & Golay 1964.
    """
    longest, highest_order = (max(shape[k] for shape in shapes) for k in range(2))
    table = np.zeros((len(shapes), highest_order + 1, 2 * longest + 1))
    for index, (half, order) in enumerate(shapes):
        offsets = np.arange(-half, half + 1)
        fit = np.linalg.pinv(np.vander(offsets / half, order + 1, increasing=True))
        table[index, : order + 1, longest - half : longest + half + 1] = fit / half ** np.arange(order + 1.0)[:, None]
    return table
