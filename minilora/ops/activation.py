"""Activation functions, and the error function that one of them needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError
from minilora.ops.elementwise import KINK_AT_ZERO

Array = NDArray[Any]
Need = tuple[bool, ...]

# Cody 1969, Math. Comp. 23, "Rational Chebyshev approximations for the error function": numerators and denominators,
# highest power first, for erf on [0, 0.5], for erfc on (0.46875, 4] and beyond.
_NEAR = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
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
_FAR = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    top, bottom = coefficients
    return np.polyval(np.array(top, np.float64), x) / np.polyval(np.array(bottom, np.float64), x)


def erfc_of(x: Array) -> Array:
    """1 - erf(x) in float64, with small relative error also where it is tiny."""
    x = np.asarray(x, np.float64)
    size = np.abs(x)
    near = size <= 0.46875
    middle = np.clip(size, 0.46875, 4.0)
    far = np.maximum(size, 4.0)
    inverse = 1 / (far * far)
    tail = np.where(
        size <= 4.0,
        _ratio(middle, _MIDDLE),
        (1 / math.sqrt(math.pi) - inverse * _ratio(inverse, _FAR)) / far,
    )
    # exp(-x²) from a part of x with few digits, whose square is exact, and the small rest (Cody's way).
    limited = np.minimum(size, 27.0)
    short = np.trunc(limited * 16) / 16
    tail = tail * np.exp(-short * short) * np.exp(-(limited - short) * (limited + short))
    tail = np.where(size > 27.0, 0.0, tail)
    small = np.where(near, x, 0.0)
    return np.where(near, 1 - small * _ratio(small * small, _NEAR), np.where(x < 0, 2 - tail, tail))


def erf_of(x: Array) -> Array:
    """erf(x) in float64."""
    x = np.asarray(x, np.float64)
    near = np.abs(x) <= 0.46875
    small = np.where(near, x, 0.0)
    return np.where(near, small * _ratio(small * small, _NEAR), np.copysign(1 - erfc_of(np.abs(x)), x))


def sigmoid_of(x: Array) -> Array:
    """1 / (1 + exp(-x)): by tanh, the fastest, which overflows nowhere; and where that would lose digits, by exp."""
    half = x.dtype.type(0.5)
    s = np.asarray(half * (np.tanh(half * x) + 1))
    far = x < -8
    if far.any():
        e = np.exp(x[far])
        s[far] = e / (1 + e)
    return s


@op("x[*] -> y[*]", source="d σ / dx = σ (1 - σ)", formula="y = 1 / (1 + e⁻ˣ)", saves="x")
def sigmoid(x: Array) -> tuple[Array, Any]:
    """Apply the logistic function to each element."""
    return sigmoid_of(x), x


@sigmoid.defvjp
def _sigmoid_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * sigmoid_of(x) * sigmoid_of(-x),)  # 1 - σ(x) is σ(-x), which keeps its digits


@op("x[*] -> y[*]", source="d tanh / dx = 1 / cosh²", formula="y = tanh x", saves="x")
def tanh(x: Array) -> tuple[Array, Any]:
    """Apply the hyperbolic tangent to each element."""
    return np.tanh(x), x


@tanh.defvjp
def _tanh_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * _sech_squared(x),)


def _sech_squared(x: Array) -> Array:
    """1 - tanh(x)², as 4 σ(2x) σ(-2x), which keeps its digits where tanh is near 1."""
    return 4 * sigmoid_of(2 * x) * sigmoid_of(-2 * x)


@op("x[*] -> y[*]", domain={"x": KINK_AT_ZERO}, source="Nair & Hinton 2010", formula="y = max(x, 0)", saves="y > 0")
def relu(x: Array) -> tuple[Array, Any]:
    """Replace negative elements by 0; the gradient at 0 is 0."""
    keep = x > 0
    return np.where(keep, x, x.dtype.type(0)), keep


@relu.defvjp
def _relu_vjp(grad: Array, keep: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * keep,)


@op(
    "x[*] -> y[*]",
    params={"negative_slope": (0.01, 0.5, 0.0)},
    domain={"x": KINK_AT_ZERO},
    source="Maas et al. 2013, Rectifier nonlinearities improve neural network acoustic models, eq. 2",
    formula="y = x if x > 0 else negative_slope · x",
    saves="the sign of x",
)
def leaky_relu(x: Array, *, negative_slope: float = 0.01) -> tuple[Array, Any]:
    """Scale negative elements by ``negative_slope``; the gradient at 0 is ``negative_slope``."""
    keep = x > 0
    return np.where(keep, x, x * negative_slope), keep


@leaky_relu.defvjp
def _leaky_relu_vjp(grad: Array, keep: Array, need: Need, *, negative_slope: float) -> tuple[Array | None, ...]:
    return (np.where(keep, grad, grad * negative_slope),)


@op("x[*] -> y[*]", source="Elfwing et al. 2018, arXiv:1702.03118, eq. 5 (SiLU)", formula="y = x σ(x)", saves="x")
def silu(x: Array) -> tuple[Array, Any]:
    """Multiply each element by its logistic sigmoid."""
    return x * sigmoid_of(x), x


@silu.defvjp
def _silu_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    s = sigmoid_of(x)
    return (grad * s * (1 + x * (1 - s)),)


@op(
    "gate[*], up[*] -> y[*]",
    source="Shazeer 2020, arXiv:2002.05202, eq. 5 (SwiGLU without its matrices)",
    formula="y = gate σ(gate) up",
    saves="gate, up",
)
def swiglu(gate: Array, up: Array) -> tuple[Array, Any]:
    """Multiply ``up`` by SiLU of ``gate``, in one pass over a transformer's widest activations.

    gate, up  (*)  the two projections of one hidden state
    """
    y = sigmoid_of(gate)
    y *= gate
    y *= up
    return y, (gate, up)


@swiglu.defvjp
def _swiglu_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    gate, up = saved
    s = sigmoid_of(gate)
    grad_up = grad * gate * s if need[1] else None
    grad_gate = None
    if need[0]:
        grad_gate = 1 - s
        grad_gate *= gate
        grad_gate += 1
        grad_gate *= s  # d silu / d gate = s · (1 + gate · (1 - s))
        grad_gate *= up
        grad_gate *= grad
    return grad_gate, grad_up


@op("x[*] -> y[*]", source="d erf / dx = 2 exp(-x²) / √π", formula="y = 2/√π ∫₀ˣ exp(-t²) dt", saves="x")
def erf(x: Array) -> tuple[Array, Any]:
    """Apply the error function to each element."""
    return erf_of(x).astype(x.dtype), x


@erf.defvjp
def _erf_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * (2 / math.sqrt(math.pi)) * _gauss(x),)


def _gauss(x: Array) -> Array:
    """exp(-x²); nothing overflows, since beyond 30 it is 0 in any case."""
    limited = np.clip(x, -30, 30)
    return np.exp(-limited * limited)


@op(
    "x[*] -> y[*]",
    params={"approximate": ("none", "tanh")},
    source="Hendrycks & Gimpel 2016, arXiv:1606.08415, eq. 2 (the Gaussian's integral) and its tanh form",
    formula="y = x Φ(x); by tanh: y = x σ(2 √(2/π) (x + 0.044715 x³))",
    saves="x",
)
def gelu(x: Array, *, approximate: str = "none") -> tuple[Array, Any]:
    """Multiply each element by the share of a standard normal variable below it.

    approximate  "none", or "tanh": the approximation that GPT-2 was trained with

    ConfigError for any other word.
    """
    if approximate not in ("none", "tanh"):
        raise ConfigError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")
    return x * (_normal_share(x) if approximate == "none" else sigmoid_of(_inner(x)[0])), x


@gelu.defvjp
def _gelu_vjp(grad: Array, x: Array, need: Need, *, approximate: str) -> tuple[Array | None, ...]:
    if approximate == "none":
        density = _gauss(x * x.dtype.type(math.sqrt(0.5))) * (1 / math.sqrt(2 * math.pi))
        return (grad * (_normal_share(x) + x * density),)
    inner, slope = _inner(x)
    s = sigmoid_of(inner)
    return (grad * s * (1 + x * slope * sigmoid_of(-inner)),)


def _normal_share(x: Array) -> Array:
    """Φ(x) = erfc(-x / √2) / 2, which keeps its digits far below 0."""
    return (0.5 * erfc_of(np.asarray(x, np.float64) * -math.sqrt(0.5))).astype(x.dtype)


def _inner(x: Array) -> tuple[Array, Array]:
    """u = 2 √(2/π) (x + 0.044715 x³) and du/dx; x limited to where σ(u) is 0 or 1 in any case."""
    c = 2 * math.sqrt(2 / math.pi)
    x = np.clip(x, -30, 30)
    return c * (x + 0.044715 * x * x * x), c * (1 + 3 * 0.044715 * x * x)


@op(
    "x[*] -> y[*]",
    params={"beta": (1.0, 0.5, 3.0)},
    source="Dugas et al. 2001; d softplus / dx = σ(beta x)",
    formula="y = log(1 + exp(beta x)) / beta",
    saves="x",
)
def softplus(x: Array, *, beta: float = 1.0) -> tuple[Array, Any]:
    """Apply a smooth form of max(x, 0); ``beta`` > 0 says how sharp. ConfigError for any other beta."""
    if not beta > 0:
        raise ConfigError(f"softplus: beta is {beta}, expected a positive number")
    return (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x) * beta)) / beta).astype(x.dtype, copy=False), x


@softplus.defvjp
def _softplus_vjp(grad: Array, x: Array, need: Need, *, beta: float) -> tuple[Array | None, ...]:
    return (grad * sigmoid_of(x * beta),)
