"""Cosine similarity, and the contrastive loss that is built on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError
from minilora.ops.elementwise import unbroadcast
from minilora.ops.loss import REDUCTIONS, check_reduction, reduced, shared
from minilora.ops.softmax import axis_of, log_softmax_of

Array = NDArray[Any]
Need = tuple[bool, ...]
SHORTEST = 1e-12  # length of a query or key below which it is not scaled to 1 any more: F.normalize's


def _length(x: Array, eps: float, axis: int = -1) -> Array:
    """|x| along an axis, which stays with size 1; no less than eps."""
    return np.maximum(np.sqrt((x * x).sum(axis=axis, keepdims=True)), x.dtype.type(eps))


def _across(g: Array, unit: Array, length: Array, eps: float, axis: int = -1) -> Array:
    """The gradient for x from that for the unit vector x / length: only what is across x turns it."""
    along = (g * unit).sum(axis=axis, keepdims=True)
    along = np.where(length > g.dtype.type(eps), along, 0)  # a shorter one is divided by eps, a constant
    return (g - unit * along) / length


# No vector is drawn as 0, beside which there is the kink. And they are few, so that the laws move their elements one by
# one: a short vector turns within less than the step of a movement that it shares with long ones.


def _cosine_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = [int(rng.integers(0, 4)) for _ in range(rng.integers(2))]
    at = int(rng.integers(len(shape) + 1))
    shape.insert(at, int(rng.choice([0, 1, 2, 3, 4, 4, 5, 5])))
    # Stretched along the axis, a vector has equal elements and can only grow, which changes nothing that one could see.
    x, y = (
        rng.standard_normal([1 if i != at and rng.random() < 0.3 else n for i, n in enumerate(shape)]) for _ in range(2)
    )
    return {"x": x, "y": y, "axis": at - len(shape) * int(rng.integers(2))}


@op(
    "x[...], y[...] -> s[?]",
    source="x · y = |x| |y| cos of the angle between them; PyTorch's floor for the lengths",
    formula="s = Σ x y / (max(|x|, eps) · max(|y|, eps))",
    saves="x, y",
    flops=lambda s: 8 * math.prod(s["..."]),
    draw=_cosine_draw,
)
def cosine_similarity(x: Any, y: Any, *, axis: int = -1, eps: float = 1e-8) -> tuple[Array, Any]:
    """Cosine of the angle between the vectors of two arrays, which broadcast.

    x, y  (...)  vectors along one axis
    axis         that axis, of the shape to which both broadcast
    eps          the smallest length that is divided by, above 0

    Where a length is eps there is a kink; shorter vectors are divided by eps, so that one of zeros gives 0.
    Returns s, without the axis. ShapeError where there is no such axis, ConfigError where eps is not above 0.
    """
    if not eps > 0:
        raise ConfigError(f"cosine_similarity: eps is {eps}, expected a number above 0")
    wide_x, wide_y = _broadcast(x, y)
    at = axis_of("cosine_similarity", wide_x, axis)
    s = (wide_x / _length(wide_x, eps, at) * (wide_y / _length(wide_y, eps, at))).sum(axis=at)
    return np.asarray(s), (x, y)


@cosine_similarity.defvjp
def _cosine_similarity_vjp(grad: Array, saved: Any, need: Need, *, axis: int, eps: float) -> tuple[Array | None, ...]:
    pair = _broadcast(*saved)
    lengths = [_length(v, eps, axis) for v in pair]
    units = [v / length for v, length in zip(pair, lengths, strict=True)]
    grad = np.expand_dims(grad, axis)

    def gradient(i: int) -> Array:
        return unbroadcast(_across(grad * units[1 - i], units[i], lengths[i], eps, axis), np.shape(saved[i]))

    return gradient(0) if need[0] else None, gradient(1) if need[1] else None


def _broadcast(x: Any, y: Any) -> tuple[Array, ...]:
    """Both in one shape, a number in the dtype of the array beside it."""
    dtype = np.result_type(x, y)
    return np.broadcast_arrays(np.asarray(x, dtype), np.asarray(y, dtype))


def _info_nce_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = tuple(min(sizes.get(axis, int(rng.integers(0, 4))), 4) for axis in "BD")
    return {"queries": rng.standard_normal(shape), "keys": rng.standard_normal(shape)}


@op(
    "queries[B, D], keys[B, D] -> loss[?]",
    params={
        "temperature": (0.1, 1.0), "normalize": (True, False), "symmetric": (False, True), "reduction": REDUCTIONS
    },
    source="van den Oord et al. 2018, arXiv:1807.03748, eq. 4; Chen et al. 2020, arXiv:2002.05709, eq. 1; both ways: "
    "Radford et al. 2021, arXiv:2103.00020, fig. 3",
    formula="loss_i = log Σ_j exp(q_i · k_j / temperature) - q_i · k_i / temperature",
    saves="queries, keys",
    flops=lambda s: 2 * s["B"] * s["B"] * s["D"] + 4 * s["B"] * s["B"] + 8 * s["B"] * s["D"],
    draw=_info_nce_draw,
)  # fmt: skip
def info_nce(
    queries: Array, keys: Array, *,
    temperature: float = 0.1, normalize: bool = True, symmetric: bool = False, reduction: str = "mean",
) -> tuple[Array, Any]:  # fmt: skip
    """Contrastive loss: pick the key that belongs to each query out of the keys of the whole batch.

    queries      (B, D)  one vector an example
    keys         (B, D)  the vector that belongs to it; those of the others are its negatives
    temperature          what similarities are divided by, above 0
    normalize            True: cosine similarity, as SimCLR and CLIP have it; False: the plain product of the vectors
    symmetric            True: the mean of this loss and of that which picks the query for each key, as CLIP has it
    reduction            "mean" over the batch (0 if it is empty), "sum", or "none": one loss an example

    To learn the temperature, give the queries times its inverse, normalised, with normalize=False and temperature=1.
    Vectors shorter than 1e-12 are scaled as one of that length, at which there is a kink.
    Returns a 0-d array, or (B,) with "none". ConfigError where the temperature is not above 0.
    """
    check_reduction("info_nce", reduction)
    if not temperature > 0:
        raise ConfigError(f"info_nce: temperature is {temperature}, expected a number above 0")
    (q, k), _ = _units(queries, keys, normalize)
    scores = q @ k.T / q.dtype.type(temperature)
    losses = -np.diagonal(log_softmax_of(scores, 1))
    if symmetric:
        losses = (losses - np.diagonal(log_softmax_of(scores, 0))) / 2
    return reduced(losses, reduction), (queries, keys)


@info_nce.defvjp
def _info_nce_vjp(
    grad: Array, saved: Any, need: Need, *, temperature: float, normalize: bool, symmetric: bool, reduction: str
) -> tuple[Array | None, ...]:
    queries, keys = saved
    (q, k), lengths = _units(queries, keys, normalize)
    scores = q @ k.T / q.dtype.type(temperature)  # made again, as all below: cheaper than keeping (B, B)
    share = np.broadcast_to(shared(grad, q.shape[:1], reduction), q.shape[:1])
    grad_scores = share[:, None] * _softmax_less_diagonal(scores)
    if symmetric:
        grad_scores = (grad_scores + share * _softmax_less_diagonal(scores.T).T) / 2
    grad_scores = grad_scores / q.dtype.type(temperature)
    grads = [grad_scores @ k if need[0] else None, grad_scores.T @ q if need[1] else None]
    if normalize:
        grads = [
            None if g is None else _across(g, unit, length, SHORTEST)
            for g, unit, length in zip(grads, (q, k), lengths, strict=True)
        ]
    return tuple(grads)


def _units(queries: Array, keys: Array, normalize: bool) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """Queries and keys as they are compared, and what they were divided by, if they were."""
    if not normalize:
        return (queries, keys), ()
    lengths = _length(queries, SHORTEST), _length(keys, SHORTEST)
    return (queries / lengths[0], keys / lengths[1]), lengths


def _softmax_less_diagonal(scores: Array) -> Array:
    """softmax of each row, less 1 on the diagonal: the slope of every row's loss."""
    log_p = log_softmax_of(scores, 1)
    slope = np.exp(log_p)
    np.fill_diagonal(slope, np.expm1(np.diagonal(log_p)))  # keeps the digits that a p of almost 1 lacks to 1
    return slope
