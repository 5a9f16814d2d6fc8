"""Operators that pad, roll and repeat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError
from minilora.ops.shape import Axis, any_axis, any_shape, fitting, settled

Array = NDArray[Any]
_BY_INDEX = ("edge", "reflect", "symmetric", "wrap")  # ways to pad in which each new element repeats one of the old


def add_along(shape: tuple[int, ...], ids: Array, values: Array, axis: int) -> Array:
    """Zeros of ``shape`` to which ``values`` are added at the positions ``ids`` of ``axis``; repeated ids add up."""
    total = np.zeros(shape, values.dtype)
    key: Any = (*(slice(None),) * axis, ids)
    np.add.at(total, key, values)
    return total


def _pad_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng))
    pairs = tuple(map(tuple, rng.integers(0, 4, (x.ndim, 2)).tolist()))
    width = (pairs, 1, (2, 0))[int(rng.integers(3))] if x.ndim else 2
    mode = ("constant", *_BY_INDEX)[int(rng.integers(5))] if x.size and x.ndim else "constant"
    return {"x": x, "pad_width": width, "mode": mode, "constant_values": float(rng.integers(0, 3))}


@op(
    "x[?] -> y[?]",
    source="NumPy's pad",
    formula="y[i] = x[i - before], and the constant or a repeated element where that is outside",
    flops=lambda s: 0,
    draw=_pad_draw,
)
def pad(x: Array, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> tuple[Array, Any]:
    """Add elements before and after each axis, as np.pad does.

    pad_width        how many: a number, one pair (before, after) for every axis, or a pair for each
    mode             "constant", or "edge", "reflect", "symmetric", "wrap": repeat elements of ``x``
    constant_values  what to add with mode "constant": a number, or as ``pad_width``

    ConfigError for another mode; ShapeError where pad_width does not fit, or nothing is there to repeat.
    """
    if mode not in ("constant", *_BY_INDEX):
        raise ConfigError(f"pad: mode is {mode!r}, expected 'constant', 'edge', 'reflect', 'symmetric' or 'wrap'")
    extra = {"constant_values": constant_values} if mode == "constant" else {}
    with fitting("pad", x, pad_width=pad_width, mode=mode):
        widths = np.array(np.broadcast_to(pad_width, (x.ndim, 2)))
        y = np.pad(x, widths, mode, **extra) if x.ndim else x  # type: ignore[call-overload]
        return y, (x.shape, widths)


@pad.defvjp
def _pad_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, pad_width: Any, mode: str, constant_values: Any
) -> tuple[Array | None, ...]:
    shape, widths = saved
    if mode == "constant":
        return (grad[tuple(slice(before, before + n) for n, (before, _) in zip(shape, widths, strict=True))],)
    for axis, (n, width) in enumerate(zip(shape, widths, strict=True)):  # NumPy, too, pads one axis after the other
        ids = np.pad(np.arange(n), width, mode)  # type: ignore[call-overload]
        grad = add_along((*grad.shape[:axis], n, *grad.shape[axis + 1 :]), ids, grad, axis)
    return (grad,)


def _roll_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1))
    axes = tuple(any_axis(rng, x.ndim) for _ in range(rng.integers(1, 4)))  # an axis may come twice: its shifts add up
    shift = tuple(rng.integers(-5, 6, size=len(axes)).tolist())
    choices = ((shift[0], None), (shift[0], axes[0]), (shift[0], axes), (shift, axes))
    chosen, axis = choices[int(rng.integers(4))]
    return {"x": x, "shift": chosen, "axis": axis}


@op(
    "x[?] -> y[?]",
    source="NumPy's roll: a permutation of the elements",
    formula="y[…, i, …] = x[…, (i - shift) mod n, …]",
    flops=lambda s: 0,
    draw=_roll_draw,
)
def roll(x: Array, shift: int | tuple[int, ...], axis: Axis = None) -> tuple[Array, Any]:
    """Move elements along axes, those that leave at one end coming in at the other, as np.roll does.

    shift  by how many places, for each axis or for all of them
    axis   the axes; None rolls the flattened array and gives the shape back

    ShapeError where there is no such axis, or not as many shifts as axes.
    """
    with fitting("roll", x, shift=shift, axis=axis):
        back = -np.asarray(shift)
        return np.roll(x, shift, axis), (back, settled(axis))


@roll.defvjp
def _roll_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, shift: int | tuple[int, ...], axis: Axis
) -> tuple[Array | None, ...]:
    back, axes = saved
    return (np.roll(grad, back, axes),)


def _repeat_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1))
    axis = None if rng.random() < 0.2 else any_axis(rng, x.ndim)
    counts = rng.integers(0, 4, size=x.size if axis is None else x.shape[axis])
    return {"x": x, "repeats": counts if rng.random() < 0.5 else int(rng.integers(0, 4)), "axis": axis}


@op(
    "x[?] -> y[?]",
    source="NumPy's repeat; its gradient sums over the copies of an element",
    formula="y = x with element i of axis repeats[i] times",
    saves="the number of copies of each element",
    flops=lambda s: 0,
    draw=_repeat_draw,
)
def repeat(x: Array, repeats: int | Sequence[int] | Array, axis: int | None = None) -> tuple[Array, Any]:
    """Repeat each element in place, as np.repeat does: repeat([1, 2], 2) is [1, 1, 2, 2].

    repeats  how often: one number, or one for each element along ``axis``
    axis     along which; None flattens ``x`` first

    ShapeError where there is no such axis, or repeats has another length or holds a negative number.
    """
    counts = np.array(repeats)  # a copy: the caller's may change
    with fitting("repeat", x, repeats=repeats, axis=axis):
        if counts.size and counts.dtype.kind not in "iub":  # NumPy would cut off the fraction of a single one
            raise TypeError("expected integers")
        y = np.repeat(x, counts.astype(np.intp), axis)
    return y, (x.shape, np.broadcast_to(counts.astype(np.intp), x.size if axis is None else x.shape[axis]))


@repeat.defvjp
def _repeat_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, repeats: Any, axis: int | None
) -> tuple[Array | None, ...]:
    shape, counts = saved
    total = np.zeros(counts.size if axis is None else shape, grad.dtype)
    there = counts > 0
    if there.any():
        starts = (np.cumsum(counts) - counts)[there]
        np.moveaxis(total, axis or 0, 0)[there] = np.add.reduceat(np.moveaxis(grad, axis or 0, 0), starts, axis=0)
    return (total.reshape(shape),)
