"""Module: a tree of layers with named parameters and named frozen weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor
from minilora.kernels import FrozenWeight
from minilora.nn.adapters import AdapterChoice


class Module:
    """A layer or model. What its attributes hold decides what it is made of.

    Modules, and lists and dicts of them, are children; Tensors are parameters; FrozenWeights and
    plain ndarrays are frozen. Paths join attribute names with dots, as in torch.
    """

    training: bool = True
    adapter_choice: AdapterChoice | None = None  # set on the root by minilora.lora; see nn/adapters.py

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is called")

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, child); the name of a list's or dict's item is attribute.key."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple | dict):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                yield from ((f"{name}.{key}", item) for key, item in items if isinstance(item, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) for this module, whose path is ``prefix``, and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named_values(self) -> Iterator[tuple[str, Any]]:
        seen: set[Any] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if not isinstance(value, Tensor | FrozenWeight | np.ndarray):
                    continue
                key: Any = id(value)
                if isinstance(value, FrozenWeight) and value.nbytes:
                    key = value.memory  # a tied head is another object over the memory of the table
                if key not in seen:
                    seen.add(key)
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, tensor) for every tensor that requires a gradient."""
        for path, value in self._named_values():
            if isinstance(value, Tensor) and value.requires_grad:
                yield path, value

    def named_frozen(self) -> Iterator[tuple[str, FrozenWeight | NDArray[Any]]]:
        """Yield (path, weight) for every frozen matrix and vector."""
        for path, value in self._named_values():
            if isinstance(value, FrozenWeight | np.ndarray):
                yield path, value

    def frozen_weights(self) -> Iterator[tuple[str, FrozenWeight]]:
        """Yield (path, weight) for every FrozenWeight."""
        return ((path, value) for path, value in self.named_frozen() if isinstance(value, FrozenWeight))

    def frozen_sha256(self) -> str:
        """Return one SHA-256 over every frozen weight and its path, read from live memory."""
        total = hashlib.sha256()
        for path, value in sorted(self.named_frozen(), key=lambda item: item[0]):
            digest = (
                value.sha256() if isinstance(value, FrozenWeight)
                else hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
            )  # fmt: skip
            total.update(f"{path} {digest}\n".encode())
        return total.hexdigest()

    def train(self, mode: bool = True) -> Module:
        """Set every module to training (dropout on) or evaluation; return self."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set every module to evaluation; return self."""
        return self.train(False)
