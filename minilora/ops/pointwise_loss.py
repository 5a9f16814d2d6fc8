"""Losses that compare each element with its target: squared error, Huber, logistic, Kullback–Leibler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.loss import REDUCTIONS, check_reduction, reduced, shared

Array = NDArray[Any]
Need = tuple[bool, ...]


@op(
    "input[*], target[*] -> loss[?]",
    params={"reduction": REDUCTIONS},
    source="least squares: Goodfellow et al. 2016, Deep Learning, eq. 5.4",
    formula="loss = (input - target)²",
    saves="input - target",
    flops=lambda s: 3 * math.prod(s["*"]),
)
def mse_loss(input: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, Any]:
    """Squared difference of each element and its target.

    input, target  (*)  predictions and what they should be
    reduction           "mean" over all elements (0 if there are none), "sum", or "none": one loss an element

    Returns a 0-d array, or (*) with "none".
    """
    check_reduction("mse_loss", reduction)
    difference = input - target
    return reduced(difference * difference, reduction), difference


@mse_loss.defvjp
def _mse_loss_vjp(grad: Array, difference: Array, need: Need, *, reduction: str) -> tuple[Array | None, ...]:
    slope = 2 * difference * shared(grad, difference.shape, reduction)
    return slope if need[0] else None, -slope if need[1] else None


@op(
    "input[*], target[*] -> loss[?]",
    params={"delta": (1.0, 0.1), "reduction": REDUCTIONS},
    source="Huber 1964, Ann. Math. Statist. 35(1), p. 75",
    formula="loss = d²/2 where |d| ≤ delta, else delta (|d| - delta/2), with d = input - target",
    saves="input - target",
    flops=lambda s: 5 * math.prod(s["*"]),
)
def huber_loss(input: Array, target: Array, *, delta: float = 1.0, reduction: str = "mean") -> tuple[Array, Any]:
    """Squared error of small differences and absolute error of large ones.

    input, target  (*)  predictions and what they should be
    delta               the size of a difference where one becomes the other, above 0
    reduction           "mean" over all elements (0 if there are none), "sum", or "none": one loss an element

    The slope is continuous; its own slope, the curvature, jumps from 1 to 0 at ± delta.
    Returns a 0-d array, or (*) with "none". ConfigError where delta is not above 0.
    """
    check_reduction("huber_loss", reduction)
    if not delta > 0:
        raise ConfigError(f"huber_loss: delta is {delta}, expected a number above 0")
    difference = input - target
    slope = _clipped(difference, delta)
    return reduced(slope * (difference - slope / 2), reduction), difference


@huber_loss.defvjp
def _huber_loss_vjp(
    grad: Array, difference: Array, need: Need, *, delta: float, reduction: str
) -> tuple[Array | None, ...]:
    slope = _clipped(difference, delta) * shared(grad, difference.shape, reduction)
    return slope if need[0] else None, -slope if need[1] else None


def _clipped(difference: Array, delta: float) -> Array:
    limit = difference.dtype.type(delta)
    return np.clip(difference, -limit, limit)


@op(
    "logits[*, C], target[*, C], pos_weight?[C] -> loss[?]",
    params={"reduction": REDUCTIONS},
    source="Goodfellow et al. 2016, Deep Learning, sec. 6.2.2.2",
    formula="loss = pos_weight · target · log(1 + exp(-logits)) + (1 - target) · log(1 + exp(logits))",
    saves="logits, target, pos_weight",
    flops=lambda s: 10 * math.prod(s["*"]) * s["C"],
)
def binary_cross_entropy_with_logits(
    logits: Array, target: Array, pos_weight: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Negative log-likelihood of yes-or-no targets under sigmoid(logits).

    logits      (*, C)  log-odds; a column is a question
    target      (*, C)  probability of yes, in [0, 1]: mostly 0 or 1
    pos_weight  (C,)    how much a yes counts beside a no, or None: alike
    reduction           "mean" over all elements (0 if there are none), "sum", or "none": one loss an element

    Small losses keep their digits, and nothing overflows. Returns a 0-d array, or (*, C) with "none".
    """
    check_reduction("binary_cross_entropy_with_logits", reduction)
    wrong = np.where(logits > 0, 1 - target, -_times(target, pos_weight)) * logits  # what the loss is for large logits
    both = np.log1p(np.exp(-np.abs(logits)))
    if pos_weight is not None:
        both *= 1 - target + target * pos_weight
    return reduced(wrong + both, reduction), (logits, target, pos_weight)


@binary_cross_entropy_with_logits.defvjp
def _binary_cross_entropy_vjp(grad: Array, saved: Any, need: Need, *, reduction: str) -> tuple[Array | None, ...]:
    logits, target, pos_weight = saved
    share = shared(grad, logits.shape, reduction)
    small = np.exp(-np.abs(logits))
    grad_logits = grad_target = grad_weight = None
    if need[0]:  # of two sigmoids, since 1 - sigmoid(x) would lose the digits of sigmoid(-x)
        rising, falling = np.where(logits < 0, small, 1), np.where(logits < 0, 1, small)
        slope = (1 - target) * rising - _times(target, pos_weight) * falling
        grad_logits = share * (slope / (1 + small))
    if need[1]:
        slope = -logits
        if pos_weight is not None:
            slope = np.where(logits > 0, 1, pos_weight) * slope + (pos_weight - 1) * np.log1p(small)
        grad_target = share * slope
    if need[2]:
        by_element = share * (target * (np.maximum(-logits, 0) + np.log1p(small)))
        grad_weight = by_element.sum(axis=tuple(range(logits.ndim - 1)))
    return grad_logits, grad_target, grad_weight


def _times(target: Array, pos_weight: Array | None) -> Array:
    return target if pos_weight is None else target * pos_weight


def _kl_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape, log_target = tuple(rng.integers(0, 4, rng.integers(0, 4))), bool(rng.random() < 0.5)
    target = 3 * rng.standard_normal(shape) if log_target else 10 ** rng.uniform(-3, 0.5, shape)
    return {"input": rng.standard_normal(shape), "target": np.asarray(target), "log_target": log_target}


@op(
    "input[*], target[*] -> loss[?]",
    params={"reduction": (*REDUCTIONS, "batchmean")},
    domain={"target": Interval(0)},  # logarithms of probabilities may be any number
    source="Kullback & Leibler 1951, Ann. Math. Statist. 22(1), sec. 2",
    formula="loss = target · (log target - input), or exp(target) · (target - input) with log_target",
    saves="input, target",
    flops=lambda s: 4 * math.prod(s["*"]),
    draw=_kl_draw,
)
def kl_div(input: Array, target: Array, *, reduction: str = "mean", log_target: bool = False) -> tuple[Array, Any]:
    """Kullback–Leibler divergence of a distribution ``input`` from the true one ``target``, each element's part.

    input       (*)  logarithms of probabilities, as log_softmax gives them
    target      (*)  probabilities, at least 0; their logarithms with log_target
    reduction        "batchmean": the sum over the size of the first axis, which is the divergence itself where a row is
                     a distribution; "mean" over all elements, "sum", or "none": one number an element

    An element with a probability of 0 adds 0. Returns a 0-d array, or (*) with "none". ShapeError where a probability
    is negative.
    """
    check_reduction("kl_div", reduction, (*REDUCTIONS, "batchmean"))
    if not log_target and (target < 0).any():
        raise ShapeError(
            f"kl_div: target holds {target[target < 0].flat[0]}, expected probabilities of at least 0\n"
            "  for their logarithms, say log_target=True"
        )
    probability, logarithm = _both(target, log_target)
    return reduced(probability * (logarithm - input), reduction), (input, target)


@kl_div.defvjp
def _kl_div_vjp(grad: Array, saved: Any, need: Need, *, reduction: str, log_target: bool) -> tuple[Array | None, ...]:
    input, target = saved
    share = shared(grad, input.shape, reduction)
    probability, logarithm = _both(target, log_target)
    grad_target = None
    if need[1]:
        grad_target = (logarithm - input + 1) * (probability if log_target else 1) * share
    return -probability * share if need[0] else None, grad_target


def _both(target: Array, log_target: bool) -> tuple[Array, Array]:
    """Probabilities and their logarithms; of 0 a finite one, which 0 times it needs, and a gradient that goes on."""
    if log_target:
        return np.exp(target), target
    return target, np.log(np.maximum(target, np.finfo(target.dtype).tiny))
