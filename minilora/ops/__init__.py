"""Every differentiable operator, a family a file; importing this gives Tensor its operators and methods."""

from __future__ import annotations

from typing import Any

from minilora.autograd import Tensor, install_operators
from minilora.ops.attention import attention
from minilora.ops.dropout import dropout, masked_dropout
from minilora.ops.elementwise import add, mul, silu, sub, swiglu
from minilora.ops.embedding import embedding
from minilora.ops.linear import linear
from minilora.ops.lora import lora_matmul
from minilora.ops.loss import cross_entropy
from minilora.ops.norm import rms_norm
from minilora.ops.reduce import mean, sum
from minilora.ops.rotary import rotary
from minilora.ops.shape import concat, reshape, split

__all__ = [
    "add", "attention", "concat", "cross_entropy", "dropout", "embedding", "linear", "lora_matmul", "masked_dropout",
    "mean", "mul", "reshape", "rms_norm", "rotary", "silu", "split", "sub", "sum", "swiglu",
]  # fmt: skip


def _reshape(self: Tensor, *shape: Any) -> Any:
    """x.reshape(2, 3) and x.reshape((2, 3)), as NumPy takes both."""
    return reshape(self, shape=tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape)


install_operators(
    __add__=lambda self, other: add(self, other),
    __radd__=lambda self, other: add(other, self),
    __sub__=lambda self, other: sub(self, other),
    __rsub__=lambda self, other: sub(other, self),
    __mul__=lambda self, other: mul(self, other),
    __rmul__=lambda self, other: mul(other, self),
    __neg__=lambda self: mul(self, -1.0),
    __matmul__=lambda self, other: linear(self, other),
    __rmatmul__=lambda self, other: linear(other, self),
    reshape=_reshape,
    sum=lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims),
    mean=lambda self, axis=None, keepdims=False: mean(self, axis=axis, keepdims=keepdims),
)
