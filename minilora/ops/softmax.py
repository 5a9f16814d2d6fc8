"""Softmax and its logarithm over one axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError
from minilora.ops.reduce import axes_of

Array = NDArray[Any]
Need = tuple[bool, ...]


def axis_of(name: str, x: Array, axis: int) -> int:
    """The one axis that a call names, counted from the front; ShapeError where it is none, or ``x`` lacks it."""
    if not isinstance(axis, int | np.integer):
        raise ShapeError(f"{name}: axis is {axis!r}, expected one integer")
    return axes_of(name, x, int(axis))[0]


@op(
    "x[*, D] -> y[*, D]",
    params={"axis": (-1, 0)},
    source="Goodfellow et al. 2016, Deep Learning, eq. 4.1",
    formula="y = exp(x - max x) / Σ exp(x - max x)",
    saves="y",
    flops=lambda s: 4 * math.prod(s["*"]) * s["D"],
)
def softmax(x: Array, axis: int = -1) -> tuple[Array, Any]:
    """Turn numbers along one axis into positive ones that add up to 1, each in proportion to its exponential.

    x     any shape of one axis or more; unnormalised log-probabilities
    axis  the one that adds up to 1

    Nothing overflows; -inf gives 0. Where all are -inf there is no answer, and NaN. ShapeError where ``x`` lacks the
    axis.
    """
    at = axis_of("softmax", x, axis)
    y = np.exp(x - x.max(axis=at, keepdims=True, initial=-np.inf))
    y /= y.sum(axis=at, keepdims=True)
    return y, y


@softmax.defvjp
def _softmax_vjp(grad: Array, y: Array, need: Need, *, axis: int) -> tuple[Array | None, ...]:
    if not y.size:
        return (np.zeros_like(y),)
    # Only differences of cotangents count. Taken from that of the likeliest element, they leave nothing to cancel
    # where y is almost 1, and exactly 0 where all cotangents are equal.
    g = grad - np.take_along_axis(grad, y.argmax(axis=axis, keepdims=True), axis)
    return (y * (g - (y * g).sum(axis=axis, keepdims=True)),)


@op(
    "x[*, D] -> y[*, D]",
    params={"axis": (-1, 0)},
    source="Goodfellow et al. 2016, Deep Learning, eq. 6.30",
    formula="y = x - max x - log Σ exp(x - max x)",
    saves="y",
    flops=lambda s: 4 * math.prod(s["*"]) * s["D"],
)
def log_softmax(x: Array, axis: int = -1) -> tuple[Array, Any]:
    """Take the logarithm of softmax, without the digits that softmax would lose.

    x     any shape of one axis or more; unnormalised log-probabilities
    axis  the one along which exp(y) adds up to 1

    A y of almost 0 keeps its digits too. -inf stays -inf. ShapeError where ``x`` lacks the axis.
    """
    y = log_softmax_of(x, axis_of("log_softmax", x, axis))
    return y, y


@log_softmax.defvjp
def _log_softmax_vjp(grad: Array, y: Array, need: Need, *, axis: int) -> tuple[Array | None, ...]:
    # g_i - p_i Σ g, with Σ g taken apart into g_i and the others: 1 - p_i would lose what p_i lacks to 1.
    others = grad.sum(axis=axis, keepdims=True) - grad
    return (-np.expm1(y) * grad - np.exp(y) * others,)


def log_softmax_of(x: Array, axis: int) -> Array:
    """x - log Σ exp x over one axis."""
    if not x.size:
        return np.zeros_like(x)
    largest = x.argmax(axis=axis, keepdims=True)
    y = x - np.take_along_axis(x, largest, axis)
    others = np.exp(y)
    np.put_along_axis(others, largest, 0, axis)
    y -= np.log1p(others.sum(axis=axis, keepdims=True))  # the largest adds exactly 1, which would swallow small others
    return y
