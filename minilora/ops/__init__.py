"""Every differentiable operator, a family a file; importing this gives Tensor its operators and methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, install_operators
from minilora.errors import MiniloraError
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.activation import gelu, leaky_relu, relu, sigmoid, silu, softplus, swiglu, tanh
from minilora.ops.attention import attention
from minilora.ops.choices import clip, maximum, minimum, negative_part, positive_part, where
from minilora.ops.conv import conv1d, conv2d
from minilora.ops.dropout import dropout, masked_dropout
from minilora.ops.elementwise import abs, add, div, exp, log, mul, neg, power, rsqrt, sqrt, sub
from minilora.ops.embedding import embedding
from minilora.ops.erf import erf
from minilora.ops.indexing import gather, index, scatter_add, take
from minilora.ops.joining import concat, split, stack, unstack
from minilora.ops.linalg import einsum, matmul, outer
from minilora.ops.linear import linear
from minilora.ops.linear_loss import linear_cross_entropy
from minilora.ops.lora import lora_matmul, mixed_lora_matmul
from minilora.ops.loss import cross_entropy
from minilora.ops.norm import group_norm, layer_norm, rms_norm
from minilora.ops.padding import pad, repeat, roll
from minilora.ops.pointwise_loss import binary_cross_entropy_with_logits, huber_loss, kl_div, mse_loss
from minilora.ops.pool import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d, upsample_nearest
from minilora.ops.reduce import logsumexp, max, mean, min, prod, sum
from minilora.ops.rotary import rotary
from minilora.ops.shape import broadcast_to, expand_dims, flip, reshape, squeeze, swapaxes, transpose
from minilora.ops.similarity import cosine_similarity, info_nce
from minilora.ops.softmax import log_softmax, softmax
from minilora.ops.spread import norm, std, var
from minilora.ops.timestep import timestep_embedding

__all__ = [
    "abs", "add", "attention", "avg_pool1d", "avg_pool2d", "binary_cross_entropy_with_logits", "broadcast_to", "clip",
    "concat", "conv1d", "conv2d", "cosine_similarity", "cross_entropy", "div", "dropout", "einsum", "embedding", "erf",
    "exp", "expand_dims", "flip", "gather", "gelu", "group_norm", "huber_loss", "index", "info_nce", "kl_div",
    "layer_norm", "leaky_relu", "linear", "linear_cross_entropy", "log", "log_softmax", "logsumexp", "lora_matmul",
    "masked_dropout", "matmul", "max", "max_pool1d", "max_pool2d", "maximum", "mean", "min", "minimum",
    "mixed_lora_matmul", "mse_loss", "mul", "neg", "negative_part", "norm", "outer", "pad", "positive_part", "power",
    "prod", "relu", "repeat", "reshape", "rms_norm", "roll", "rotary", "rsqrt", "scatter_add", "sigmoid", "silu",
    "softmax", "softplus", "split", "sqrt", "squeeze", "stack", "std", "sub", "sum", "swapaxes", "swiglu", "take",
    "tanh", "timestep_embedding", "transpose", "unstack", "upsample_nearest", "var", "where",
]  # fmt: skip


def _one_or_many(values: tuple[Any, ...]) -> Any:
    """What NumPy's methods take one by one or as a tuple: x.reshape(2, 3) and x.reshape((2, 3))."""
    return values[0] if len(values) == 1 else values


def _matmul(x: Any, y: Any) -> Any:
    """x @ y by linear, which has the kernel, where y is one matrix; it may be frozen."""
    return (linear if isinstance(y, FrozenWeight) or np.ndim(y) == 2 else matmul)(x, y)


def _take(self: Tensor, indices: Any, axis: int | None = None) -> Any:
    """x.take(3) and x.take((0, 2), axis=1), as NumPy takes them."""
    return take(self, indices if isinstance(indices, Tensor) else np.asarray(indices), axis)


def _iter(self: Tensor) -> Iterator[Any]:
    """Go over the first axis; without this, Python would ask for x[0], x[1], … and wait for an IndexError."""
    if not self.ndim:
        raise TypeError("iteration over a tensor without axes")
    return iter(unstack(self))


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
    """np.asarray(x); without this, NumPy would make an array of objects out of x[0], x[1], …"""
    if self.requires_grad:
        raise MiniloraError(
            "__array__: NumPy would lose the gradient of this tensor\n  use an operator, or detach().numpy()"
        )
    return np.array(self.data, dtype, copy=copy)


def _compared(x: Tensor, y: Any, compare: Any) -> Any:
    """A plain boolean array: a comparison has no gradient."""
    return compare(x.data, y.data if isinstance(y, Tensor) else y)


install_operators(
    __add__=lambda self, other: add(self, other),
    __radd__=lambda self, other: add(other, self),
    __sub__=lambda self, other: sub(self, other),
    __rsub__=lambda self, other: sub(other, self),
    __mul__=lambda self, other: mul(self, other),
    __rmul__=lambda self, other: mul(other, self),
    __truediv__=lambda self, other: div(self, other),
    __rtruediv__=lambda self, other: div(other, self),
    __pow__=lambda self, other: power(self, other),
    __rpow__=lambda self, other: power(other, self),
    __neg__=lambda self: neg(self),
    __abs__=lambda self: abs(self),
    __lt__=lambda self, other: _compared(self, other, np.less),
    __le__=lambda self, other: _compared(self, other, np.less_equal),
    __gt__=lambda self, other: _compared(self, other, np.greater),
    __ge__=lambda self, other: _compared(self, other, np.greater_equal),
    __matmul__=_matmul,
    __rmatmul__=lambda self, other: _matmul(other, self),
    __getitem__=lambda self, key: index(self, key),
    __iter__=_iter,
    __array__=_array,
    T=property(lambda self: transpose(self)),  # type: ignore[arg-type]
    reshape=lambda self, *shape: reshape(self, _one_or_many(shape)),
    flatten=lambda self: reshape(self, -1),
    ravel=lambda self: reshape(self, -1),
    transpose=lambda self, *axes: transpose(self, _one_or_many(axes) if axes else None),
    swapaxes=lambda self, axis1, axis2: swapaxes(self, axis1, axis2),
    squeeze=lambda self, axis=None: squeeze(self, axis),
    repeat=lambda self, repeats, axis=None: repeat(self, repeats, axis),
    take=_take,
    clip=lambda self, min=None, max=None: clip(self, min, max),
    sum=lambda self, axis=None, keepdims=False: sum(self, axis, keepdims),
    mean=lambda self, axis=None, keepdims=False: mean(self, axis, keepdims),
    var=lambda self, axis=None, ddof=0, keepdims=False: var(self, axis, ddof, keepdims),
    std=lambda self, axis=None, ddof=0, keepdims=False: std(self, axis, ddof, keepdims),
    max=lambda self, axis=None, keepdims=False: max(self, axis, keepdims),
    min=lambda self, axis=None, keepdims=False: min(self, axis, keepdims),
    prod=lambda self, axis=None, keepdims=False: prod(self, axis, keepdims),
)
