"""Operators that pick elements by integers, slices and masks, and put them back."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, op
from minilora.errors import ShapeError
from minilora.ops.padding import add_along
from minilora.ops.shape import any_axis, any_shape, fitting

Array = NDArray[Any]
Ids = NDArray[np.integer[Any]]


def _index_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A key of numbers, slices, None and an ellipsis, and either integer arrays that repeat or one mask."""
    shape = any_shape(rng)
    whole, masked, lengths = rng.random() < 0.3, rng.random() < 0.3, ((int(rng.integers(4)),), (1,), (2, 1), ())
    key: list[Any] = []
    rest = list(shape)
    while rest and rng.random() < 0.85:
        n, kind = rest.pop(0), rng.integers(6)
        if kind == 0 and n:
            key.append(int(rng.integers(-n, n)))
        elif kind in (1, 2) and n and not whole:
            length = (1,) if masked else lengths[int(rng.integers(4))]
            key.append(rng.integers(-n, n, length))
        elif kind == 3 and masked and not whole and not any(isinstance(k, np.ndarray) and k.dtype == bool for k in key):
            key.append(rng.random((n, rest.pop(0)) if rest and rng.random() < 0.5 else n) < 0.5)
        else:
            ends = [None if rng.random() < 0.4 else int(rng.integers(-4, 5)) for _ in range(2)]
            key.append(slice(ends[0], ends[1], (None, 1, 2, -1, -2)[int(rng.integers(5))]))
    for _ in range(rng.integers(3)):
        key.insert(int(rng.integers(len(key) + 1)), None)
    if not rest or rng.random() < 0.3:
        key.insert(len(key) if rest else int(rng.integers(len(key) + 1)), Ellipsis)
    return {"x": rng.standard_normal(shape), "key": tuple(key) if len(key) != 1 else key[0]}


@op(
    "x[?] -> y[?]",
    source="NumPy's indexing, basic and advanced",
    formula="y = x[key]",
    saves="a copy of the index arrays and masks in key",
    flops=lambda s: 0,
    draw=_index_draw,
)
def index(x: Array, key: Any) -> tuple[Array, Any]:
    """Pick elements as ``x[key]`` does in NumPy; ``tensor[key]`` calls this.

    key  integers, slices, None and Ellipsis give a view; arrays, lists and Tensors of integers, which may
         repeat, and boolean masks give a copy; or a tuple of these

    ShapeError where ``x`` lacks an axis or a position, or the arrays in ``key`` do not fit it or one another.
    """
    parts = _own(x, key)
    try:
        return x[parts], (x.shape, parts)
    except (IndexError, ValueError, TypeError) as error:
        raise _unfit(x, key, error) from None


@index.defvjp
def _index_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, key: Any) -> tuple[Array | None, ...]:
    shape, parts = saved
    grad_x = np.zeros(shape, grad.dtype)
    if any(isinstance(part, np.ndarray) and part.dtype != bool for part in parts):
        np.add.at(grad_x, parts, grad)  # integers may repeat
    else:
        grad_x[parts] = grad
    return (grad_x,)


def _own(x: Array, key: Any) -> tuple[Any, ...]:
    """``key`` as a tuple of what NumPy knows, and of arrays that nobody else can change before backward."""
    try:
        return tuple(_part(k) for k in (key if isinstance(key, tuple) else (key,)))
    except (ValueError, TypeError) as error:  # a ragged list, a slice of things that are no integers
        raise _unfit(x, key, error) from None


def _part(value: Any) -> Any:
    if value is None or isinstance(value, EllipsisType):
        return value
    if isinstance(value, slice):
        return slice(*(None if end is None else operator.index(end) for end in (value.start, value.stop, value.step)))
    array = np.array(value.data if isinstance(value, Tensor) else value)
    if isinstance(value, list | tuple) and not array.size:
        array = array.astype(np.intp)
    return int(array) if array.ndim == 0 and array.dtype.kind in "iu" else array


def _unfit(x: Array, key: Any, error: Exception) -> ShapeError:
    shown = ", ".join(map(_shown, key if isinstance(key, tuple) else (key,)))
    return ShapeError(f"index: x has shape {x.shape}, which the index [{shown}] does not fit: {error}")


def _shown(value: Any) -> str:
    """A part of a key as it was written, an array by its dtype and shape."""
    if isinstance(value, slice):
        ends = ["" if end is None else str(end) for end in (value.start, value.stop, value.step)]
        return ":".join(ends if ends[2] else ends[:2])
    if isinstance(value, np.ndarray | Tensor) and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    return "..." if value is Ellipsis else str(value)


def _take_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1)[:3])
    axis = None if rng.random() < 0.3 else any_axis(rng, x.ndim)
    size = x.size if axis is None else x.shape[axis]
    shape = any_shape(rng)[:2] if size else [0, 2]
    return {"x": x, "indices": rng.integers(-size, max(size, 1), shape), "axis": axis}


@op(
    "x[?], indices:int[?] -> y[?]",
    source="NumPy's take; its gradient adds up what was taken more than once",
    formula="y[…, j, …] = x[…, indices[j], …] along axis",
    saves="a copy of indices",
    flops=lambda s: 0,
    draw=_take_draw,
)
def take(x: Array, indices: Ids, axis: int | None = None) -> tuple[Array, Any]:
    """Pick slices along an axis by their positions, as np.take does.

    indices  positions from -size to size - 1, in an array of any shape; they may repeat
    axis     along which; None flattens ``x`` first

    Returns x's shape with the axis replaced by the shape of ``indices``. ShapeError where a position or the axis is
    not there.
    """
    with fitting("take", x, axis=axis):
        flat, along = (x.reshape(-1), 0) if axis is None else (x, range(x.ndim)[axis])
    ids = _inside("take", "x", x, indices, flat.shape[along], axis)
    return np.take(flat, ids, along), (x.shape, flat.shape, ids, along)


@take.defvjp
def _take_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, axis: int | None) -> tuple[Array | None, ...]:
    shape, flat_shape, ids, along = saved
    return add_along(flat_shape, ids, grad, along).reshape(shape), None


def _inside(name: str, operand: str, x: Array, indices: Ids, size: int, axis: int | None) -> Ids:
    """A copy of ``indices`` that nobody else can change before backward; ShapeError if one is outside."""
    bad = indices[(indices < -size) | (indices >= size)]
    if bad.size:
        raise ShapeError(
            f"{name}: indices holds {bad.flat[0]}, but {operand} has shape {x.shape} and size {size} along axis {axis}"
        )
    return indices.astype(np.intp)


def _gather_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1)[:3])
    axis = any_axis(rng, x.ndim)
    size = x.shape[axis]
    shape = [1 if rng.random() < 0.2 else n if n != 1 else int(rng.integers(0, 3)) for n in x.shape]
    shape[axis] = int(rng.integers(0, 4)) if size else 0
    return {"x": x, "indices": rng.integers(-size, max(size, 1), shape), "axis": axis}


@op(
    "x[?], indices:int[?] -> y[?]",
    source="NumPy's take_along_axis; torch.gather, where sizes agree but along the axis",
    formula="y[i, j, k] = x[i, indices[i, j, k], k] for axis 1",
    saves="a copy of indices",
    flops=lambda s: 0,
    draw=_gather_draw,
)
def gather(x: Array, indices: Ids, axis: int = -1) -> tuple[Array, Any]:
    """Pick for each position another element along an axis, as np.take_along_axis does.

    x        any shape
    indices  as many axes; positions from -size to size - 1 along ``axis``, they may repeat. The other axes
             broadcast with those of ``x``. (torch.gather also takes fewer rows than ``x`` has; slice ``x`` for that.)

    Returns the shape of ``indices``, broadcast. ShapeError where a position or the axis is not there, or shapes differ.
    """
    key = _along("gather", x, indices, axis)
    return x[key], (x.shape, key)


@gather.defvjp
def _gather_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, axis: int) -> tuple[Array | None, ...]:
    shape, key = saved
    grad_x = np.zeros(shape, grad.dtype)
    np.add.at(grad_x, key, grad)
    return grad_x, None


def _along(name: str, x: Array, indices: Ids, axis: int) -> tuple[Array, ...]:
    """The key for which x[key] picks by ``indices`` along an axis, and its own position along each other."""
    with fitting(name, x, axis=axis):
        along = range(x.ndim)[axis]
    pairs = list(zip(indices.shape, x.shape, strict=False))
    if indices.ndim != x.ndim or any(m != n and 1 not in (m, n) for m, n in pairs[:along] + pairs[along + 1 :]):
        raise ShapeError(
            f"{name}: indices has shape {indices.shape}, but x has {x.shape}; expected as many axes, "
            f"and the same sizes or 1 but along axis {axis}"
        )
    ids = _inside(name, "x", x, indices, x.shape[along], axis)
    own = (np.arange(n).reshape(n, *(1,) * (x.ndim - 1 - i)) for i, n in enumerate(x.shape))
    return tuple(ids if i == along else positions for i, positions in enumerate(own))


def _scatter_add_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    drawn = _gather_draw(rng, sizes)
    return {**drawn, "values": rng.standard_normal(np.take_along_axis(*drawn.values()).shape)}


@op(
    "x[?], indices:int[?], values[?] -> y[?]",
    source="the transpose of gather; torch.scatter_add, where sizes agree but along the axis",
    formula="y = x; y[i, indices[i, j, k], k] += values[i, j, k] for axis 1",
    saves="a copy of indices",
    flops=lambda s: math.prod(s["values"]),
    draw=_scatter_add_draw,
)
def scatter_add(x: Array, indices: Ids, values: Array, axis: int = -1) -> tuple[Array, Any]:
    """Add each value to an element of a copy of ``x``, at its position along an axis; repeated positions add up.

    x        any shape
    indices  as for gather(x, indices, axis)
    values   the shape that gather(x, indices, axis) has

    Returns the shape of ``x``. ShapeError where a position or the axis is not there, or shapes differ.
    """
    key = _along("scatter_add", x, indices, axis)
    wanted = np.broadcast_shapes(*(k.shape for k in key))
    if values.shape != wanted:
        raise ShapeError(
            f"scatter_add: values has shape {values.shape}, expected {wanted}, "
            f"that of gather(x, indices, axis={axis}) for x {x.shape} and indices {indices.shape}"
        )
    y = x.astype(np.result_type(x, values))
    np.add.at(y, key, values)
    return y, key


@scatter_add.defvjp
def _scatter_add_vjp(grad: Array, key: Any, need: tuple[bool, ...], *, axis: int) -> tuple[Array | None, ...]:
    return grad if need[0] else None, None, grad[key] if need[2] else None
