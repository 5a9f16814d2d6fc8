"""Windows that slide over the last axes of an array, as convolution and pooling look through them.

Element j of window p stands at p · stride + j · dilation - before: in the array or in the padding
around it. ``overlaps`` goes over the j. For each it gives the windows whose element j is in the
array, and those elements of the array, both as indices of the last axes: what is read from one to
the other forwards is added the other way backwards, and no padded copy is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora.errors import ConfigError, ShapeError

Sizes = tuple[int, ...]
Index = tuple[Any, ...]  # an ellipsis, and a slice for each axis


@dataclass(frozen=True)
class Windows:
    """Windows over some axes; every field has one entry for each axis.

    size     elements of the array
    kernel   elements of a window
    stride   from one window to the next
    padding  (before, after): positions added at either end
    dilation from one element of a window to the next
    """

    size: Sizes
    kernel: Sizes
    stride: Sizes
    padding: tuple[tuple[int, int], ...]
    dilation: Sizes

    @property
    def counts(self) -> Sizes:
        """The number of windows along each axis."""
        axes = zip(self.padded, self.span, self.stride, strict=True)
        return tuple((padded - span) // stride + 1 for padded, span, stride in axes)

    @property
    def padded(self) -> Sizes:
        """The size of each axis with its padding."""
        return tuple(size + sum(added) for size, added in zip(self.size, self.padding, strict=True))

    @property
    def span(self) -> Sizes:
        """From the first element of a window to the last, both counted."""
        return tuple(dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True))

    def assert_fitting(self, op: str) -> None:
        """Raise ShapeError unless at least one window fits along every axis."""
        if any(kernel < 1 for kernel in self.kernel):
            raise ShapeError(f"{op}: the kernel has size {self.kernel}, expected at least 1 along each axis")
        if any(span > padded for span, padded in zip(self.span, self.padded, strict=True)):
            raise ShapeError(
                f"{op}: x has size {self.size}, with padding {self.padded}, and the kernel spans {self.span}; "
                "expected a kernel that fits into x"
            )

    def overlaps(self) -> Iterator[tuple[Sizes, Index, Index]]:
        """For each element of a window: its place there, the windows where it is in the array, and where it is."""
        axes = [self._along(axis) for axis in range(len(self.size))]
        for each in itertools.product(*axes):
            place, windows, elements = zip(*each, strict=True)
            yield place, (..., *windows), (..., *elements)

    def _along(self, axis: int) -> list[tuple[int, slice, slice]]:
        size, stride, count = self.size[axis], self.stride[axis], self.counts[axis]
        found = []
        for j in range(self.kernel[axis]):
            offset = j * self.dilation[axis] - self.padding[axis][0]
            first = max(0, -(offset // stride))  # the first p with p · stride + offset ≥ 0
            last = min(count, (size - 1 - offset) // stride + 1)  # and past the last with p · stride + offset < size
            if first < last:
                elements = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
                found.append((j, slice(first, last), elements))
        return found


def per_axis(op: str, name: str, value: Any, axes: int, least: int, otherwise: str = "") -> Sizes:
    """``value`` for each of ``axes`` axes: it is one integer for all or a sequence with one for each.

    ConfigError, with the name of the operator and of the setting, unless all are ``least`` or more.
    """
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int | np.integer) and v >= least for v in values):
        each = "" if axes == 1 else f", or {axes} of them"
        raise ConfigError(f"{op}: {name} is {value!r}, expected an integer of at least {least}{each}{otherwise}")
    return tuple(map(int, values))
