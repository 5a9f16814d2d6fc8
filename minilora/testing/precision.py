"""Does a function compute in float32 or in float64? NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minilora.testing.moves import Function, flat
from minilora.testing.tolerance import DOUBLE, SINGLE, Precision


def precision_of(function: Function, arrays: Sequence[Any]) -> Precision:
    """Return SINGLE if ``function`` rounds float64 operands, or its results, to float32.

    The dtype of the outputs says so, or the steps of the function do. Where operands are rounded, nothing
    changes from a float32 number to just before the middle to the next, and nothing from just
    after it to the next. Where results are rounded, all of them are float32 numbers, though the operands are not.
    """
    real = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    single = {i: arrays[i].astype(np.float32) for i in real}

    def at(share: float) -> list[Any]:
        """The operands, rounded to float32 and moved by ``share`` of the distance to the next float32 number."""
        moved = {i: x.astype(np.float64) + share * np.spacing(x).astype(np.float64) for i, x in single.items()}
        return list(function(*(moved.get(i, a) for i, a in enumerate(arrays))))

    try:
        outs = at(0.0)
        here, before, after, there = flat(outs), *(flat(at(share)) for share in (0.45, 0.55, 1.0))
    except (ArithmeticError, ValueError):
        return DOUBLE
    if any(np.asarray(o).dtype.kind == "f" and np.asarray(o).dtype.itemsize < 8 for o in outs):
        return SINGLE
    if not here.shape == before.shape == after.shape == there.shape or np.array_equal(before, after):
        return DOUBLE
    rounds_operands = np.array_equal(here, before) and np.array_equal(after, there)
    rounds_results = np.array_equal(after, after.astype(np.float32)) and np.array_equal(
        before, before.astype(np.float32)
    )
    return SINGLE if rounds_operands or rounds_results else DOUBLE
