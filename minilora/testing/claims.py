"""The gradients under test, and how reliable they are: measured by moving what they are computed from. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.testing.moves import PROBES, jittered
from minilora.testing.tolerance import DOUBLE, Precision

Array = NDArray[Any]
GRADIENT_JITTER = 64  # eps by which all that a gradient is computed from is moved, to see its rounding


@dataclass(frozen=True)
class Claim:
    """The gradient under test for one operand, for each of K cotangents: (K, *shape).

    noise  how far rounding may move it
    terms  the size of the terms of which it is the sum
    """

    value: Array
    noise: Array
    terms: Array


def claims(
    pull: Callable[[Sequence[Any], Sequence[Array]], Sequence[Array | None]], arrays: Sequence[Any],
    cotangents: Sequence[Sequence[Array]], gradients: Sequence[Sequence[Array | None]], rng: np.random.Generator,
    precision: Precision = DOUBLE,
) -> dict[int, Claim]:  # fmt: skip
    """Measure how reliable the gradients (K times one for each operand) of ``pull`` (arrays, cotangents) are."""
    by = GRADIENT_JITTER * precision.eps
    moves = []
    for _ in range(PROBES):
        near = [jittered(a, by, rng) for a in arrays]
        moves.append([pull(near, [jittered(g, by, rng) for g in grads]) for grads in cotangents])
    found = {}
    for i in (i for i, g in enumerate(gradients[0]) if g is not None):
        value = np.stack([np.asarray(grads[i], np.float64) for grads in gradients])
        moved = np.stack([[np.asarray(grads[i], np.float64) for grads in move] for move in moves])
        found[i] = _claim(value, np.abs(moved - value).max(axis=0, initial=0.0), precision)
    return found


def _claim(value: Array, noise: Array, precision: Precision) -> Claim:
    """An element that moves much more than most do, relatively, is a sum of terms that cancel: those are its size.

    They are no larger than the largest gradient; and what moves by more than ``limit`` of that jumps, and is not noise.
    """
    size, by = np.abs(value), GRADIENT_JITTER * precision.eps
    largest = size.max(axis=tuple(range(1, size.ndim)), keepdims=True, initial=0.0)
    moving = (noise > 0) & (size > 0)
    usual = max(1.0, float(np.median(noise[moving] / size[moving])) / by) if moving.any() else 1.0
    terms = np.minimum(noise / by / usual, largest)
    return Claim(value, np.minimum(noise, precision.limit * largest), np.maximum(size, terms))
