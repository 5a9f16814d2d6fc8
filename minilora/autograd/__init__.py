"""A reverse-mode autograd on NumPy arrays that knows no operator by name. Read tensor, registry, backward."""

from minilora.autograd.registry import REGISTRY, Index, Interval, Op, op
from minilora.autograd.tensor import Tensor, install_operators, is_recording, no_grad, tensor

__all__ = [
    "REGISTRY",
    "Index",
    "Interval",
    "Op",
    "Tensor",
    "install_operators",
    "is_recording",
    "no_grad",
    "op",
    "tensor",
]
