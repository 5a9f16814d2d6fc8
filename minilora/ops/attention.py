"""Causal scaled dot-product attention with grouped key and value heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError

Array = NDArray[Any]


def _draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    batch, time, past, groups, share, width = (int(n) for n in rng.integers(0, 4, size=6))
    groups, share = max(groups, 1), max(share, 1)
    keys = time + past
    return {
        "q": rng.standard_normal((batch, time, groups * share, width)),
        "k": rng.standard_normal((batch, keys, groups, width)),
        "v": rng.standard_normal((batch, keys, groups, width)),
        "mask": rng.random((batch, keys)) < 0.8 if rng.random() < 0.5 else None,
    }


@op(
    "q[B, T, H, D], k[B, S, G, D], v[B, S, G, D], mask?:bool[B, S] -> y[B, T, H, D]",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245",
    draw=_draw,
)
def attention(q: Array, k: Array, v: Array, mask: NDArray[np.bool_] | None = None) -> tuple[Array, Any]:
    """Average the values, weighted by softmax(q kᵀ / √D), over the keys each query may see.

    q     (B, T, H, D)  queries; they are the last T of the S positions
    k, v  (B, S, G, D)  keys and values, S ≥ T; H / G query heads share each
    mask  (B, S)        False for keys that no query may see (padding), or None

    Query t sees the keys up to its own position, S - T + t. A query that sees none gives zero.
    Returns y (B, T, H, D). Work: about 4 B H T S D flops.
    """
    if k.shape[1] < q.shape[1] or q.shape[2] % max(k.shape[2], 1):
        raise ShapeError(
            f"attention: q has T={q.shape[1]}, H={q.shape[2]} and k has S={k.shape[1]}, G={k.shape[2]}; "
            "expected S ≥ T, and H a multiple of G"
        )
    queries, keys, values = _by_group(q, k.shape[2]), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    scores, _ = _scores(queries, keys, mask, q.shape[1])
    peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.maximum(peak, np.finfo(q.dtype).min, out=peak)  # a row of -inf alone must not give nan
    scores -= peak
    weights = np.exp(scores, out=scores)
    total = weights.sum(axis=-1, keepdims=True)
    np.maximum(total, np.finfo(q.dtype).tiny, out=total)
    y = (weights @ values) / total
    # The weights, T × S a head, are made again in the vjp from this one number a row.
    return _by_head(y, q.shape), (q, k, v, mask, peak + np.log(total))


@attention.defvjp
def _attention_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    q, k, v, mask, log_total = saved
    groups = k.shape[2]
    queries, keys, values = _by_group(q, groups), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 3, 1)
    weights, scale = _scores(queries, keys, mask, q.shape[1])
    weights -= log_total
    np.exp(weights, out=weights)
    grad_y = _by_group(grad, groups)
    grad_q = grad_k = grad_v = None
    if need[2]:
        grad_v = (weights.swapaxes(-1, -2) @ grad_y).transpose(0, 2, 1, 3)
    if need[0] or need[1]:
        grad_scores = grad_y @ values
        # d softmax: w · (g - Σ w g)
        grad_scores -= np.einsum("bgts,bgts->bgt", weights, grad_scores)[..., None]
        grad_scores *= weights
        grad_scores *= scale
        if need[0]:
            grad_q = _by_head(grad_scores @ keys.swapaxes(-1, -2), q.shape)
        if need[1]:
            grad_k = (grad_scores.swapaxes(-1, -2) @ queries).transpose(0, 2, 1, 3)
    return grad_q, grad_k, grad_v, None


def _scores(queries: Array, keys: Array, mask: NDArray[np.bool_] | None, time: int) -> tuple[Array, Any]:
    """Scaled q kᵀ (B, G, H/G · T, S), -inf where a query may not look; and the scale."""
    scale = queries.dtype.type(1 / np.sqrt(max(queries.shape[-1], 1)))
    scores = (queries * scale) @ keys
    batch, groups, rows, past = scores.shape
    if time > 1:
        late = np.arange(past) > np.arange(time)[:, None] + (past - time)
        scores.reshape(batch, groups, rows // time, time, past)[..., late] = -np.inf
    if mask is not None:
        scores.transpose(0, 3, 1, 2)[~mask] = -np.inf
    return scores, scale


def _by_group(x: Array, groups: int) -> Array:
    """(B, T, H, D) -> (B, G, H/G · T, D): the queries that share a key head, one block of rows."""
    batch, time, heads, width = x.shape
    share = heads // max(groups, 1)
    return (
        x.reshape(batch, time, groups, share, width)
        .transpose(0, 2, 3, 1, 4)
        .reshape(batch, groups, share * time, width)
    )


def _by_head(x: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of ``_by_group``, for queries of ``shape`` (B, T, H, D)."""
    batch, time, heads, width = shape
    groups = x.shape[1]
    share = heads // max(groups, 1)
    return x.reshape(batch, groups, share, time, width).transpose(0, 3, 1, 2, 4).reshape(shape)
