"""Variants of a drawn call that the laws compare with it or expect to be refused. NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Op
from minilora.autograd.writes import arrays_in
from minilora.testing.draws import Call, axes, draw, frozen

Array = NDArray[Any]


def subsets(positions: Sequence[int]) -> list[tuple[int, ...]]:
    """Every subset, the empty one too; of more than five the single ones, all but one, all, none."""
    sizes = range(len(positions) + 1)
    if len(positions) > 5:
        sizes = sorted({0, 1, len(positions) - 1, len(positions)})  # type: ignore[assignment]
    return [subset for size in sizes for subset in itertools.combinations(positions, size)]


def with_scalars(call: Call) -> Iterator[Call]:
    """The call with a number, Python's or NumPy's, for each broadcasting operand in turn, while an array remains."""
    for i in call.real:
        if call.operands[i].axes == ("...",) and len(call.real) > 1:
            for number in (2.0, 3, np.float64(2), np.float32(2), np.int64(3)):
                changed = call.having({i: number})
                yield replace(changed, arrays=call.op.bind((), changed.keywords())[0])


def lock(saved: Any) -> None:
    """Make every array inside ``saved`` read-only."""
    for array in arrays_in(saved):
        array.flags.writeable = False


def relaid(array: Array, rng: np.random.Generator) -> Array:
    """The same values in another memory layout: Fortran order, every second of a row, backwards, or not aligned."""
    layout = rng.integers(4)
    if array.ndim == 0:
        return frozen(array)
    if layout == 0:
        return frozen(np.asfortranarray(array))
    if layout == 1:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return frozen(wide[..., ::2])
    if layout == 2:
        moved = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return frozen(moved)
    back = (slice(None, None, -1),) * array.ndim
    return frozen(np.ascontiguousarray(array[back])[back])


def small_calls(op: Op, rng: np.random.Generator) -> Iterator[Call]:
    """Calls with axes of size 0 or 1: each by itself among larger ones, and all at once."""
    names = axes(op)
    if op.draw is not None:
        for _ in range(64):
            call = draw(op, rng, {})
            if any(0 in a.shape or 1 in a.shape for a in call.arrays if a is not None):
                yield call
        return
    combinations = [dict.fromkeys(names, n) for n in (0, 1, 2)]
    combinations += [{**dict.fromkeys(names, 2), name: n} for name in names for n in (0, 1)]
    for sizes in combinations:
        many: list[dict[str, Any]] = [dict(sizes)]
        for group in ("*", "..."):
            if group in names:
                many = [{**m, group: s} for m in many for s in ((m[group],), (2, m[group]), ())]
        for shaped in many:
            yield from (draw(op, rng, shaped) for _ in range(2))  # optional operands present or not


def mistakes(call: Call) -> Iterator[tuple[int, Any, str]]:
    """(position, wrong array, what is wrong with it) for mistakes that the signature excludes."""
    for i, (operand, array) in enumerate(zip(call.operands, call.arrays, strict=True)):
        if array is None:
            continue
        wrong_dtype = np.zeros(array.shape, np.float32 if operand.kind in ("int", "bool") else np.int64)
        yield i, wrong_dtype, f"dtype {wrong_dtype.dtype}"
        if not operand.optional:
            yield i, None, "None"
        if operand.axes == ("?",):
            continue
        others = [o for j, o in enumerate(call.operands) if j != i and call.arrays[j] is not None]
        if operand.axes == ("...",):
            yield from _not_broadcasting(call, i)
            continue
        starred = operand.axes[:1] == ("*",)
        if not starred or any("*" in o.axes for o in others):
            yield i, np.zeros((1, *array.shape), array.dtype), "an axis too many"
        if array.ndim and not starred:
            yield i, np.zeros(array.shape[1:], array.dtype), "an axis too few"
        named = operand.axes[starred:]
        for at, axis in enumerate(named):
            if axis.isdigit() or any(axis in o.axes for o in others):
                yield i, _grown(array, array.ndim - len(named) + at), f"a wrong {axis}"
        if starred and any("*" in o.axes for o in others):
            for at in range(array.ndim - len(named)):
                yield i, _grown(array, at), f"a wrong axis {at} of *"


def _not_broadcasting(call: Call, i: int) -> Iterator[tuple[int, Any, str]]:
    others = [np.shape(a) for j, a in enumerate(call.arrays) if j != i and call.operands[j].axes == ("...",)]
    rest = np.broadcast_shapes(*others)
    for at, size in enumerate(rest):
        if size > 1:
            wrong = (*rest[:at], size + 1, *rest[at + 1 :])
            yield i, np.zeros(wrong, call.arrays[i].dtype), f"shape {wrong} beside {rest}"


def _grown(array: Array, axis: int) -> Array:
    shape = list(array.shape)
    shape[axis] += 1
    return np.zeros(shape, array.dtype)
