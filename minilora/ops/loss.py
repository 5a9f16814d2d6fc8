"""Softmax cross-entropy, and the reductions that all losses share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import Index, Interval, op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.linear import contiguous, packed

Array = NDArray[Any]
Need = tuple[bool, ...]
REDUCTIONS = ("mean", "sum", "none")


def check_reduction(name: str, reduction: str, choices: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ConfigError where ``reduction`` is none of ``choices``."""
    if reduction not in choices:
        listed = ", ".join(map(repr, choices[:-1]))
        raise ConfigError(f"{name}: reduction is {reduction!r}, expected {listed} or {choices[-1]!r}")


def reduced(losses: Array, reduction: str) -> Array:
    """The losses themselves, their sum, or that over their number or their rows; 0 where there are none."""
    if reduction == "none":
        return losses
    total = losses.sum(dtype=np.result_type(losses, np.float64))
    return np.asarray(total / _number(losses.shape, reduction), losses.dtype)


def shared(grad: Array, shape: tuple[int, ...], reduction: str) -> Array:
    """The cotangent of every loss, from that of ``reduced``; of shape () where it is the same for all."""
    return grad if reduction == "none" else np.asarray(grad / grad.dtype.type(_number(shape, reduction)))


def _number(shape: tuple[int, ...], reduction: str) -> int:
    if reduction == "mean":
        return max(math.prod(shape), 1)
    return max(shape[0], 1) if reduction == "batchmean" and shape else 1


@op(
    "logits[*, V], labels:int[*], weight?[V] -> loss[?]",
    params={"ignore_index": (-100,), "reduction": REDUCTIONS, "label_smoothing": (0.0, 0.0, 0.1, 1.0)},
    domain={"labels": Index("V", also=(-100,)), "weight": Interval(0)},
    source="Goodfellow et al. 2016, Deep Learning, eq. 6.30; smoothing: Szegedy et al. 2016, arXiv:1512.00567, sec. 7",
    formula="loss = log Σ exp(logits) - logits[label]",
    saves="logits, log Σ exp(logits) a row, labels, weight",
    flops=lambda s: 4 * math.prod(s["*"]) * s["V"],
)
def cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]], weight: Array | None = None, *,
    ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
) -> tuple[Array, Any]:  # fmt: skip
    """Negative log-likelihood of the labels under softmax(logits).

    logits     (*, V)    unnormalised log-probabilities
    labels     (*)       integers in [0, V), or ignore_index: not counted
    weight     (V,)      how much each class counts, at least 0, or None: all alike. It has a gradient like any operand
    reduction            "mean" over the counted labels, each as often as its class counts (0 if there are none), "sum",
                         or "none": one loss a label
    label_smoothing      in [0, 1]: this share of each label is spread evenly over all classes, each with its weight

    Returns a 0-d array, or (*) with "none". ShapeError where a label is outside the vocabulary or a weight negative,
    ConfigError where a setting is outside its range.
    """
    check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 to 1")
    counted = counted_labels("cross_entropy", labels, ignore_index, logits.shape[-1])
    if weight is not None and not (weight >= 0).all():
        raise ShapeError(f"cross_entropy: weight holds {weight[~(weight >= 0)][0]}, expected numbers of at least 0")
    target = np.where(counted, labels, 0)[..., None]
    if counted.any():
        peak = logits.max(axis=-1, keepdims=True)
        log_total = peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
        losses = _of_labels(logits, log_total, target, _is_plain(logits, weight, label_smoothing))
        if weight is not None or label_smoothing:
            of_label, of_each = _class_weights(logits, weight, label_smoothing)
            losses = of_label[target] * losses
            if label_smoothing:
                losses += ((log_total - logits) @ of_each)[..., None]
        losses = np.where(counted, losses[..., 0], 0)
    else:  # also an empty vocabulary, which has no largest element
        log_total = np.zeros((*labels.shape, 1), logits.dtype)
        losses = np.zeros(labels.shape, logits.dtype)
    if reduction == "none":
        return losses.astype(logits.dtype, copy=False), (logits, log_total, target, counted, weight, 0.0)
    total = losses.sum(dtype=np.result_type(losses, np.float64))
    total = total / (_divisor(target, counted, weight) if reduction == "mean" else 1)
    return np.asarray(total, logits.dtype), (logits, log_total, target, counted, weight, float(total))


@cross_entropy.defvjp
def _cross_entropy_vjp(
    grad: Array, saved: Any, need: Need, *, ignore_index: int, reduction: str, label_smoothing: float
) -> tuple[Array | None, ...]:
    logits, log_total, target, counted, weight, mean = saved
    if not counted.any():
        return tuple(
            np.zeros_like(a) if wanted else None for a, wanted in zip((logits, None, weight), need, strict=True)
        )
    share = np.where(counted, grad / (_divisor(target, counted, weight) if reduction == "mean" else 1), 0)
    share = share.astype(logits.dtype, copy=False)[..., None]
    grad_logits = grad_weight = None
    if need[2]:
        # A class counts in the losses of its labels, in its part of every loss by smoothing, and in the mean's divisor.
        losses = _of_labels(logits, log_total, target, plain=False)
        by_label = share * ((1 - label_smoothing) * losses - (mean if reduction == "mean" else 0))
        grad_weight = np.bincount(target.reshape(-1), by_label.reshape(-1), weight.size).astype(weight.dtype)
        if label_smoothing:
            spread = share.reshape(-1) @ (log_total - logits).reshape(-1, weight.size)
            grad_weight += spread * weight.dtype.type(label_smoothing / weight.size)
    if need[0]:
        grad_logits = np.exp(logits - log_total)  # softmax, made again: cheaper than keeping a second (*, V)
        if weight is None and not label_smoothing:
            grad_logits *= share
        else:
            of_label, of_each = _class_weights(logits, weight, label_smoothing)
            grad_logits *= share * (of_label[target] + of_each.sum())
            grad_logits -= share * of_each
            share = share * of_label[target]
        at_target = np.take_along_axis(grad_logits, target, axis=-1) - share
        if not _is_plain(logits, weight, label_smoothing):  # as in _of_labels; a row of the gradient adds up to 0
            np.put_along_axis(grad_logits, target, 0, axis=-1)
            lost = log_total == np.take_along_axis(logits, target, axis=-1)
            at_target = np.where(lost, -grad_logits.sum(axis=-1, keepdims=True), at_target)
        np.put_along_axis(grad_logits, target, at_target, axis=-1)
    return grad_logits, None, grad_weight


@cross_entropy.defkernel
def _cross_entropy_kernel(
    logits: Array, labels: NDArray[np.integer[Any]], weight: Array | None = None, *,
    ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
) -> tuple[Array, Any]:  # fmt: skip
    """The plain loss by the kernel, with a peak and a total a row saved; all else by the reference."""
    if weight is not None or label_smoothing != 0:
        settings = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        loss, saved = cross_entropy.reference.forward(logits, labels, weight, **settings)
        return loss, (None, saved)
    check_reduction("cross_entropy", reduction)
    counted = counted_labels("cross_entropy", labels, ignore_index, logits.shape[-1])
    flat, wanted = packed(logits), np.where(counted, labels, -1).reshape(-1).astype(np.int64)
    losses, peaks, others = kernels.compiled().cross_entropy_forward(flat, wanted, kernels.threads())
    saved = (flat, peaks, others, wanted, max(int(counted.sum()), 1) if reduction == "mean" else 1)
    if reduction == "none":
        return losses.reshape(labels.shape), (logits.shape, saved)
    return np.asarray(losses.sum(dtype=np.float64) / saved[-1], logits.dtype), (logits.shape, saved)


@_cross_entropy_kernel
def _cross_entropy_kernel_vjp(grad: Array, saved: Any, need: Need, **settings: Any) -> tuple[Array | None, ...]:
    shape, kept = saved
    if shape is None:
        return _cross_entropy_vjp(grad, kept, need, **settings)
    if not need[0]:
        return None, None, None
    logits, peaks, others, labels, divisor = kept
    factors = contiguous(np.broadcast_to(grad / grad.dtype.type(divisor), shape[:-1])).reshape(-1)
    call = kernels.compiled().cross_entropy_backward
    return call(logits, peaks, others, factors, labels, kernels.threads()).reshape(shape), None, None


def counted_labels(name: str, labels: NDArray[np.integer[Any]], ignore_index: int, classes: int) -> NDArray[np.bool_]:
    """Which labels count; ShapeError, by the operator of this name, where one of these is no class."""
    counted = labels != ignore_index
    wrong = counted & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ShapeError(f"{name}: labels holds {labels[wrong].flat[0]}, expected 0 to {classes - 1} or {ignore_index}")
    return np.asarray(counted)


def _is_plain(logits: Array, weight: Array | None, label_smoothing: float) -> bool:
    """True for the loss that models are trained with, which is spared a second look at its likeliest labels."""
    return weight is None and not label_smoothing and logits.dtype == np.float32


def _of_labels(logits: Array, log_total: Array, target: Array, plain: bool) -> Array:
    """-log p of the labels (*, 1); where rounding swallowed all of it, from the other classes alone."""
    losses = log_total - np.take_along_axis(logits, target, axis=-1)
    if not plain:
        lost = losses[..., 0] == 0
        label = target[lost]
        others = np.exp(logits[lost] - np.take_along_axis(logits[lost], label, axis=-1))
        np.put_along_axis(others, label, 0, axis=-1)
        losses[lost] = np.log1p(others.sum(axis=-1, keepdims=True))
    return losses


def _class_weights(logits: Array, weight: Array | None, label_smoothing: float) -> tuple[Array, Array]:
    """How much of a class's -log p is in the loss of a label (V,): for the label's own class, and for every class."""
    if weight is None:
        weight = np.ones(logits.shape[-1], logits.dtype)
    kept, spread = weight.dtype.type(1 - label_smoothing), weight.dtype.type(label_smoothing / weight.size)
    return weight * kept, weight * spread


def _divisor(target: Array, counted: NDArray[np.bool_], weight: Array | None) -> Any:
    """What the mean divides by: the weights of the counted labels, added up; 1 if that is nothing."""
    if weight is None or not counted.any():
        return max(counted.sum(), 1)
    return float(np.sum(weight[target[..., 0]], where=counted, dtype=np.float64)) or 1.0
