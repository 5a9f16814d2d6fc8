"""Reductions against NumPy over every kind of axis, and their gradients by hand where they are not plain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError

AXES = (None, 0, -1, (0, 2), (1,), (-1, -3, 1))


def gradient(f, x, dtype=np.float64):
    t = tensor(np.asarray(x, dtype), requires_grad=True)
    f(t).backward()
    return t.grad


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_reductions_are_numpys(axis, keepdims, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(dtype)
    near = {"rtol": 20 * np.finfo(dtype).eps, "atol": 20 * np.finfo(dtype).eps}
    for ours, numpys in [
        (ops.sum, np.sum), (ops.mean, np.mean), (ops.var, np.var), (ops.std, np.std), (ops.max, np.max),
        (ops.min, np.min), (ops.prod, np.prod),
    ]:  # fmt: skip
        found = ours(x, axis, keepdims=keepdims)
        np.testing.assert_allclose(found, numpys(x, axis, keepdims=keepdims), **near)
        assert found.dtype == dtype
    for name in ("sum", "mean", "var", "std", "max", "min", "prod"):
        method, numpys = getattr(tensor(x), name), getattr(x, name)
        np.testing.assert_allclose(method(axis=axis, keepdims=keepdims).data, numpys(axis, keepdims=keepdims), **near)
    np.testing.assert_allclose(ops.var(x, axis, ddof=1), x.var(axis, ddof=1), **near)
    np.testing.assert_allclose(ops.std(x, axis, ddof=1), x.std(axis, ddof=1), **near)
    np.testing.assert_allclose(
        ops.logsumexp(x, axis, keepdims), np.log(np.sum(np.exp(x.astype(np.float64)), axis, keepdims=keepdims)), **near
    )


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


def test_equal_extremes_share_the_gradient():
    np.testing.assert_array_equal(gradient(ops.max, [1.0, 7.0, 7.0]), [0, 0.5, 0.5])
    np.testing.assert_array_equal(gradient(ops.min, [1.0, 1.0, 1.0, 1.0]), [0.25] * 4)
    np.testing.assert_array_equal(gradient(lambda t: ops.norm(t, math.inf), [-3.0, 3.0]), [-0.5, 0.5])


def test_a_product_has_its_gradients_beside_zeros_too():
    np.testing.assert_array_equal(gradient(ops.prod, [2.0, 3.0, 4.0]), [12, 8, 6])
    np.testing.assert_array_equal(gradient(ops.prod, [2.0, 0.0, 4.0]), [0, 8, 0])
    np.testing.assert_array_equal(gradient(ops.prod, [0.0, 0.0, 4.0]), [0, 0, 0])
    np.testing.assert_array_equal(
        gradient(lambda t: ops.prod(t, (0, 2)).sum(), np.full((2, 1, 2), 3.0)), np.full((2, 1, 2), 27.0)
    )


def test_a_variance_far_from_zero_keeps_its_digits():
    x = 1e8 + np.array([1.0, 2.0, 3.0, 4.0])
    assert ops.var(x) == 1.25
    np.testing.assert_array_equal(gradient(ops.var, x), [-0.75, -0.25, 0.25, 0.75])


def test_a_deviation_of_equal_numbers_is_zero_with_gradient_zero():
    np.testing.assert_array_equal(gradient(ops.std, [2.0, 2.0, 2.0]), [0, 0, 0])


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_logsumexp_overflows_nowhere(size):
    x = np.array([size, size, size], np.float32)
    np.testing.assert_allclose(ops.logsumexp(x), np.float32(size + math.log(3)), rtol=1e-6)
    np.testing.assert_allclose(gradient(ops.logsumexp, x, np.float32), [1 / 3] * 3, rtol=1e-3)


def test_logsumexp_of_minus_infinity_is_minus_infinity():
    assert ops.logsumexp(np.array([-np.inf, -np.inf])) == -np.inf
    assert ops.logsumexp(np.array([-np.inf, 1.0])) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.sum(np.ones((2, 3)), 2), r"sum: x has shape \(2, 3\), which has no axis 2"),
        (lambda: ops.max(np.ones((2, 3)), (0, -3)), r"max: x has shape \(2, 3\), which has no axis \(0, -3\)"),
        (lambda: ops.mean(np.ones((2, 3)), (1, -1)), r"mean: axis \(1, -1\) names an axis of x \(2, 3\) twice"),
        (lambda: ops.max(np.ones((2, 0)), 1), r"max: x has shape \(2, 0\), so over axes \(1,\) there are 0 elements"),
        (lambda: ops.min(np.ones(0)), r"min: x has shape \(0,\), so over axes \(0,\) there are 0 elements, expected 1"),
        (lambda: ops.logsumexp(np.ones((3, 0)), -1), r"logsumexp: .* there are 0 elements, expected 1 or more"),
        (lambda: ops.var(np.ones((3, 1)), 1, ddof=1), r"var: .* there are 1 elements, expected 2 or more"),
        (lambda: ops.std(np.ones(1), ddof=1), r"std: .* there are 1 elements, expected 2 or more"),
    ],
)
def test_an_axis_that_is_not_there_or_too_short_is_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_numbers_without_axes_are_reduced_to_themselves():
    for op in (ops.sum, ops.mean, ops.max, ops.min, ops.prod, ops.logsumexp):
        assert op(np.array(3.0)) == 3.0
    assert ops.norm(np.array(-3.0)) == 3.0
    assert ops.var(np.array(3.0)) == 0.0
