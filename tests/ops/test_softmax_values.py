"""softmax and log_softmax by math.fsum, and where almost all or all of the weight is on one element."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ShapeError


def gradient(f, x, grad):
    leaf = tensor(np.asarray(x), requires_grad=True)
    f(leaf).backward(gradient=grad)
    return leaf.grad


@pytest.mark.parametrize("size", [1e-12, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_softmax_and_its_logarithm_are_ratios_of_exponentials(size, axis):
    x = size * np.random.default_rng(0).standard_normal((3, 4, 5))
    y, log_y = ops.softmax(x, axis), ops.log_softmax(x, axis)
    x, y, log_y = (np.moveaxis(a, axis, -1) for a in (x, y, log_y))
    for at in np.ndindex(x.shape[:-1]):
        peak = max(x[at])
        total = math.fsum(math.exp(v - peak) for v in x[at])
        np.testing.assert_allclose(y[at], [math.exp(v - peak) / total for v in x[at]], rtol=1e-14)
        np.testing.assert_allclose(log_y[at], [v - peak - math.log(total) for v in x[at]], rtol=1e-14, atol=1e-15)


def test_softmax_by_hand():
    x = np.log(np.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(ops.softmax(x), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)
    # y · (g - Σ y g), with Σ y g = 10/8
    np.testing.assert_allclose(
        gradient(ops.softmax, x, [[10.0, 0.0, 0.0]]), [[70 / 64, -20 / 64, -50 / 64]], rtol=1e-14
    )
    np.testing.assert_allclose(gradient(ops.log_softmax, x, [[8.0, 0.0, 16.0]]), [[8 - 3, -6, 16 - 15]], rtol=1e-14)


def test_equal_cotangents_give_softmax_no_gradient_at_all():
    x = np.random.default_rng(1).standard_normal((2, 5))
    np.testing.assert_array_equal(gradient(ops.softmax, x, np.full((2, 5), 0.1)), np.zeros((2, 5)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_the_likeliest_element_lacks_to_one_keeps_its_digits(dtype):
    x = np.array([0.0, -50.0], dtype)
    small, near = math.exp(-50), {"rtol": 4 * np.finfo(dtype).eps}
    np.testing.assert_allclose(ops.log_softmax(x), [-small, -50], **near)
    np.testing.assert_allclose(gradient(ops.log_softmax, x, [1.0, 0.0]), [small, -small], **near)
    np.testing.assert_allclose(gradient(ops.softmax, x, [1.0, 0.0]), [small, -small], **near)
    np.testing.assert_allclose(gradient(ops.softmax, x, [0.0, 1.0]), [-small, small], **near)


def test_minus_infinity_takes_no_part():
    x = np.array([-np.inf, 0.0, 0.0])
    np.testing.assert_array_equal(ops.softmax(x), [0, 0.5, 0.5])
    np.testing.assert_allclose(ops.log_softmax(x), [-np.inf, -math.log(2), -math.log(2)], rtol=1e-15)
    np.testing.assert_array_equal(gradient(ops.softmax, x, [7.0, 1.0, 0.0]), [0, 0.25, -0.25])


@pytest.mark.parametrize("f", [ops.softmax, ops.log_softmax])
def test_an_axis_that_is_not_there_is_refused(f):
    with pytest.raises(ShapeError, match=rf"{f.name}: x has shape \(2, 3\), which has no axis 2"):
        f(np.ones((2, 3)), 2)
    with pytest.raises(ShapeError, match=rf"{f.name}: axis is None, expected one integer"):
        f(np.ones((2, 3)), axis=None)
    with pytest.raises(ShapeError, match=rf"{f.name}: x has shape \(\), expected \[\*, D\]"):
        f(np.ones(()))


@pytest.mark.parametrize("f", [ops.softmax, ops.log_softmax])
@pytest.mark.parametrize("axis", [0, 1])
def test_nothing_gives_nothing(f, axis):
    assert f(np.ones((0, 3)), axis).shape == (0, 3)
    assert gradient(lambda t: f(t, axis), np.ones((3, 0)), np.ones((3, 0))).shape == (3, 0)
