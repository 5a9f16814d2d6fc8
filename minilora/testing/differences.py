"""Certified finite differences: a slope, how far it may be off, and the comparison with a gradient.

A slope <cotangent, J v> is estimated from central differences at two step sizes h and h/2. Their
disagreement bounds what the step size costs, the machine precision over h what rounding costs, and
everything is relative to the size of the terms that are summed, so that a gradient of 1e-12 is
checked as strictly as one of 1e+6. Where the two steps disagree by too much (a kink, or curvature
too strong for the smallest step) nothing is claimed, and the comparison counts as discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.testing import tolerance

Array = NDArray[Any]
STEPS = (1e-4, 1e-5, 1e-6)
CERTIFIED = 1e-4  # largest disagreement of two steps, relative to the terms, that is believed
NOISE = 32 * float(np.finfo(np.float64).eps)
ELEMENTWISE = 16  # an operand with at most so many elements is also checked element by element


@dataclass
class Tally:
    """What a law has looked at: drawn calls, slopes compared, slopes discarded."""

    calls: int = 0
    compared: int = 0
    discarded: int = 0


@dataclass(frozen=True)
class Slope:
    """An estimate of <cotangent, J v>: its value, a bound on its error, the absolute sum of its terms."""

    value: float
    truncation: float
    rounding: float
    terms: float

    @property
    def error(self) -> float:
        return self.truncation + self.rounding


def slope(
    moved: Callable[[float], Sequence[Array]], cotangents: Sequence[Array], noisy: Callable[[float], Sequence[Array]]
) -> Slope:
    """Estimate the slope at 0 of sum(cotangents · moved(s)); stops at the first step that is good enough.

    noisy  the same function of operands that are off by a relative NOISE, which is how rounding acts
    """
    found = []
    for step in STEPS:
        ahead, behind, half_ahead, half_behind = (moved(s * step) for s in (1, -1, 0.5, -0.5))
        value = truncation = rounding = terms = 0.0
        for g, a, b, ha, hb, n in zip(cotangents, ahead, behind, half_ahead, half_behind, noisy(step), strict=True):
            wide, fine = (a - b) / (2 * step), (ha - hb) / step
            value += float(np.sum(g * (4 * fine - wide))) / 3  # Richardson: the error of order h² cancels
            truncation += float(np.sum(np.abs(g * (fine - wide))))
            rounding += float(np.sum(np.abs(g * (a - n))) + NOISE / 4 * np.sum(np.abs(g * a))) / step
            terms += float(np.sum(np.abs(g * fine)))
        found.append(Slope(value, truncation, rounding, terms))
        if found[-1].error <= tolerance.GRADIENT * terms:
            break
    return min(found, key=lambda s: s.error)


def assert_gradient(
    function: Callable[..., Sequence[Array]],
    arrays: Sequence[Any],
    index: int,
    gradient: Array,
    cotangents: Sequence[Array],
    rng: np.random.Generator,
    tally: Tally,
    where: str,
) -> None:
    """Fail unless ``gradient`` is that of sum(cotangents · function(*arrays)) with respect to arrays[index].

    Small operands are checked one element after the other, all of them along random directions.
    """
    x = arrays[index]
    assert gradient.shape == x.shape, f"{where} has shape {gradient.shape}, the operand has {x.shape}"
    # A comparison with NaN is false, so without this it could be discarded unseen.
    assert np.all(np.isfinite(gradient)), f"{where} is not finite"
    for label, v in _directions(x, rng):

        def moved(s: float, v: Array = v) -> Sequence[Array]:
            return function(*arrays[:index], _read_only(x + s * v), *arrays[index + 1 :])

        def noisy(s: float, v: Array = v) -> Sequence[Array]:
            near = [_jittered(a, NOISE, rng) for a in arrays]
            near[index] = _jittered(x + s * v, NOISE, rng)
            return function(*near)

        want = slope(moved, cotangents, noisy)
        assert np.isfinite(want.value), f"{where}: the function is not finite near this point"
        got = float(np.sum(gradient * v))
        terms = want.terms + float(np.sum(np.abs(gradient * v)))
        if want.truncation > CERTIFIED * terms + want.rounding:
            tally.discarded += 1
            continue
        tally.compared += terms > 0
        bound = tolerance.GRADIENT * terms + want.error
        assert abs(want.value - got) <= bound, (
            f"{where} is wrong {label}\n"
            f"  finite difference {want.value:.9e}\n  vjp               {got:.9e}\n"
            f"  difference        {abs(want.value - got):.3e}  allowed {bound:.3e}"
        )


def _directions(x: Array, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    if x.size:
        yield "along a random direction", rng.standard_normal(x.shape)
    if 1 < x.size <= ELEMENTWISE:
        for at in np.ndindex(x.shape):
            one = np.zeros(x.shape)
            one[at] = 1.0
            yield f"at {list(at)}", one


def movement(
    function: Callable[..., Sequence[Array]], arrays: Sequence[Any], rng: np.random.Generator, probes: int = 3
) -> float:
    """How far the results move, at most, per relative movement of every element of a real operand.

    Each real operand is moved by itself, by random amounts of either sign. Terms that cancel in the
    result do not cancel in its movement, so this is the size to which rounding is relative. A step inside
    the operator may be rounded at the size of the operands themselves, so theirs counts as a factor. And
    the result itself is rounded, even where all operands are zero and cannot move.
    """
    base = function(*arrays)
    step, size, largest = 1e-6, max((float(np.abs(b).max(initial=0.0)) for b in base), default=0.0), 1.0
    for i, x in enumerate(arrays):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.size:
            continue
        largest = max(largest, float(np.abs(x).max()))
        for _ in range(probes):
            there = function(*arrays[:i], _jittered(x, step, rng), *arrays[i + 1 :])
            moves = (np.abs(t - b).max(initial=0.0) for t, b in zip(there, base, strict=True))
            size = max(size, float(max(moves, default=0.0)) / step)
    return size * largest


def _jittered(array: Any, by: float, rng: np.random.Generator) -> Any:
    """A real array with every element moved by a relative ``by`` or up to half as much, either way."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return array
    return _read_only(array * (1 + by * rng.uniform(0.5, 1, array.shape) * rng.choice([-1.0, 1.0], array.shape)))


def _read_only(array: Any) -> Array:
    array = np.asarray(array)
    array.flags.writeable = False
    return array
