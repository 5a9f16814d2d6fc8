"""Operators that reduce axes: sums, means, spreads, extremes, products, norms."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import ConfigError, ShapeError
from minilora.signature import Draw

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None
Need = tuple[bool, ...]
_SIGNATURE = "x[*] -> y[?]"
DISTINCT = Interval(distinct=True)


def _drawn(distinct: bool = False, **params: tuple[Any, ...]) -> Draw:
    """Draws of any number of axes, with one, some or all of them reduced, and each further parameter of those given.

    distinct  no two elements are equal in size
    """

    def draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
        shape = tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4)))
        some = [int(a) for a in rng.permutation(len(shape))[: rng.integers(len(shape) + 1)]]
        axis: Axis = None
        if some and rng.random() < 0.8:
            some = [a - len(shape) if rng.random() < 0.5 else a for a in some]
            some = some[:1] if rng.random() < 0.5 else some
            axis = tuple(some) if rng.random() < 0.5 or len(some) > 1 else some[0]
        x = rng.standard_normal(shape)
        if distinct:
            x = (rng.permutation(x.size) + rng.uniform(0.3, 0.7)).reshape(shape) * rng.choice([-1.0, 1.0], shape)
        chosen = {name: values[int(rng.integers(len(values)))] for name, values in params.items()}
        if chosen.get("ddof") and np.prod([shape[a] for a in (range(len(shape)) if axis is None else some)]) < 2:
            chosen["ddof"] = 0
        return {"x": np.asarray(x), "axis": axis, "keepdims": bool(rng.random() < 0.5), **chosen}

    return draw


def axes_of(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
    """The axes to reduce, counted from the front; ShapeError where ``x`` has no such axis, or one is named twice."""
    given = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(not isinstance(a, int | np.integer) or not -x.ndim <= a < x.ndim for a in given):
        raise ShapeError(f"{name}: x has shape {x.shape}, which has no axis {axis}")
    found = tuple(int(a) % x.ndim for a in given)
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: axis {axis} names an axis of x {x.shape} twice")
    return found


def _count(name: str, x: Array, axes: tuple[int, ...], least: int = 1) -> int:
    """How many elements each result is made of; ShapeError where results are made of fewer than ``least``."""
    count = int(np.prod([x.shape[a] for a in axes], dtype=int))
    results = np.prod([n for i, n in enumerate(x.shape) if i not in axes], dtype=int)
    if count < least and results:
        raise ShapeError(
            f"{name}: x has shape {x.shape}, so over axes {axes} there are {count} elements, expected {least} or more"
        )
    return builtins.max(count, 1)


def _spread(y: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """Give a reduced array its axes back, with size 1, so that it broadcasts with the operand."""
    return y if keepdims else np.expand_dims(y, axes)


def _kept(y: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """A reduced array with its axes of size 1, as asked for."""
    return np.asarray(y if keepdims else y.squeeze(axes))


@op(_SIGNATURE, draw=_drawn(), source="sum rule", formula="y = Σ x", flops=lambda s: int(np.prod(s["x"])))
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Sum over the given axes, or over all, as np.sum does."""
    axes = axes_of("sum", x, axis)
    return np.asarray(x.sum(axis=axes, keepdims=keepdims)), (x.shape, axes)


@sum.defvjp
def _sum_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    shape, axes = saved
    return (np.broadcast_to(_spread(grad, axes, keepdims), shape),)


@op(_SIGNATURE, draw=_drawn(), source="sum rule", formula="y = Σ x / n", flops=lambda s: int(np.prod(s["x"])))
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Average over the given axes, or over all, as np.mean does. ShapeError where there is nothing to average."""
    axes = axes_of("mean", x, axis)
    count = _count("mean", x, axes)
    return np.asarray(x.sum(axis=axes, keepdims=keepdims) / x.dtype.type(count)), (x.shape, axes, count)


@mean.defvjp
def _mean_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    shape, axes, count = saved
    return (np.broadcast_to(_spread(grad / grad.dtype.type(count), axes, keepdims), shape),)


@op(
    _SIGNATURE,
    draw=_drawn(ddof=(0, 1)),
    source="d var / dx = 2 (x - mean) / (n - ddof)",
    formula="y = Σ (x - mean x)² / (n - ddof)",
    saves="x",
    flops=lambda s: 4 * int(np.prod(s["x"])),
)
def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> tuple[Array, Any]:
    """Compute the variance over the given axes, or over all, as np.var does.

    ddof  subtracted from the number of elements: 0 for the variance of these numbers, 1 for an unbiased estimate

    ShapeError where no more than ``ddof`` elements are reduced.
    """
    axes = axes_of("var", x, axis)
    count = _count("var", x, axes, ddof + 1) - ddof
    off = _centred(x, axes)
    total = (off * off).sum(axis=axes, keepdims=True)
    return _kept(total / x.dtype.type(builtins.max(count, 1)), axes, keepdims), (x, axes, builtins.max(count, 1))


@var.defvjp
def _var_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, ddof: int, keepdims: bool) -> tuple[Array | None, ...]:
    x, axes, count = saved
    return (_spread(grad, axes, keepdims) * (2 / count) * _centred(x, axes),)


@op(
    _SIGNATURE,
    draw=_drawn(distinct=True, ddof=(0, 1)),
    domain={"x": DISTINCT},
    source="chain rule on var",
    formula="y = √(Σ (x - mean x)² / (n - ddof))",
    saves="x, y",
    flops=lambda s: 4 * int(np.prod(s["x"])),
)
def std(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> tuple[Array, Any]:
    """Compute the standard deviation over the given axes, or over all, as np.std does.

    Where all elements are equal it has a kink; the gradient there is 0. ShapeError as for ``var``.
    """
    axes = axes_of("std", x, axis)
    count = builtins.max(_count("std", x, axes, ddof + 1) - ddof, 1)
    off = _centred(x, axes)
    y = np.sqrt((off * off).sum(axis=axes, keepdims=True) / x.dtype.type(count))
    return _kept(y, axes, keepdims), (x, y, axes, count)


@std.defvjp
def _std_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, ddof: int, keepdims: bool) -> tuple[Array | None, ...]:
    x, y, axes, count = saved
    return (_spread(grad, axes, keepdims) * (_centred(x, axes) / (np.where(y == 0, 1, y) * y.dtype.type(count))),)


def _centred(x: Array, axes: tuple[int, ...]) -> Array:
    """x - mean; NumPy sums pairwise, so the mean is right to a few units in its last place."""
    count = builtins.max(int(np.prod([x.shape[a] for a in axes], dtype=int)), 1)
    return np.asarray(x - x.sum(axis=axes, keepdims=True) / x.dtype.type(count))


@op(
    _SIGNATURE,
    draw=_drawn(distinct=True),
    domain={"x": DISTINCT},
    source="the derivative of the element that was chosen",
    formula="y = max x",
    saves="where x is largest",
)
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the largest element over the given axes, or over all, as np.max does.

    Equal largest elements share the gradient. ShapeError where there is nothing to choose from.
    """
    return _extreme("max", x, axis, keepdims, np.max)


@op(
    _SIGNATURE,
    draw=_drawn(distinct=True),
    domain={"x": DISTINCT},
    source="the derivative of the element that was chosen",
    formula="y = min x",
    saves="where x is smallest",
)
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the smallest element over the given axes, or over all, as np.min does.

    Equal smallest elements share the gradient. ShapeError where there is nothing to choose from.
    """
    return _extreme("min", x, axis, keepdims, np.min)


def _extreme(name: str, x: Array, axis: Axis, keepdims: bool, choose: Any) -> tuple[Array, Any]:
    axes = axes_of(name, x, axis)
    _count(name, x, axes)
    y = choose(x, axis=axes, keepdims=True) if x.size else x.sum(axis=axes, keepdims=True)
    return _kept(y, axes, keepdims), (x == y, axes)


def _extreme_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    chosen, axes = saved
    ties = np.maximum(chosen.sum(axis=axes, keepdims=True), 1).astype(grad.dtype)
    return (np.where(chosen, _spread(grad, axes, keepdims) / ties, grad.dtype.type(0)),)


max.defvjp(_extreme_vjp)
min.defvjp(_extreme_vjp)


@op(
    _SIGNATURE,
    draw=_drawn(),
    domain={"x": Interval(-1e3, 1e3)},  # a product of many larger ones overflows float32
    source="product rule: the gradient of an element is the product of all others",
    formula="y = Π x",
    saves="x",
    flops=lambda s: int(np.prod(s["x"])),
)
def prod(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Multiply over the given axes, or over all, as np.prod does; gradients are right beside zeros too."""
    axes = axes_of("prod", x, axis)
    return np.asarray(x.prod(axis=axes, keepdims=keepdims)), (x, axes)


@prod.defvjp
def _prod_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    x, axes = saved
    last = tuple(range(x.ndim - len(axes), x.ndim))
    rows = np.moveaxis(x, axes, last)
    flat = rows.reshape(*rows.shape[: x.ndim - len(axes)], int(np.prod(rows.shape[x.ndim - len(axes) :], dtype=int)))
    ones = np.ones((*flat.shape[:-1], 1), x.dtype)
    before = np.cumprod(np.concatenate([ones, flat[..., :-1]], axis=-1), axis=-1)  # of all elements before each
    after = np.cumprod(np.concatenate([ones, flat[..., :0:-1]], axis=-1), axis=-1)[..., ::-1]
    others = np.moveaxis((before * after)[..., : flat.shape[-1]].reshape(rows.shape), last, axes)
    return (_spread(grad, axes, keepdims) * others,)


@op(
    _SIGNATURE,
    draw=_drawn(),
    source="d logsumexp / dx = softmax",
    formula="y = log Σ exp x",
    saves="x",
    flops=lambda s: 3 * int(np.prod(s["x"])),
)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the logarithm of the sum of exponentials over the given axes, or over all; nothing overflows.

    ShapeError where there is nothing to sum.
    """
    axes = axes_of("logsumexp", x, axis)
    _count("logsumexp", x, axes)
    if not x.size:
        return _kept(x.sum(axis=axes, keepdims=True), axes, keepdims), (x, axes)
    shifted, peak = _below_peak(x, axes)
    with np.errstate(divide="ignore"):  # the sum is 0 where all are -inf
        y = np.log(np.exp(shifted).sum(axis=axes, keepdims=True)) + peak
    return _kept(y, axes, keepdims), (x, axes)


@logsumexp.defvjp
def _logsumexp_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    x, axes = saved
    if not x.size:
        return (np.zeros_like(x),)
    share = np.exp(_below_peak(x, axes)[0])
    share /= share.sum(axis=axes, keepdims=True)
    return (_spread(grad, axes, keepdims) * share,)


def _below_peak(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x less its largest element over the axes, and that; 0 instead of an infinite one."""
    peak = x.max(axis=axes, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, x.dtype.type(0))
    return x - peak, peak


@op(
    _SIGNATURE,
    draw=_drawn(distinct=True, ord=(2, 1, float("inf"))),
    domain={"x": Interval(kinks=(0.0,), distinct=True)},
    source="Horn & Johnson 2013, Matrix Analysis, sec. 5.2",
    formula="y = (Σ |x|^ord)^(1/ord), the largest |x| for infinity",
    saves="x, y",
    flops=lambda s: 2 * int(np.prod(s["x"])),
)
def norm(x: Array, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the vector norm over the given axes, or over all: the sum of |x|, the Euclidean one, or the largest |x|.

    ord  1, 2 or infinity

    Squares are taken of x over the largest |x|, so that none overflows or vanishes. At 0 the gradient is 0; equal
    largest elements share it. ConfigError for another ``ord``.
    """
    if ord not in (1, 2, float("inf")):
        raise ConfigError(f"norm: ord is {ord}, expected 1, 2 or inf")
    axes = axes_of("norm", x, axis)
    size = np.abs(x)
    largest = size.max(axis=axes, keepdims=True, initial=0)
    if ord == 1:
        y = size.sum(axis=axes, keepdims=True)
    elif ord == 2:
        scaled = size / np.where(largest == 0, 1, largest)
        y = largest * np.sqrt((scaled * scaled).sum(axis=axes, keepdims=True))
    else:
        y = largest
    return _kept(y, axes, keepdims), (x, y, axes)


@norm.defvjp
def _norm_vjp(
    grad: Array, saved: Any, need: Need, *, ord: float, axis: Axis, keepdims: bool
) -> tuple[Array | None, ...]:
    x, y, axes = saved
    g = _spread(grad, axes, keepdims)
    if ord == 1:
        return (g * np.sign(x),)
    if ord == 2:
        return (g * (x / np.where(y == 0, 1, y)),)
    chosen = np.abs(x) == y
    ties = np.maximum(chosen.sum(axis=axes, keepdims=True), 1).astype(grad.dtype)
    return (np.where(chosen, g / ties, grad.dtype.type(0)) * np.sign(x),)
