"""A layer or model whose adapter is checked: fresh ones, how they are called, how far rounding goes. NumPy only.

Where two ways to compute the same may round differently, the bound is measured, not tuned: a product with a matrix W
of K rows is exact for a W whose elements are off by a relative K · eps (Higham 2002, eq. 3.5), so outputs may
differ by what they move when every linear layer's weight is moved by that much (``Subject.rounding``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, no_grad
from minilora.errors import ConfigError
from minilora.kernels.frozen import FrozenWeight
from minilora.lora import LoraConfig, adapter_layers, add_adapter, set_adapter
from minilora.nn import Embedding, Linear, Module
from minilora.testing.tolerance import POINTWISE

Array = NDArray[Any]
NAME = "invariants"  # of the adapter that is attached


class Subject:
    """Fresh copies of what is checked, and how to call them."""

    def __init__(
        self, made: Module | Callable[[], Module], inputs: Sequence[Any] | None, config: LoraConfig | None, seed: int
    ) -> None:
        self._make = (lambda: copy.deepcopy(made)) if isinstance(made, Module) else made
        self.config = config or LoraConfig(r=2, lora_alpha=3, target_modules="all-linear")
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.inputs = tuple(np.asarray(x) for x in self._drawn() if x is not None) if inputs is None else tuple(inputs)

    def _drawn(self) -> Sequence[Array]:
        modules = [module for _, module in self.plain().named_modules()]
        for module in modules:
            if isinstance(module, Embedding):
                return (self.rng.integers(0, module.weight.shape[0], (3, 5)),)
        for module in modules:
            if isinstance(module, Linear):
                return (self.rng.standard_normal((4, module.in_features)).astype(module.weight.dtype),)
        raise ConfigError("check_lora_invariants: there is no Linear to attach an adapter to, expected at least one")

    def plain(self) -> Module:
        """A fresh one without our adapter."""
        made = self._make()
        if not isinstance(made, Module):
            raise ConfigError(
                f"check_lora_invariants: the factory made {type(made).__name__}, wanted a minilora Module"
            )
        return made.eval()

    def adapted(self, model: Module | None = None, *, zero: bool = False, **settings: Any) -> Module:
        """One with our adapter, active; B is random unless ``zero``."""
        model = self.plain() if model is None else model
        add_adapter(model, replace(self.config, **settings), NAME, self.seed)
        set_adapter(model, NAME)
        for _, low in [] if zero else adapter_layers(model, NAME):
            low.B.writable()[...] = self.rng.standard_normal(low.B.shape) / max(low.B.shape[0], 1)
        return model

    def call(self, model: Any, inputs: Sequence[Any] | None = None) -> Array:
        with no_grad():
            return array_of(model(*(self.inputs if inputs is None else inputs)))

    def rounding(self, model: Module, at_most: int = POINTWISE) -> float:
        """How far the output moves when all weights of linear layers are moved by their rounding."""
        base, layers = self.call(model), [m for _, m in model.named_modules() if isinstance(m, Linear)]
        largest = 0.0
        for _ in range(3):
            with weights_of({layer: self._nudged(matrix(layer), at_most) for layer in layers}):
                largest = max(largest, float(np.abs(self.call(model) - base).max(initial=0.0)))
        eps = float(np.finfo(base.dtype).eps)
        return largest + at_most * eps * float(np.abs(base).max(initial=0.0))

    def _nudged(self, W: Array, at_most: int) -> Array:
        by = (at_most + W.shape[0]) * float(np.finfo(W.dtype).eps)
        return np.asarray(W * (1 + by * self.rng.choice([-1.0, 1.0], W.shape)), W.dtype)


def array_of(out: Any) -> Array:
    out = out[0] if isinstance(out, tuple | list) else out
    return np.asarray(out.data if isinstance(out, Tensor) else out)


def matrix(layer: Linear) -> Array:
    return layer.weight.dequantize() if isinstance(layer.weight, FrozenWeight) else layer.weight.data


@contextmanager
def weights_of(by_layer: dict[Linear, Array]) -> Iterator[None]:
    """Give some layers other weights inside this block."""
    before = {layer: layer.weight for layer in by_layer}
    try:
        for layer, W in by_layer.items():
            layer.weight = FrozenWeight(W)
        yield
    finally:
        for layer, weight in before.items():
            layer.weight = weight
