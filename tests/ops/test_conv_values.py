"""Convolution against loops over every element, np.convolve, matrix products, and numbers by hand."""

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


def conv(axes):
    return {1: ops.conv1d, 2: ops.conv2d}[axes]


def terms(x, weight, stride, padding, dilation, groups):
    """Every product that a convolution sums: (place in y, place in weight, place in x), one element at a time."""
    outputs, inputs, *kernel = weight.shape
    size = x.shape[2:]
    counts = [
        1 + (n + 2 * p - d * (k - 1) - 1) // s
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    found = []
    for b, o, i in itertools.product(range(len(x)), range(outputs), range(inputs)):
        channel = o // (outputs // groups) * inputs + i
        for at, place in itertools.product(np.ndindex(*counts), np.ndindex(*kernel)):
            pixel = tuple(s * a + d * k - p for s, a, d, k, p in zip(stride, at, dilation, place, padding, strict=True))
            if all(0 <= n < whole for n, whole in zip(pixel, size, strict=True)):
                found.append(((b, o, *at), (o, i, *place), (b, channel, *pixel)))
    return (len(x), outputs, *counts), found


CASES = [
    # axes, size, kernel, stride, padding, dilation, groups
    (1, (7,), (3,), (1,), (0,), (1,), 1),
    (1, (7,), (3,), (2,), (1,), (1,), 2),
    (1, (9,), (2,), (3,), (4,), (3,), 3),
    (1, (1,), (1,), (1,), (0,), (1,), 1),
    (1, (2,), (5,), (1,), (2,), (1,), 1),
    (2, (4, 5), (3, 2), (1, 1), (0, 0), (1, 1), 1),
    (2, (5, 4), (2, 3), (2, 1), (1, 2), (1, 2), 2),
    (2, (6, 3), (1, 3), (3, 2), (0, 1), (1, 1), 3),
    (2, (1, 6), (1, 2), (1, 5), (3, 0), (2, 3), 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_convolution_and_its_gradients_are_the_sums_over_single_products(case, biased):
    axes, size, kernel, stride, padding, dilation, groups = case
    g = rng(sum(size) + groups)
    x = tensor(g.standard_normal((2, 2 * groups, *size)), requires_grad=True)
    weight = tensor(g.standard_normal((3 * groups, 2, *kernel)), requires_grad=True)
    bias = tensor(g.standard_normal(3 * groups), requires_grad=True) if biased else None
    shape, products = terms(x, weight, stride, padding, dilation, groups)
    grad = g.standard_normal(shape)
    y, grad_x, grad_weight = np.zeros(shape), np.zeros(x.shape), np.zeros(weight.shape)
    for at, place, pixel in products:
        y[at] += weight.data[place] * x.data[pixel]
        grad_x[pixel] += weight.data[place] * grad[at]
        grad_weight[place] += x.data[pixel] * grad[at]

    out = conv(axes)(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if biased:
        for b, o in np.ndindex(*shape[:2]):
            y[b, o] += bias.data[o]
    np.testing.assert_allclose(out.data, y, rtol=1e-12, atol=1e-13)
    out.backward(gradient=grad)
    np.testing.assert_allclose(x.grad, grad_x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(weight.grad, grad_weight, rtol=1e-12, atol=1e-13)
    if biased:
        expected = [math.fsum(grad[:, o].ravel()) for o in range(shape[1])]
        np.testing.assert_allclose(bias.grad, expected, rtol=1e-12, atol=1e-13)


def test_a_convolution_by_hand():
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    weight = np.array([[[1.0, 0.0, -1.0]]])
    # 1 - 3, 2 - 4; with a zero on each side also 0 - 2 and 3 - 0
    np.testing.assert_array_equal(ops.conv1d(x, weight), [[[-2, -2]]])
    np.testing.assert_array_equal(ops.conv1d(x, weight, np.array([10.0]), padding=1), [[[8, 8, 8, 13]]])
    np.testing.assert_array_equal(ops.conv1d(x, weight, stride=2, padding=1), [[[-2, -2]]])
    np.testing.assert_array_equal(ops.conv1d(x, weight[..., :2] + 1, dilation=3), [[[2 * 1 + 1 * 4]]])


def test_a_filter_is_not_turned_around_so_numpys_convolve_takes_it_backwards():
    g = rng(1)
    x, weight = g.standard_normal(9), g.standard_normal(4)
    for mode, padding in (("full", 3), ("valid", 0), ("valid", "valid")):
        y = ops.conv1d(x[None, None], weight[None, None, ::-1], padding=padding)
        np.testing.assert_allclose(y[0, 0], np.convolve(x, weight, mode), rtol=1e-13, atol=1e-14)


def test_a_filter_of_one_pixel_is_a_product_over_the_channels():
    g = rng(2)
    x, weight = g.standard_normal((2, 3, 4, 5)), g.standard_normal((6, 3, 1, 1))
    np.testing.assert_allclose(
        ops.conv2d(x, weight), np.einsum("bchw,oc->bohw", x, weight[..., 0, 0]), rtol=1e-13, atol=1e-14
    )


def test_groups_are_convolutions_side_by_side():
    g = rng(3)
    x, weight = g.standard_normal((2, 6, 5, 5)), g.standard_normal((4, 3, 2, 2))
    halves = [ops.conv2d(x[:, 3 * i : 3 * i + 3], weight[2 * i : 2 * i + 2], padding=1) for i in range(2)]
    np.testing.assert_allclose(
        ops.conv2d(x, weight, padding=1, groups=2), np.concatenate(halves, axis=1), rtol=1e-13, atol=1e-14
    )


def test_images_of_one_row_are_sequences():
    g = rng(4)
    x, weight, bias = g.standard_normal((2, 4, 7)), g.standard_normal((6, 2, 3)), g.standard_normal(6)
    line = ops.conv1d(x, weight, bias, stride=2, padding=2, dilation=2, groups=2)
    image = ops.conv2d(
        x[:, :, None], weight[:, :, None], bias, stride=(1, 2), padding=(0, 2), dilation=(1, 2), groups=2
    )
    np.testing.assert_array_equal(image[:, :, 0], line)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_same_padding_keeps_the_size_and_puts_an_odd_zero_behind(kernel, dilation):
    g = rng(5)
    x, weight = g.standard_normal((1, 2, 6, 7)), g.standard_normal((3, 2, *kernel))
    steps = (dilation, dilation) if isinstance(dilation, int) else dilation
    whole = [d * (k - 1) for d, k in zip(steps, kernel, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((n // 2, (n + 1) // 2) for n in whole)])
    y = ops.conv2d(x, weight, padding="same", dilation=dilation)
    assert y.shape == (1, 3, 6, 7)
    np.testing.assert_allclose(y, ops.conv2d(padded, weight, dilation=dilation), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("axes", [1, 2])
def test_without_settings_every_window_counts_and_none_is_padded_or_spread(axes):
    g = rng(7)
    x, weight = g.standard_normal((1, 2, *(5, 6)[:axes])), g.standard_normal((2, 2, *(2, 3)[:axes]))
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    np.testing.assert_array_equal(conv(axes)(x, weight), conv(axes)(x, weight, **settings))


def test_one_number_is_meant_for_rows_and_columns():
    g = rng(6)
    x, weight = g.standard_normal((1, 1, 8, 8)), g.standard_normal((1, 1, 2, 2))
    np.testing.assert_array_equal(
        ops.conv2d(x, weight, stride=2, padding=1, dilation=3),
        ops.conv2d(x, weight, stride=(2, 2), padding=(1, 1), dilation=[3, np.int64(3)]),
    )


def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients():
    x, weight = (tensor(np.ones(s, np.float32), requires_grad=True) for s in ((0, 2, 5), (3, 2, 2)))
    bias = tensor(np.ones(3, np.float32), requires_grad=True)
    y = ops.conv1d(x, weight, bias)
    assert (y.shape, y.dtype) == ((0, 3, 4), np.float32)
    y.backward(gradient=np.ones(y.shape))
    np.testing.assert_array_equal(weight.grad, np.zeros((3, 2, 2)))
    np.testing.assert_array_equal(bias.grad, np.zeros(3))
    assert x.grad.shape == x.shape


def test_no_channels_leave_the_bias_alone():
    y = ops.conv1d(np.ones((2, 0, 5)), np.ones((3, 0, 2)), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(y, np.broadcast_to([[1.0], [2.0], [3.0]], (2, 3, 4)))


def test_windows_that_see_only_padding_give_the_bias_and_take_no_gradient():
    x = tensor(np.ones((1, 1, 1)), requires_grad=True)
    y = ops.conv1d(x, np.ones((1, 1, 1)), np.array([5.0]), padding=2)
    np.testing.assert_array_equal(y.data, [[[5, 5, 6, 5, 5]]])
    y.backward(gradient=[[[1.0, 10.0, 100.0, 1000.0, 10000.0]]])
    np.testing.assert_array_equal(x.grad, [[[100]]])


@pytest.mark.parametrize("need", [(True, False, False), (False, True, False), (False, False, True)])
def test_a_convolution_keeps_only_what_the_gradients_need(need):
    x, weight = np.ones((1, 1, 3)), np.ones((1, 1, 2))
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    record = REGISTRY["conv1d"]
    _, saved = record.run(record.reference, (x, weight, np.ones(1)), settings, need)
    assert any(a is x for a in saved) == need[1]
    assert any(a is weight for a in saved) == need[0]


def message(error, *args, **settings):
    with pytest.raises(error) as caught:
        ops.conv2d(*args, **settings)
    return str(caught.value)


def test_channels_that_do_not_fit_the_groups_are_refused():
    x, weight = np.ones((1, 6, 4, 4)), np.ones((4, 2, 3, 3))
    assert message(ShapeError, x, weight, groups=2) == (
        "conv2d: x has C=6 and weight has O=4, I=2; with groups=2 expected C = 2 I, and O a multiple of 2"
    )
    assert message(ShapeError, x, weight, groups=3) == (
        "conv2d: x has C=6 and weight has O=4, I=2; with groups=3 expected C = 3 I, and O a multiple of 3"
    )


def test_a_kernel_larger_than_the_padded_input_is_refused():
    x, weight = np.ones((0, 1, 3, 4)), np.ones((1, 1, 3, 2))
    assert message(ShapeError, x, weight, padding=(0, 1), dilation=(2, 1)) == (
        "conv2d: x has size (3, 4), with padding (3, 6), and the kernel spans (5, 2); "
        "expected a kernel that fits into x"
    )
    assert message(ShapeError, x, np.ones((1, 1, 0, 2))) == (
        "conv2d: the kernel has size (0, 2), expected at least 1 along each axis"
    )


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("stride", 0, "an integer of at least 1, or 2 of them"),
        ("stride", (1, 2, 3), "an integer of at least 1, or 2 of them"),
        ("stride", 1.5, "an integer of at least 1, or 2 of them"),
        ("dilation", (1, 0), "an integer of at least 1, or 2 of them"),
        ("padding", -1, "an integer of at least 0, or 2 of them, 'same' or 'valid'"),
        ("padding", "full", "an integer of at least 0, or 2 of them, 'same' or 'valid'"),
        ("groups", 0, "an integer of at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, value, wanted):
    found = message(ConfigError, np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), **{setting: value})
    assert found == f"conv2d: {setting} is {value!r}, expected {wanted}"


def test_same_padding_with_a_stride_is_refused():
    found = message(ConfigError, np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), padding="same", stride=(1, 2))
    assert found == "conv2d: padding is 'same' and stride (1, 2), expected a stride of 1 with it"


def test_convolutions_count_a_product_and_a_sum_for_each_term():
    for axes, size, kernel in ((1, {"P": 5}, {"K": 3}), (2, {"P": 5, "Q": 4}, {"J": 2, "K": 3})):
        sizes = {"B": 2, "O": 4, "I": 3, **size, **kernel}
        assert REGISTRY[f"conv{axes}d"].flops(sizes) == 2 * math.prod(sizes.values())
