"""The LoRA update: a frozen linear map plus a trained low-rank one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.linear import packed, readable, rows

Array = NDArray[Any]


@op(
    "x[*, K], W:weight[K, N], A[K, R], B[R, N], bias?[N] -> y[*, N]",
    params={"scale": (1.0, 0.5, 2.0)},
    source="Hu et al. 2021, arXiv:2106.09685, eq. 3",
    formula="y = x W + bias + scale (x A) B",
    saves="x, W, A, B, x A",
    flops=lambda s: 2 * math.prod(s["*"]) * (s["K"] * s["N"] + s["R"] * (s["K"] + s["N"])),
)
def lora_matmul(
    x: Array,
    W: Array | FrozenWeight,
    A: Array,
    B: Array,
    scale: float = 1.0,
    bias: Array | None = None,
    *,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    """Compute x @ W + scale * (x @ A) @ B + bias, never forming W + A @ B.

    x      (*, K)  activations
    W      (K, N)  weight; dW is formed only for a Tensor that requires a gradient
    A      (K, R)  projection down to rank R
    B      (R, N)  projection up; zero at the start of training, so that nothing changes
    scale          lora_alpha / R, or lora_alpha / sqrt(R) with rank-stabilised LoRA
    bias   (N,)    added to every row, or None

    Returns y (*, N), same dtype as x.
    """
    flat = rows(x)
    hidden = flat @ A
    y = flat @ W + scale * (hidden @ B)
    if bias is not None:
        y = y + bias
    saved = (flat if need[1] or need[2] else None, W, A, B, hidden if need[3] else None)
    return y.reshape(*x.shape[:-1], y.shape[-1]), saved


@lora_matmul.defvjp
def _lora_matmul_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, scale: float) -> tuple[Array | None, ...]:
    x, W, A, B, hidden = saved
    flat = rows(grad)
    grad_hidden = scale * (flat @ B.T)
    grad_x = None
    if need[0]:
        grad_x = flat @ W.T + grad_hidden @ A.T
        grad_x = grad_x.reshape(*grad.shape[:-1], grad_x.shape[-1])
    grad_W = x.T @ flat if need[1] else None
    grad_A = x.T @ grad_hidden if need[2] else None
    grad_B = scale * (hidden.T @ flat) if need[3] else None
    grad_bias = flat.sum(axis=0) if need[4] else None
    return grad_x, grad_W, grad_A, grad_B, grad_bias


@lora_matmul.defkernel
def _lora_matmul_kernel(
    x: Array, W: Any, A: Array, B: Array, scale: float = 1.0, bias: Array | None = None, *, need: tuple[bool, ...]
) -> tuple[Array, Any]:
    flat, A, B = packed(x), packed(A), packed(B)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y, hidden = kernels.compiled().lora_forward(flat, readable(W), A, B, bias, scale, kernels.threads())
    return y.reshape(*x.shape[:-1], y.shape[-1]), (flat if need[1] or need[2] else None, W, A, B, hidden)


@_lora_matmul_kernel
def _lora_matmul_kernel_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, scale: float
) -> tuple[Array | None, ...]:
    x, W, A, B, hidden = saved
    flat = packed(grad)
    operands, wanted = (flat, x, hidden, readable(W), A, B), (need[0], need[2], need[3])
    grad_x, grad_A, grad_B = kernels.compiled().lora_backward(*operands, scale, wanted, kernels.threads())
    if grad_x is not None:
        grad_x = grad_x.reshape(*grad.shape[:-1], grad_x.shape[-1])
    grad_W = x.T @ flat if need[1] else None
    grad_bias = flat.sum(axis=0) if need[4] else None
    return grad_x, grad_W, grad_A, grad_B, grad_bias
