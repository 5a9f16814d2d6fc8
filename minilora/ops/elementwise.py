"""Operators that act on each element: arithmetic with broadcasting, SiLU, SwiGLU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op

Array = NDArray[Any]


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` over the axes along which an operand of ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    extra = tuple(range(grad.ndim - len(shape)))
    stretched = tuple(len(extra) + i for i, n in enumerate(shape) if n == 1 and grad.shape[len(extra) + i] != 1)
    return grad.sum(axis=extra + stretched, keepdims=True).reshape(shape)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by tanh so that no exponential overflows."""
    half = x.dtype.type(0.5)
    return half * (np.tanh(half * x) + 1)


@op("x[...], y[...] -> z[...]", source="sum rule")
def add(x: Any, y: Any) -> tuple[Any, Any]:
    """Add with broadcasting, as np.add does."""
    return x + y, (np.shape(x), np.shape(y))


@add.defvjp
def _add_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    return tuple(unbroadcast(grad, shape) if wanted else None for shape, wanted in zip(saved, need, strict=True))


@op("x[...], y[...] -> z[...]", source="sum rule")
def sub(x: Any, y: Any) -> tuple[Any, Any]:
    """Subtract with broadcasting, as np.subtract does."""
    return x - y, (np.shape(x), np.shape(y))


@sub.defvjp
def _sub_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    grad_x = unbroadcast(grad, saved[0]) if need[0] else None
    grad_y = unbroadcast(-grad, saved[1]) if need[1] else None
    return grad_x, grad_y


@op("x[...], y[...] -> z[...]", source="product rule")
def mul(x: Any, y: Any, *, need: tuple[bool, ...]) -> tuple[Any, Any]:
    """Multiply with broadcasting, as np.multiply does."""
    return x * y, (np.shape(x), np.shape(y), x if need[1] else None, y if need[0] else None)


@mul.defvjp
def _mul_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    x_shape, y_shape, x, y = saved
    grad_x = unbroadcast(grad * y, x_shape) if need[0] else None
    grad_y = unbroadcast(grad * x, y_shape) if need[1] else None
    return grad_x, grad_y


@op("x[*] -> y[*]", source="Elfwing et al. 2018, arXiv:1702.03118, eq. 5 (SiLU)")
def silu(x: Array) -> tuple[Array, Any]:
    """Multiply each element by its logistic sigmoid."""
    return x * sigmoid(x), x


@silu.defvjp
def _silu_vjp(grad: Array, x: Array, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    s = sigmoid(x)
    return (grad * s * (1 + x * (1 - s)),)


@op("gate[*], up[*] -> y[*]", source="Shazeer 2020, arXiv:2002.05202, eq. 5 (SwiGLU without its matrices)")
def swiglu(gate: Array, up: Array) -> tuple[Array, Any]:
    """Multiply ``up`` by SiLU of ``gate``, in one pass over a transformer's widest activations.

    gate, up  (*)  the two projections of one hidden state
    """
    y = sigmoid(gate)
    y *= gate
    y *= up
    return y, (gate, up)


@swiglu.defvjp
def _swiglu_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    gate, up = saved
    s = sigmoid(gate)
    grad_up = grad * gate * s if need[1] else None
    grad_gate = None
    if need[0]:
        grad_gate = 1 - s
        grad_gate *= gate
        grad_gate += 1
        grad_gate *= s  # d silu / d gate = s · (1 + gate · (1 - s))
        grad_gate *= up
        grad_gate *= grad
    return grad_gate, grad_up
