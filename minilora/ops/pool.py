"""Average and maximum pooling in one and two dimensions, and nearest up-sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval, op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.windows import Windows, per_axis
from minilora.signature import Draw

Array = NDArray[Any]
Steps = int | tuple[int, ...]
AVERAGE = "LeCun et al. 1998, Proc. IEEE 86(11), section II.B; padding counts as in torch's avg_pool2d"
MAXIMUM = "Ranzato et al. 2007, CVPR, section 3; padding is -inf and ties go to the first, as in torch's max_pool2d"


def _draw(axes: int) -> Draw:
    def draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
        leading = tuple(rng.integers(0, 4, size=rng.integers(0, 3)))
        kernel = rng.integers(1, 4, axes)
        padding = rng.integers(0, kernel // 2 + 1)
        size = np.maximum(kernel - 2 * padding, 1) + rng.integers(0, 4, axes)
        shape = (*leading, *size)
        order = rng.permutation(math.prod(shape))  # max pooling has a kink where two elements are equal
        return {
            "x": 0.3 * (order - len(order) / 2 + rng.uniform(0.2, 0.8)).reshape(shape),
            "kernel_size": tuple(kernel),
            "stride": None if rng.random() < 0.5 else tuple(rng.integers(1, 4, axes)),
            "padding": tuple(padding),
        }

    return draw


@op(
    "x[*, L] -> y[*, P]",
    params={"count_include_pad": (True, False)},
    source=AVERAGE,
    formula="y[p] = Σ_k x[stride · p + k - padding] / kernel_size",
    flops=lambda s: math.prod(s["*"]) * s["L"],  # each element once, as where windows do not overlap
    draw=_draw(1),
)
def avg_pool1d(
    x: Array, kernel_size: Steps, *, stride: Steps | None = None, padding: Steps = 0, count_include_pad: bool = True
) -> tuple[Array, Any]:
    """Average the elements of each window over a sequence.

    x                  (*, L)  torch's (B, C, L), or any other leading axes
    kernel_size        elements of a window
    stride             from one window to the next; None: kernel_size
    padding            zeros before and after x, at most kernel_size / 2
    count_include_pad  True: divide by kernel_size; False: by the number of elements of x in the window

    Returns y (*, P), P = ⌊(L + 2 padding - kernel_size) / stride⌋ + 1. ShapeError where L is 0 or no window
    fits, ConfigError for settings out of range.
    """
    return _average("avg_pool1d", x, 1, kernel_size, stride, padding, count_include_pad)


@op(
    "x[*, H, W] -> y[*, P, Q]",
    params={"count_include_pad": (True, False)},
    source=AVERAGE,
    formula="y[p] = Σ_k x[stride · p + k - padding] / (the product of kernel_size), p and k pairs",
    flops=lambda s: math.prod(s["*"]) * s["H"] * s["W"],
    draw=_draw(2),
)
def avg_pool2d(
    x: Array, kernel_size: Steps, *, stride: Steps | None = None, padding: Steps = 0, count_include_pad: bool = True
) -> tuple[Array, Any]:
    """Average the elements of each window over an image.

    x  (*, H, W)  torch's (B, C, H, W), or any other leading axes

    ``kernel_size``, ``stride``, ``padding`` and ``count_include_pad`` as in avg_pool1d; each of the
    first three is one number, or one for the rows and one for the columns. Returns y (*, P, Q). Errors as there.
    """
    return _average("avg_pool2d", x, 2, kernel_size, stride, padding, count_include_pad)


def _average(
    name: str, x: Array, axes: int, kernel_size: Steps, stride: Steps | None, padding: Steps, count_include_pad: bool
) -> tuple[Array, Any]:
    windows = _windows(name, x.shape[-axes:], kernel_size, stride, padding)
    y = np.zeros((*x.shape[:-axes], *windows.counts), x.dtype)
    for _, some, elements in windows.overlaps():
        y[some] += x[elements]
    y /= _divisor(windows, count_include_pad, x.dtype)
    return y, (windows, x.shape)


@avg_pool1d.defvjp
@avg_pool2d.defvjp
def _average_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, count_include_pad: bool, **settings: Any
) -> tuple[Array | None, ...]:
    windows, shape = saved
    if not need[0]:
        return (None,)
    share = grad / _divisor(windows, count_include_pad, grad.dtype)
    grad_x = np.zeros(shape, grad.dtype)
    for _, some, elements in windows.overlaps():
        grad_x[elements] += share[some]
    return (grad_x,)


def _divisor(windows: Windows, count_include_pad: bool, dtype: Any) -> Array:
    """By what the sum of each window is divided, for all windows or for each."""
    if count_include_pad:
        return np.array(math.prod(windows.kernel), dtype)
    inside = np.zeros(windows.counts, dtype)
    for _, some, _ in windows.overlaps():
        inside[some] += 1
    return inside


@op(
    "x[*, L] -> y[*, P]",
    domain={"x": Interval(distinct=True)},
    source=MAXIMUM,
    formula="y[p] = max_k x[stride · p + k - padding]",
    saves="the place of each maximum in its window, in the smallest integers that hold it",
    flops=lambda s: math.prod(s["*"]) * s["L"],
    draw=_draw(1),
)
def max_pool1d(x: Array, kernel_size: Steps, *, stride: Steps | None = None, padding: Steps = 0) -> tuple[Array, Any]:
    """Take the largest element of each window over a sequence.

    x            (*, L)  torch's (B, C, L), or any other leading axes
    kernel_size  elements of a window
    stride       from one window to the next; None: kernel_size
    padding      before and after x, at most kernel_size / 2; it is never the largest

    Of equal elements the first gets the gradient; NaN counts as the largest. Returns y (*, P),
    P = ⌊(L + 2 padding - kernel_size) / stride⌋ + 1. ShapeError where L is 0 or no window fits,
    ConfigError for settings out of range.
    """
    return _largest("max_pool1d", x, 1, kernel_size, stride, padding)


@op(
    "x[*, H, W] -> y[*, P, Q]",
    domain={"x": Interval(distinct=True)},
    source=MAXIMUM,
    formula="y[p] = max_k x[stride · p + k - padding], p and k pairs",
    saves="the place of each maximum in its window, in the smallest integers that hold it",
    flops=lambda s: math.prod(s["*"]) * s["H"] * s["W"],
    draw=_draw(2),
)
def max_pool2d(x: Array, kernel_size: Steps, *, stride: Steps | None = None, padding: Steps = 0) -> tuple[Array, Any]:
    """Take the largest element of each window over an image.

    x  (*, H, W)  torch's (B, C, H, W), or any other leading axes

    ``kernel_size``, ``stride`` and ``padding`` as in max_pool1d, one number each, or one for the rows
    and one for the columns; the first of equal elements is so row by row. Returns y (*, P, Q). Errors as there.
    """
    return _largest("max_pool2d", x, 2, kernel_size, stride, padding)


def _largest(
    name: str, x: Array, axes: int, kernel_size: Steps, stride: Steps | None, padding: Steps
) -> tuple[Array, Any]:
    windows = _windows(name, x.shape[-axes:], kernel_size, stride, padding)
    y = np.zeros((*x.shape[:-axes], *windows.counts), x.dtype)
    winner = np.full(y.shape, -1, np.min_scalar_type(-math.prod(windows.kernel)))
    for i, (_, some, elements) in enumerate(windows.overlaps()):
        here, best, place = x[elements], y[some], winner[some]
        better = (here > best) | (place < 0) | np.isnan(here)
        np.copyto(best, here, where=better)
        np.copyto(place, i, where=better)
    return y, (windows, x.shape, winner)


@max_pool1d.defvjp
@max_pool2d.defvjp
def _largest_vjp(grad: Array, saved: Any, need: tuple[bool, ...], **settings: Any) -> tuple[Array | None, ...]:
    windows, shape, winner = saved
    if not need[0]:
        return (None,)
    grad_x = np.zeros(shape, grad.dtype)
    for i, (_, some, elements) in enumerate(windows.overlaps()):
        grad_x[elements] += np.where(winner[some] == i, grad[some], 0)
    return (grad_x,)


def _windows(name: str, size: tuple[int, ...], kernel_size: Steps, stride: Steps | None, padding: Steps) -> Windows:
    axes = len(size)
    kernel = per_axis(name, "kernel_size", kernel_size, axes, 1)
    strides = kernel if stride is None else per_axis(name, "stride", stride, axes, 1, " or None")
    added = per_axis(name, "padding", padding, axes, 0)
    if any(2 * n > k for n, k in zip(added, kernel, strict=True)):  # else a window might hold nothing but padding
        raise ConfigError(f"{name}: padding is {padding}, expected at most half of kernel_size {kernel_size}")
    if 0 in size:
        raise ShapeError(f"{name}: x has size {size} along the pooled axes, expected at least 1 each")
    windows = Windows(size, kernel, strides, tuple((n, n) for n in added), (1,) * axes)
    windows.assert_fitting(name)
    return windows


def _upsample_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    axes = int(rng.integers(1, 3))
    factors = tuple(rng.integers(1, 4, axes))
    shape = rng.integers(0, 4, size=2 + axes)
    return {"x": rng.standard_normal(shape), "scale_factor": factors if rng.random() < 0.5 else int(factors[0])}


@op(
    "x[?] -> y[?]",
    source="nearest-neighbour interpolation by whole factors, as in torch's interpolate(mode='nearest')",
    formula="y[b, c, i] = x[b, c, ⌊i / scale_factor⌋]",
    flops=lambda s: 0,
    draw=_upsample_draw,
)
def upsample_nearest(x: Array, scale_factor: Steps) -> tuple[Array, Any]:
    """Repeat each element of a sequence, or each pixel of an image, along every axis but the first two.

    x             (B, C, L) or (B, C, H, W)
    scale_factor  how often: one positive integer, or one for the rows and one for the columns

    Returns y (B, C, L · scale_factor), or (B, C, H · …, W · …). ShapeError for any other number of axes,
    ConfigError for a factor that is no positive integer.
    """
    if x.ndim not in (3, 4):
        raise ShapeError(f"upsample_nearest: x has shape {x.shape}, expected (B, C, L) or (B, C, H, W)")
    y, factors = x, per_axis("upsample_nearest", "scale_factor", scale_factor, x.ndim - 2, 1)
    for axis, factor in enumerate(factors, start=2):
        y = np.repeat(y, factor, axis)
    return y, (x.shape, factors)


@upsample_nearest.defvjp
def _upsample_vjp(grad: Array, saved: Any, need: tuple[bool, ...], **settings: Any) -> tuple[Array | None, ...]:
    shape, factors = saved
    pairs = zip(shape[2:], factors, strict=True)
    apart = grad.reshape(*shape[:2], *(n for pair in pairs for n in pair))
    return (apart.sum(axis=tuple(range(3, apart.ndim, 2))) if need[0] else None,)
