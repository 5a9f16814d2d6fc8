"""Operators that show the same elements under other axes: reshape, transpose, flip, broadcast_to and their kin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError
from minilora.ops.elementwise import unbroadcast

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None


@contextmanager
def fitting(name: str, x: Array, **settings: Any) -> Iterator[None]:
    """Turn what NumPy says of ``x`` and these settings into a ShapeError that names the operator and them all."""
    try:
        yield
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        given = ", ".join(f"{key} {value!r}" for key, value in settings.items())
        raise ShapeError(f"{name}: x has shape {x.shape}, which does not fit {given}: {error}") from None


def settled(axis: Axis) -> Axis:
    """The same axes, in a form that the caller cannot change any more."""
    return tuple(axis) if np.ndim(axis) else axis  # type: ignore[arg-type]


def any_shape(rng: np.random.Generator, at_least: int = 0) -> list[int]:
    """A shape for the laws: up to four axes, sizes 0 and 1 among them."""
    shape: list[int] = rng.choice([0, 1, 1, 2, 2, 3, 3, 4], size=rng.integers(at_least, 5)).tolist()
    return shape


def any_axis(rng: np.random.Generator, ndim: int) -> int:
    """One of ``ndim`` axes for the laws, counted from either end."""
    return int(rng.integers(-ndim, ndim))


def _give_shape_back(grad: Array, saved: tuple[int, ...], need: tuple[bool, ...], **params: Any) -> tuple[Array | None]:
    """The vjp of whatever changes the shape and keeps the order of the elements."""
    return (grad.reshape(saved),)


def _reshape_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A random order of the same axes is a shape with the same number of elements."""
    shape = any_shape(rng)
    other = [n for n in rng.permutation(shape).astype(int).tolist() if n != 1]
    if 0 not in other and rng.random() < 0.3:
        other.insert(int(rng.integers(len(other) + 1)), -1)
    return {"x": rng.standard_normal(shape), "shape": tuple(other)}


@op(
    "x[?] -> y[?]",
    source="NumPy's reshape: the elements keep their row-major order",
    formula="y[k] = x[k], k the position in row-major order",
    flops=lambda s: 0,
    draw=_reshape_draw,
)
def reshape(x: Array, shape: int | tuple[int, ...]) -> tuple[Array, Any]:
    """Give ``x`` another shape with as many elements, as np.reshape does.

    shape  the new sizes; one may be -1, and is then what is left

    A view where the memory allows it. ShapeError where the number of elements differs.
    """
    with fitting("reshape", x, shape=shape):
        return x.reshape(shape), x.shape


reshape.defvjp(_give_shape_back)


def _squeeze_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng)
    ones = [i - len(shape) * int(rng.integers(2)) for i, n in enumerate(shape) if n == 1]
    choices = [None, tuple(ones), *ones]
    return {"x": rng.standard_normal(shape), "axis": choices[int(rng.integers(len(choices)))]}


@op(
    "x[?] -> y[?]",
    source="NumPy's squeeze: the elements keep their row-major order",
    formula="y[k] = x[k], k the position in row-major order",
    flops=lambda s: 0,
    draw=_squeeze_draw,
)
def squeeze(x: Array, axis: Axis = None) -> tuple[Array, Any]:
    """Drop axes of size 1, all of them or those named, as np.squeeze does.

    ShapeError where a named axis is missing or has another size.
    """
    with fitting("squeeze", x, axis=axis):
        return x.squeeze(axis=axis), x.shape


squeeze.defvjp(_give_shape_back)


def _expand_dims_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape, count = any_shape(rng), int(rng.integers(0, 3))
    ndim = len(shape) + max(count, 1)
    axes = [a - ndim * int(rng.integers(2)) for a in rng.permutation(ndim)[:count].tolist()]
    return {"x": rng.standard_normal(shape), "axis": tuple(axes) if count else any_axis(rng, ndim)}


@op(
    "x[?] -> y[?]",
    source="NumPy's expand_dims: the elements keep their row-major order",
    formula="y[k] = x[k], k the position in row-major order",
    flops=lambda s: 0,
    draw=_expand_dims_draw,
)
def expand_dims(x: Array, axis: int | tuple[int, ...]) -> tuple[Array, Any]:
    """Insert axes of size 1, as np.expand_dims does.

    axis  where the new axes are in the result

    ShapeError where the result would have no such axis, or one is named twice.
    """
    with fitting("expand_dims", x, axis=axis):
        return np.expand_dims(x, axis), x.shape


expand_dims.defvjp(_give_shape_back)


def _transpose_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng)
    axes = [a - len(shape) * int(rng.integers(2)) for a in rng.permutation(len(shape)).tolist()]
    return {"x": rng.standard_normal(shape), "axes": None if rng.random() < 0.3 else tuple(axes)}


@op(
    "x[?] -> y[?]",
    source="NumPy's transpose: a permutation of the axes",
    formula="y[i_axes[0], i_axes[1], …] = x[i_0, i_1, …]",
    flops=lambda s: 0,
    draw=_transpose_draw,
)
def transpose(x: Array, axes: tuple[int, ...] | None = None) -> tuple[Array, Any]:
    """Put the axes of ``x`` in another order, as np.transpose does; a view.

    axes  which axis of ``x`` becomes the first, the second, …; None reverses them

    ShapeError where ``axes`` does not name every axis once.
    """
    with fitting("transpose", x, axes=axes):
        y = x.transpose(axes)
    order = range(x.ndim)[::-1] if axes is None else np.atleast_1d(axes) % max(x.ndim, 1)
    return y, tuple(np.argsort(order).tolist())


@transpose.defvjp
def _transpose_vjp(
    grad: Array, inverse: tuple[int, ...], need: tuple[bool, ...], *, axes: tuple[int, ...] | None
) -> tuple[Array | None, ...]:
    return (grad.transpose(inverse),)


def _swapaxes_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1))
    return {"x": x, "axis1": any_axis(rng, x.ndim), "axis2": any_axis(rng, x.ndim)}


@op(
    "x[?] -> y[?]",
    source="NumPy's swapaxes: a permutation of the axes",
    formula="y[…, j, …, i, …] = x[…, i, …, j, …]",
    flops=lambda s: 0,
    draw=_swapaxes_draw,
)
def swapaxes(x: Array, axis1: int, axis2: int) -> tuple[Array, Any]:
    """Exchange two axes, as np.swapaxes does; a view. ShapeError where ``x`` lacks one of them."""
    with fitting("swapaxes", x, axis1=axis1, axis2=axis2):
        return x.swapaxes(axis1, axis2), None


@swapaxes.defvjp
def _swapaxes_vjp(
    grad: Array, saved: None, need: tuple[bool, ...], *, axis1: int, axis2: int
) -> tuple[Array | None, ...]:
    return (grad.swapaxes(axis1, axis2),)


def _flip_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    x = rng.standard_normal(any_shape(rng, at_least=1))
    some = tuple(rng.permutation(x.ndim)[: rng.integers(0, 3)].tolist())
    choices = (None, any_axis(rng, x.ndim), some)
    return {"x": x, "axis": choices[int(rng.integers(3))]}


@op(
    "x[?] -> y[?]",
    source="NumPy's flip: a permutation of the elements",
    formula="y[…, i, …] = x[…, n - 1 - i, …]",
    flops=lambda s: 0,
    draw=_flip_draw,
)
def flip(x: Array, axis: Axis = None) -> tuple[Array, Any]:
    """Reverse the order along one axis, several, or all (None), as np.flip does; a view.

    ShapeError where ``x`` lacks an axis or one is named twice.
    """
    with fitting("flip", x, axis=axis):
        return np.flip(x, axis), settled(axis)


@flip.defvjp
def _flip_vjp(grad: Array, saved: Axis, need: tuple[bool, ...], *, axis: Axis) -> tuple[Array | None, ...]:
    return (np.flip(grad, saved),)


def _broadcast_to_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    shape = any_shape(rng)
    kept = shape[int(rng.integers(len(shape) + 1)) :] if rng.random() < 0.5 else shape
    own = [1 if rng.random() < 0.4 else n for n in kept]
    return {"x": rng.standard_normal(own), "shape": tuple(shape)}


@op(
    "x[?] -> y[?]",
    source="NumPy's broadcasting; its gradient sums over what was stretched",
    formula="y[…, i, …] = x[…, 0, …] along the axes that are new or have size 1",
    flops=lambda s: 0,
    draw=_broadcast_to_draw,
)
def broadcast_to(x: Array, shape: int | tuple[int, ...]) -> tuple[Array, Any]:
    """Stretch ``x`` to ``shape`` along leading axes that it lacks and axes of size 1, as np.broadcast_to does.

    A read-only view. ShapeError where ``x`` does not broadcast to ``shape``.
    """
    with fitting("broadcast_to", x, shape=shape):
        return np.broadcast_to(x, shape), x.shape


@broadcast_to.defvjp
def _broadcast_to_vjp(
    grad: Array, saved: tuple[int, ...], need: tuple[bool, ...], *, shape: int | tuple[int, ...]
) -> tuple[Array | None, ...]:
    return (unbroadcast(grad, saved),)
