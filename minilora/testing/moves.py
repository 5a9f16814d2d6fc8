"""Where to move from a point, and how far: directions, steps, random movements. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[..., Sequence[Array]]  # arrays -> outputs
ELEMENTS = 1000  # an operand with at most so many elements is checked element by element
BLOCKS = 32  # a larger one along directions, each through one of so many parts of it
FLOOR = 1e-16  # the smallest step away from zero
PROBES = 3  # random movements of the operands, of which the largest effect counts


@dataclass(frozen=True)
class Direction:
    """Where to move: for some operands, by their position, the movement v; and in what sizes of it f may vary."""

    label: str
    moves: Mapping[int, Array]
    scales: tuple[float, ...]


def directions(
    x: Array, index: int, rng: np.random.Generator, elements: int = ELEMENTS, blocks: int = BLOCKS
) -> Iterator[Direction]:
    """Each element of operand ``index`` by itself; of a large one, random movements of parts and of the whole."""
    largest = float(np.abs(x).max(initial=0.0))
    if x.size <= elements:
        for at in np.ndindex(x.shape):
            one = np.zeros(x.shape)
            one[at] = 1.0
            yield Direction(f"at {list(at)}", {index: one}, (abs(float(x[at])), largest, 1.0))
        return
    for kind in ("relative", "absolute"):
        order = rng.permutation(x.size)
        for part, count in [*((p, blocks) for p in np.array_split(order, blocks)), (order, 1)]:
            v = np.zeros(x.size)
            v[part] = rng.choice([-1.0, 1.0], len(part)) * rng.uniform(0.5, 1, len(part))
            move = v.reshape(x.shape)
            label = f"along a random direction ({kind}, through {'all' if count == 1 else f'1/{count} of'} elements)"
            if kind == "relative":
                move = move * np.where(x == 0, largest or 1.0, np.abs(x))
                yield Direction(label, {index: move}, (1.0, 1 / (largest or 1.0)))
            else:
                yield Direction(label, {index: move}, (largest, 1.0))


def together(arrays: Sequence[Any], positions: Sequence[int], rng: np.random.Generator) -> Iterator[Direction]:
    """All operands at once: <cotangent, J v> forward is <vjp(cotangent), v> backward."""
    moves, scales = {}, [1.0]
    for i in positions:
        x = np.asarray(arrays[i])
        largest = float(np.abs(x).max(initial=0.0)) or 1.0
        scales.append(1 / largest)
        moves[i] = np.where(x == 0, largest, np.abs(x)) * rng.uniform(0.5, 1, x.shape) * rng.choice([-1, 1], x.shape)
    if any(v.size for v in moves.values()):
        yield Direction("along a random direction through all inputs", moves, tuple(scales))


@dataclass(frozen=True)
class Ladder:
    """Steps to try; the first ``first`` of them are the likely ones."""

    all: tuple[float, ...]
    first: int


def ladder(scales: Sequence[float], step: float) -> Ladder:
    """``step`` of each scale, then every power of ten from well above the largest to below the smallest.

    Where something is zero, nothing says how small a step should be.
    """
    likely: list[float] = []
    for scale in (*scales, 1.0) if not any(scales) else scales:
        if scale > 0 and all(not 0.1 < scale * step / s < 10 for s in likely):
            likely.append(scale * step)
    top, bottom = 1000 * max(likely), min(likely) / 100 if all(scales) else FLOOR
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
    """All elements of all arrays, in float64 or longer."""
    if len(arrays) != 1:
        arrays = [np.concatenate([np.ravel(a) for a in arrays]) if arrays else np.zeros(0)]
    whole = np.asarray(arrays[0])
    return whole.reshape(-1).astype(np.result_type(whole.dtype, np.float64), copy=False)


def read_only(array: Any) -> Array:
    array = np.asarray(array)
    array.flags.writeable = False
    return array
