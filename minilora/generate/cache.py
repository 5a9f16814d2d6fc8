"""The key-value cache: what attention has seen of the tokens so far, for every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import ShapeError

Array = NDArray[Any]


class KVCache:
    """Keys and values of the positions that a model was called on, a pair of arrays a layer.

    Give the same cache to successive calls: each sees the positions of all calls before it. The arrays
    grow by a quarter at least. ``length`` is the number of positions held, padding included.
    """

    def __init__(self) -> None:
        self.length = 0
        self._layers: list[tuple[Array, Array]] = []  # (batch, room, groups, width), used up to a length

    def extend(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Append keys and values (B, T, G, D) of one layer; return those of all positions (B, S, G, D).

        The model calls this for layers 0, 1, … and ``advance`` once at the end of its call. ShapeError for
        another number of rows than the cache holds, or another model's layers; the cache is then as it was.
        """
        end = self.length + keys.shape[1]
        if self.length == 0:  # whatever a call that did not end may have left
            room = (keys.shape[0], _room(end), *keys.shape[2:])
            self._layers[layer:] = [(np.empty(room, keys.dtype), np.empty(room, values.dtype))]
        elif layer >= len(self._layers) or keys.shape[2:] != self._layers[layer][0].shape[2:]:
            raise ShapeError("cache: its layers are those of another model; start a new one for this model")
        held = self._layers[layer]
        if keys.shape[0] != len(held[0]):
            raise ShapeError(
                f"cache: holds {len(held[0])} rows, but {keys.shape[0]} came; call select to repeat or drop rows"
            )
        if end > held[0].shape[1]:
            held = self._layers[layer] = (_grown(held[0], _room(end)), _grown(held[1], _room(end)))
        held[0][:, self.length : end] = keys
        held[1][:, self.length : end] = values
        return held[0][:, :end], held[1][:, :end]

    def advance(self, count: int) -> None:
        """Count ``count`` further positions as held, after every layer was extended by them."""
        self.length += count

    def select(self, rows: Array) -> KVCache:
        """Return a cache of these batch rows, by index: to drop finished ones, or to repeat a shared prefix."""
        chosen = KVCache()
        chosen.length = self.length
        chosen._layers = [(k[:, : self.length][rows], v[:, : self.length][rows]) for k, v in self._layers]
        return chosen


def _room(positions: int) -> int:
    """Positions to make room for: copying costs less the more there is, memory the less."""
    return positions + max(positions // 4, 32)


def _grown(held: Array, room: int) -> Array:
    larger = np.empty((held.shape[0], room, *held.shape[2:]), held.dtype)
    larger[:, : held.shape[1]] = held
    return larger
