"""Linear: a frozen or trained matrix, and the low-rank adapters that may be attached to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import ops
from minilora.autograd import Tensor, tensor
from minilora.errors import ConfigError, ShapeError
from minilora.kernels import FrozenWeight
from minilora.nn.adapters import AdapterChoice
from minilora.nn.module import Module


class LowRank(Module):
    """A trained low-rank update scale · A · B of one linear layer.

    A        (in, r)   projection down
    B        (r, out)  projection up
    scale    lora_alpha / r, or lora_alpha / sqrt(r)
    dropout  probability in [0, 1) of dropping an input of A while training
    rng      draws what is dropped; needed only with dropout
    """

    def __init__(
        self, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> None:
        self.A, self.B, self.scale, self.dropout, self.rng = A, B, scale, dropout, rng

    def __call__(self, x: Any) -> Any:
        """Return scale · (dropout(x) @ A) @ B alone, without W."""
        if self.training and self.dropout and self.rng is not None:
            x = ops.dropout(x, self.dropout, self.rng)
        return ops.linear(ops.linear(x, self.A), self.B) * self.scale


class Linear(Module):
    """y = x @ weight + bias, plus the active adapter's low-rank update.

    weight    (in, out)  a Tensor that is trained, or a FrozenWeight
    bias      (out,)     a Tensor, a frozen ndarray, or None
    adapters  by name; which of them is active, ``choice`` says
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, rng: np.random.Generator | None = None
    ) -> None:
        """Start as torch does: weight and bias uniform in ±1 / sqrt(in_features)."""
        rng = rng or np.random.default_rng()
        bound = 1 / np.sqrt(max(in_features, 1))

        def uniform(*shape: int) -> Tensor:
            return tensor(rng.uniform(-bound, bound, shape).astype(np.float32), requires_grad=True)

        self.weight: Tensor | FrozenWeight = uniform(in_features, out_features)
        self.bias: Tensor | NDArray[Any] | None = uniform(out_features) if bias else None
        self.adapters: dict[str, LowRank] = {}
        self.choice: AdapterChoice | None = None

    @classmethod
    def from_weight(cls, weight: Tensor | FrozenWeight, bias: Tensor | NDArray[Any] | None = None) -> Linear:
        """Make a layer around a weight (in, out), without drawing a new one."""
        if bias is not None and bias.shape != weight.shape[1:]:
            raise ShapeError(f"Linear: bias has shape {bias.shape}, but weight has shape {weight.shape} (in, out)")
        self = cls.__new__(cls)
        self.weight, self.bias, self.adapters, self.choice = weight, bias, {}, None
        return self

    @property
    def in_features(self) -> int:
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        return self.weight.shape[1]

    def active_adapter(self) -> LowRank | None:
        """The adapter that a call here and now would use for all rows."""
        name = self.choice.current() if self.choice else None
        return self.adapters.get(name) if isinstance(name, str) else None

    def plain_weight(self) -> Tensor | FrozenWeight | None:
        """The weight, where a call here and now would be x @ weight and nothing more; else None."""
        names = self.choice.current() if self.choice else None
        used = any(name in self.adapters for name in (names if isinstance(names, tuple) else (names,)))
        return None if used or self.bias is not None else self.weight

    def __call__(self, x: Any) -> Any:
        """x (*, in) -> (*, out)"""
        names = self.choice.current() if self.choice else None
        if isinstance(names, tuple):
            return self._by_row(x, names)
        low_rank = None if names is None else self.adapters.get(names)
        if low_rank is None:
            return ops.linear(x, self.weight, self.bias)
        if low_rank.training and low_rank.dropout:  # only the low-rank path sees the dropped input
            return ops.linear(x, self.weight, self.bias) + low_rank(x)
        return ops.lora_matmul(x, self.weight, low_rank.A, low_rank.B, low_rank.scale, self.bias)

    def _by_row(self, x: Any, names: tuple[str | None, ...]) -> Any:
        """x (batch, *, in) -> (batch, *, out), each row of the batch by an adapter of its own."""
        if x.ndim < 2 or x.shape[0] != len(names):
            raise ShapeError(f"Linear: x has shape {x.shape}, but {len(names)} adapters are given, one a row")
        used = [name for name in dict.fromkeys(names) if name is not None and name in self.adapters]
        if not used:
            return ops.linear(x, self.weight, self.bias)
        low_ranks = [self.adapters[name] for name in used]
        if any(low.training and low.dropout for low in low_ranks):
            raise ConfigError("Linear: adapters with dropout train one at a time; choose one, or call eval()")
        index = np.array([used.index(name) if name in used else -1 for name in names])
        index = np.broadcast_to(index.reshape(-1, *[1] * (x.ndim - 2)), x.shape[:-1])
        factors = [factor for low in low_ranks for factor in (low.A, low.B)]
        scales = tuple(low.scale for low in low_ranks)
        return ops.mixed_lora_matmul(x, self.weight, index, self.bias, factors, scales)
