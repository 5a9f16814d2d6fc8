"""The slopes of a function near a point, by differences that know how far they may be off. NumPy only.

A slope <cotangent, J v> is estimated from f at x ± h v and x ± h v / 2. Three errors are bounded: the
disagreement of the two steps, half the jump of the slope at a kink, and rounding over the step; their
derivation is in ``tolerance``. Steps of many sizes are tried, since none suits every function: relative
to the element that is moved, to the array's largest element, to one, and every power of ten between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.testing.moves import PROBES, Direction, Function, flat, jittered, ladder, read_only
from minilora.testing.tolerance import DOUBLE, EXTENDED, JITTER, Precision

Array = NDArray[Any]
TINY_STEP = 1e-50  # of the complex step, which subtracts nothing and so cannot be too small


@dataclass(frozen=True)
class Slope:
    """<cotangent, J v> for each of K cotangents, bounds on its error, and the absolute sum of its terms.

    height  the absolute sum of cotangent times output, over the outputs that moved
    moved   False if no value of f differs from that at the point by a single bit
    both    True if values on both sides do
    jump    the slope ahead less the slope behind
    sides   the absolute sum of the terms of either, the larger
    """

    value: Array
    truncation: Array
    asymmetry: Array
    rounding: Array
    terms: Array
    height: Array
    step: float
    moved: bool
    both: bool
    jump: Array
    sides: Array

    def kinked(self, k: int) -> bool:
        """True if most of the error is that the slope is another on the other side."""
        return self.moved and bool(self.asymmetry[k] > self.truncation[k] + self.rounding[k])

    @property
    def error(self) -> Array:
        return self.truncation + self.asymmetry + self.rounding

    @property
    def settled(self) -> Array:
        """True where the two steps see nearly the same, or only rounding apart: else the step may be far too large."""
        return self.truncation + self.asymmetry <= np.maximum(0.1 * self.terms, self.rounding)

    def share(self, size: Array) -> float:
        """The largest error relative to the terms or, where it is larger, to ``size``; infinite where both are 0."""
        with np.errstate(all="ignore"):  # terms may be too small to divide by
            shares = self.error / np.maximum(self.terms, size)
        return float(np.max(np.where(self.error > 0, shares, 0.0), initial=0.0))


class Neighbourhood:
    """A function near one point: what it gives there, how far rounding may move that, and its slopes.

    function    arrays -> outputs, real
    cotangents  K times an array for each output
    """

    def __init__(
        self, function: Function, arrays: Sequence[Any], cotangents: Sequence[Sequence[Array]],
        rng: np.random.Generator, precision: Precision = DOUBLE,
    ) -> None:  # fmt: skip
        self.function, self.arrays, self.precision = function, arrays, precision
        self._cotangents, self._rng = cotangents, rng
        self.base = flat(function(*arrays))
        self.weights = np.stack([flat(g) for g in cotangents])
        self.noise = 4 * precision.eps * np.abs(self.base)
        self.noise += self._jitter()

    def _jitter(self) -> Array:
        """How far each output moves when every operand moves by JITTER eps: no less than rounding does."""
        largest = np.zeros_like(self.base)
        for _ in range(PROBES):
            there = self._value([jittered(a, JITTER * self.precision.eps, self._rng) for a in self.arrays])
            if there is not None:
                np.maximum(largest, np.abs(there - self.base), out=largest)
        return largest

    def _value(self, arrays: Sequence[Any]) -> Array | None:
        """f there, or None where it is not defined."""
        try:
            out = flat(self.function(*arrays))
        except (ArithmeticError, ValueError):
            return None
        return out if out.shape == self.base.shape and np.isfinite(out).all() else None

    def _at(self, direction: Direction, s: float) -> Array | None:
        arrays = list(self.arrays)
        for i, v in direction.moves.items():
            arrays[i] = read_only((arrays[i] + s * v).astype(arrays[i].dtype, copy=False))
        return self._value(arrays)

    def _samples(self, direction: Direction, step: float) -> Array | None:
        """f at h, -h, h/2, -h/2, a row each; None where any is not defined."""
        rows: list[Array] = []
        for s in (step, -step, step / 2, -step / 2):
            there = self._at(direction, s)
            if there is None:
                return None
            rows.append(there)
        return np.stack(rows)

    def estimate(self, direction: Direction, step: float, reach: Array | None = None) -> Slope | None:
        """The slope by one step; None where f is not defined at it.

        reach  True for the outputs that depend on what is moved: others cannot be noisy
        """
        samples = self._samples(direction, step)
        if samples is None:
            return None
        ahead, behind, half_ahead, half_behind = samples
        wide, fine = (ahead - behind) / (2 * step), (half_ahead - half_behind) / step
        fourth = (ahead + behind - 4 * (half_ahead + half_behind) + 6 * self.base) / step
        noise = self.noise + 4 * self.precision.eps * np.abs(samples).max(axis=0)
        if reach is not None:
            noise = noise * (reach | (samples != self.base).any(axis=0))
        errors = np.abs(np.stack([fine - wide, fourth / 2, 3 * noise / step, fine]))
        truncation, asymmetry, rounding, terms = errors @ np.abs(self.weights).T
        value = self.weights @ ((4 * fine - wide) / 3)
        jump = self.weights @ (ahead + behind - 2 * self.base) / step
        sides = np.abs(np.stack([ahead - self.base, behind - self.base])) @ np.abs(self.weights).T / step
        moved = (samples != self.base).any(axis=0)
        both = bool((samples[::2] != self.base).any() and (samples[1::2] != self.base).any())
        height = np.abs(self.weights) @ np.where(moved, np.abs(self.base), 0)
        return Slope(
            value,
            truncation,
            asymmetry,
            rounding,
            terms,
            height,
            step,
            bool(moved.any()),
            both,
            jump,
            sides.max(axis=0),
        )

    def slope(self, direction: Direction, size: Array) -> Slope | None:
        """The first estimate that is good to ``rtol``, or the best there is; None where f is not defined around x.

        size  (K,) the sum of absolute terms that are known besides those of f

        Where f does not move by a bit for a small step, the slope is either 0 or too small to see,
        so larger steps are preferred, if they can be certified.
        """
        best = still = None
        for found in self.estimates(direction, size):
            if not found.moved:
                still = found if still is None or found.step > still.step else still
            elif found.share(size) <= self.precision.rtol:
                return found
            elif best is None or found.share(size) < best.share(size):
                best = found
        return still if still is not None and (best is None or best.share(size) > self.precision.limit) else best

    def estimates(self, direction: Direction, size: Array, also: Sequence[float] = ()) -> Iterator[Slope]:
        """Estimates by one step after the other, the likely ones first; none where f is not defined.

        also  further steps to try at the end
        """
        steps = ladder(direction.scales, self.precision.step)
        reach, still, moved = None, 0.0, False
        for at, step in enumerate((*steps.all, *also)):
            if at >= steps.first and step <= still:
                continue
            if at == steps.first and still and not moved:
                reach = self.reach(direction) if reach is None else reach
                if not reach.any():
                    return  # nothing depends on what is moved
            found = self.estimate(direction, step, reach)
            if found is None:
                continue
            if found.share(size) > self.precision.rtol and reach is None:
                reach = self.reach(direction)
                found = self.estimate(direction, step, reach) or found
            moved, still = moved or found.moved, still if found.moved else max(still, step)
            yield found

    def reach(self, direction: Direction) -> Array:
        """The outputs that depend on what is moved: where it is NaN, they are NaN. All, where f does not take NaN."""
        arrays = list(self.arrays)
        for i, v in direction.moves.items():
            arrays[i] = read_only(np.where(v != 0, np.nan, arrays[i]).astype(arrays[i].dtype, copy=False))
        try:
            there = flat(self.function(*arrays))
        except (ArithmeticError, ValueError, IndexError):
            return np.ones(self.base.shape, bool)
        return np.isnan(there) if there.shape == self.base.shape else np.ones(self.base.shape, bool)

    @functools.cached_property
    def extended(self) -> Neighbourhood | None:
        """The same in longer numbers, where this machine and the function have them; else None."""
        if self.precision is not DOUBLE or EXTENDED is None:
            return None
        arrays = [
            a.astype(np.longdouble) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in self.arrays
        ]
        try:
            if all(np.asarray(out).dtype == np.longdouble for out in self.function(*arrays)):
                return Neighbourhood(self.function, arrays, self._cotangents, self._rng, EXTENDED)
        except Exception:  # whatever a function does that was never meant for other numbers
            pass
        return None

    def complex_slope(self, direction: Direction) -> Array | None:
        """The slope by the complex step (Squire & Trapp 1998), exact where f is analytic; None where f refuses.

        np.abs, a comparison or a cast to real breaks it silently, so a caller may only let it confirm.
        """
        arrays = list(self.arrays)
        for i, v in direction.moves.items():
            arrays[i] = read_only(arrays[i] + 1j * TINY_STEP * v)
        try:
            outs = self.function(*arrays)
            there = np.concatenate([np.ravel(o) for o in outs]) if len(outs) else np.zeros(0, complex)
        except Exception:  # whatever a function does that was never meant for complex numbers
            return None
        if there.dtype.kind != "c" or there.shape != self.base.shape or not np.isfinite(there).all():
            return None
        return np.asarray(self.weights @ (there.imag / TINY_STEP))
