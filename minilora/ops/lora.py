"""The LoRA update: a frozen linear map plus a trained low-rank one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.linear import contiguous, packed, readable, rows

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
    bias = None if bias is None else contiguous(bias)
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


def _mixed_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    rows, width, out, count = (int(n) for n in rng.integers(0, 5, size=4))
    ranks = rng.integers(0, 4, count)
    factors = [rng.standard_normal(shape) for r in ranks for shape in ((width, r), (r, out))]
    return {
        "x": rng.standard_normal((rows, width)),
        "W": rng.standard_normal((width, out)),
        "index": rng.integers(-1, count, rows) if count else np.full(rows, -1),
        "bias": rng.standard_normal(out) if rng.random() < 0.5 else None,
        "factors": tuple(factors),
        "scales": tuple(float(s) for s in rng.choice([0.5, 1.0, 2.0], count)),
    }


@op(
    "x[*, K], W:weight[K, N], index:int[*], bias?[N], *factors[?] -> y[*, N]",
    source="Hu et al. 2021, arXiv:2106.09685, eq. 3, with another A and B in each row",
    formula="y = x W + bias + scale_i (x A_i) B_i, i = index",
    saves="x, W, index, factors, x A of each adapter",
    flops=lambda s: 2 * math.prod(s["*"]) * s["K"] * s["N"],
    draw=_mixed_draw,
)
def mixed_lora_matmul(
    x: Array,
    W: Array | FrozenWeight,
    index: NDArray[np.integer[Any]],
    bias: Array | None,
    factors: tuple[Array, ...],
    scales: Sequence[float] = (),
    *,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    """Compute x @ W + bias, and add to each row the low-rank update of its own adapter.

    x        (*, K)  activations
    W        (K, N)  weight, one for all rows
    index    (*)     which adapter a row uses; -1: none
    bias     (N,)    added to every row, or None
    factors          A_0 (K, R_0), B_0 (R_0, N), A_1, B_1, …: a pair an adapter, each with a rank of its own
    scales           one number a pair

    Returns y (*, N). ShapeError where pairs, scales, sizes or an index do not fit. Work: the flops of x W, and
    2 R_i (K + N) more for a row of adapter i.
    """
    _assert_pairs(x.shape[-1], W.shape[1], index, factors, scales)
    flat, which = rows(x), index.reshape(-1)
    y = flat @ W
    if bias is not None:
        y = y + bias
    hidden = []
    for i, scale in enumerate(scales):
        mine = which == i
        hidden.append(flat[mine] @ factors[2 * i])
        y[mine] += scale * (hidden[i] @ factors[2 * i + 1])
    return y.reshape(*x.shape[:-1], y.shape[-1]), (flat, W, which, factors, hidden)


@mixed_lora_matmul.defvjp
def _mixed_lora_matmul_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, scales: Sequence[float]
) -> tuple[Array | None, ...]:
    flat = rows(grad)
    return _with_pairs(flat, flat @ saved[1].T if need[0] else None, saved, need, scales, grad.shape[:-1])


@mixed_lora_matmul.defkernel
def _mixed_lora_matmul_kernel(
    x: Array,
    W: Array | FrozenWeight,
    index: NDArray[np.integer[Any]],
    bias: Array | None,
    factors: tuple[Array, ...],
    scales: Sequence[float] = (),
    *,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    _assert_pairs(x.shape[-1], W.shape[1], index, factors, scales)
    flat, which, factors = packed(x), index.reshape(-1), tuple(map(packed, factors))
    bias = None if bias is None else contiguous(bias)
    y, hidden = kernels.compiled().mixed_lora_forward(
        flat, readable(W), which, factors[::2], factors[1::2], bias, scales, kernels.threads()
    )
    return y.reshape(*x.shape[:-1], y.shape[-1]), (flat, W, which, factors, hidden)


@_mixed_lora_matmul_kernel
def _mixed_lora_matmul_kernel_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, scales: Sequence[float]
) -> tuple[Array | None, ...]:
    flat, grad_x = packed(grad), None
    if need[0]:
        operands = flat, None, None, readable(saved[1]), None, None
        grad_x = kernels.compiled().lora_backward(*operands, 1.0, (True, False, False), kernels.threads())[0]
    return _with_pairs(flat, grad_x, saved, need, scales, grad.shape[:-1])


def _with_pairs(
    flat: Array, grad_x: Array | None, saved: Any, need: tuple[bool, ...], scales: Sequence[float],
    leading: tuple[int, ...],
) -> tuple[Array | None, ...]:  # fmt: skip
    """All gradients, from that of x through W alone: an adapter's part of it, and its own two, come from its rows."""
    x, _, which, factors, hidden = saved
    pairs: list[Array | None] = []
    for i, scale in enumerate(scales):
        mine, (A, B) = which == i, factors[2 * i : 2 * i + 2]
        of_rows = flat[mine]
        grad_hidden = scale * (of_rows @ B.T)
        if grad_x is not None:
            grad_x[mine] += grad_hidden @ A.T
        pairs.append(x[mine].T @ grad_hidden if need[4 + 2 * i] else None)
        pairs.append(scale * (hidden[i].T @ of_rows) if need[5 + 2 * i] else None)
    if grad_x is not None:
        grad_x = grad_x.reshape(*leading, grad_x.shape[-1])
    grad_W = x.T @ flat if need[1] else None
    return grad_x, grad_W, None, flat.sum(axis=0) if need[3] else None, *pairs


def _assert_pairs(
    width: int, out: int, index: NDArray[np.integer[Any]], factors: Sequence[Array], scales: Sequence[float]
) -> None:
    if len(factors) != 2 * len(scales):
        raise ShapeError(
            f"mixed_lora_matmul: {len(factors)} factors and {len(scales)} scales; expected A and B for each scale"
        )
    for i in range(len(scales)):
        A, B = factors[2 * i].shape, factors[2 * i + 1].shape
        if len(A) != 2 or len(B) != 2 or A[0] != width or B[1] != out or A[1] != B[0]:
            raise ShapeError(f"mixed_lora_matmul: factors {i} are {A} and {B}, expected ({width}, R) and (R, {out})")
    if index.size and (index.min() < -1 or index.max() >= len(scales)):
        bad = index[(index < -1) | (index >= len(scales))].flat[0]
        raise ShapeError(f"mixed_lora_matmul: index holds {bad}, expected -1 to {len(scales) - 1}")
