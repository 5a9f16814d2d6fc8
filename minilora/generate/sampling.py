"""Choose the next token from logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import ConfigError, MiniloraError

Array = NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature  0 takes the most likely token; otherwise logits are divided by it
    top_k        draw among the k most likely tokens only, or None
    top_p        draw among the fewest tokens whose probabilities reach p, in (0, 1], or None
                 (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751)
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, Real) or not 0 <= self.temperature < np.inf:
            raise ConfigError(f"temperature is {self.temperature!r}, expected 0 (greedy) or more")
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 1):
            raise ConfigError(f"top_k is {self.top_k!r}, expected a whole number of 1 or more, or None")
        if self.top_p is not None and (not isinstance(self.top_p, Real) or not 0 < self.top_p <= 1):
            raise ConfigError(f"top_p is {self.top_p!r}, expected a number in (0, 1], or None")

    def choose(self, logits: Array, rng: np.random.Generator) -> Array:
        """Return one token id for each row of logits (B, V), as int64 (B,). MiniloraError where they are not finite.

        A logit of -inf is a token that is never chosen.
        """
        if not np.isfinite(logits.max(axis=-1)).all():  # the largest is NaN if any is
            raise MiniloraError(
                "generate: the model's logits hold NaN or infinity\n"
                "  its weights or its adapter are damaged; try without the adapter, or fetch the model again"
            )
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        scaled = logits.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            least = np.partition(scaled, -self.top_k, axis=-1)[:, -self.top_k, None]
            scaled = np.where(scaled < least, -np.inf, scaled)
        weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        if self.top_p is not None:
            order = np.argsort(-weights, axis=-1, kind="stable")
            ranked = np.take_along_axis(weights, order, axis=-1)
            before = np.cumsum(ranked, axis=-1) - ranked
            np.put_along_axis(weights, order, np.where(before < self.top_p, ranked, 0), axis=-1)
        bounds = np.cumsum(weights, axis=-1)
        drawn = rng.random((len(weights), 1)) * bounds[:, -1:]
        return np.minimum((bounds <= drawn).sum(axis=-1), weights.shape[-1] - 1)
