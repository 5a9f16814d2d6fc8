"""Pooling and up-sampling against loops over windows, and numbers by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ConfigError, ShapeError


def rng(seed=0):
    return np.random.default_rng(seed)


def pools(axes):
    return {1: (ops.avg_pool1d, ops.max_pool1d), 2: (ops.avg_pool2d, ops.max_pool2d)}[axes]


def windows(size, kernel, stride, padding):
    """For each window: its place, and the elements inside the array that it holds, in order."""
    counts = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
    for at in np.ndindex(*counts):
        starts = [a * s - p for a, s, p in zip(at, stride, padding, strict=True)]
        ranges = [range(max(b, 0), min(b + k, n)) for b, k, n in zip(starts, kernel, size, strict=True)]
        yield at, list(itertools.product(*ranges))


CASES = [
    # size, kernel, stride, padding
    ((6,), (3,), (3,), (0,)),
    ((7,), (3,), (2,), (1,)),
    ((8,), (2,), (3,), (1,)),
    ((1,), (2,), (1,), (1,)),
    ((5,), (1,), (2,), (0,)),
    ((4, 6), (2, 3), (2, 3), (0, 0)),
    ((5, 4), (3, 2), (1, 2), (1, 0)),
    ((3, 1), (2, 3), (3, 1), (1, 1)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_pooling_and_its_gradients_are_the_loop_over_windows(size, kernel, stride, padding, leading):
    average, largest = pools(len(size))
    g = rng(len(leading) + sum(size))
    x = g.permutation(math.prod((*leading, *size))).reshape(*leading, *size) / 8.0 - 1
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
    for mode in ("all", "inside", "max"):
        leaf = tensor(x, requires_grad=True)
        out = largest(leaf, **settings) if mode == "max" else average(leaf, **settings, count_include_pad=mode == "all")
        grad = g.standard_normal(out.shape)
        out.backward(gradient=grad)
        y, grad_x, count = np.full(out.shape, np.nan), np.zeros(x.shape), 0
        for row in np.ndindex(*leading):
            for at, elements in windows(size, kernel, stride, padding):
                count += 1
                values = [x[(*row, *e)] for e in elements]
                if mode == "max":
                    y[(*row, *at)] = max(values)
                    grad_x[(*row, *elements[values.index(max(values))])] += grad[(*row, *at)]
                    continue
                divisor = math.prod(kernel) if mode == "all" else len(values)
                y[(*row, *at)] = math.fsum(values) / divisor
                for element in elements:
                    grad_x[(*row, *element)] += grad[(*row, *at)] / divisor
        assert count == out.size
        np.testing.assert_allclose(out.data, y, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(leaf.grad, grad_x, rtol=1e-13, atol=1e-14)


def test_windows_stand_side_by_side_if_no_stride_is_given():
    x = rng(1).standard_normal((2, 3, 6, 4))
    tiles = x.reshape(2, 3, 3, 2, 2, 2)
    np.testing.assert_allclose(ops.avg_pool2d(x, 2), tiles.mean(axis=(3, 5)), rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(ops.max_pool2d(x, 2), tiles.max(axis=(3, 5)))
    np.testing.assert_array_equal(ops.max_pool2d(x, (2, 2), stride=None), tiles.max(axis=(3, 5)))


@pytest.mark.parametrize("axes", [1, 2])
def test_without_settings_nothing_is_padded_and_padding_would_count(axes):
    average, largest = pools(axes)
    x = rng(6).standard_normal((3, 7, 7)[-axes:])
    np.testing.assert_array_equal(average(x, 2), average(x, 2, stride=2, padding=0))
    np.testing.assert_array_equal(largest(x, 2), largest(x, 2, stride=2, padding=0))
    np.testing.assert_array_equal(average(x, 2, padding=1), average(x, 2, padding=1, count_include_pad=True))
    assert np.any(average(x, 2, padding=1) != average(x, 2, padding=1, count_include_pad=False))


def test_averages_by_hand_with_and_without_the_padding():
    x = np.array([2.0, 4.0, 6.0])
    np.testing.assert_array_equal(ops.avg_pool1d(x, 2, stride=1, padding=1), [1, 3, 5, 3])
    np.testing.assert_array_equal(ops.avg_pool1d(x, 2, stride=1, padding=1, count_include_pad=False), [2, 3, 5, 6])


def test_padding_is_never_the_largest_and_takes_no_gradient():
    x = tensor(np.array([-5.0, -7.0, -np.inf]), requires_grad=True)
    y = ops.max_pool1d(x, 2, padding=1)
    np.testing.assert_array_equal(y.data, [-5, -7])
    alone = tensor(np.array([-np.inf]), requires_grad=True)
    ops.max_pool1d(alone, 2, padding=1).backward(gradient=[3.0])
    np.testing.assert_array_equal(alone.grad, [3])


def test_of_equal_elements_the_first_gets_the_gradient():
    x = tensor(np.array([[1.0, 2.0], [2.0, 2.0]]), requires_grad=True)
    ops.max_pool2d(x, 2).backward(gradient=[[8.0]])
    np.testing.assert_array_equal(x.grad, [[0, 8], [0, 0]])


def test_an_element_that_is_the_largest_of_several_windows_gets_all_their_gradients():
    x = tensor(np.array([0.0, 9.0, 1.0]), requires_grad=True)
    ops.max_pool1d(x, 2, stride=1).backward(gradient=[1.0, 10.0])
    np.testing.assert_array_equal(x.grad, [0, 11, 0])


@pytest.mark.parametrize("at", range(4))
def test_nan_is_the_largest_wherever_it_stands(at):
    x = np.array([1.0, 2.0, 3.0, 4.0])
    x[at] = np.nan
    np.testing.assert_array_equal(np.isnan(ops.max_pool1d(x, 2)), [at < 2, at >= 2])


def test_a_window_of_more_places_than_a_small_integer_holds():
    x = tensor(np.arange(40000.0), requires_grad=True)
    ops.max_pool1d(x, 40000).backward(gradient=[2.0])
    assert (x.grad[39999], x.grad.sum()) == (2, 2)


def test_empty_leading_axes_stay_empty():
    for pool in (ops.avg_pool2d, ops.max_pool2d):
        x = tensor(np.ones((0, 2, 4, 4), np.float32), requires_grad=True)
        y = pool(x, 2)
        assert (y.shape, y.dtype) == ((0, 2, 2, 2), np.float32)
        y.backward(gradient=np.ones(y.shape))
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("factor", [1, 2, (3,)])
def test_up_sampling_repeats_each_element_of_a_sequence(factor):
    times = factor if isinstance(factor, int) else factor[0]
    x = tensor(rng(2).standard_normal((2, 3, 4)), requires_grad=True)
    y = ops.upsample_nearest(x, factor)
    assert y.shape == (2, 3, 4 * times)
    grad = rng(3).standard_normal(y.shape)
    y.backward(gradient=grad)
    expected = np.zeros(x.shape)
    for b, c, i in np.ndindex(*y.shape):
        assert y.data[b, c, i] == x.data[b, c, i // times]
        expected[b, c, i // times] += grad[b, c, i]
    np.testing.assert_allclose(x.grad, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("factor", [2, (2, 3), (3, 1)])
def test_up_sampling_repeats_each_pixel_of_an_image(factor):
    rows, columns = (factor, factor) if isinstance(factor, int) else factor
    x = tensor(rng(4).standard_normal((2, 1, 3, 2)), requires_grad=True)
    y = ops.upsample_nearest(x, scale_factor=factor)
    np.testing.assert_array_equal(y.data, np.kron(x.data, np.ones((rows, columns))))
    y.backward(gradient=np.ones(y.shape))
    np.testing.assert_array_equal(x.grad, np.full(x.shape, rows * columns))


def test_pooling_undoes_up_sampling():
    x = rng(5).standard_normal((1, 2, 3, 4))
    np.testing.assert_array_equal(ops.max_pool2d(ops.upsample_nearest(x, (2, 3)), (2, 3)), x)


def message(error, call, *args, **settings):
    with pytest.raises(error) as caught:
        call(*args, **settings)
    return str(caught.value)


@pytest.mark.parametrize("pool", [ops.avg_pool2d, ops.max_pool2d])
def test_windows_that_do_not_fit_are_refused(pool):
    assert message(ShapeError, pool, np.ones((2, 2, 3)), (3, 2)) == (
        f"{pool.name}: x has size (2, 3), with padding (2, 3), and the kernel spans (3, 2); "
        "expected a kernel that fits into x"
    )
    assert message(ShapeError, pool, np.ones((1, 0, 3)), 2, padding=1) == (
        f"{pool.name}: x has size (0, 3) along the pooled axes, expected at least 1 each"
    )
    assert message(ConfigError, pool, np.ones((4, 4)), (3, 2), padding=(2, 1)) == (
        f"{pool.name}: padding is (2, 1), expected at most half of kernel_size (3, 2)"
    )


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"kernel_size": 0}, "kernel_size is 0, expected an integer of at least 1"),
        ({"kernel_size": (2, 2)}, "kernel_size is (2, 2), expected an integer of at least 1"),
        ({"kernel_size": 2, "stride": 0}, "stride is 0, expected an integer of at least 1 or None"),
        ({"kernel_size": 2, "padding": -1}, "padding is -1, expected an integer of at least 0"),
        ({"kernel_size": 2.0}, "kernel_size is 2.0, expected an integer of at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, found):
    for pool in (ops.avg_pool1d, ops.max_pool1d):
        assert message(ConfigError, pool, np.ones(4), **settings) == f"{pool.name}: {found}"


def test_up_sampling_refuses_other_shapes_and_factors():
    assert message(ShapeError, ops.upsample_nearest, np.ones((2, 3)), 2) == (
        "upsample_nearest: x has shape (2, 3), expected (B, C, L) or (B, C, H, W)"
    )
    assert message(ConfigError, ops.upsample_nearest, np.ones((1, 1, 2, 2)), (2, 0)) == (
        "upsample_nearest: scale_factor is (2, 0), expected an integer of at least 1, or 2 of them"
    )


def test_pooling_counts_each_element_once_and_up_sampling_moves_only():
    for kind in ("avg", "max"):
        assert REGISTRY[f"{kind}_pool1d"].flops({"*": (2, 3), "L": 5, "P": 1}) == 30
        assert REGISTRY[f"{kind}_pool2d"].flops({"*": (2, 3), "H": 5, "W": 4, "P": 1, "Q": 1}) == 120
    assert REGISTRY["upsample_nearest"].flops({"x": (1, 2, 3)}) == 0
