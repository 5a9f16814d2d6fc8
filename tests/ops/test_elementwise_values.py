"""Arithmetic on elements, against NumPy, the math module and hand-computed gradients; and Tensor's operators."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError

DTYPES = (np.float32, np.float64)


def leaf(*values, dtype=np.float64):
    return tensor(np.array(values, dtype), requires_grad=True)


def gradient(f, *values, dtype=np.float64):
    x = leaf(*values, dtype=dtype)
    f(x).sum().backward()
    assert x.grad.dtype == dtype
    return x.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (ops.exp, np.exp), (ops.log, np.log), (ops.sqrt, np.sqrt), (ops.abs, np.abs), (ops.neg, np.negative),
        (ops.rsqrt, lambda x: 1 / np.sqrt(x)),
    ],
)  # fmt: skip
def test_functions_of_one_operand_are_numpys(ours, numpys, dtype):
    x = np.array([[0.25, 1.0, 2.5], [9.0, 1e-12, 60.0]], dtype)
    np.testing.assert_array_equal(ours(x), numpys(x))
    assert ours(x).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (ops.add, np.add), (ops.sub, np.subtract), (ops.mul, np.multiply), (ops.div, np.divide), (ops.power, np.power),
        (ops.maximum, np.maximum), (ops.minimum, np.minimum),
    ],
)  # fmt: skip
def test_functions_of_two_operands_broadcast_as_numpys(ours, numpys, dtype):
    x, y = np.array([[1.0], [2.0], [0.5]], dtype), np.array([2.0, 1.0, 3.0, 0.25], dtype)
    np.testing.assert_array_equal(ours(x, y), numpys(x, y))
    np.testing.assert_array_equal(ours(x, 2), numpys(x, dtype(2)))
    np.testing.assert_array_equal(ours(2, x), numpys(dtype(2), x))
    assert ours(x, y).dtype == ours(x, 2).dtype == ours(2, x).dtype == dtype


def test_gradients_by_hand():
    assert gradient(ops.exp, 0.0, 1.0).tolist() == [1.0, math.e]
    assert gradient(ops.log, 0.5, 4.0).tolist() == [2.0, 0.25]
    assert gradient(ops.sqrt, 0.25, 4.0).tolist() == [1.0, 0.25]
    assert gradient(ops.rsqrt, 1.0, 4.0).tolist() == [-0.5, -1 / 16]
    assert gradient(ops.abs, -2.0, 0.0, 3.0).tolist() == [-1.0, 0.0, 1.0]
    assert gradient(lambda x: ops.div(1.0, x), 2.0, -0.5).tolist() == [-0.25, -4.0]


def test_a_quotient_has_gradients_for_both():
    x, y = leaf(6.0), leaf(2.0)
    (x / y).backward()
    assert (x.grad[0], y.grad[0]) == (0.5, -1.5)


def test_a_quotient_of_tiny_numbers_does_not_divide_by_a_square():
    x, y = leaf(3e-200), leaf(1e-200)
    (x / y).backward(gradient=[1e-200])
    assert (x.grad[0], y.grad[0]) == (1.0, -3.0)


# ---------------------------------------------------------------- powers


def test_powers_of_negative_numbers_and_zero():
    assert gradient(lambda x: x**2, -3.0, 0.0, 2.0).tolist() == [-6.0, 0.0, 4.0]
    assert gradient(lambda x: x**3, -2.0, 0.0).tolist() == [12.0, 0.0]
    assert gradient(lambda x: x**1, -2.0, 0.0).tolist() == [1.0, 1.0]
    assert gradient(lambda x: x**0, -2.0, 0.0).tolist() == [0.0, 0.0]
    assert gradient(lambda x: x**-1, -2.0, 4.0).tolist() == [-0.25, -1 / 16]
    assert gradient(lambda x: x ** np.array([0.0, 1.0, 2.0]), 0.0, 0.0, 0.0).tolist() == [0.0, 1.0, 0.0]


def test_the_gradient_for_an_exponent_is_the_power_times_the_logarithm_of_the_base():
    y = leaf(3.0, 0.0)
    (2**y).sum().backward()
    np.testing.assert_allclose(y.grad, [8 * math.log(2), math.log(2)], rtol=1e-15)
    z = leaf(2.0)
    ops.power(np.zeros(1), z).backward()
    assert z.grad[0] == 0.0


def test_a_square_keeps_its_dtype_and_bits():
    x = np.array([1.1, -3.7], np.float32)
    np.testing.assert_array_equal(ops.power(x, 2), x * x)
    assert gradient(lambda t: t**2.0, 1.1, dtype=np.float32)[0] == np.float32(2) * np.float32(1.1)


# ---------------------------------------------------------------- choices


def test_where_two_are_equal_both_get_half():
    x, y = leaf(1.0, 5.0, 2.0), leaf(3.0, 4.0, 2.0)
    ops.maximum(x, y).backward(gradient=[1.0, 10.0, 100.0])
    assert (x.grad.tolist(), y.grad.tolist()) == ([0, 10, 50], [1, 0, 50])
    x, y = leaf(1.0, 5.0, 2.0), leaf(3.0, 4.0, 2.0)
    ops.minimum(x, y).backward(gradient=[1.0, 10.0, 100.0])
    assert (x.grad.tolist(), y.grad.tolist()) == ([1, 0, 50], [0, 10, 50])


def test_clip_is_numpys_and_passes_the_gradient_inside_and_at_its_limits():
    x = np.array([-2.0, -1.0, 0.5, 1.0, 7.0], np.float32)
    np.testing.assert_array_equal(ops.clip(x, -1, 1), np.clip(x, -1, 1))
    np.testing.assert_array_equal(ops.clip(x, a_max=0.5), np.clip(x, None, 0.5))
    assert ops.clip(x, -1.5).dtype == np.float32
    assert gradient(lambda t: t.clip(-1, 1), *x).tolist() == [0, 1, 1, 1, 0]
    assert gradient(lambda t: t.clip(max=0.5), *x).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("limits", [(), (2, 1)])
def test_clip_without_limits_or_with_crossed_ones_is_refused(limits):
    with pytest.raises(ConfigError, match=r"clip: a_min is .* and a_max is .*, expected one limit at least"):
        ops.clip(np.ones(2), *limits)


def test_where_broadcasts_and_gives_each_side_its_own_gradient():
    condition, x, y = np.array([[True], [False]]), leaf(1.0, 2.0), leaf(3.0)
    z = ops.where(condition, x, y)
    np.testing.assert_array_equal(z.data, [[1, 2], [3, 3]])
    z.backward(gradient=[[1.0, 10.0], [100.0, 1000.0]])
    assert (x.grad.tolist(), y.grad.tolist()) == ([1, 10], [1100])


def test_where_keeps_float32_beside_a_number_and_refuses_a_condition_of_numbers():
    assert ops.where(np.array([True]), np.ones(1, np.float32), 0.0).dtype == np.float32
    with pytest.raises(ShapeError, match="where: condition has dtype int64, expected booleans"):
        ops.where(np.array([1]), np.ones(1), np.ones(1))


def test_nan_in_the_branch_that_is_not_taken_stays_out_of_the_gradient():
    x = leaf(-1.0, 4.0)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(x.data)
    ops.where(np.array([False, True]), x * root, 0.0).backward(gradient=[1.0, 1.0])
    assert x.grad[1] == 2.0


# ---------------------------------------------------------------- Tensor's operators


def test_operators_are_numpys_from_both_sides():
    x, t = np.array([0.5, 2.0]), leaf(0.5, 2.0)
    pairs = [
        (2 / t, 2 / x), (t / 2, x / 2), (2**t, 2**x), (t**-2, x**-2.0), (-t, -x), (abs(-t), x), (x / t, x / x),
        (3 - t, 3 - x), (t - x, x - x), (x * t, x * x),
    ]  # fmt: skip
    for ours, numpys in pairs:
        np.testing.assert_array_equal(ours.data, numpys)


def test_comparisons_give_plain_booleans():
    t = leaf(1.0, 2.0, 3.0)
    for found, wanted in [(t < 2, [1, 0, 0]), (t <= 2, [1, 1, 0]), (t > np.array(2), [0, 0, 1]), (t >= t, [1, 1, 1])]:
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, np.array(wanted, bool))
