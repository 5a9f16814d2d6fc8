"""The head of a language model and its loss as one operator, so that the logits never exist all at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import Index, op
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.linear import contiguous, packed, readable, rows
from minilora.ops.loss import REDUCTIONS, check_reduction, counted_labels

Array = NDArray[Any]
Need = tuple[bool, ...]
CHUNK = 256  # rows of logits that exist at a time


@op(
    "x[*, D], W:weight[D, V], labels:int[*] -> loss[?]",
    params={"ignore_index": (-100,), "reduction": REDUCTIONS},
    domain={"labels": Index("V", also=(-100,))},
    source="Goodfellow et al. 2016, Deep Learning, eq. 6.30, of a linear layer",
    formula="loss = log Σ exp(x W) - (x W)[label]",
    saves="x where W is trained, W where it is trained, labels, the gradients",
    flops=lambda s: math.prod(s["*"]) * s["V"] * (2 * s["D"] + 4),
)
def linear_cross_entropy(
    x: Array, W: Array | FrozenWeight, labels: NDArray[np.integer[Any]], *,
    ignore_index: int = -100, reduction: str = "mean", need: Need,
) -> tuple[Array, Any]:  # fmt: skip
    """Negative log-likelihood of the labels under softmax(x @ W): ``cross_entropy`` of ``linear`` in little memory.

    x       (*, D)  activations
    W       (D, V)  weight; dW is formed only for a Tensor that requires a gradient
    labels  (*)     integers in [0, V), or ignore_index: not counted, and nothing is computed for that row
    reduction       "mean" over the counted labels (0 if there are none), "sum", or "none": one loss a label

    Of the (*, V) logits, and of their gradient, a few hundred rows exist at a time. The gradients are therefore formed
    together with the loss, where one is needed.

    Returns a 0-d array, or (*) with "none". ShapeError where a label is outside the vocabulary, ConfigError where the
    reduction is none of these.
    """
    return _forward(_in_chunks, x, W, labels, ignore_index, reduction, need)


@linear_cross_entropy.defvjp
def _linear_cross_entropy_vjp(
    grad: Array, saved: Any, need: Need, *, ignore_index: int, reduction: str
) -> tuple[Array | None, ...]:
    return _vjp(_in_chunks, grad, saved, need, ignore_index)


@linear_cross_entropy.defkernel
def _linear_cross_entropy_kernel(
    x: Array, W: Any, labels: NDArray[np.integer[Any]], *,
    ignore_index: int = -100, reduction: str = "mean", need: Need,
) -> tuple[Array, Any]:  # fmt: skip
    return _forward(_by_kernel, x, W, labels, ignore_index, reduction, need)


@_linear_cross_entropy_kernel
def _linear_cross_entropy_kernel_vjp(
    grad: Array, saved: Any, need: Need, *, ignore_index: int, reduction: str
) -> tuple[Array | None, ...]:
    return _vjp(_by_kernel, grad, saved, need, ignore_index)


def _forward(
    compute: Any, x: Array, W: Any, labels: NDArray[np.integer[Any]], ignore_index: int, reduction: str, need: Need
) -> tuple[Array, Any]:
    """The loss, and the gradients as far as they do not depend on the one that will arrive.

    A factor that differs from row to row can come into the gradient of x afterwards, but not into the sum over rows
    that W's is: that one waits for ``_vjp``.
    """
    check_reduction("linear_cross_entropy", reduction)
    counted = counted_labels("linear_cross_entropy", labels, ignore_index, W.shape[1])
    divisor = max(int(counted.sum()), 1) if reduction == "mean" else 1
    early = (need[0], need[1] and reduction != "none")
    factors = np.full(labels.shape, 1 / divisor, x.dtype)
    losses, grad_x, grad_W = compute(x, W, labels, counted, factors, early)
    again = (x, W) if need[1] else (None, None)
    if reduction == "none":
        return losses, (*again, labels, grad_x, None)
    total = losses.sum(dtype=np.result_type(losses, np.float64)) / divisor
    return np.asarray(total, x.dtype), (*again, labels, grad_x, grad_W)


def _vjp(compute: Any, grad: Array, saved: Any, need: Need, ignore_index: int) -> tuple[Array | None, ...]:
    x, W, labels, grad_x, grad_W = saved
    if need[1] and grad_W is None:
        counted = counted_labels("linear_cross_entropy", labels, ignore_index, W.shape[1])
        grad_W = compute(x, W, labels, counted, grad, (False, True))[2]
    elif need[1]:
        grad_W = _times(grad_W, grad)
    return _times(grad_x, grad[..., None]) if need[0] else None, grad_W, None


def _times(part: Array, grad: Array) -> Array:
    """part * grad; without a copy of a gradient as large as W where the loss is what backward starts from."""
    return part if grad.size == 1 and grad.item() == 1 else part * grad


def _in_chunks(
    x: Array, W: Any, labels: NDArray[np.integer[Any]], counted: NDArray[np.bool_], factors: Array, need: Need
) -> tuple[Array, Array | None, Array | None]:
    """Losses (*), and the gradients that are needed, where that of each loss is its factor."""
    flat, wanted, share = rows(x), labels.reshape(-1), factors.reshape(-1)
    losses = np.zeros(len(flat), x.dtype)
    grad_x = np.zeros_like(flat) if need[0] else None
    grad_W = np.zeros(W.shape, x.dtype) if need[1] else None
    chosen = np.flatnonzero(counted)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK]
        losses[part], grad_logits = _of_logits(flat[part] @ W, wanted[part], share[part])
        if grad_x is not None:
            grad_x[part] = grad_logits @ W.T
        if grad_W is not None:
            grad_W += flat[part].T @ grad_logits
    return losses.reshape(labels.shape), None if grad_x is None else grad_x.reshape(x.shape), grad_W


def _of_logits(logits: Array, labels: NDArray[np.integer[Any]], factors: Array) -> tuple[Array, Array]:
    """The loss of each row of logits (M, V), and their gradient. The logits are written.

    The label's term stays out of the sum, so that no digit is lost where it is almost all of it: then the loss is
    log(1 + others), and softmax - 1 is -others / (1 + others).
    """
    row = np.arange(len(labels))
    peak, at_label = logits.max(axis=-1), logits[row, labels]
    logits -= peak[:, None]
    terms = np.exp(logits, out=logits)
    of_label = terms[row, labels]  # 1 at the peak, or NaN
    terms[row, labels] = 0
    others = terms.sum(axis=-1)
    losses = np.where(
        at_label == peak, np.log1p(others + (of_label - 1)), np.log(others + of_label) + (peak - at_label)
    )
    share = factors / (others + of_label)
    terms *= share[:, None]
    terms[row, labels] = -share * others
    return losses, terms


def _by_kernel(
    x: Array, W: Any, labels: NDArray[np.integer[Any]], counted: NDArray[np.bool_], factors: Array, need: Need
) -> tuple[Array, Array | None, Array | None]:
    """What ``_in_chunks`` gives."""
    flat, wanted, share = packed(x), labels.reshape(-1).astype(np.int64), contiguous(factors.reshape(-1))
    call = kernels.compiled().linear_cross_entropy
    if counted.all():
        losses, grad_x, grad_W = call(flat, readable(W), wanted, share, need, kernels.threads())
    else:
        chosen = np.flatnonzero(counted)
        operands = flat[chosen], readable(W), wanted[chosen], share[chosen]
        some, some_x, grad_W = call(*operands, need, kernels.threads())
        losses, grad_x = np.zeros(len(flat), x.dtype), np.zeros_like(flat) if need[0] else None
        losses[chosen] = some
        if grad_x is not None:
            grad_x[chosen] = some_x
    return losses.reshape(labels.shape), None if grad_x is None else grad_x.reshape(x.shape), grad_W
