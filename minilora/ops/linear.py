"""The plain linear map, with a weight that is frozen or trained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.kernels.frozen import FrozenWeight

Array = NDArray[Any]


@op(
    "x[*, K], W:weight[K, N], bias?[N] -> y[*, N]",
    source="product rule",
    formula="y = x W + bias",
    saves="x, W",
    flops=lambda s: 2 * math.prod(s["*"]) * s["K"] * s["N"],
)
def linear(
    x: Array, W: Array | FrozenWeight, bias: Array | None = None, *, need: tuple[bool, ...]
) -> tuple[Array, Any]:
    """Multiply each row of ``x`` by W and add the bias.

    x     (*, K)  activations
    W     (K, N)  weight; no gradient is formed for a FrozenWeight or a plain array, nor x kept for it
    bias  (N,)    added to every row, or None
    """
    flat = rows(x)
    y = flat @ W
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], y.shape[-1]), (flat if need[1] else None, W)


@linear.defvjp
def _linear_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    x, W = saved
    flat = rows(grad)
    grad_x = (flat @ W.T).reshape(*grad.shape[:-1], W.shape[0]) if need[0] else None
    grad_W = x.T @ flat if need[1] else None
    grad_bias = flat.sum(axis=0) if need[2] else None
    return grad_x, grad_W, grad_bias


@linear.defkernel
def _linear_kernel(
    x: Array, W: Array | FrozenWeight, bias: Array | None = None, *, need: tuple[bool, ...]
) -> tuple[Array, Any]:
    flat = packed(x)
    bias = None if bias is None else contiguous(bias)
    y, _ = kernels.compiled().lora_forward(flat, readable(W), None, None, bias, 1.0, kernels.threads())
    return y.reshape(*x.shape[:-1], y.shape[-1]), (flat if need[1] else None, W)


@_linear_kernel
def _linear_kernel_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    W = saved[1]
    grad_x = None
    if need[0]:
        wanted = (True, False, False)
        operands = packed(grad), None, None, readable(W), None, None
        grad_x = kernels.compiled().lora_backward(*operands, 1.0, wanted, kernels.threads())[0]
        grad_x = grad_x.reshape(*grad.shape[:-1], W.shape[0])
    return grad_x, *_linear_vjp(grad, saved, (False, *need[1:]))[1:]


def rows(x: Array) -> Array:
    """View x (*, D) as a matrix (M, D), also where an axis is empty: one product serves a whole batch."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def packed(x: Array) -> Array:
    """x (*, D) as a C-contiguous matrix (M, D), as the kernel takes it; a view where it is one."""
    return contiguous(rows(x))


def contiguous(x: Array) -> Array:
    """x in C order and aligned, as the kernel takes it; x itself where it is. Without axes it gets one."""
    in_order = np.ascontiguousarray(x)
    return in_order if in_order.flags.aligned else in_order.copy()


def readable(W: Array | FrozenWeight) -> Array | FrozenWeight:
    """W (K, N) as the kernel takes it: a FrozenWeight, or an aligned array in C or Fortran order."""
    return W if isinstance(W, FrozenWeight) or (W.flags.forc and W.flags.aligned) else contiguous(W)
