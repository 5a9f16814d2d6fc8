"""Operators that reduce axes: sum and mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None
_PARAMS: dict[str, tuple[Any, ...]] = {"axis": (None, -1, (-1,)), "keepdims": (False, True)}


def _expand(grad: Array, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> Array:
    """Spread a reduced gradient back over ``shape``."""
    if not keepdims and axis is not None:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape)


@op("x[*, D] -> y[?]", params=_PARAMS, source="sum rule")
def sum(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Sum over the given axes, or over all, as np.sum does."""
    return np.asarray(x.sum(axis=axis, keepdims=keepdims)), x.shape


@sum.defvjp
def _sum_vjp(
    grad: Array, shape: tuple[int, ...], need: tuple[bool, ...], *, axis: Axis, keepdims: bool
) -> tuple[Array | None, ...]:
    return (_expand(grad, shape, axis, keepdims),)


@op("x[*, D] -> y[?]", params=_PARAMS, source="sum rule")
def mean(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Average over the given axes, or over all, as np.mean does. ShapeError where there is nothing to average."""
    total = np.asarray(x.sum(axis=axis, keepdims=keepdims))
    if total.size and not x.size:
        raise ShapeError(f"mean: x has shape {x.shape}, so there is nothing to average over axis {axis}")
    return np.asarray(total / x.dtype.type(x.size / max(total.size, 1) or 1)), x.shape


@mean.defvjp
def _mean_vjp(
    grad: Array, shape: tuple[int, ...], need: tuple[bool, ...], *, axis: Axis, keepdims: bool
) -> tuple[Array | None, ...]:
    count = grad.dtype.type(np.prod(shape, dtype=int) / max(grad.size, 1))
    return (_expand(grad / count, shape, axis, keepdims),)
