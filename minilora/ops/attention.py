"""Scaled dot-product attention: causal or not, padded, in a sliding window, with grouped key and value heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.linear import contiguous

Array = NDArray[Any]


def _draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    batch, time, keys, groups, share, width = (int(n) for n in rng.integers(0, 4, size=6))
    groups, share, causal = max(groups, 1), max(share, 1), bool(rng.random() < 0.7)
    keys += time if causal else 0
    return {
        "q": rng.standard_normal((batch, time, groups * share, width)),
        "k": rng.standard_normal((batch, keys, groups, width)),
        "v": rng.standard_normal((batch, keys, groups, width)),
        "mask": rng.random((batch, keys)) < 0.8 if rng.random() < 0.5 else None,
        "causal": causal,
    }


@op(
    "q[B, T, H, D], k[B, S, G, D], v[B, S, G, D], mask?:bool[B, S] -> y[B, T, H, D]",
    params={"causal": (True, False), "window": (None, 1, 2), "scale": (None, 0.3)},
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245; "
    "sliding window: Jiang et al. 2023, arXiv:2310.06825, section 2",
    formula="y = softmax(scale · q kᵀ) v, over the keys that each query sees",
    saves="q, k, mask, the logarithm of each query's sum of exponentials, v where q or k needs a gradient",
    flops=lambda s: 4 * s["B"] * s["H"] * s["T"] * s["S"] * s["D"],
    draw=_draw,
)
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: NDArray[np.bool_] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    """Average the values, weighted by softmax(scale · q kᵀ), over the keys each query may see.

    q       (B, T, H, D)  queries; query t stands at position S - T + t, so the last at that of the last key
    k, v    (B, S, G, D)  keys and values; H / G query heads share each
    mask    (B, S)        False for keys that no query may see (padding), or None
    causal  True: a query sees no key after its own position, and S ≥ T; False: those too, and S may be any
    window  a query sees the last ``window`` positions, its own included (and as many ahead, if not causal);
            None: however far
    scale   of the products, before the softmax; None: 1 / √D

    A query that sees no key gives zero and passes no gradient. ShapeError where S, T or H, G do not fit,
    ConfigError for a window below 1 or a scale that is not finite.
    Returns y (B, T, H, D). Work: about 4 B H T S D flops, also for what a query does not see.
    """
    _assert_settings(q.shape, k.shape, causal, window, scale)
    queries, keys, values = _by_group(q, k.shape[2]), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    scores, _ = _scores(queries, keys, mask, _hidden(q.shape[1], k.shape[1], causal, window), scale)
    peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.maximum(peak, np.finfo(q.dtype).min, out=peak)  # a row of -inf alone must not give nan
    scores -= peak
    weights = np.exp(scores, out=scores)
    total = weights.sum(axis=-1, keepdims=True)
    np.maximum(total, np.finfo(q.dtype).tiny, out=total)
    y = (weights @ values) / total
    # The weights, T × S a head, are made again in the vjp from this one number a row.
    return _by_head(y, q.shape), (q, k, v if need[0] or need[1] else None, mask, peak + np.log(total))


@attention.defvjp
def _attention_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, causal: bool, window: int | None, scale: float | None
) -> tuple[Array | None, ...]:
    q, k, v, mask, log_total = saved
    groups = k.shape[2]
    queries, keys = _by_group(q, groups), k.transpose(0, 2, 3, 1)
    weights, factor = _scores(queries, keys, mask, _hidden(q.shape[1], k.shape[1], causal, window), scale)
    weights -= log_total
    np.exp(weights, out=weights)
    grad_y = _by_group(grad, groups)
    grad_q = grad_k = grad_v = None
    if need[2]:
        grad_v = (weights.swapaxes(-1, -2) @ grad_y).transpose(0, 2, 1, 3)
    if need[0] or need[1]:
        grad_scores = grad_y @ v.transpose(0, 2, 3, 1)
        # d softmax: w · (g - Σ w g)
        grad_scores -= np.einsum("bgts,bgts->bgt", weights, grad_scores)[..., None]
        grad_scores *= weights
        grad_scores *= factor
        if need[0]:
            grad_q = _by_head(grad_scores @ keys.swapaxes(-1, -2), q.shape)
        if need[1]:
            grad_k = (grad_scores.swapaxes(-1, -2) @ queries).transpose(0, 2, 1, 3)
    return grad_q, grad_k, grad_v, None


@attention.defkernel
def _attention_kernel(
    q: Array,
    k: Array,
    v: Array,
    mask: NDArray[np.bool_] | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    _assert_settings(q.shape, k.shape, causal, window, scale)
    q, k, v = contiguous(q), _by_entry(k), _by_entry(v)
    mask = None if mask is None else contiguous(mask)
    settings = causal, window, _factor(q, scale), any(need)
    y, stats = kernels.compiled().attention_forward(q, k, v, mask, *settings, kernels.threads())
    # y costs no memory where the next layer keeps it, as a linear one does.
    v_and_y = (v, y) if need[0] or need[1] else (None, None)
    return y, (q, k, *v_and_y, stats, mask)


@_attention_kernel
def _attention_kernel_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, causal: bool, window: int | None, scale: float | None
) -> tuple[Array | None, ...]:
    settings = causal, window, _factor(saved[0], scale), need[:3]
    operands = contiguous(grad), *saved
    return *kernels.compiled().attention_backward(*operands, *settings, kernels.threads()), None


def _by_entry(x: Array) -> Array:
    """x (B, S, G, D) with each batch entry C-contiguous; the entries may lie apart, as in a cache."""
    apart = x.size > 0 and x[0].flags.c_contiguous and x.strides[0] >= x[0].nbytes and x.strides[0] % x.itemsize == 0
    return x if apart and x.flags.aligned else contiguous(x)


def _factor(q: Array, scale: float | None) -> Any:
    """The scale of the products, in the dtype of the queries."""
    return q.dtype.type(1 / np.sqrt(max(q.shape[-1], 1)) if scale is None else scale)


def _assert_settings(
    q: tuple[int, ...], k: tuple[int, ...], causal: bool, window: int | None, scale: float | None
) -> None:
    if (causal and k[1] < q[1]) or q[2] % max(k[2], 1):
        wanted = "S ≥ T, and H a multiple of G" if causal else "H a multiple of G"
        raise ShapeError(f"attention: q has T={q[1]}, H={q[2]} and k has S={k[1]}, G={k[2]}; expected {wanted}")
    if window is not None and not (isinstance(window, Integral) and window >= 1):
        raise ConfigError(f"attention: window is {window!r}, expected an integer of at least 1, or None")
    if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale)):
        raise ConfigError(f"attention: scale is {scale!r}, expected a finite number, or None")


def _hidden(time: int, past: int, causal: bool, window: int | None) -> NDArray[np.bool_] | None:
    """(T, S), True where a key is too far ahead of a query or behind it; None where every query sees all."""
    if window is None and (not causal or time == 1):
        return None
    key, position = np.arange(past), np.arange(time)[:, None] + (past - time)
    if window is None:
        return key > position
    window = min(int(window), time + past)  # wide enough for all, and too small to overflow
    return (key > (position if causal else position + (window - 1))) | (key <= position - window)


def _scores(
    queries: Array, keys: Array, mask: NDArray[np.bool_] | None, hidden: NDArray[np.bool_] | None, scale: float | None
) -> tuple[Array, Any]:
    """Scaled q kᵀ (B, G, H/G · T, S), -inf where a query may not look; and the scale."""
    factor = _factor(queries, scale)
    scores = (queries * factor) @ keys
    if hidden is not None:
        batch, groups, rows, past = scores.shape
        time = hidden.shape[0]
        scores.reshape(batch, groups, rows // max(time, 1), time, past)[..., hidden] = -np.inf
    if mask is not None:
        scores.transpose(0, 3, 1, 2)[~mask] = -np.inf
    return scores, factor


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
