"""The slopes of a function near a point, by differences that know how far they may be off. NumPy only.

A slope <cotangent, J v> is estimated from f at x ± h v and x ± h v / 2. Three errors are bounded: the
disagreement of the two steps, half the jump of the slope at a kink, and rounding over the step; their
derivation is in ``tolerance``. Steps of many sizes are tried, since none suits every function: relative
to the element that is moved, to the array's largest element, to one, and every power of ten between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.testing.tolerance import DOUBLE, JITTER, Precision

Array = NDArray[Any]
Function = Callable[..., Sequence[Array]]  # arrays -> outputs
PROBES = 3  # random movements of the operands, of which the largest effect counts
TINY_STEP = 1e-50  # of the complex step, which subtracts nothing and so cannot be too small


@dataclass(frozen=True)
class Direction:
    """Where to move: for some operands, by their position, the movement v; and in what sizes of it f may vary."""

    label: str
    moves: Mapping[int, Array]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Slope:
    """<cotangent, J v> for each of K cotangents, bounds on its error, and the absolute sum of its terms.

    height  the absolute sum of cotangent times output, over the outputs that moved
    moved   False if no value of f differs from that at the point by a single bit
    jump    the slope ahead less the slope behind
    """

    value: Array
    truncation: Array
    asymmetry: Array
    rounding: Array
    terms: Array
    height: Array
    step: float
    moved: bool
    jump: Array

    def kinked(self, k: int) -> bool:
        """True if most of the error is that the slope is another on the other side."""
        return self.moved and bool(self.asymmetry[k] > self.truncation[k] + self.rounding[k])

    @property
    def error(self) -> Array:
        return self.truncation + self.asymmetry + self.rounding

    @property
    def share(self) -> float:
        """The largest error relative to the terms; infinite where there are none."""
        return max((e / t if t else np.inf for e, t in zip(self.error, self.terms, strict=True) if e), default=0.0)


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
        self.base = flat(function(*arrays))
        self.weights = np.stack([flat(g) for g in cotangents])
        self.noise = 4 * precision.eps * np.abs(self.base)
        self.noise += self._jitter(rng)

    def _jitter(self, rng: np.random.Generator) -> Array:
        """How far each output moves when every operand moves by JITTER eps: no less than rounding does."""
        largest = np.zeros_like(self.base)
        for _ in range(PROBES):
            there = self._value([jittered(a, JITTER * self.precision.eps, rng) for a in self.arrays])
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
        moved = (samples != self.base).any(axis=0)
        height = np.abs(self.weights) @ np.where(moved, np.abs(self.base), 0)
        return Slope(value, truncation, asymmetry, rounding, terms, height, step, bool(moved.any()), jump)

    def slope(self, direction: Direction) -> Slope | None:
        """The first estimate that is good to ``rtol``, or the best there is; None where f is not defined around x.

        Where f does not move by a bit for a small step, the slope is either 0 or too small to see,
        so larger steps are preferred, if they can be certified.
        """
        best = still = None
        for found in self.estimates(direction):
            if not found.moved:
                still = found if still is None or found.step > still.step else still
            elif found.share <= self.precision.rtol:
                return found
            elif best is None or found.share < best.share:
                best = found
        return still if still is not None and (best is None or best.share > self.precision.limit) else best

    def estimates(self, direction: Direction, also: Sequence[float] = ()) -> Iterator[Slope]:
        """Estimates by one step after the other, the likely ones first; none where f is not defined.

        also  further steps to try at the end
        """
        steps = ladder(direction.scales, self.precision.step)
        reach, still, moved = None, 0.0, False
        for at, step in enumerate((*steps.all, *also)):
            if at >= steps.first and step <= still:
                continue
            if at == steps.first and still and not moved:
                reach = self._reach(direction) if reach is None else reach
                if not reach.any():
                    return  # nothing depends on what is moved
            found = self.estimate(direction, step, reach)
            if found is None:
                continue
            if found.share > self.precision.rtol and reach is None:
                reach = self._reach(direction)
                found = self.estimate(direction, step, reach) or found
            moved, still = moved or found.moved, still if found.moved else max(still, step)
            yield found

    def _reach(self, direction: Direction) -> Array:
        """The outputs that depend on what is moved: where it is NaN, they are NaN. All, where f does not take NaN."""
        arrays = list(self.arrays)
        for i, v in direction.moves.items():
            arrays[i] = read_only(np.where(v != 0, np.nan, arrays[i]).astype(arrays[i].dtype, copy=False))
        try:
            there = flat(self.function(*arrays))
        except (ArithmeticError, ValueError, IndexError):
            return np.ones(self.base.shape, bool)
        return np.isnan(there) if there.shape == self.base.shape else np.ones(self.base.shape, bool)

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


@dataclass(frozen=True)
class Ladder:
    """Steps to try; the first ``first`` of them are the likely ones."""

    all: tuple[float, ...]
    first: int


def ladder(scales: Sequence[float], step: float) -> Ladder:
    """``step`` of each scale, then every power of ten from well above the largest to below the smallest."""
    likely: list[float] = []
    for scale in (*scales, 1.0) if not any(scales) else scales:
        if scale > 0 and all(not 0.1 < scale * step / s < 10 for s in likely):
            likely.append(scale * step)
    top, bottom = 1000 * max(likely), min(likely) / 100
    decades = top / 10.0 ** np.arange(np.ceil(np.log10(top / bottom)) + 1)
    rest = (float(d) for d in decades if all(abs(d / s - 1) > 0.5 for s in likely))
    return Ladder((*likely, *rest), len(likely))


def movement(
    function: Function, arrays: Sequence[Any], rng: np.random.Generator, step: float = 1e-6, probes: int = PROBES
) -> Iterator[list[Array]]:
    """Yield how far each result moves per relative movement of every element of a real operand.

    Each real operand is moved by itself, by random amounts of either sign. Terms that cancel in the
    result do not cancel in its movement, so this is the size to which rounding is relative.
    """
    base = function(*arrays)
    for i, x in enumerate(arrays):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.size:
            continue
        for _ in range(probes):
            there = function(*arrays[:i], jittered(x, step, rng), *arrays[i + 1 :])
            yield [np.abs(np.asarray(t) - b) / step for t, b in zip(there, base, strict=True)]


def jittered(array: Any, by: float, rng: np.random.Generator) -> Any:
    """A real array with every element moved by a relative ``by`` or down to half as much, either way."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return array
    moved = array * (1 + by * rng.uniform(0.5, 1, array.shape) * rng.choice([-1.0, 1.0], array.shape))
    return read_only(np.asarray(moved, array.dtype))


def flat(arrays: Sequence[Array]) -> Array:
    """All elements of all arrays, in float64."""
    if len(arrays) == 1:
        return np.asarray(arrays[0], np.float64).reshape(-1)
    return np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64) if arrays else np.zeros(0)


def read_only(array: Any) -> Array:
    array = np.asarray(array)
    array.flags.writeable = False
    return array
