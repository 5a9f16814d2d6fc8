"""A reverse-mode autograd on NumPy arrays that knows no operator by name. Read tensor, registry, backward, writes."""

from minilora.autograd.registry import REGISTRY, Op, op, watched_by
from minilora.autograd.tensor import Tensor, enable_grad, install_operators, is_recording, no_grad, tensor
from minilora.autograd.writes import check_writes
from minilora.signature import Index, Interval

__all__ = [
    "REGISTRY", "Index", "Interval", "Op", "Tensor", "check_writes", "enable_grad", "install_operators",
    "is_recording", "no_grad", "op", "tensor", "watched_by",
]  # fmt: skip
