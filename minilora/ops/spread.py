"""Operators that reduce axes to how large numbers are or how far apart: variance, standard deviation, norms."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import ConfigError
from minilora.ops.reduce import DISTINCT, REDUCED, Axis, any_draw, axes_of, count_of, distinct_draw, drawn, kept, spread

Array = NDArray[Any]
Need = tuple[bool, ...]


def _any_size_draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Distinct numbers of any magnitude: the machinery scales no operand whose domain has a kink."""
    return distinct_draw(rng, shape) * 10.0 ** rng.uniform(-12, 6)


@op(
    REDUCED,
    draw=drawn(any_draw, ddof=(0, 1)),
    source="d var / dx = 2 (x - mean) / (n - ddof)",
    formula="y = Σ (x - mean x)² / (n - ddof)",
    saves="x",
    flops=lambda s: 4 * int(np.prod(s["x"])),
)
def var(x: Array, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> tuple[Array, Any]:
    """Compute the variance over the given axes, or over all, as np.var does.

    ddof  subtracted from the number of elements: 0 for the variance of these numbers, 1 for an unbiased estimate

    ShapeError where no more than ``ddof`` elements are reduced.
    """
    axes = axes_of("var", x, axis)
    freedom = _freedom("var", x, axes, ddof)
    off = _centred(x, axes)
    return kept((off * off).sum(axis=axes, keepdims=True) / freedom, axes, keepdims), (x, axes, freedom)


@var.defvjp
def _var_vjp(
    grad: Array, saved: Any, need: Need, *, axis: Axis, ddof: float, keepdims: bool
) -> tuple[Array | None, ...]:
    x, axes, freedom = saved
    return (spread(grad, axes, keepdims) * (_centred(x, axes) * (2 / freedom)),)


@op(
    REDUCED,
    draw=drawn(distinct_draw, ddof=(0, 1)),
    domain={"x": DISTINCT},
    source="chain rule on var",
    formula="y = √(Σ (x - mean x)² / (n - ddof))",
    saves="x, y",
    flops=lambda s: 4 * int(np.prod(s["x"])),
)
def std(x: Array, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> tuple[Array, Any]:
    """Compute the standard deviation over the given axes, or over all, as np.std does; no square overflows.

    Where all elements are equal it has a kink; the gradient there is 0. ShapeError as for ``var``.
    """
    axes = axes_of("std", x, axis)
    freedom = _freedom("std", x, axes, ddof)
    y = _euclidean(_centred(x, axes), axes) / math.sqrt(freedom)
    return kept(y, axes, keepdims), (x, y, axes, freedom)


@std.defvjp
def _std_vjp(
    grad: Array, saved: Any, need: Need, *, axis: Axis, ddof: float, keepdims: bool
) -> tuple[Array | None, ...]:
    x, y, axes, freedom = saved
    return (spread(grad, axes, keepdims) * (_centred(x, axes) / np.where(y == 0, 1, y) / freedom),)


@op(
    REDUCED,
    draw=drawn(_any_size_draw, ord=(2, 1, math.inf)),
    domain={"x": Interval(kinks=(0.0,), distinct=True)},
    source="Horn & Johnson 2013, Matrix Analysis, sec. 5.2",
    formula="y = (Σ |x|^ord)^(1/ord), the largest |x| for infinity",
    saves="x, y",
    flops=lambda s: 2 * int(np.prod(s["x"])),
)
def norm(x: Array, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Any]:
    """Take the vector norm over the given axes, or over all: the sum of |x|, the Euclidean one, or the largest |x|.

    ord  1, 2 or infinity

    No square overflows or vanishes. At 0 the gradient is 0; equal largest elements share it. ConfigError for another
    ``ord``.
    """
    if ord not in (1, 2, math.inf):
        raise ConfigError(f"norm: ord is {ord!r}, expected 1, 2 or inf")
    axes = axes_of("norm", x, axis)
    if ord == 2:
        y = _euclidean(x, axes)
    elif ord == 1:
        y = np.abs(x).sum(axis=axes, keepdims=True)
    else:
        y = np.abs(x).max(axis=axes, keepdims=True, initial=0)
    return kept(y, axes, keepdims), (x, y, axes)


@norm.defvjp
def _norm_vjp(
    grad: Array, saved: Any, need: Need, *, ord: float, axis: Axis, keepdims: bool
) -> tuple[Array | None, ...]:
    x, y, axes = saved
    g = spread(grad, axes, keepdims)
    if ord == 1:
        return (g * np.sign(x),)
    if ord == 2:
        return (g * (x / np.where(y == 0, 1, y)),)
    largest = np.abs(x) == y
    ties = np.maximum(largest.sum(axis=axes, keepdims=True), 1).astype(grad.dtype)
    return (g / ties * (largest * np.sign(x)),)


def _freedom(name: str, x: Array, axes: tuple[int, ...], ddof: float) -> float:
    """The number of elements less ``ddof``, as a Python number, which widens no float32."""
    return builtins.max(float(count_of(name, x, axes, ddof + 1) - ddof), 1.0)


def _centred(x: Array, axes: tuple[int, ...]) -> Array:
    """x - mean. Rounding may put the mean of equal numbers beside them; limited to them, it leaves exactly 0."""
    count = builtins.max(math.prod(x.shape[a] for a in axes), 1)
    least = x.min(axis=axes, keepdims=True, initial=math.inf)
    most = x.max(axis=axes, keepdims=True, initial=-math.inf)
    return np.asarray(x - np.clip(x.sum(axis=axes, keepdims=True) / count, least, most))


def _euclidean(x: Array, axes: tuple[int, ...]) -> Array:
    """√(Σ x²), with x over its largest size, whose squares neither overflow nor vanish."""
    size = np.abs(x)
    largest = size.max(axis=axes, keepdims=True, initial=0)
    unit = np.where((largest == 0) | np.isinf(largest), 1, largest)
    size = size / unit
    return np.asarray(unit * np.sqrt((size * size).sum(axis=axes, keepdims=True)))
