"""RMSNorm as a layer."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from minilora import ops
from minilora.autograd import Tensor
from minilora.nn.module import Module


class RMSNorm(Module):
    """Scale rows to unit root mean square, then by ``weight`` (width,), trained or a frozen ndarray."""

    def __init__(self, weight: Tensor | NDArray[Any], eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: Any) -> Any:
        """x (*, width) -> (*, width)"""
        return ops.rms_norm(x, self.weight, eps=self.eps)
