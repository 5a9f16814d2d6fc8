"""The error function to float64's last digits, which NumPy does not have.

W. J. Cody 1969, Rational Chebyshev approximations for the error function, Math. Comp. 23, 631-637: one ratio of
polynomials for erf where |x| ≤ 0.46875, one for erfc up to 4 and one beyond. Each element is computed by its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op

Array = NDArray[Any]
Need = tuple[bool, ...]
Ratio = tuple[tuple[float, ...], tuple[float, ...]]

# Numerators and denominators, highest power first: erf(x) / x in x², erfc(x) exp(x²) in x, and the difference of
# erfc(x) exp(x²) x from 1/√π in 1/x².
_NEAR: Ratio = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE: Ratio = (
    (
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ),
)  # fmt: skip
_FAR: Ratio = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip
_BOUND = 0.46875


@op("x[*] -> y[*]", source="Cody 1969; d erf / dx = 2 exp(-x²) / √π", formula="y = 2/√π ∫₀ˣ exp(-t²) dt", saves="x")
def erf(x: Array) -> tuple[Array, Any]:
    """Apply the error function to each element."""
    return erf_of(x).astype(x.dtype), x


@erf.defvjp
def _erf_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * (2 / math.sqrt(math.pi)) * bell(x),)


def erf_of(x: Array) -> Array:
    """erf(x) in float64."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    near = np.abs(x) <= _BOUND
    y[near] = _odd(x[near])
    rest = x[~near]
    y[~near] = np.copysign(1 - _tail(np.abs(rest)), rest)
    return y


def erfc_of(x: Array) -> Array:
    """1 - erf(x) in float64, whose relative error is small also where it is tiny."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    near = np.abs(x) <= _BOUND
    y[near] = 1 - _odd(x[near])
    rest = x[~near]
    tail = _tail(np.abs(rest))
    y[~near] = np.where(rest < 0, 2 - tail, tail)
    return y


def bell(x: Array) -> Array:
    """exp(-x²); nothing overflows, since beyond 30 it is 0 in any case."""
    limited = np.clip(x, -30, 30)
    return np.exp(-limited * limited)


def _odd(x: Array) -> Array:
    """erf(x) for |x| ≤ 0.46875."""
    return x * _ratio(x * x, _NEAR)


def _tail(x: Array) -> Array:
    """erfc(x) for x > 0.46875, or NaN."""
    x = np.minimum(x, 28.0)  # erfc is 0 there
    far = x > 4
    y = np.empty_like(x)
    y[~far] = _ratio(x[~far], _MIDDLE)
    beyond = x[far]
    square = 1 / (beyond * beyond)
    y[far] = (1 / math.sqrt(math.pi) - square * _ratio(square, _FAR)) / beyond
    # exp(-x²) by a part of x with few digits, whose square is exact, and the small rest: rounding x² would cost x² eps.
    short = np.trunc(x * 16) / 16
    return np.asarray(y * np.exp(-short * short) * np.exp(-(x - short) * (x + short)))


def _ratio(x: Array, coefficients: Ratio) -> Array:
    top, bottom = (_polynomial(x, c) for c in coefficients)
    return np.divide(top, bottom, out=top)


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Horner's rule, in place; np.polyval makes two new arrays a step."""
    y = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y *= x
        y += c
    return y
