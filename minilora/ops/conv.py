"""Convolution in one and two dimensions: one product of matrices a group, with what each window sees as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.windows import Windows, per_axis
from minilora.signature import Draw

Array = NDArray[Any]
Steps = int | tuple[int, ...]
SOURCE = "Dumoulin & Visin 2016, arXiv:1603.07285, chapters 2 and 5; groups: Krizhevsky et al. 2012, section 3.5"
SAVES = "x where weight needs a gradient, weight where x does"


def _draw(axes: int) -> Draw:
    def draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
        batch, inputs, outputs = (int(n) for n in rng.integers(0, 4, size=3))
        kernel, dilation, groups = rng.integers(1, 4, axes), rng.integers(1, 3, axes), int(rng.integers(1, 4))
        stride, padding = rng.integers(1, 4, axes), rng.integers(0, 3, axes)
        span = dilation * (kernel - 1) + 1
        size = np.maximum(span - 2 * padding, 0) + rng.integers(0, 3, axes)
        settings: dict[str, Any] = {
            "stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups,
        }  # fmt: skip
        if rng.random() < 0.2:
            settings.update(stride=1, padding="same")
        return {
            "x": rng.standard_normal((batch, groups * inputs, *size)),
            "weight": rng.standard_normal((groups * outputs, inputs, *kernel)),
            "bias": rng.standard_normal(groups * outputs) if rng.random() < 0.5 else None,
            **settings,
        }

    return draw


@op(
    "x[B, C, L], weight[O, I, K], bias?[O] -> y[B, O, P]",
    source=SOURCE,
    formula="y[b, o, p] = Σ_i,k weight[o, i, k] · x[b, i, stride · p + dilation · k - padding] + bias[o]",
    saves=SAVES,
    flops=lambda s: 2 * s["B"] * s["O"] * s["P"] * s["I"] * s["K"],
    draw=_draw(1),
)
def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Steps = 1,
    padding: Steps | str = 0,
    dilation: Steps = 1,
    groups: int = 1,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    """Slide each filter over sequences and take its product with what it covers, as torch's conv1d does.

    x         (B, C, L)  sequences of L positions in C channels
    weight    (O, I, K)  a filter of K positions for each of O outputs, over the I = C / groups channels of its group
    bias      (O,)       added to every position of an output, or None
    stride    positions from one product to the next
    padding   zeros before and after x; "valid": none; "same": as many as keep L, at a stride of 1
    dilation  positions of x from one element of a filter to the next
    groups    into which channels and outputs are divided, in order

    Returns y (B, O, P), P = ⌊(L + 2 padding - dilation (K - 1) - 1) / stride⌋ + 1. Work: 2 B O P I K flops.
    ShapeError where the channels do not fit or the filter is longer than x with its padding; ConfigError for
    settings out of range.
    """
    return _convolve("conv1d", x, weight, bias, stride, padding, dilation, groups, need)


@op(
    "x[B, C, H, W], weight[O, I, J, K], bias?[O] -> y[B, O, P, Q]",
    source=SOURCE,
    formula="y[b, o, p] = Σ_i,k weight[o, i, k] · x[b, i, stride · p + dilation · k - padding] + bias[o], "
    "p and k pairs",
    saves=SAVES,
    flops=lambda s: 2 * s["B"] * s["O"] * s["P"] * s["Q"] * s["I"] * s["J"] * s["K"],
    draw=_draw(2),
)
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Steps = 1,
    padding: Steps | str = 0,
    dilation: Steps = 1,
    groups: int = 1,
    need: tuple[bool, ...],
) -> tuple[Array, Any]:
    """Slide each filter over images and take its product with what it covers, as torch's conv2d does.

    x       (B, C, H, W)  images of H rows and W columns in C channels
    weight  (O, I, J, K)  a filter of J × K pixels for each of O outputs, over the I = C / groups channels of its group
    bias    (O,)          added to every pixel of an output, or None

    ``stride``, ``padding``, ``dilation`` and ``groups`` as in conv1d; each of the first three is one
    number, or one for the rows and one for the columns. Returns y (B, O, P, Q). Errors as in conv1d.
    """
    return _convolve("conv2d", x, weight, bias, stride, padding, dilation, groups, need)


def _convolve(
    name: str, x: Array, weight: Array, bias: Array | None, stride: Steps, padding: Steps | str, dilation: Steps,
    groups: int, need: tuple[bool, ...],
) -> tuple[Array, Any]:  # fmt: skip
    axes = x.ndim - 2
    (groups,) = per_axis(name, "groups", groups, 1, 1)
    outputs, inputs, *kernel = weight.shape
    if x.shape[1] != groups * inputs or outputs % groups:
        raise ShapeError(
            f"{name}: x has C={x.shape[1]} and weight has O={outputs}, I={inputs}; "
            f"with groups={groups} expected C = {groups} I, and O a multiple of {groups}"
        )
    strides = per_axis(name, "stride", stride, axes, 1)
    dilations = per_axis(name, "dilation", dilation, axes, 1)
    added = _padding(name, padding, tuple(kernel), strides, dilations)
    windows = Windows(x.shape[2:], tuple(kernel), strides, added, dilations)
    windows.assert_fitting(name)
    y = (_matrices(weight, groups) @ _columns(x, windows, groups)).reshape(outputs, len(x), *windows.counts)
    if bias is not None:
        y += bias.reshape(-1, *(1,) * (axes + 1))
    saved = windows, weight.shape, x if need[1] else None, weight if need[0] else None
    return np.ascontiguousarray(y.swapaxes(0, 1)), saved


@conv1d.defvjp
@conv2d.defvjp
def _conv_vjp(
    grad: Array, saved: Any, need: tuple[bool, ...], *, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Array | None, ...]:
    windows, shape, x, weight = saved
    grad_x = grad_weight = grad_bias = None
    grad_y = _matrices(grad.swapaxes(0, 1), groups)  # (G, O/G, B · P)
    if need[0]:
        columns = _matrices(weight, groups).swapaxes(1, 2) @ grad_y
        grad_x = _uncolumns(columns, windows, len(grad), groups * shape[1])
    if need[1]:
        grad_weight = (grad_y @ _columns(x, windows, groups).swapaxes(1, 2)).reshape(shape)
    if need[2]:
        grad_bias = grad.sum(axis=(0, *range(2, grad.ndim)))
    return grad_x, grad_weight, grad_bias


def _padding(
    name: str, padding: Steps | str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ConfigError(f"{name}: padding is 'same' and stride {stride}, expected a stride of 1 with it")
        whole = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in whole)
    both = per_axis(name, "padding", padding, len(kernel), 0, ", 'same' or 'valid'")
    return tuple((n, n) for n in both)


def _matrices(x: Array, groups: int) -> Array:
    """(N, …) -> (groups, N / groups, the rest in one axis)."""
    return x.reshape(groups, len(x) // groups, math.prod(x.shape[1:]))


def _columns(x: Array, windows: Windows, groups: int) -> Array:
    """What each window sees: x (B, C, …) -> (G, C/G · kernel, B · windows), zero in the padding."""
    batch, channels = x.shape[:2]
    columns = np.zeros((channels, *windows.kernel, batch, *windows.counts), x.dtype)
    by_place, by_channel = np.moveaxis(columns, 0, len(windows.kernel)), x.swapaxes(0, 1)
    for place, some, elements in windows.overlaps():
        by_place[place][some] = by_channel[elements]
    rows = channels // groups * math.prod(windows.kernel)
    return columns.reshape(groups, rows, batch * math.prod(windows.counts))


def _uncolumns(columns: Array, windows: Windows, batch: int, channels: int) -> Array:
    """Add what each window gives to the elements that it saw: the transpose of ``_columns``."""
    columns = columns.reshape(channels, *windows.kernel, batch, *windows.counts)
    x = np.zeros((batch, channels, *windows.size), columns.dtype)
    by_place, by_channel = np.moveaxis(columns, 0, len(windows.kernel)), x.swapaxes(0, 1)
    for place, some, elements in windows.overlaps():
        by_channel[elements] += by_place[place][some]
    return x
