"""A gradient against certified differences: right, wrong or not to be judged, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.testing.claims import Claim
from minilora.testing.moves import Direction, Function, directions
from minilora.testing.slopes import Neighbourhood, Slope
from minilora.testing.tolerance import DOUBLE, JITTER

Array = NDArray[Any]
SECOND_OPINION = (0.83, 0.61, 0.37)  # of the step that found a gradient wrong: no multiples of it or of each other


@dataclass
class Tally:
    """What a law has looked at: drawn calls, slopes compared, slopes discarded, calls with a discarded slope."""

    calls: int = 0
    compared: int = 0
    discarded: int = 0
    doubtful: int = 0


@dataclass(frozen=True)
class Finding:
    """One slope that the gradient under test does not have, or that cannot be judged."""

    kind: str  # "wrong", "inconclusive", "kink" or "not finite"
    label: str
    text: str


@dataclass(frozen=True)
class Sight:
    """What is seen along one direction, for each of K cotangents."""

    slope: Slope
    got: Array  # the claimed slope
    size: Array  # the absolute sum of the terms of either
    noise: Array  # of the claimed one
    bound: Array  # how far both may differ
    off: Array  # how far they do
    right: Array
    wrong: Array


class Comparison:
    """Gradients under test beside the slopes of the function they should belong to."""

    def __init__(
        self, near: Neighbourhood, claimed: dict[int, Claim], rtol: float, atol: float = 0.0, named: str = "vjp"
    ) -> None:
        self.near, self.claimed, self.rtol, self.named = near, claimed, rtol, named
        self.atol = max(atol, near.precision.tiny)
        self.tally = Tally()

    def findings(self, directions: Iterator[Direction]) -> Iterator[Finding]:
        """Yield what is not right along these directions."""
        for direction in directions:
            found = self._judge(direction)
            if found is not None:
                yield found

    def _judge(self, direction: Direction) -> Finding | None:
        seen = self._sight(direction)
        if seen is None:
            return Finding("not finite", direction.label, "  the function is not finite on both sides of this point")
        slope, right, wrong = seen.slope, seen.right, seen.wrong
        mixed = self._mixed(direction, slope.step)
        if right.all() or (not wrong.any() and np.all(right | self._confirmed(direction, seen))):
            self.tally.compared += bool((seen.size > 0).any())
            return None
        if wrong.any():
            worst = int(np.argmax(np.where(wrong, seen.off / np.where(seen.bound > 0, seen.bound, 1e-300), -1)))
            verdict = "inconclusive" if mixed else self._overruled(direction, seen, worst)
            if verdict != "inconclusive":
                self.tally.compared += 1
                return (
                    None if verdict == "right" else Finding("wrong", direction.label, self._text(seen, worst, "wrong"))
                )
        else:
            worst = int(np.argmin(right))
        self.tally.discarded += 1
        kind = "kink" if not mixed and self._kinked(direction, slope, worst) else "inconclusive"
        return Finding(kind, direction.label, self._text(seen, worst, kind))

    def _sight(self, direction: Direction) -> Sight | None:
        """Both slopes, and for which cotangents the claimed one is right or wrong; neither where it is not clear."""
        got, own, inner, noise = self._projected(direction)
        slope = self.near.slope(direction, own)
        if slope is None:
            return None
        size, off = np.maximum(slope.terms, own), np.abs(slope.value - got)
        bound = self.rtol * size + noise + slope.error + self.atol
        if slope.moved:
            credible = slope.error <= self.near.precision.limit * np.maximum(size, inner) + self.atol
            right, wrong = credible & (off <= bound), credible & (off > bound) & slope.settled
            if not (right | wrong).all() and np.all(own <= noise + self.atol):
                right = right | self._vanishes(direction, own)
        else:  # the slope is 0, or hides behind the rounding of a function that stands still
            right, wrong = own <= noise + self.atol, own > slope.error + noise + self.atol
        return Sight(slope, got, size, noise, bound, off, right, wrong)

    def _vanishes(self, direction: Direction, size: Array) -> Array:
        """Where the slope falls to nothing as the step does, beside those of wider steps: x² and x³ at 0."""
        seen = list(self.near.estimates(direction, size))
        least = np.min([np.abs(e.value) + e.error for e in seen], axis=0)
        return np.asarray(least <= self.near.precision.limit * np.max([e.sides for e in seen], axis=0))

    def _confirmed(self, direction: Direction, seen: Sight) -> Array:
        """Where a sharper look gives the claimed slope after all: longer numbers, or the complex step.

        Both may be blind in their way: f may round to float64 inside, or lose the imaginary part. So they can
        confirm, within the error of the difference and if the slope is not just 0, but not refute.
        """
        own = self.rtol * seen.size + seen.noise + self.atol
        fits = np.zeros(seen.got.shape, bool)
        exact = self.near.complex_slope(direction)
        if exact is not None:
            fits |= (
                (np.abs(exact - seen.got) <= own)
                & (exact != 0)
                & (np.abs(exact - seen.slope.value) <= seen.slope.error)
            )
        longer = self.near.extended
        slope = None if longer is None or fits.all() else longer.slope(direction, seen.size)
        if slope is not None:
            credible = (slope.error <= self.near.precision.limit * seen.size) & (slope.value != 0)
            fits |= credible & (np.abs(slope.value - seen.got) <= own + slope.error)
        return fits

    def _overruled(self, direction: Direction, seen: Sight, k: int) -> str:
        """A verdict on what one step found wrong, from all steps: coarse rounding can make one agree with its half.

        If it was luck, steps close to it do not agree. Where f stands still and is moved by larger steps, but
        not only beyond a kink on one side, it is too coarse as well. And a slope that is lost in the rounding of
        what f gives may have been lost by the vjp too.
        """
        first, limit = seen.slope, self.near.precision.limit
        if first.moved and seen.off[k] <= JITTER * self.near.precision.eps * first.height[k] / max(direction.scales):
            return "inconclusive"
        own = seen.bound[k] - first.error[k]
        nearby = [share * first.step for share in SECOND_OPINION]
        others = list(self.near.estimates(direction, seen.size, nearby))
        alike = sum(
            other.step in nearby
            and other.share(seen.size) <= limit
            and abs(other.value[k] - first.value[k]) <= first.error[k] + other.error[k] + self.rtol * seen.size[k]
            for other in others
        )
        lucky = first.moved and alike < len(nearby) - 1
        votes = [
            abs(other.value[k] - seen.got[k]) <= own + other.error[k]
            for other in others
            if (other.moved and other.share(seen.size) <= limit if first.moved else other.both)
        ]
        if first.moved and sum(votes) > max(1, len(votes) / 2):
            return "right"
        return "inconclusive" if lucky or any(votes) else "wrong"

    def _mixed(self, direction: Direction, step: float) -> bool:
        """True if a step takes some elements across 0, where many functions have a pole or kink, and others not.

        It is too wide for the ones and may be too narrow for the others; a direction relative to each tells more.
        """
        crossing = [
            step * np.abs(v) >= np.abs(self.near.arrays[i]) for i, v in direction.moves.items() if i in self.claimed
        ]
        moved = [np.asarray(v != 0) for i, v in direction.moves.items() if i in self.claimed]
        some = any(bool((c & m).any()) for c, m in zip(crossing, moved, strict=True))
        return some and any(bool((~c & m).any()) for c, m in zip(crossing, moved, strict=True))

    def _kinked(self, direction: Direction, slope: Slope, k: int) -> bool:
        """True if the slope jumps by the same amount for this step and for the smallest ones that rounding leaves.

        Noise does not, nor a bend that is only sharp beside this step, as logsumexp has for large differences.
        """
        if not slope.kinked(k) or not slope.jump[k]:
            return False
        smallest = max(1e-12, 500 * float(slope.rounding[k] / abs(slope.jump[k])))
        if smallest > 1e-2:
            return False
        jumps, reach = [], self.near.reach(direction)
        for share in (smallest**0.5, smallest**0.75, smallest):
            smaller = self.near.estimate(direction, share * slope.step, reach)
            if smaller is None or not smaller.kinked(k):
                return False
            jumps.append(smaller.jump[k])
        return bool(max(jumps) - min(jumps) <= 0.02 * max(map(abs, jumps)))

    def _projected(self, direction: Direction) -> tuple[Array, Array, Array, Array]:
        """The claimed slope, the absolute sum of its parts, the size of their terms, and their noise."""
        count = len(self.near.weights)
        got, own, inner, noise = (np.zeros(count) for _ in range(4))
        for i, v in direction.moves.items():
            if i not in self.claimed:
                continue
            claim, flat_v = self.claimed[i], v.reshape(-1)
            at = np.flatnonzero(flat_v)
            part = flat_v[at]
            value, terms, rough = (a.reshape(count, -1)[:, at] for a in (claim.value, claim.terms, claim.noise))
            got, own = got + value @ part, own + np.abs(value) @ np.abs(part)
            inner, noise = inner + terms @ np.abs(part), noise + rough @ np.abs(part)
        return got, own, inner, noise

    def _text(self, seen: Sight, k: int, kind: str) -> str:
        slope, precision = seen.slope, self.near.precision
        lines = [
            f"  finite difference {slope.value[k]:.9e}  (off by {slope.error[k]:.1e} at most; step {slope.step:.1e})",
            f"  {self.named:<17} {seen.got[k]:.9e}",
        ]
        if kind == "wrong":
            lines.append(
                f"  difference        {seen.off[k]:.3e}  allowed {seen.bound[k]:.3e}: {self.rtol:.1e} of all terms "
                f"{seen.size[k]:.3e}, and both sides' errors"
            )
        elif kind == "kink":
            lines.append(
                f"  a kink: the slopes on either side differ by {abs(slope.jump[k]):.6g}; move the point off it"
            )
        else:
            lines.append(
                f"  its error: step {slope.truncation[k]:.1e}, asymmetry {slope.asymmetry[k]:.1e}, rounding "
                f"{slope.rounding[k]:.1e}; believed up to {precision.limit:.0e} of the terms' sum {seen.size[k]:.1e}"
            )
        return "\n".join(lines)


def assert_gradient(
    function: Function, arrays: Sequence[Any], index: int, gradient: Array, cotangents: Sequence[Array],
    rng: np.random.Generator, tally: Tally, where: str,
) -> None:  # fmt: skip
    """Fail unless ``gradient`` is that of sum(cotangents · function(*arrays)) with respect to arrays[index]."""
    x = arrays[index]
    if gradient.shape != x.shape:
        raise AssertionError(f"{where} has shape {gradient.shape}, the operand has {x.shape}")
    if not np.all(np.isfinite(gradient)):
        raise AssertionError(f"{where} is not finite")
    value = np.asarray(gradient, np.float64)[None]
    claim = Claim(value, np.zeros_like(value), np.abs(value))
    comparison = Comparison(Neighbourhood(function, arrays, [cotangents], rng), {index: claim}, DOUBLE.rtol)
    assert_right(comparison, directions(x, index, rng), where, tally)


def assert_right(comparison: Comparison, along: Iterator[Direction], where: str, tally: Tally) -> None:
    """Fail at the first slope that is wrong; count those that cannot be judged."""
    comparison.tally = tally
    for found in comparison.findings(along):
        if found.kind == "kink":
            raise AssertionError(f"{where} has a kink {found.label} that its domain does not name\n{found.text}")
        if found.kind in ("wrong", "not finite"):
            raise AssertionError(f"{where} is {found.kind} {found.label}\n{found.text}")
