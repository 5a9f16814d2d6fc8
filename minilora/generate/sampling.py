"""Choose the next token from logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import ConfigError

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
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}, expected 1 or more, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected a number in (0, 1], or None")

    def choose(self, logits: Array, rng: np.random.Generator) -> Array:
        """Return one token id for each row of logits (B, V), as int64 (B,)."""
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
