"""The windows of convolution and pooling against a count of every position, one at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minilora.errors import ConfigError, ShapeError
from minilora.ops.windows import Windows, per_axis


def meetings(size, kernel, stride, before, after, dilation):
    """Along one axis: the number of windows, and (place in the window, window, element) wherever they meet."""
    starts = [s for s in range(-before, size + after) if (s + before) % stride == 0]
    whole = [s for s in starts if s + dilation * (kernel - 1) < size + after]
    found = {(j, p, s + j * dilation) for p, s in enumerate(whole) for j in range(kernel)}
    return len(whole), {(j, p, at) for j, p, at in found if 0 <= at < size}


SETTINGS = list(itertools.product((0, 1, 2, 5), (1, 2, 3), (1, 2, 3), (0, 1, 3), (0, 2), (1, 2)))


def test_along_one_axis_each_meeting_of_window_and_element_is_given_once():
    for size, kernel, stride, before, after, dilation in SETTINGS:
        windows = Windows((size,), (kernel,), (stride,), ((before, after),), (dilation,))
        if size + before + after < dilation * (kernel - 1) + 1:
            with pytest.raises(ShapeError, match="conv: x has size"):
                windows.assert_fitting("conv")
            continue
        windows.assert_fitting("conv")
        count, expected = meetings(size, kernel, stride, before, after, dilation)
        assert windows.counts == (count,)
        found = []
        for (j,), some, elements in windows.overlaps():
            at = np.arange(size)[elements]
            assert at.size  # what meets nothing is not given
            found += zip([j] * len(at), np.arange(count)[some], at, strict=True)
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_over_two_axes_a_meeting_is_one_along_each():
    windows = Windows((4, 3), (2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1))
    (rows, along_rows), (columns, along_columns) = meetings(4, 2, 1, 1, 0, 2), meetings(3, 3, 2, 0, 2, 1)
    assert windows.counts == (rows, columns)
    window, element = np.arange(rows * columns).reshape(rows, columns), np.arange(12).reshape(4, 3)
    found = set()
    for place, some, elements in windows.overlaps():
        assert window[some].shape == element[elements].shape
        found |= {(place, p, at) for p, at in zip(window[some].ravel(), element[elements].ravel(), strict=True)}
    assert found == {((j, k), p * columns + q, at * 3 + to) for j, p, at in along_rows for k, q, to in along_columns}


def test_one_number_serves_every_axis_and_a_sequence_each_its_own():
    assert per_axis("conv", "stride", 2, 3, 1) == (2, 2, 2)
    assert per_axis("conv", "stride", [1, np.int32(2)], 2, 1) == (1, 2)
    assert all(type(n) is int for n in per_axis("conv", "stride", np.int64(3), 2, 1))
    with pytest.raises(ConfigError, match=r"^conv: stride is \(1, 2\), expected an integer of at least 1$"):
        per_axis("conv", "stride", (1, 2), 1, 1)
    with pytest.raises(ConfigError, match=r"^conv: pad is -1, expected an integer of at least 0, or 2 of them; no$"):
        per_axis("conv", "pad", -1, 2, 0, "; no")
