"""Losses: softmax cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Index, op
from minilora.errors import ConfigError, ShapeError

Array = NDArray[Any]


@op(
    "logits[*, V], labels:int[*] -> loss[?]",
    params={"ignore_index": (-100,), "reduction": ("mean", "sum", "none")},
    domain={"labels": Index("V", also=(-100,))},
    source="Goodfellow et al. 2016, Deep Learning, eq. 6.30",
)
def cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]], *, ignore_index: int = -100, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Negative log-likelihood of the labels under softmax(logits).

    logits     (*, V)  unnormalised log-probabilities
    labels     (*)     integers in [0, V), or ignore_index: not counted
    reduction          "mean" over the counted labels (0 if there are none), "sum", or "none": one loss a label

    Returns a 0-d array, or (*) with "none". ShapeError where a label is outside the vocabulary.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"cross_entropy: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    vocabulary = logits.shape[-1]
    counted = labels != ignore_index
    wrong = counted & ((labels < 0) | (labels >= vocabulary))
    if wrong.any():
        raise ShapeError(
            f"cross_entropy: labels holds {labels[wrong].flat[0]}, expected 0 to {vocabulary - 1} or {ignore_index}"
        )
    target = np.where(counted, labels, 0)[..., None]
    if counted.any():
        peak = logits.max(axis=-1, keepdims=True)
        log_total = peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
        losses = np.where(counted, (log_total - np.take_along_axis(logits, target, axis=-1))[..., 0], 0)
    else:  # also an empty vocabulary, which has no largest element
        log_total = np.zeros((*labels.shape, 1), logits.dtype)
        losses = np.zeros(labels.shape, logits.dtype)
    if reduction == "none":
        return losses.astype(logits.dtype, copy=False), (logits, log_total, target, counted)
    total = losses.sum(dtype=np.float64) / (max(counted.sum(), 1) if reduction == "mean" else 1)
    return np.asarray(total, logits.dtype), (logits, log_total, target, counted)


@cross_entropy.defvjp
def _cross_entropy_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, ignore_index: int, reduction: str
) -> tuple[Array | None, ...]:
    logits, log_total, target, counted = saved
    share = np.where(counted, grad / (max(counted.sum(), 1) if reduction == "mean" else 1), 0)
    share = share.astype(logits.dtype, copy=False)[..., None]
    grad_logits = np.exp(logits - log_total)  # softmax, made again: cheaper than keeping a second (*, V)
    grad_logits *= share
    if counted.any():
        at_target = np.take_along_axis(grad_logits, target, axis=-1) - share
        np.put_along_axis(grad_logits, target, at_target, axis=-1)
    return grad_logits, None
