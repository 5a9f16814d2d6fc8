"""Arithmetic on elements, against NumPy, the math module and hand-computed gradients; and Tensor's operators."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import Tensor, tensor
from minilora.errors import ConfigError, MiniloraError, ShapeError

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


def test_arithmetic_sums_gradients_over_what_was_stretched():
    x, y = tensor(np.array([[1.0], [2.0]]), requires_grad=True), leaf(10.0, 20.0, 30.0)
    out = ops.mul(x, y)
    np.testing.assert_array_equal(out.data, [[10, 20, 30], [20, 40, 60]])
    out.backward(gradient=[[1, 1, 1], [0, 1, 0]])
    np.testing.assert_array_equal(x.grad, [[60], [20]])
    np.testing.assert_array_equal(y.grad, [1, 1 + 2, 1])


def test_subtraction_gives_the_second_operand_the_negative_gradient():
    x, y = leaf(5.0), leaf(3.0)
    ops.sub(x, y).backward()
    assert (x.grad[0], y.grad[0]) == (1.0, -1.0)


def test_shapes_that_do_not_broadcast_are_refused():
    for op in (ops.add, ops.sub, ops.mul, ops.div, ops.power, ops.maximum, ops.minimum):
        with pytest.raises(ShapeError, match=rf"{op.name}: y has shape \(3,\), which does not broadcast with \(2,\)"):
            op(np.ones(2), np.ones(3))


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-3, -2, -1, 0, 1, 2, 3, 5])
def test_whole_powers_of_either_sign_are_products(exponent, dtype):
    x = np.array([[-2.0, 0.5], [-1.5, 3.0]], dtype)
    product = math.prod([x] * exponent) if exponent >= 0 else 1 / math.prod([x] * -exponent)
    slope = exponent * math.prod([x] * (exponent - 1)) if exponent > 0 else exponent / math.prod([x] * (1 - exponent))
    near = {"rtol": 4 * np.finfo(dtype).eps}
    for y in (exponent, float(exponent), np.array(exponent, dtype), np.full((2, 2), exponent, dtype)):
        t = tensor(x, requires_grad=True)
        z = t**y
        z.backward(gradient=np.full((2, 2), 3))
        np.testing.assert_allclose(z.data, np.broadcast_to(product, (2, 2)), **near)
        np.testing.assert_allclose(t.grad, 3 * slope, **near)
        assert z.dtype == t.grad.dtype == dtype


def test_an_exponent_that_requires_a_gradient_wants_a_base_that_is_not_negative():
    for x in (np.array([1.0, -2.0]), -2):
        with pytest.raises(MiniloraError, match="power: x has negative elements, expected none where y requires a"):
            ops.power(x, leaf(2.0))
    assert ops.power(np.array([-2.0]), np.array([3.0]))[0] == -8.0
    assert ops.power(leaf(-2.0), leaf(3.0).detach()).data[0] == -8.0


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
    np.testing.assert_array_equal(ops.clip(x), x)
    for limit in (-1.5, -1, np.float64(-1.5), np.int64(-1)):
        assert ops.clip(x, limit).dtype == ops.clip(x, None, limit).dtype == np.float32
    assert np.isnan(ops.clip(np.array([np.nan]), 0, 1))[0]
    assert gradient(lambda t: t.clip(-1, 1), *x).tolist() == [0, 1, 1, 1, 0]
    assert gradient(lambda t: t.clip(max=0.5), *x).tolist() == [1, 1, 1, 0, 0]


def test_clip_refuses_crossed_limits_and_limits_that_are_no_numbers():
    with pytest.raises(ConfigError, match="clip: a_min is 2 and a_max is 1, expected a_min ≤ a_max"):
        ops.clip(np.ones(2), 2, 1)
    for limit, shown in ((np.zeros(3), r"array\(\[0., 0., 0.\]\)"), ("0", "'0'"), (math.nan, "nan")):
        with pytest.raises(ConfigError, match=f"clip: a_min is {shown}, expected a number or None"):
            ops.clip(np.ones(2), limit)
        with pytest.raises(ConfigError, match=f"clip: a_max is {shown}, expected a number or None"):
            ops.clip(np.ones(2), 0, limit)


def test_positive_and_negative_part_make_up_a_number_and_its_size():
    x = np.array([-2.0, -0.0, 0.0, 3.0], np.float32)
    up, down = ops.positive_part(x), ops.negative_part(x)
    np.testing.assert_array_equal(up, [0, 0, 0, 3])
    np.testing.assert_array_equal(down, [2, 0, 0, 0])
    np.testing.assert_array_equal(up - down, x)
    np.testing.assert_array_equal(up + down, ops.abs(x))
    assert gradient(ops.positive_part, *x).tolist() == [0, 0, 0, 1]
    assert gradient(ops.negative_part, *x).tolist() == [-1, 0, 0, 0]
    for part in (ops.positive_part, ops.negative_part):
        assert np.isnan(part(np.array([np.nan])))[0]


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


@pytest.mark.parametrize("condition", [True, False, np.True_])
def test_where_takes_one_condition_for_all(condition):
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = ops.where(condition, x, y)
    z.sum().backward()
    assert z.data.tolist() == ([1, 2] if condition else [3, 4])
    assert x.grad.tolist() == [float(condition)] * 2
    assert y.grad.tolist() == [float(not condition)] * 2
    with pytest.raises(ShapeError, match="where: condition has dtype int64, expected booleans"):
        ops.where(1, x, y)


@pytest.mark.parametrize(
    "f",
    [
        ops.relu,
        ops.positive_part,
        ops.negative_part,
        lambda x: x.clip(-0.5, 0.5),
        lambda x: ops.where(x.data > 9, x, 0),
    ],
)
def test_an_infinite_gradient_of_an_element_that_does_not_count_is_nothing(f):
    x = leaf(-1.0, 1.0)
    dead = f(leaf(-1.0, 1.0)).data == f(leaf(-1.01, 1.01)).data
    f(x).backward(gradient=np.where(dead, np.inf, 1.0))
    assert dead.any()
    assert (x.grad[dead] == 0).all()


def test_nan_in_the_branch_that_is_not_taken_stays_out_of_the_value_and_of_both_gradients():
    x, y = leaf(np.nan, 4.0), leaf(1.0, np.nan)
    z = ops.where(np.array([False, True]), x, y)
    assert z.data.tolist() == [1.0, 4.0]
    z.backward(gradient=[2.0, 3.0])
    assert (x.grad.tolist(), y.grad.tolist()) == ([0, 3], [2, 0])


# ---------------------------------------------------------------- Tensor's operators


def test_operators_are_numpys_from_both_sides():
    x, t = np.array([0.5, 2.0]), leaf(0.5, 2.0)
    pairs = [
        (2 / t, 2 / x), (t / 2, x / 2), (2**t, 2**x), (t**-2, x**-2.0), (-t, -x), (abs(-t), x), (x / t, x / x),
        (3 - t, 3 - x), (t - x, x - x), (x * t, x * x),
    ]  # fmt: skip
    for ours, numpys in pairs:
        np.testing.assert_array_equal(ours.data, numpys)


def test_an_ndarray_on_the_left_leaves_the_operator_to_the_tensor():
    x, t = np.array([0.5, 2.0]), leaf(3.0, 5.0)
    pairs = [(x + t, [3.5, 7]), (x - t, [-2.5, -3]), (x * t, [1.5, 10]), (x / t, [0.5 / 3, 0.4]), (x**t, [0.125, 32])]
    for found, wanted in pairs:
        assert isinstance(found, Tensor)
        assert found.data.tolist() == wanted
    np.testing.assert_array_equal(x < t, [True, True])


def test_comparisons_give_plain_booleans():
    t = leaf(1.0, 2.0, 3.0)
    for found, wanted in [(t < 2, [1, 0, 0]), (t <= 2, [1, 1, 0]), (t > np.array(2), [0, 0, 1]), (t >= t, [1, 1, 1])]:
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, np.array(wanted, bool))
