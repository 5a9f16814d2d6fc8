"""Operators that reduce axes: sums, means, products, extremes, logarithms of sums of exponentials."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import ShapeError
from minilora.signature import Draw

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None
Need = tuple[bool, ...]
REDUCED = "x[*] -> y[?]"
DISTINCT = Interval(distinct=True)


def drawn(values: Callable[[np.random.Generator, tuple[int, ...]], Array], **params: tuple[Any, ...]) -> Draw:
    """Draws of ``values`` with one, some or all of their axes reduced, and each further parameter of those given."""

    def draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
        shape = sizes["*"] if "*" in sizes else tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4)))
        some = [int(a) for a in rng.permutation(len(shape))[: rng.integers(len(shape) + 1)]]
        axis: Axis = None
        if some and rng.random() < 0.8:
            some = [a - len(shape) if rng.random() < 0.5 else a for a in some]
            some = some[:1] if rng.random() < 0.5 else some
            axis = tuple(some) if rng.random() < 0.5 or len(some) > 1 else some[0]
        chosen = {name: values[int(rng.integers(len(values)))] for name, values in params.items()}
        if chosen.get("ddof") and np.prod([shape[a] for a in (range(len(shape)) if axis is None else some)]) < 2:
            chosen["ddof"] = 0
        return {"x": np.asarray(values(rng, shape)), "axis": axis, "keepdims": bool(rng.random() < 0.5), **chosen}

    return draw


def any_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of either sign."""
    return np.asarray(rng.standard_normal(shape))


def distinct_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """No two elements of one size, none 0."""
    size = int(np.prod(shape))
    return np.asarray((rng.permutation(size) + rng.uniform(0.3, 0.7)).reshape(shape) * rng.choice([-1.0, 1.0], shape))


def _product_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers whose product neither overflows nor vanishes in float32, but for some that are 0."""
    decades = 24 / (int(np.prod(shape)) or 1)
    unit = 10.0 ** rng.uniform(builtins.max(-12, -decades), builtins.min(6, decades))
    x = rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
    return np.asarray(unit * x * (rng.random(shape) > 0.1))


def axes_of(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
    """The axes to reduce, counted from the front; ShapeError where ``x`` has no such axis, or one is named twice."""
    given = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(not isinstance(a, int | np.integer) or not -x.ndim <= a < x.ndim for a in given):
        raise ShapeError(f"{name}: x has shape {x.shape}, which has no axis {axis}")
    found = tuple(int(a) % x.ndim for a in given)
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: axis {axis} names an axis of x {x.shape} twice")
    return found


def count_of(name: str, x: Array, axes: tuple[int, ...], least: float = 1) -> int:
    """How many elements each result is made of; ShapeError where results are made of fewer than ``least``."""
    count = int(np.prod([x.shape[a] for a in axes], dtype=int))
    results = np.prod([n for i, n in enumerate(x.shape) if i not in axes], dtype=int)
    if count < least and results:
        raise ShapeError(
            f"{name}: x has shape {x.shape}, so over axes {axes} there are {count} elements, expected {least} or more"
        )
    return builtins.max(count, 1)


def spread(y: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """Give a reduced array its axes back, with size 1, so that it broadcasts with the operand."""
    return y if keepdims else np.expand_dims(y, axes)


def kept(y: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """A reduced array with its axes of size 1, as asked for."""
    return np.asarray(y if keepdims else y.squeeze(axes))


@op(REDUCED, draw=drawn(any_draw), source="sum rule", formula="y = Σ x", flops=lambda s: int(np.prod(s["x"])))
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Sum over the given axes, or over all, as np.sum does."""
    axes = axes_of("sum", x, axis)
    return np.asarray(x.sum(axis=axes, keepdims=keepdims)), (x.shape, axes)


@sum.defvjp
def _sum_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    shape, axes = saved
    return (np.broadcast_to(spread(grad, axes, keepdims), shape),)


@op(REDUCED, draw=drawn(any_draw), source="sum rule", formula="y = Σ x / n", flops=lambda s: int(np.prod(s["x"])))
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Average over the given axes, or over all, as np.mean does. ShapeError where there is nothing to average."""
    axes = axes_of("mean", x, axis)
    count = count_of("mean", x, axes)
    return np.asarray(x.sum(axis=axes, keepdims=keepdims) / count), (x.shape, axes, count)


@mean.defvjp
def _mean_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    shape, axes, count = saved
    return (np.broadcast_to(spread(grad / count, axes, keepdims), shape),)


@op(
    REDUCED,
    draw=drawn(distinct_draw),
    domain={"x": DISTINCT},
    source="the derivative of the element that was chosen",
    formula="y = max x",
    saves="where x is largest",
    flops=lambda s: int(np.prod(s["x"])),
)
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the largest element over the given axes, or over all, as np.max does.

    Equal largest elements share the gradient. ShapeError where there is nothing to choose from.
    """
    return _extreme("max", x, axis, keepdims, np.max)


@op(
    REDUCED,
    draw=drawn(distinct_draw),
    domain={"x": DISTINCT},
    source="the derivative of the element that was chosen",
    formula="y = min x",
    saves="where x is smallest",
    flops=lambda s: int(np.prod(s["x"])),
)
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the smallest element over the given axes, or over all, as np.min does.

    Equal smallest elements share the gradient. ShapeError where there is nothing to choose from.
    """
    return _extreme("min", x, axis, keepdims, np.min)


def _extreme(name: str, x: Array, axis: Axis, keepdims: bool, choose: Any) -> tuple[Array, Any]:
    axes = axes_of(name, x, axis)
    count_of(name, x, axes)
    y = choose(x, axis=axes, keepdims=True) if x.size else x.sum(axis=axes, keepdims=True)
    return kept(y, axes, keepdims), (x == y, axes)


def _extreme_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    chosen, axes = saved
    ties = np.maximum(chosen.sum(axis=axes, keepdims=True), 1).astype(grad.dtype)
    return (np.where(chosen, spread(grad, axes, keepdims) / ties, grad.dtype.type(0)),)


max.defvjp(_extreme_vjp)
min.defvjp(_extreme_vjp)


@op(
    REDUCED,
    draw=drawn(_product_draw),
    domain={"x": Interval(-1e7, 1e7)},  # the product of six larger ones overflows float32
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
    return (spread(grad, axes, keepdims) * others,)


@op(
    REDUCED,
    draw=drawn(any_draw),
    source="d logsumexp / dx = softmax",
    formula="y = log Σ exp x",
    saves="x",
    flops=lambda s: 3 * int(np.prod(s["x"])),
)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the logarithm of the sum of exponentials over the given axes, or over all; nothing overflows.

    Infinite largest elements share the gradient, as equal ones do. ShapeError where there is nothing to sum.
    """
    axes = axes_of("logsumexp", x, axis)
    count_of("logsumexp", x, axes)
    if not x.size:
        return kept(x.sum(axis=axes, keepdims=True), axes, keepdims), (x, axes)
    below, peak = _below_peak(x, axes)
    others, largest = np.asarray(np.exp(below)), below == 0
    others[largest] = 0
    more = largest.sum(axis=axes, keepdims=True, dtype=x.dtype) - 1
    # The first of the largest adds exactly 1, in which small others would have drowned.
    y = np.log1p(others.sum(axis=axes, keepdims=True) + more) + peak
    return kept(y, axes, keepdims), (x, axes)


@logsumexp.defvjp
def _logsumexp_vjp(grad: Array, saved: Any, need: Need, *, axis: Axis, keepdims: bool) -> tuple[Array | None, ...]:
    x, axes = saved
    if not x.size:
        return (np.zeros_like(x),)
    share = np.exp(_below_peak(x, axes)[0])
    share /= share.sum(axis=axes, keepdims=True)
    return (spread(grad, axes, keepdims) * share,)


def _below_peak(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x less its largest element over the axes, and that element; the difference of two equal infinities is 0."""
    peak = x.max(axis=axes, keepdims=True)
    return np.subtract(x, peak, out=np.zeros_like(x), where=x != peak), peak
