"""Embedding: a table of vectors, looked up by id."""

from __future__ import annotations

from typing import Any

from minilora import ops
from minilora.autograd import Tensor
from minilora.kernels import FrozenWeight
from minilora.nn.module import Module


class Embedding(Module):
    """Rows of ``weight`` (vocabulary, width), a Tensor that is trained or a FrozenWeight."""

    def __init__(self, weight: Tensor | FrozenWeight) -> None:
        self.weight = weight

    def __call__(self, ids: Any) -> Any:
        """ids (*) integers -> (*, width)"""
        return ops.embedding(ids, self.weight)
