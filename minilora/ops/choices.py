"""Operators that choose between values on each element: the larger, the smaller, within limits, by a condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError
from minilora.ops.elementwise import KINK_AT_ZERO, unbroadcast

Array = NDArray[Any]
Need = tuple[bool, ...]


def _apart_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Two operands that broadcast, no element of one equal to any of the other: there the choice has a kink."""
    shape = sizes["..."] if "..." in sizes else tuple(int(n) for n in rng.integers(0, 4, rng.integers(0, 4)))
    shapes = [tuple(1 if rng.random() < 0.2 else n for n in shape[int(rng.random() < 0.3) :]) for _ in range(2)]
    count = [int(np.prod(s)) for s in shapes]
    values = rng.permutation(count[0] + count[1]) - 0.5 * (count[0] + count[1]) + rng.uniform(-0.2, 0.2)
    return {"x": values[: count[0]].reshape(shapes[0]), "y": values[count[0] :].reshape(shapes[1])}


@op(
    "x[...], y[...] -> z[...]",
    source="the derivative of the operand that was chosen",
    formula="z = max(x, y)",
    saves="where x is larger, where they are equal",
    draw=_apart_draw,
)
def maximum(x: Any, y: Any) -> tuple[Any, Any]:
    """Take the larger of two values with broadcasting; where they are equal, each gets half of the gradient."""
    return np.maximum(x, y), _shares(x, y, np.greater(x, y))


@op(
    "x[...], y[...] -> z[...]",
    source="the derivative of the operand that was chosen",
    formula="z = min(x, y)",
    saves="where x is smaller, where they are equal",
    draw=_apart_draw,
)
def minimum(x: Any, y: Any) -> tuple[Any, Any]:
    """Take the smaller of two values with broadcasting; where they are equal, each gets half of the gradient."""
    return np.minimum(x, y), _shares(x, y, np.less(x, y))


def _shares(x: Any, y: Any, chosen: Any) -> tuple[Any, ...]:
    return np.shape(x), np.shape(y), chosen, np.equal(x, y)


def _choice_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    x_shape, y_shape, chosen, equal = saved
    half = grad.dtype.type(0.5)
    grad_x = unbroadcast(np.where(equal, half * grad, np.where(chosen, grad, 0 * half)), x_shape) if need[0] else None
    grad_y = unbroadcast(np.where(equal, half * grad, np.where(chosen, 0 * half, grad)), y_shape) if need[1] else None
    return grad_x, grad_y


maximum.defvjp(_choice_vjp)
minimum.defvjp(_choice_vjp)


@op("x[*] -> y[*]", domain={"x": KINK_AT_ZERO}, source="x = x⁺ - x⁻", formula="y = max(x, 0)", saves="x > 0")
def positive_part(x: Array) -> tuple[Array, Any]:
    """Take x where it is positive and 0 elsewhere; the gradient at 0 is 0. ``relu`` is the same by another name."""
    return np.maximum(x, 0), x > 0


@positive_part.defvjp
def _positive_part_vjp(grad: Array, positive: Array, need: Need) -> tuple[Array | None, ...]:
    return (np.where(positive, grad, grad.dtype.type(0)),)  # not a product: 0 times infinity is NaN


@op("x[*] -> y[*]", domain={"x": KINK_AT_ZERO}, source="x = x⁺ - x⁻", formula="y = max(-x, 0)", saves="x < 0")
def negative_part(x: Array) -> tuple[Array, Any]:
    """Take -x where x is negative and 0 elsewhere; the gradient at 0 is 0."""
    return np.maximum(-x, 0), x < 0


@negative_part.defvjp
def _negative_part_vjp(grad: Array, negative: Array, need: Need) -> tuple[Array | None, ...]:
    return (np.where(negative, -grad, grad.dtype.type(0)),)


def _clip_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Elements away from the limits, where clipping has its kinks."""
    shape = sizes["*"] if "*" in sizes else tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4)))
    x = rng.choice([-1.5, -0.5, 0.5, 1.5], shape) + rng.uniform(-0.4, 0.4, shape)
    low, high = [(-1.0, 1.0), (None, 1.0), (-1.0, None), (0.0, 1), (None, None)][int(rng.integers(5))]
    return {"x": np.asarray(x), "a_min": low, "a_max": high}


@op(
    "x[*] -> y[*]",
    source="the derivative of x inside the limits, 0 outside",
    formula="y = min(max(x, a_min), a_max)",
    saves="where x is inside",
    draw=_clip_draw,
)
def clip(x: Array, a_min: float | None = None, a_max: float | None = None) -> tuple[Array, Any]:
    """Limit each element to [a_min, a_max], as np.clip does; the gradient at a limit is that of x.

    a_min, a_max  numbers, or None for no limit

    ConfigError where a limit is no number, or the lower one is above the upper one.
    """
    low, high = _limit("a_min", a_min, -math.inf), _limit("a_max", a_max, math.inf)
    if low > high:
        raise ConfigError(f"clip: a_min is {a_min} and a_max is {a_max}, expected a_min ≤ a_max")
    return np.minimum(np.maximum(x, low), high), (x >= low) & (x <= high)


def _limit(name: str, value: Any, absent: float) -> float:
    """The limit as a Python number, which widens no float32."""
    if value is None:
        return absent
    if not isinstance(value, int | float | np.integer | np.floating) or math.isnan(value):
        raise ConfigError(f"clip: {name} is {value!r}, expected a number or None\n  for arrays use maximum and minimum")
    return float(value)


@clip.defvjp
def _clip_vjp(
    grad: Array, inside: Array, need: Need, *, a_min: float | None, a_max: float | None
) -> tuple[Array | None, ...]:
    return (np.where(inside, grad, grad.dtype.type(0)),)


@op(
    "condition:bool[...], x[...], y[...] -> z[...]",
    source="the derivative of the operand that was chosen",
    formula="z = x where condition, else y",
    saves="condition",
)
def where(condition: NDArray[np.bool_], x: Any, y: Any) -> tuple[Any, Any]:
    """Take ``x`` where the condition holds and ``y`` elsewhere, with broadcasting, as np.where does."""
    return np.where(condition, x, y), (condition, np.shape(x), np.shape(y))


@where.defvjp
def _where_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    condition, x_shape, y_shape = saved
    none = grad.dtype.type(0)
    grad_x = unbroadcast(np.where(condition, grad, none), x_shape) if need[1] else None
    grad_y = unbroadcast(np.where(condition, none, grad), y_shape) if need[2] else None
    return None, grad_x, grad_y
