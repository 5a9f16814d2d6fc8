"""Operators that move elements: reshape, concat, split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ShapeError

Array = NDArray[Any]


def _reshape_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A random order of the same axes is a shape with the same number of elements."""
    shape = [int(n) for n in rng.integers(0, 5, size=rng.integers(0, 4))]
    return {"x": rng.standard_normal(shape), "shape": tuple(int(n) for n in rng.permutation(shape))}


@op("x[?] -> y[?]", source="a permutation of the elements that changes no value", draw=_reshape_draw)
def reshape(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """Give ``x`` another shape with as many elements, as np.reshape does; one size may be -1."""
    try:
        return x.reshape(shape), x.shape
    except ValueError:
        raise ShapeError(f"reshape: x has shape {x.shape}, which does not fit shape {shape}") from None


@reshape.defvjp
def _reshape_vjp(
    grad: Array, saved: tuple[int, ...], need: tuple[bool, ...], *, shape: tuple[int, ...]
) -> tuple[Array | None, ...]:
    return (grad.reshape(saved),)


def _concat_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    rest = [int(n) for n in rng.integers(0, 4, size=2)]
    axis = int(rng.integers(-3, 3))
    shapes = [[*rest] for _ in range(rng.integers(1, 4))]
    for shape in shapes:
        shape.insert(axis % 3, int(rng.integers(0, 4)))
    return {"xs": tuple(rng.standard_normal(s) for s in shapes), "axis": axis}


@op("*xs[?] -> y[?]", source="a permutation of the elements that changes no value", draw=_concat_draw)
def concat(xs: tuple[Array, ...], *, axis: int = 0) -> tuple[Array, Any]:
    """Join arrays along an axis, as np.concatenate does: concat([a, b, c], axis=1)."""
    try:
        return np.concatenate(xs, axis=axis), tuple(x.shape[axis] for x in xs)
    except ValueError as error:
        raise ShapeError(f"concat: {error}; the shapes are {[x.shape for x in xs]}") from None


@concat.defvjp
def _concat_vjp(grad: Array, widths: tuple[int, ...], need: tuple[bool, ...], *, axis: int) -> tuple[Array | None, ...]:
    parts = np.split(grad, np.cumsum(widths)[:-1], axis=axis)
    return tuple(part if wanted else None for part, wanted in zip(parts, need, strict=True))


def _split_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    parts = int(rng.integers(1, 4))
    shape = [int(n) for n in rng.integers(0, 4, size=2)]
    axis = int(rng.integers(-2, 2))
    shape[axis] *= parts
    return {"x": rng.standard_normal(shape), "parts": parts, "axis": axis}


@op("x[?] -> ys[?]", source="a permutation of the elements that changes no value", draw=_split_draw)
def split(x: Array, *, parts: int, axis: int = -1) -> tuple[tuple[Array, ...], Any]:
    """Cut ``x`` into equal parts along an axis, as np.split does; returns a tuple."""
    try:
        return tuple(np.split(x, parts, axis=axis)), None
    except ValueError:
        raise ShapeError(f"split: axis {axis} of shape {x.shape} does not divide into {parts} equal parts") from None


@split.defvjp
def _split_vjp(
    grads: tuple[Array, ...], saved: None, need: tuple[bool, ...], *, parts: int, axis: int
) -> tuple[Array | None, ...]:
    return (np.concatenate(grads, axis=axis),)
