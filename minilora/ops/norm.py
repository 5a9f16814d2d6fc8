"""Normalisation of rows and of groups of channels: RMSNorm, LayerNorm, GroupNorm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.linear import contiguous, packed

Array = NDArray[Any]
Need = tuple[bool, ...]


@op(
    "x[*, D], weight[D] -> y[*, D]",
    params={"eps": (1e-6, 1e-5)},
    source="Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4",
    formula="y = x / sqrt(mean(x²) + eps) · weight",
    saves="x, weight, 1 / rms a row",
    flops=lambda s: 4 * math.prod(s["*"]) * s["D"],
)
def rms_norm(x: Array, weight: Array, *, eps: float = 1e-6) -> tuple[Array, Any]:
    """Scale each row of ``x`` to unit root mean square, then by ``weight``.

    x       (*, D)  activations
    weight  (D,)    learned gain
    eps             added to the mean square, in the units of x squared

    Returns y (*, D), same dtype as x.
    """
    square = np.einsum("...d,...d->...", x, x)[..., None] / x.dtype.type(max(x.shape[-1], 1))
    inv_rms = 1 / np.sqrt(square + x.dtype.type(eps))
    return x * inv_rms * weight, (x, weight, inv_rms)


@rms_norm.defvjp
def _rms_norm_vjp(grad: Array, saved: Any, need: Need, *, eps: float) -> tuple[Array | None, ...]:
    x, weight, inv_rms = saved
    unit = x * inv_rms  # recomputed: cheaper than keeping a second activation
    grad_x = grad_weight = None
    if need[0]:
        g = grad * weight
        # The second term comes through inv_rms, whose derivative is -inv_rms³ x / D.
        mean = np.einsum("...d,...d->...", g, unit)[..., None] / x.dtype.type(max(x.shape[-1], 1))
        grad_x = inv_rms * (g - unit * mean)
    if need[1]:
        grad_weight = (grad * unit).sum(axis=tuple(range(x.ndim - 1)))
    return grad_x, grad_weight


@rms_norm.defkernel
def _rms_norm_kernel(x: Array, weight: Array, *, eps: float = 1e-6) -> tuple[Array, Any]:
    flat, weight = packed(x), contiguous(weight)
    y, inv_rms = kernels.compiled().rms_norm_forward(flat, weight, eps, kernels.threads())
    return y.reshape(x.shape), (flat, inv_rms, weight)


@_rms_norm_kernel
def _rms_norm_kernel_vjp(grad: Array, saved: Any, need: Need, *, eps: float) -> tuple[Array | None, ...]:
    grad_x, grad_weight = kernels.compiled().rms_norm_backward(packed(grad), *saved, need, kernels.threads())
    return None if grad_x is None else grad_x.reshape(grad.shape), grad_weight


@op(
    "x[*, D], weight?[D], bias?[D] -> y[*, D]",
    params={"eps": (1e-5, 1e-3)},  # below, a row of equal elements turns within less than a difference can resolve
    source="Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4",
    formula="y = (x - mean x) / sqrt(var x + eps) · weight + bias",
    saves="x, weight, mean and 1 / std a row",
    flops=lambda s: 8 * math.prod(s["*"]) * s["D"],
)
def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, need: Need
) -> tuple[Array, Any]:
    """Shift each row of ``x`` to mean 0, scale it to variance 1, then scale by ``weight`` and shift by ``bias``.

    x       (*, D)  activations
    weight  (D,)    learned gain, or None
    bias    (D,)    learned shift, or None
    eps             added to the variance, in the units of x squared

    Returns y (*, D), same dtype as x.
    """
    unit, mean, inv_std = _normalised(x, eps)
    y = unit if weight is None else unit * weight
    if bias is not None:
        y += bias
    return y, ((x, mean, inv_std) if any(need[:2]) else None, weight if need[0] else None)


@layer_norm.defvjp
def _layer_norm_vjp(grad: Array, saved: Any, need: Need, *, eps: float) -> tuple[Array | None, ...]:
    normalised, weight = saved
    rows = tuple(range(grad.ndim - 1))
    grad_x = grad_weight = None
    if any(need[:2]):
        x, mean, inv_std = normalised
        unit = _again(x, mean, inv_std)
        if need[0]:
            grad_x = _through_moments(grad if weight is None else grad * weight, unit, inv_std)
        if need[1]:
            grad_weight = (grad * unit).sum(axis=rows)
    return grad_x, grad_weight, grad.sum(axis=rows) if need[2] else None


@layer_norm.defkernel
def _layer_norm_kernel(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, need: Need
) -> tuple[Array, Any]:
    flat = packed(x)
    weight, bias = (None if array is None else contiguous(array) for array in (weight, bias))
    y, *moments = kernels.compiled().layer_norm_forward(flat, weight, bias, eps, kernels.threads())
    return y.reshape(x.shape), ((flat, *moments) if any(need[:2]) else None, weight if need[0] else None)


@_layer_norm_kernel
def _layer_norm_kernel_vjp(grad: Array, saved: Any, need: Need, *, eps: float) -> tuple[Array | None, ...]:
    grad_x, *others = kernels.compiled().layer_norm_backward(packed(grad), *saved, need, kernels.threads())
    return None if grad_x is None else grad_x.reshape(grad.shape), *others


def _group_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    groups, share = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    channels = groups * share
    x = rng.standard_normal((int(rng.integers(0, 4)), channels, *rng.integers(0, 4, rng.integers(0, 3))))
    weight, bias = (rng.standard_normal(channels) if rng.random() < 0.5 else None for _ in range(2))
    return {"x": x, "weight": weight, "bias": bias, "num_groups": groups}


@op(
    "x[?], weight?[C], bias?[C] -> y[?]",
    params={"eps": (1e-5,)},
    source="Wu & He 2018, arXiv:1803.08494, eq. 1, 2, 6 and 7",
    formula="y = (x - mean x) / sqrt(var x + eps) · weight + bias, mean and var over a group of channels",
    saves="x, weight, mean and 1 / std a group",
    flops=lambda s: 8 * math.prod(s["x"]),
    draw=_group_draw,
)
def group_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, num_groups: int, eps: float = 1e-5, need: Need
) -> tuple[Array, Any]:
    """Shift and scale each group of channels to mean 0 and variance 1, then each channel by ``weight`` and ``bias``.

    x           (B, C, *)  activations: examples, channels, positions
    weight      (C,)       learned gain, or None
    bias        (C,)       learned shift, or None
    num_groups             groups of C / num_groups neighbouring channels; 1 or more
    eps                    added to the variance, in the units of x squared

    Returns y (B, C, *), same dtype as x. ShapeError where the channels do not divide into the groups, ConfigError
    where there is no group.
    """
    if not isinstance(num_groups, int | np.integer) or num_groups < 1:
        raise ConfigError(f"group_norm: num_groups is {num_groups!r}, expected an integer of 1 or more")
    if x.ndim < 2:
        raise ShapeError(f"group_norm: x has shape {x.shape}, expected [B, C, *]")
    channels = x.shape[1]
    if channels % num_groups:
        raise ShapeError(f"group_norm: x has C={channels}, which does not divide into {num_groups} groups")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.size != channels:
            raise ShapeError(f"group_norm: {name} has C={array.size}, but x has C={channels}")
    unit, mean, inv_std = _normalised(_by_group(x, num_groups), eps)
    y = unit.reshape(x.shape)
    if weight is not None:
        y = y * _by_channel(weight, x.ndim)
    if bias is not None:
        y += _by_channel(bias, x.ndim)
    return y, ((x, mean, inv_std) if any(need[:2]) else None, weight if need[0] else None)


@group_norm.defvjp
def _group_norm_vjp(grad: Array, saved: Any, need: Need, *, num_groups: int, eps: float) -> tuple[Array | None, ...]:
    normalised, weight = saved
    others = (0, *range(2, grad.ndim))
    grad_x = grad_weight = None
    if any(need[:2]):
        x, mean, inv_std = normalised
        unit = _again(_by_group(x, num_groups), mean, inv_std)
        if need[0]:
            g = grad if weight is None else grad * _by_channel(weight, grad.ndim)
            grad_x = _through_moments(_by_group(g, num_groups), unit, inv_std).reshape(grad.shape)
        if need[1]:
            grad_weight = (grad * unit.reshape(grad.shape)).sum(axis=others)
    return grad_x, grad_weight, grad.sum(axis=others) if need[2] else None


def _by_group(x: Array, groups: int) -> Array:
    """(B, C, *) -> (B, groups, C / groups · *)"""
    return x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)


def _by_channel(weight: Array, ndim: int) -> Array:
    """(C,) -> (C, 1, …), which broadcasts with (B, C, *)"""
    return weight.reshape(-1, *(1,) * (ndim - 2))


def _centred(x: Array, mean: Array | None = None) -> tuple[Array, Array]:
    """x - mean x over the last axis, and the mean, which is relative to each row's first element.

    What is left of elements that differ by less than they are large is then right to rounding of their differences;
    rows of equal elements become exactly 0.
    """
    centred = x - x[..., :1]
    if mean is None:
        mean = centred.sum(axis=-1, keepdims=True) / x.dtype.type(max(x.shape[-1], 1))
    centred -= mean
    return centred, mean


def _normalised(x: Array, eps: float) -> tuple[Array, Array, Array]:
    """Rows of mean 0 and variance 1; the mean as ``_centred`` has it; and 1 / standard deviation."""
    unit, mean = _centred(x)
    variance = np.einsum("...d,...d->...", unit, unit)[..., None] / x.dtype.type(max(x.shape[-1], 1))
    inv_std = 1 / np.sqrt(variance + x.dtype.type(eps))
    unit *= inv_std
    return unit, mean, inv_std


def _again(x: Array, mean: Array, inv_std: Array) -> Array:
    """The normalised rows once more: cheaper than keeping a second activation."""
    unit, _ = _centred(x, mean)
    unit *= inv_std
    return unit


def _through_moments(g: Array, unit: Array, inv_std: Array) -> Array:
    """The gradient for x from that for the normalised rows.

    It comes directly, through the mean, and through 1 / std, whose derivative is -(x - mean) / (D std³).
    """
    count = g.dtype.type(max(g.shape[-1], 1))
    centred, _ = _centred(g)
    along = np.einsum("...d,...d->...", centred, unit)[..., None] / count
    centred -= unit * along
    centred *= inv_std
    return centred
