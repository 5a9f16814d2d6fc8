"""Activation functions of a neural network, each right far out too, where plain formulas lose all digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import op
from minilora.errors import ConfigError
from minilora.ops.elementwise import KINK_AT_ZERO
from minilora.ops.erf import bell, erfc_of
from minilora.ops.linear import contiguous

Array = NDArray[Any]
Need = tuple[bool, ...]


def sigmoid_of(x: Array) -> Array:
    """1 / (1 + exp(-x)), right to a few units in the last place; 0 where exp(-x) overflows."""
    with np.errstate(over="ignore"):
        y = np.asarray(np.exp(-x))
    y += 1
    return np.divide(1, y, out=y)


def _sigmoid_slope(x: Array) -> Array:
    """d σ / dx = σ(x) σ(-x), which keeps its digits on both sides, as 1 - σ(x) would not."""
    e = np.exp(-np.abs(x))
    return e / ((1 + e) * (1 + e))


@op("x[*] -> y[*]", source="d σ / dx = σ (1 - σ)", formula="y = 1 / (1 + e⁻ˣ)", saves="x")
def sigmoid(x: Array) -> tuple[Array, Any]:
    """Apply the logistic function to each element."""
    return sigmoid_of(x), x


@sigmoid.defvjp
def _sigmoid_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * _sigmoid_slope(x),)


@op("x[*] -> y[*]", source="d tanh / dx = 1 / cosh²", formula="y = tanh x", saves="x")
def tanh(x: Array) -> tuple[Array, Any]:
    """Apply the hyperbolic tangent to each element."""
    return np.tanh(x), x


@tanh.defvjp
def _tanh_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (grad * (4 * _sigmoid_slope(2 * x)),)  # 1 - tanh(x)² has no digits left where tanh is near 1


@op("x[*] -> y[*]", domain={"x": KINK_AT_ZERO}, source="Nair & Hinton 2010", formula="y = max(x, 0)", saves="y > 0")
def relu(x: Array) -> tuple[Array, Any]:
    """Replace negative elements by 0; the gradient at 0 is 0."""
    return np.maximum(x, 0), x > 0  # np.maximum lets NaN through, so that it is seen


@relu.defvjp
def _relu_vjp(grad: Array, keep: Array, need: Need) -> tuple[Array | None, ...]:
    return (np.where(keep, grad, grad.dtype.type(0)),)  # not a product: 0 times infinity is NaN


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
    return np.where(keep, x, x * float(negative_slope)), keep


@leaky_relu.defvjp
def _leaky_relu_vjp(grad: Array, keep: Array, need: Need, *, negative_slope: float) -> tuple[Array | None, ...]:
    return (np.where(keep, grad, grad * float(negative_slope)),)


@op("x[*] -> y[*]", source="Elfwing et al. 2018, arXiv:1702.03118, eq. 5 (SiLU)", formula="y = x σ(x)", saves="x")
def silu(x: Array) -> tuple[Array, Any]:
    """Multiply each element by its logistic sigmoid."""
    return x * sigmoid_of(x), x


@silu.defvjp
def _silu_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    s = sigmoid_of(x)
    return (grad * s * (1 + x * (1 - s)),)


@silu.defkernel
def _silu_kernel(x: Array) -> tuple[Array, Any]:
    x = contiguous(x).reshape(x.shape)
    return kernels.compiled().silu_forward(x, kernels.threads()), x


@_silu_kernel
def _silu_kernel_vjp(grad: Array, x: Array, need: Need) -> tuple[Array | None, ...]:
    return (kernels.compiled().silu_backward(contiguous(grad), x, kernels.threads()),)


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


@swiglu.defkernel
def _swiglu_kernel(gate: Array, up: Array) -> tuple[Array, Any]:
    gate, up = (contiguous(array).reshape(array.shape) for array in (gate, up))
    return kernels.compiled().swiglu_forward(gate, up, kernels.threads()), (gate, up)


@_swiglu_kernel
def _swiglu_kernel_vjp(grad: Array, saved: Any, need: Need) -> tuple[Array | None, ...]:
    return kernels.compiled().swiglu_backward(contiguous(grad), *saved, need, kernels.threads())


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
    return x * (sigmoid_of(_inner(x)[0]) if _by_tanh(approximate) else _normal_share(x)), x


@gelu.defvjp
def _gelu_vjp(grad: Array, x: Array, need: Need, *, approximate: str) -> tuple[Array | None, ...]:
    if not _by_tanh(approximate):
        density = bell(x * x.dtype.type(math.sqrt(0.5))) * (1 / math.sqrt(2 * math.pi))
        return (grad * (_normal_share(x) + x * density),)
    inner, slope = _inner(x)
    s = sigmoid_of(inner)
    return (grad * (s + x * (slope * (s * sigmoid_of(-inner)))),)  # x times the slope alone could overflow


@gelu.defkernel
def _gelu_kernel(x: Array, *, approximate: str = "none") -> tuple[Array, Any]:
    x = contiguous(x).reshape(x.shape)
    return kernels.compiled().gelu_forward(x, _by_tanh(approximate), kernels.threads()), x


@_gelu_kernel
def _gelu_kernel_vjp(grad: Array, x: Array, need: Need, *, approximate: str) -> tuple[Array | None, ...]:
    return (kernels.compiled().gelu_backward(contiguous(grad), x, _by_tanh(approximate), kernels.threads()),)


def _by_tanh(approximate: str) -> bool:
    if approximate not in ("none", "tanh"):
        raise ConfigError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")
    return approximate == "tanh"


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
    """Apply a smooth form of max(x, 0), as max(x, 0) + log(1 + exp(-beta |x|)) / beta, which overflows nowhere.

    beta  how sharp its bend is: a positive, finite number; ConfigError for any other
    """
    if not 0 < beta < math.inf:
        raise ConfigError(f"softplus: beta is {beta}, expected a positive, finite number")
    beta = float(beta)  # a NumPy number would widen float32
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x) * beta)) / beta, x


@softplus.defvjp
def _softplus_vjp(grad: Array, x: Array, need: Need, *, beta: float) -> tuple[Array | None, ...]:
    return (grad * sigmoid_of(x * float(beta)),)
