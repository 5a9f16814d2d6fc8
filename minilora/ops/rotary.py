"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.errors import ShapeError
from minilora.ops.linear import contiguous

Array = NDArray[Any]
Need = tuple[bool, ...]


def _draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    batch, time, heads, half = (int(n) for n in rng.integers(0, 4, size=4))
    angle = rng.uniform(-3, 3, (batch, time, half))
    return {"x": rng.standard_normal((batch, time, heads, 2 * half)), "cos": np.cos(angle), "sin": np.sin(angle)}


@op(
    "x[B, T, H, D], cos[B, T, E], sin[B, T, E] -> y[B, T, H, D]",
    source="Su et al. 2021, arXiv:2104.09864, eq. 34, in GPT-NeoX's order: component i is paired with i + D/2",
    formula="y = [x₁ cos - x₂ sin | x₂ cos + x₁ sin], x₁ and x₂ the halves of each head",
    saves="x where cos or sin needs a gradient, cos, sin",
    flops=lambda s: 3 * s["B"] * s["T"] * s["H"] * s["D"],
    draw=_draw,
)
def rotary(x: Array, cos: Array, sin: Array, *, need: Need) -> tuple[Array, Any]:
    """Turn each pair of components of every head by the angle of its position.

    x         (B, T, H, D)  queries or keys, D even
    cos, sin  (B, T, D/2)   of position times frequency

    Returns y (B, T, H, D). ShapeError unless D = 2 E.
    """
    _assert_halves(x, cos)
    return _turn(x, cos, sin), (x if any(need[1:]) else None, cos, sin)


def _assert_halves(x: Array, cos: Array) -> None:
    half = cos.shape[-1]
    if x.shape[-1] != 2 * half:
        raise ShapeError(f"rotary: x has D={x.shape[-1]}, but cos has E={half}; expected D = 2 E")


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = cos.shape[-1]
    c, s = cos[:, :, None], sin[:, :, None]
    first, second = x[..., :half], x[..., half:]
    y = np.empty_like(x)
    y[..., :half] = first * c - second * s
    y[..., half:] = second * c + first * s
    return y


@rotary.defvjp
def _rotary_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    x, cos, sin = saved
    half = cos.shape[-1]
    grad_x = _turn(grad, cos, -sin) if need[0] else None  # the transpose of a rotation turns back
    grad_cos = grad_sin = None
    if need[1]:
        grad_cos = (grad * x).reshape(*x.shape[:-1], 2, half).sum(axis=(2, 3))
    if need[2]:
        grad_sin = (grad[..., half:] * x[..., :half] - grad[..., :half] * x[..., half:]).sum(axis=2)
    return grad_x, grad_cos, grad_sin


@rotary.defkernel
def _rotary_kernel(x: Array, cos: Array, sin: Array, *, need: Need) -> tuple[Array, Any]:
    _assert_halves(x, cos)
    x, cos, sin = contiguous(x), contiguous(cos), contiguous(sin)
    return kernels.compiled().rotary(x, cos, sin, False, kernels.threads()), (x if any(need[1:]) else None, cos, sin)


@_rotary_kernel
def _rotary_kernel_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    grad_x = None
    if need[0]:
        grad_x = kernels.compiled().rotary(contiguous(grad), *saved[1:], True, kernels.threads())
    return grad_x, *_rotary_vjp(grad, saved, (False, *need[1:]))[1:]
