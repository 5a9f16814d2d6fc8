"""Operators that join, cut, pad, roll and repeat arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.shape import Axis, any_axis, any_shape, fitting, settled

Array = NDArray[Any]
_BY_INDEX = ("edge", "reflect", "symmetric", "wrap")  # ways to pad in which each new element repeats one of the old


def add_along(shape: tuple[int, ...], ids: Array, values: Array, axis: int) -> Array:
    """Zeros of ``shape`` to which ``values`` are added at the positions ``ids`` of ``axis``; repeated ids add up."""
    total = np.zeros(shape, values.dtype)
    key: Any = (*(slice(None),) * axis, ids)
    np.add.at(total, key, values)
    return total


def _concat_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng, at_least=1)
    axis = any_axis(rng, len(shape))
    widths = rng.integers(0, 4, size=rng.integers(1, 4)).tolist()
    if rng.random() < 0.2:
        return {"xs": tuple(rng.standard_normal(any_shape(rng)) for _ in widths), "axis": None}
    shape[axis] = 0
    shapes = [[n + (i == axis % len(shape)) * width for i, n in enumerate(shape)] for width in widths]
    return {"xs": tuple(rng.standard_normal(s) for s in shapes), "axis": axis}


@op(
    "*xs[?] -> y[?]",
    source="NumPy's concatenate: each element of each operand, once",
    formula="y = [xs[0] | xs[1] | …] along axis",
    flops=lambda s: 0,
    draw=_concat_draw,
)
def concat(xs: tuple[Array, ...], axis: int | None = 0) -> tuple[Array, Any]:
    """Join arrays along an axis that they have, as np.concatenate does: concat([a, b, c], axis=1).

    xs    a list or tuple of arrays whose other axes agree
    axis  the axis to join along; None flattens the arrays first

    ShapeError where there is no array, no such axis, or other axes differ.
    """
    try:
        return np.concatenate(xs, axis=axis), tuple(x.shape for x in xs)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"concat: {error}; the shapes of xs are {[x.shape for x in xs]}") from None


@concat.defvjp
def _concat_vjp(
    grad: Array, shapes: tuple[tuple[int, ...], ...], need: tuple[bool, ...], *, axis: int | None
) -> tuple[Array | None, ...]:
    widths = [np.prod(s, dtype=int) if axis is None else s[axis] for s in shapes]
    parts = np.split(grad, np.cumsum(widths)[:-1], axis=axis or 0)
    return tuple(p.reshape(s) if wanted else None for p, s, wanted in zip(parts, shapes, need, strict=True))


def _stack_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng)[:3]
    xs = tuple(rng.standard_normal(shape) for _ in range(rng.integers(1, 4)))
    return {"xs": xs, "axis": any_axis(rng, len(shape) + 1)}


@op(
    "*xs[?] -> y[?]",
    source="NumPy's stack: each element of each operand, once",
    formula="y[…, i, …] = xs[i][…, …], i along axis",
    flops=lambda s: 0,
    draw=_stack_draw,
)
def stack(xs: tuple[Array, ...], axis: int = 0) -> tuple[Array, Any]:
    """Join arrays along a new axis, as np.stack does.

    xs    a list or tuple of arrays of one shape
    axis  where the new axis is in the result

    ShapeError where there is no array, the shapes differ, or the result would have no such axis.
    """
    try:
        return np.stack(xs, axis=axis), None
    except (ValueError, TypeError) as error:
        raise ShapeError(f"stack: {error}; the shapes of xs are {[x.shape for x in xs]}") from None


@stack.defvjp
def _stack_vjp(grad: Array, saved: None, need: tuple[bool, ...], *, axis: int) -> tuple[Array | None, ...]:
    return tuple(part if wanted else None for part, wanted in zip(np.moveaxis(grad, axis, 0), need, strict=True))


def _unstack_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1))
    return {"x": x, "axis": any_axis(rng, x.ndim)}


@op(
    "x[?] -> ys[?]",
    source="NumPy's unstack, the inverse of stack",
    formula="ys[i] = x[…, i, …], i along axis",
    flops=lambda s: 0,
    draw=_unstack_draw,
)
def unstack(x: Array, axis: int = 0) -> tuple[tuple[Array, ...], Any]:
    """Cut ``x`` into a tuple of views along an axis, which they lack; ``for row in tensor`` goes over them.

    ShapeError where ``x`` has no such axis.
    """
    with fitting("unstack", x, axis=axis):
        return tuple(np.moveaxis(x, axis, 0)[i, ...] for i in range(x.shape[axis])), (x.shape, x.dtype)


@unstack.defvjp
def _unstack_vjp(
    grads: tuple[Array, ...], saved: Any, need: tuple[bool, ...], *, axis: int
) -> tuple[Array | None, ...]:
    return (np.stack(grads, axis=axis) if grads else np.zeros(*saved),)


def _split_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng, at_least=1)
    axis, parts = any_axis(rng, len(shape)), int(rng.integers(1, 4))
    if rng.random() < 0.5:
        shape[axis] = parts * int(rng.integers(0, 3))
        return {"x": rng.standard_normal(shape), "indices_or_sections": parts, "axis": axis}
    cuts = tuple(rng.integers(-3, 6, size=parts - 1).tolist())
    return {"x": rng.standard_normal(shape), "indices_or_sections": cuts, "axis": axis}


@op(
    "x[?] -> ys[?]",
    source="NumPy's split",
    formula="ys[i] = x[…, cuts[i - 1] : cuts[i], …] along axis",
    flops=lambda s: 0,
    draw=_split_draw,
)
def split(x: Array, indices_or_sections: int | Sequence[int], axis: int = 0) -> tuple[tuple[Array, ...], Any]:
    """Cut ``x`` along an axis into a tuple of views, as np.split does.

    indices_or_sections  the number of equal parts, or the positions before which to cut

    ShapeError where there is no such axis or it does not divide into equal parts.
    """
    cuts: Any
    with fitting("split", x, axis=axis):
        size, axis = x.shape[axis], range(x.ndim)[axis]
    with fitting("split", x, indices_or_sections=indices_or_sections, axis=axis):
        if np.ndim(indices_or_sections) == 0:
            parts = operator.index(indices_or_sections)  # type: ignore[arg-type]
            if parts < 1 or size % parts:
                raise ValueError(f"size {size} does not divide into {parts} equal parts")
            cuts = range(size // parts, size, size // parts) if size else (0,) * (parts - 1)
        else:
            cuts = map(operator.index, indices_or_sections)  # type: ignore[arg-type]
        cuts = tuple(cuts)
    pieces = [(slice(None),) * axis + (slice(*ends),) for ends in zip((0, *cuts), (*cuts, size), strict=True)]
    return tuple(x[piece] for piece in pieces), (x.shape, pieces)


@split.defvjp
def _split_vjp(
    grads: tuple[Array, ...], saved: Any, need: tuple[bool, ...], *, indices_or_sections: Any, axis: int
) -> tuple[Array | None, ...]:
    shape, pieces = saved
    total = np.zeros(shape, grads[0].dtype)
    for piece, grad in zip(pieces, grads, strict=True):
        total[piece] += grad  # adds: positions that are not in order give pieces that overlap, as in NumPy
    return (total,)


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
    with fitting("repeat", x, repeats=repeats, axis=axis):
        y = np.repeat(x, repeats, axis)
    size = x.size if axis is None else x.shape[axis]
    return y, (x.shape, np.broadcast_to(np.array(repeats), size))  # a copy: the caller's may change


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
