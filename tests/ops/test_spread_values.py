"""Variances, deviations and norms against NumPy, exact fractions and by hand, also of tiny and huge numbers."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ConfigError, ShapeError


def gradient(f, x, dtype=np.float64):
    t = tensor(np.asarray(x, dtype), requires_grad=True)
    f(t).backward()
    assert t.grad.dtype == dtype
    return t.grad


# ---------------------------------------------------------------- variance, standard deviation


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_a_variance_is_that_of_exact_fractions(ddof):
    x = [0.1, -2.7, 3.3, 1.9, 100.25]
    mean = sum(map(Fraction, x)) / 5
    variance = sum((Fraction(v) - mean) ** 2 for v in x) / (5 - ddof)
    assert ops.var(np.array(x), ddof=ddof) == pytest.approx(float(variance), rel=1e-14)
    assert ops.std(np.array(x), ddof=ddof) == pytest.approx(math.sqrt(variance), rel=1e-14)
    slope = [float(2 * (Fraction(v) - mean) / (5 - ddof)) for v in x]
    np.testing.assert_allclose(gradient(lambda t: ops.var(t, ddof=ddof), x), slope, rtol=1e-14)
    slope = [g / (2 * math.sqrt(variance)) for g in slope]
    np.testing.assert_allclose(gradient(lambda t: ops.std(t, ddof=ddof), x), slope, rtol=1e-14)
    assert ops.std(np.array(x), ddof=1) == pytest.approx(statistics.stdev(x), rel=1e-14)


def test_a_variance_far_from_zero_keeps_its_digits():
    x = 1e8 + np.array([1.0, 2.0, 3.0, 4.0])
    assert ops.var(x) == 1.25
    np.testing.assert_array_equal(gradient(ops.var, x), [-0.75, -0.25, 0.25, 0.75])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 3, 7, 49])
def test_a_deviation_of_equal_numbers_is_zero_with_gradient_zero(count, dtype):
    x = np.full(count, 0.1, dtype)  # the mean of 3, and in float32 of 7, is rounded to another number
    assert ops.std(x) == ops.var(x) == 0
    np.testing.assert_array_equal(gradient(ops.std, x, dtype), np.zeros(count))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_a_deviation_of_tiny_or_huge_numbers_is_exact(size):
    x = size * np.array([1.0, 2.0, 3.0, 4.0])
    assert ops.std(x, ddof=1) == pytest.approx(size * math.sqrt(5 / 3), rel=1e-15)
    slope = np.array([-1.5, -0.5, 0.5, 1.5]) / (3 * math.sqrt(5 / 3))
    np.testing.assert_allclose(gradient(lambda t: ops.std(t, ddof=1), x), slope, rtol=1e-15)


def test_degrees_of_freedom_that_are_numpy_numbers_keep_float32():
    x = np.array([1.0, 2.0, 4.0], np.float32)
    for op in (ops.var, ops.std):
        for ddof in (np.int64(1), np.float64(1), 1.0):
            assert op(x, ddof=ddof) == op(x, ddof=1)
            assert op(x, ddof=ddof).dtype == np.float32
            np.testing.assert_array_equal(
                gradient(lambda t, op=op, d=ddof: op(t, ddof=d), x, np.float32),
                gradient(lambda t, op=op: op(t, ddof=1), x, np.float32),
            )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.var(np.ones((3, 1)), 1, ddof=1), r"var: .* there are 1 elements, expected 2 or more"),
        (lambda: ops.std(np.ones(1), ddof=1), r"std: .* there are 1 elements, expected 2 or more"),
        (lambda: ops.var(np.ones(0)), r"var: x has shape \(0,\), .* there are 0 elements, expected 1 or more"),
        (lambda: ops.std(np.ones(2), 1), r"std: x has shape \(2,\), which has no axis 1"),
        (lambda: ops.norm(np.ones(2), axis=(0, 1)), r"norm: x has shape \(2,\), which has no axis \(0, 1\)"),
    ],
)
def test_too_few_elements_and_axes_that_are_not_there_are_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_norms_are_numpys_of_the_flattened_axes(axis, order):
    x = np.random.default_rng(1).standard_normal((3, 5))
    wanted = np.linalg.norm(x, order, axis=axis) if axis in (0, 1) else np.linalg.norm(x.reshape(-1), order)
    np.testing.assert_allclose(ops.norm(x, order, axis), wanted, rtol=1e-14)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_a_norm_of_tiny_or_huge_numbers_is_exact(size):
    assert ops.norm(np.array([3 * size, 4 * size])) == pytest.approx(5 * size, rel=1e-15)
    np.testing.assert_allclose(gradient(ops.norm, [3 * size, 4 * size]), [0.6, 0.8], rtol=1e-15)


def test_a_norm_at_zero_has_gradient_zero_and_refuses_other_orders():
    assert ops.norm(np.zeros(3)) == 0
    for order in (1, 2, math.inf):
        np.testing.assert_array_equal(gradient(lambda t, order=order: ops.norm(t, order), np.zeros(3)), 0)
    with pytest.raises(ConfigError, match="norm: ord is 3, expected 1, 2 or inf"):
        ops.norm(np.ones(2), 3)


def test_equal_largest_elements_share_the_gradient_of_the_largest_norm():
    np.testing.assert_array_equal(gradient(lambda t: ops.norm(t, math.inf), [-3.0, 3.0, 1.0]), [-0.5, 0.5, 0])


def test_gradients_of_norms_by_hand():
    assert gradient(lambda t: ops.norm(t, 1), [-3.0, 0.0, 4.0]).tolist() == [-1, 0, 1]
    assert gradient(lambda t: ops.norm(t, math.inf), [-3.0, 0.0, -4.0]).tolist() == [0, 0, -1]
    np.testing.assert_allclose(gradient(ops.norm, [-3.0, 0.0, 4.0]), [-0.6, 0, 0.8], rtol=1e-15)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_a_norm_of_infinity_is_infinite(order):
    assert ops.norm(np.array([1.0, -np.inf]), order) == np.inf
    assert np.isnan(ops.norm(np.array([1.0, np.nan]), order))


def test_a_number_without_axes_has_its_size_for_a_norm_and_no_variance():
    assert ops.norm(np.array(-3.0)) == 3.0
    assert ops.var(np.array(3.0)) == ops.std(np.array(3.0)) == 0.0


def test_the_records_count_a_few_operations_an_element():
    counts = {name: REGISTRY[name].flops({"*": (2, 3), "x": (2, 3)}) for name in ("var", "std", "norm")}
    assert counts == {"var": 24, "std": 24, "norm": 12}
