"""Normalisation by hand and by loops of math.fsum, also where numbers are large, equal or tiny."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError


def normalised(row, eps):
    """A list of numbers with mean 0 and variance 1, by math.fsum."""
    mean = math.fsum(row) / len(row)
    variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
    return [(x - mean) / math.sqrt(variance + eps) for x in row]


# ---------------------------------------------------------------- RMSNorm


def test_rms_norm_by_hand():
    y = ops.rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 10.0]), eps=0.0)
    np.testing.assert_allclose(y, [[3 / math.sqrt(12.5), 40 / math.sqrt(12.5)]], rtol=1e-15)


def test_rms_norm_of_a_zero_row_is_zero():
    x = tensor(np.zeros((1, 3)), requires_grad=True)
    y = ops.rms_norm(x, np.ones(3), eps=1e-4)
    np.testing.assert_array_equal(y.data, np.zeros((1, 3)))
    y.backward(gradient=np.ones((1, 3)))
    np.testing.assert_allclose(x.grad, np.full((1, 3), 100.0))  # 1 / sqrt(eps)


# ---------------------------------------------------------------- LayerNorm


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6])
def test_layer_norm_is_the_loop_over_rows(size, eps):
    g = np.random.default_rng(0)
    x, weight, bias = size * g.standard_normal((2, 3, 7)), g.standard_normal(7), g.standard_normal(7)
    y = ops.layer_norm(x, weight, bias, eps=eps)
    for at in np.ndindex(2, 3):
        expected = [u * w + b for u, w, b in zip(normalised(x[at], eps), weight, bias, strict=True)]
        np.testing.assert_allclose(y[at], expected, rtol=1e-13, atol=1e-14)


def test_the_gradient_of_layer_norm_by_hand():
    # x = 0, 2 has mean 1 and variance 1; with eps = 3 the rows are divided by 2: y = ∓ 1/2.
    x = tensor(np.array([[0.0, 2.0]]), requires_grad=True)
    weight, bias = (tensor(np.array(v), requires_grad=True) for v in ([1.0, 10.0], [0.0, 0.0]))
    y = ops.layer_norm(x, weight, bias, eps=3.0)
    np.testing.assert_allclose(y.data, [[-0.5, 5]], rtol=1e-15)
    y.backward(gradient=[[1.0, 2.0]])
    np.testing.assert_allclose(weight.grad, [-0.5, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(bias.grad, [1, 2])
    # With d = x1 - x0 = 2: y = ∓ w d/2 / sqrt(d²/4 + 3), whose slope in d is w · 3/2 / 8; (20 - 1) of it.
    np.testing.assert_allclose(x.grad, [[-19 * 3 / 16, 19 * 3 / 16]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -1e6, 123456.7])
def test_a_row_of_equal_elements_is_exactly_zero_and_its_gradient_that_of_a_small_row(dtype, value):
    x = tensor(np.full((1, 3), value, dtype), requires_grad=True)
    y = ops.layer_norm(x, eps=1e-4)
    np.testing.assert_array_equal(y.data, np.zeros((1, 3)))
    y.backward(gradient=[[3.0, 0.0, 0.0]])
    np.testing.assert_allclose(x.grad, [[200, -100, -100]], rtol=1e-5)  # (g - mean g) / sqrt(eps)


def test_eps_is_that_of_the_models_unless_given():
    x = np.array([[1e-9, -1e-9]])  # so small that eps decides
    np.testing.assert_allclose(ops.rms_norm(x, np.ones(2)), x / math.sqrt(1e-6))
    np.testing.assert_allclose(ops.layer_norm(x), x / math.sqrt(1e-5))
    np.testing.assert_allclose(ops.group_norm(x[..., None], num_groups=1), x[..., None] / math.sqrt(1e-5))


def test_a_small_difference_of_large_numbers_keeps_its_digits():
    steps = np.array([[0.0, 1.0, 3.0]]) * 2.0**-40
    np.testing.assert_array_equal(ops.layer_norm(2.0**12 + steps, eps=0.0), ops.layer_norm(steps, eps=0.0))
    np.testing.assert_allclose(
        ops.layer_norm(2.0**12 + steps, eps=0.0)[0], normalised([0.0, 1.0, 3.0], 0.0), rtol=1e-15
    )


def test_a_gain_and_a_shift_may_be_absent():
    x = np.random.default_rng(1).standard_normal((2, 5))
    np.testing.assert_array_equal(ops.layer_norm(x), ops.layer_norm(x, np.ones(5), np.zeros(5)))
    np.testing.assert_array_equal(ops.layer_norm(x, bias=np.ones(5)), ops.layer_norm(x) + 1)


# ---------------------------------------------------------------- GroupNorm


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
def test_group_norm_is_the_loop_over_examples_and_groups(groups, positions):
    g = np.random.default_rng(groups)
    x, weight, bias = g.standard_normal((2, 6, *positions)), g.standard_normal(6), g.standard_normal(6)
    y = ops.group_norm(x, weight, bias, num_groups=groups, eps=1e-3)
    share = 6 // groups
    for example in range(2):
        for first in range(0, 6, share):
            block = x[example, first : first + share]
            unit = np.reshape(normalised(block.ravel().tolist(), 1e-3), block.shape)
            for c in range(share):
                expected = unit[c] * weight[first + c] + bias[first + c]
                np.testing.assert_allclose(y[example, first + c], expected, rtol=1e-12, atol=1e-13)


def test_one_group_without_positions_is_layer_norm_with_its_gradients():
    g = np.random.default_rng(2)
    arrays = g.standard_normal((4, 5)), g.standard_normal(5), g.standard_normal(5)
    grad = g.standard_normal((4, 5))
    found = []
    for norm in (lambda *a: ops.layer_norm(*a), lambda *a: ops.group_norm(*a, num_groups=1)):
        leaves = [tensor(a, requires_grad=True) for a in arrays]
        y = norm(*leaves)
        y.backward(gradient=grad)
        found.append([y.data, *(leaf.grad for leaf in leaves)])
    for of_rows, of_groups in zip(*found, strict=True):
        np.testing.assert_allclose(of_groups, of_rows, rtol=1e-12, atol=1e-14)


def test_channels_that_do_not_divide_into_the_groups_are_refused():
    with pytest.raises(ShapeError, match="group_norm: x has C=6, which does not divide into 4 groups"):
        ops.group_norm(np.ones((1, 6)), num_groups=4)


@pytest.mark.parametrize("bad", [0, -2, 1.5, None])
def test_a_number_of_groups_that_is_none_is_refused(bad):
    with pytest.raises(ConfigError, match=f"group_norm: num_groups is {bad}, expected an integer of 1 or more"):
        ops.group_norm(np.ones((1, 6)), num_groups=bad)


def test_operands_of_group_norm_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"group_norm: x has shape \(6,\), expected \[B, C, \*\]"):
        ops.group_norm(np.ones(6), num_groups=1)
    with pytest.raises(ShapeError, match="group_norm: weight has C=3, but x has C=6"):
        ops.group_norm(np.ones((1, 6)), np.ones(3), num_groups=1)
    with pytest.raises(ShapeError, match="group_norm: bias has C=2, but x has C=6"):
        ops.group_norm(np.ones((1, 6)), None, np.ones(2), num_groups=1)
