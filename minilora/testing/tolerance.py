"""How far two correct computations may differ. Every bound of the laws is derived here, once.

Rounding. A sum of n products computed in floating point is the exact sum of products each of which
is off by a relative n·u or less, u = eps / 2, in whatever order it is added (Higham 2002, Accuracy
and Stability of Numerical Algorithms, eq. 3.5). Sums inside sums add their n. No output of an
operator sums over more than all its axes one after the other, so n is at most the sizes of its axes
added up; a constant stands for the pointwise steps between, each right to a few u (exp, tanh,
sqrt, a division). So a result is that of operands moved by a relative n·u or less, and where moving
them by a relative 1 moves the result by ``size`` (to first order; ``differences.movement`` measures
it), it is off by n·u·size. Two computations are compared, so the bound is n · eps · size.

Differences. See ``differences``: a slope carries its own bound on truncation and rounding, and an
analytic gradient, computed in float64 from some tens of terms, is allowed GRADIENT of their sum
on top of it: four orders of magnitude above rounding, six below a mistake of one percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

GRADIENT = 1e-8
POINTWISE = 32  # roundings of the steps that are not sums


def roundings(shapes: Iterable[tuple[int, ...]]) -> int:
    """An upper limit for n: the sizes of all axes of all operands added up, and POINTWISE."""
    return POINTWISE + sum(size for shape in shapes for size in shape)


def rounding_bound(count: int, size: float, dtype: DTypeLike) -> float:
    """How far two results of ``count`` roundings may differ, if they move by ``size`` with their operands."""
    limits: Any = np.finfo(dtype)
    return count * float(limits.eps * size + limits.tiny)
