"""Arithmetic on each element, with broadcasting: sums, products, powers, roots, exponentials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import MiniloraError

Array = NDArray[Any]
Need = tuple[bool, ...]
POSITIVE = Interval(low=0.0)
KINK_AT_ZERO = Interval(kinks=(0.0,))


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` over the axes along which an operand of ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    extra = tuple(range(grad.ndim - len(shape)))
    stretched = tuple(len(extra) + i for i, n in enumerate(shape) if n == 1 and grad.shape[len(extra) + i] != 1)
    return grad.sum(axis=extra + stretched, keepdims=True).reshape(shape)


@op("x[...], y[...] -> z[...]", source="sum rule", formula="z = x + y")
def add(x: Any, y: Any) -> tuple[Any, Any]:
    """Add with broadcasting, as np.add does."""
    return x + y, (np.shape(x), np.shape(y))


@add.defvjp
def _add_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    return tuple(unbroadcast(grad, shape) if wanted else None for shape, wanted in zip(saved, need, strict=True))


@op("x[...], y[...] -> z[...]", source="sum rule", formula="z = x - y")
def sub(x: Any, y: Any) -> tuple[Any, Any]:
    """Subtract with broadcasting, as np.subtract does."""
    return x - y, (np.shape(x), np.shape(y))


@sub.defvjp
def _sub_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    grad_x = unbroadcast(grad, saved[0]) if need[0] else None
    grad_y = unbroadcast(-grad, saved[1]) if need[1] else None
    return grad_x, grad_y


@op("x[...], y[...] -> z[...]", source="product rule", formula="z = x y", saves="x, y")
def mul(x: Any, y: Any, *, need: Need) -> tuple[Any, Any]:
    """Multiply with broadcasting, as np.multiply does."""
    return x * y, (np.shape(x), np.shape(y), x if need[1] else None, y if need[0] else None)


@mul.defvjp
def _mul_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    x_shape, y_shape, x, y = saved
    grad_x = unbroadcast(grad * y, x_shape) if need[0] else None
    grad_y = unbroadcast(grad * x, y_shape) if need[1] else None
    return grad_x, grad_y


@op(
    "x[...], y[...] -> z[...]",
    domain={"y": Interval(kinks=(0.0,))},
    source="quotient rule",
    formula="z = x / y",
    saves="x, y",
)
def div(x: Any, y: Any, *, need: Need) -> tuple[Any, Any]:
    """Divide with broadcasting, as np.divide does."""
    return x / y, (np.shape(x), np.shape(y), x if need[1] else None, y)


@div.defvjp
def _div_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    x_shape, y_shape, x, y = saved
    grad_x = unbroadcast(grad / y, x_shape) if need[0] else None
    grad_y = unbroadcast(-(grad / y) * (x / y), y_shape) if need[1] else None
    return grad_x, grad_y


@op("x[*] -> y[*]", source="sum rule", formula="y = -x")
def neg(x: Array) -> tuple[Array, Any]:
    """Change the sign of each element."""
    return -x, None


@neg.defvjp
def _neg_vjp(grad: Array, saved: None, need: Need) -> tuple[Array | None, ...]:
    return (-grad,)


@op(
    "x[...], y[...] -> z[...]",
    domain={"x": POSITIVE, "y": Interval(-4.0, 4.0)},  # float32 overflows for larger powers of x up to 1e6
    source="power rule; d xʸ / dy = xʸ log x",
    formula="z = x ** y",
    saves="x, y, z",
)
def power(x: Any, y: Any, *, need: Need) -> tuple[Any, Any]:
    """Raise to a power with broadcasting, as np.power does; a negative base needs whole exponents.

    At x = 0 the gradient for x is right for exponents of 1 and more and for 0, and that for y is taken as 0.
    MiniloraError where an element of x is negative and y requires a gradient: there is none.
    """
    if need[1] and np.any(np.less(x, 0)):
        raise MiniloraError(
            "power: x has negative elements, expected none where y requires a gradient\n"
            "  powers of a negative number exist for whole y only; give y as an array or number"
        )
    z = x * x if isinstance(y, int | float) and y == 2 else np.power(x, y)
    return z, (np.shape(x), np.shape(y), x, y if need[0] else None, z if need[1] else None)


@power.defvjp
def _power_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    x_shape, y_shape, x, y, z = saved
    grad_x = grad_y = None
    if need[0]:
        if isinstance(y, int | float):
            slope = 2 * x if y == 2 else y * np.power(x, y - 1 if y else 1)
        else:  # x to the power of -1 is infinite at x = 0, where y = 0 makes the slope vanish
            slope = y * np.power(x, np.where(y == 0, 1, y - 1))
        grad_x = unbroadcast(grad * slope, x_shape)
    if need[1]:
        logarithm = math.log(x or 1) if isinstance(x, int | float) else np.log(np.where(x == 0, 1, x))
        grad_y = unbroadcast(grad * (z * logarithm), y_shape)
    return grad_x, grad_y


@op(
    "x[*] -> y[*]",
    domain={"x": Interval(high=80.0)},  # float32 overflows at 88.7
    source="exponential rule",
    formula="y = eˣ",
    saves="y",
)
def exp(x: Array) -> tuple[Array, Any]:
    """Raise e to each element."""
    y = np.exp(x)
    return y, y


@exp.defvjp
def _exp_vjp(grad: Array, y: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * y,)


@op("x[*] -> y[*]", domain={"x": POSITIVE}, source="logarithm rule", formula="y = log x", saves="x")
def log(x: Array) -> tuple[Array, Any]:
    """Take the natural logarithm of each element."""
    return np.log(x), x


@log.defvjp
def _log_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad / x,)


@op("x[*] -> y[*]", domain={"x": POSITIVE}, source="power rule", formula="y = √x", saves="y")
def sqrt(x: Array) -> tuple[Array, Any]:
    """Take the square root of each element; at 0 its gradient is infinite."""
    y = np.sqrt(x)
    return y, y


@sqrt.defvjp
def _sqrt_vjp(grad: Array, y: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad / (2 * y),)


@op("x[*] -> y[*]", domain={"x": POSITIVE}, source="power rule", formula="y = 1 / √x", saves="x")
def rsqrt(x: Array) -> tuple[Array, Any]:
    """Take one over the square root of each element."""
    return 1 / np.sqrt(x), x


@rsqrt.defvjp
def _rsqrt_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (-(grad / (2 * x)) / np.sqrt(x),)


@op("x[*] -> y[*]", domain={"x": KINK_AT_ZERO}, source="d|x|/dx = sign x", formula="y = |x|", saves="x")
def abs(x: Array) -> tuple[Array, Any]:
    """Take the absolute value of each element; the gradient at 0 is 0."""
    return np.abs(x), x


@abs.defvjp
def _abs_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * np.sign(x),)
