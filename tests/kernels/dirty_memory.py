"""Fill what the kernels are given to write in, outputs and workspaces, with NaN before each call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class _DirtyNumPy:
    """NumPy, but for the arrays that np.empty gives out: their bytes are 0xff, a NaN in every floating-point type."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *arguments: Any, **settings: Any) -> np.ndarray:
        array = np.empty(*arguments, **settings)
        array.view(np.uint8)[...] = 0xFF
        self._counts["arrays"] += 1
        return array


@contextmanager
def dirty_memory() -> Iterator[dict[str, int]]:
    """Give the compiled kernels dirty memory, and count how often; for the tests of what must not depend on it."""
    from minilora.kernels import native

    counts = {"workspaces": 0, "arrays": 0}
    workspace, native_numpy = native._workspace, native.np

    def dirty_workspace(*arguments: Any) -> np.ndarray:
        space = workspace(*arguments)
        space[...] = 0xFF
        counts["workspaces"] += 1
        return space

    native._workspace, native.np = dirty_workspace, _DirtyNumPy(counts)
    try:
        yield counts
    finally:
        native._workspace, native.np = workspace, native_numpy
