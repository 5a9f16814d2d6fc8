"""Operators that join arrays and cut them: concat, stack, unstack, split."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError
from minilora.ops.shape import any_axis, any_shape, fitting

Array = NDArray[Any]


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
