"""How far two correct computations may differ. Every bound of the checks is derived here, once.

Rounding. A sum of n products computed in floating point is the exact sum of products each of which
is off by a relative n·u or less, u = eps / 2, in whatever order it is added (Higham 2002, Accuracy
and Stability of Numerical Algorithms, eq. 3.5). Sums inside sums add their n. No output of an
operator sums over more than all its axes one after the other, so n is at most the sizes of its axes
added up; a constant stands for the pointwise steps between, each right to a few u (exp, tanh,
sqrt, a division). So a result is that of operands moved by a relative n·u or less, and where moving
them by a relative 1 moves the result by ``size`` (to first order; ``moves.movement`` measures
it), it is off by n·u·size. Two computations are compared, so the bound is n · eps · size.

Differences. With step h, the central difference (f(x+h) - f(x-h)) / 2h is off by h² f'''/6, and the one of
step h/2 by a quarter of that, so their disagreement, h² f'''/8, bounds the error of Richardson's
combination of both, which is of order h⁴. A kink between x-h and x+h, where the slope jumps by J, escapes
them: if it lies close to x, both give the mean of the two slopes, wrong by J/2. It shows in the fourth
difference, f(x+h) - 4 f(x+h/2) + 6 f(x) - 4 f(x-h/2) + f(x-h), which is -J h for a kink at x and
h⁴ f''''/16 without one; half of it over h counts as error too. And values of f that are off by n each
make Richardson's combination off by 3 n / h. All three are summed with the cotangent's absolute
values, output by output, so that errors of opposite sign do not hide each other.

The steps. With h = eps^¼ · |x| and f of ordinary curvature, the disagreement is some eps^½ / 8 of
the slope, the fourth difference eps^¾ / 16, and rounding, with n = 8 eps |f|, 24 eps^¾: all below eps^½. So that
is the precision asked for, ``rtol``: half of the digits, 1.5e-8 in float64 and 3.5e-4 in float32. Where f makes
it hard, up to eps^⅓ is believed, ``limit``: 6e-6 and 5e-3, what a plain central difference reaches at its best.
Beyond that nothing is claimed.

The terms. A slope is a sum over outputs, and each of its summands may be one of terms that cancel inside f.
Rounding is relative to the terms, not to their sum; so is every tolerance here, never to 1. The
terms that are summed outside are known. Those inside are measured: they are how far the gradient under test
moves when what it is computed from moves by a relative 1 (``moves.movement`` again, element by element).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

POINTWISE = 32  # roundings of the steps that are not sums
JITTER = 8  # a function of operands moved by so many eps, relatively, moves at least by its own rounding


@dataclass(frozen=True)
class Precision:
    """What a computation in a dtype can be held to. See the text above."""

    name: str
    eps: float
    tiny: float  # the smallest number that has all its digits; what is smaller is as good as 0

    @classmethod
    def of(cls, dtype: DTypeLike) -> Precision:
        limits: Any = np.finfo(dtype)
        return cls(str(limits.dtype), float(limits.eps), float(limits.tiny))

    @property
    def rtol(self) -> float:
        """What an analytic gradient may be off by, relative to its terms."""
        return self.eps ** (1 / 2)

    @property
    def limit(self) -> float:
        """The largest error of a difference, relative to its terms, that is believed."""
        return self.eps ** (1 / 3)

    @property
    def step(self) -> float:
        """The first step, relative to what is moved."""
        return self.eps ** (1 / 4)


DOUBLE = Precision.of(np.float64)
SINGLE = Precision.of(np.float32)
_LONGEST = Precision.of(np.longdouble)
EXTENDED = _LONGEST if _LONGEST.eps < DOUBLE.eps / 100 else None  # not every machine has it


def roundings(shapes: Iterable[tuple[int, ...]]) -> int:
    """An upper limit for n: the sizes of all axes of all operands added up, and POINTWISE."""
    return POINTWISE + sum(size for shape in shapes for size in shape)


def rounding_bound(count: int, size: float, dtype: DTypeLike) -> float:
    """How far two results of ``count`` roundings may differ, if they move by ``size`` with their operands."""
    limits: Any = np.finfo(dtype)
    return count * (float(limits.eps) * size + float(limits.tiny))
