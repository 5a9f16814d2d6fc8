"""Reductions against NumPy over every kind of axis, and their gradients by hand where they are not plain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ShapeError

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


def test_equal_extremes_share_the_gradient():
    np.testing.assert_array_equal(gradient(ops.max, [1.0, 7.0, 7.0]), [0, 0.5, 0.5])
    np.testing.assert_array_equal(gradient(ops.min, [1.0, 1.0, 1.0, 1.0]), [0.25] * 4)


def test_a_product_has_its_gradients_beside_zeros_too():
    np.testing.assert_array_equal(gradient(ops.prod, [2.0, 3.0, 4.0]), [12, 8, 6])
    np.testing.assert_array_equal(gradient(ops.prod, [2.0, 0.0, 4.0]), [0, 8, 0])
    np.testing.assert_array_equal(gradient(ops.prod, [0.0, 0.0, 4.0]), [0, 0, 0])
    np.testing.assert_array_equal(
        gradient(lambda t: ops.prod(t, (0, 2)).sum(), np.full((2, 1, 2), 3.0)), np.full((2, 1, 2), 27.0)
    )


def test_the_gradient_of_a_mean_over_some_axes_is_one_over_their_size():
    x = tensor(np.zeros((2, 3, 4)), requires_grad=True)
    ops.mean(x, axis=(0, 2)).backward(gradient=[8.0, 16.0, 24.0])
    np.testing.assert_array_equal(x.grad[0, :, 0], [1, 2, 3])
    np.testing.assert_array_equal(x.grad, np.broadcast_to(x.grad[:1, :, :1], (2, 3, 4)))


def test_what_is_left_of_no_rows_is_empty_and_a_sum_or_product_of_nothing_is_0_or_1():
    for op in (ops.sum, ops.mean, ops.var, ops.std, ops.max, ops.min, ops.prod, ops.logsumexp, ops.norm):
        for shape in ((0, 3), (0, 0)):
            assert op(np.ones(shape), axis=-1).shape == (0,), op.name
            assert op(np.ones(shape), axis=-1, keepdims=True).shape == (0, 1), op.name
    np.testing.assert_array_equal(ops.sum(np.ones((2, 0)), axis=1), [0, 0])
    np.testing.assert_array_equal(ops.prod(np.ones((2, 0)), axis=1), [1, 1])
    np.testing.assert_array_equal(ops.norm(np.ones((2, 0)), axis=1), [0, 0])


def test_no_axes_at_all_reduce_nothing():
    x = np.array([[1.0, -2.0]])
    for op in (ops.sum, ops.mean, ops.max, ops.min, ops.prod, ops.logsumexp):
        np.testing.assert_array_equal(op(x, ()), x)
    np.testing.assert_array_equal(ops.var(x, ()), [[0, 0]])
    np.testing.assert_array_equal(ops.norm(x, axis=()), [[1, 2]])


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_logsumexp_overflows_nowhere(size):
    x = np.array([size, size, size], np.float32)
    np.testing.assert_allclose(ops.logsumexp(x), np.float32(size + math.log(3)), rtol=1e-6)
    np.testing.assert_allclose(gradient(ops.logsumexp, x, np.float32), [1 / 3] * 3, rtol=1e-3)


def test_logsumexp_of_infinities_is_infinite_with_the_gradient_at_the_largest():
    inf = np.inf
    for values, result, slope in [
        ([-inf, -inf], -inf, [0.5, 0.5]), ([-inf, 1.0], 1.0, [0, 1]), ([inf, 1000.0], inf, [1, 0]),
        ([inf, inf], inf, [0.5, 0.5]),
    ]:  # fmt: skip
        assert ops.logsumexp(np.array(values)) == result
        assert gradient(ops.logsumexp, values).tolist() == slope


@pytest.mark.parametrize("far", [-40.0, -700.0])
def test_logsumexp_of_a_zero_and_one_far_below_it_is_the_small_ones_exponential(far):
    assert ops.logsumexp(np.array([far, 0.0])) == pytest.approx(math.exp(far), rel=1e-15, abs=0)
    assert ops.logsumexp(np.array([0.0, far, 0.0])) == pytest.approx(math.log(2), rel=1e-15)


def test_logsumexp_of_small_differences_is_that_of_exact_sums():
    x = np.array([0.1, -0.7, 2.0, 0.3])
    exact = math.log(math.fsum(math.exp(v) for v in x))
    assert ops.logsumexp(x) == pytest.approx(exact, rel=1e-15)
    np.testing.assert_allclose(gradient(ops.logsumexp, x), [math.exp(v - exact) for v in x], rtol=1e-14)


def test_nan_is_not_swallowed():
    x = np.array([[1.0, np.nan], [1.0, 2.0]])
    for op in (ops.sum, ops.mean, ops.var, ops.std, ops.max, ops.min, ops.prod, ops.logsumexp, ops.norm):
        assert np.isnan(op(x, axis=1)).tolist() == [True, False], op.name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.sum(np.ones((2, 3)), 2), r"sum: x has shape \(2, 3\), which has no axis 2"),
        (lambda: ops.max(np.ones((2, 3)), (0, -3)), r"max: x has shape \(2, 3\), which has no axis \(0, -3\)"),
        (lambda: ops.mean(np.ones((2, 3)), (1, -1)), r"mean: axis \(1, -1\) names an axis of x \(2, 3\) twice"),
        (lambda: ops.max(np.ones((2, 0)), 1), r"max: x has shape \(2, 0\), so over axes \(1,\) there are 0 elements"),
        (lambda: ops.min(np.ones(0)), r"min: x has shape \(0,\), so over axes \(0,\) there are 0 elements, expected 1"),
        (lambda: ops.logsumexp(np.ones((3, 0)), -1), r"logsumexp: .* there are 0 elements, expected 1 or more"),
        (lambda: ops.prod(np.ones(2), 1.0), r"prod: x has shape \(2,\), which has no axis 1.0"),
    ],
)
def test_an_axis_that_is_not_there_or_too_short_is_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_numbers_without_axes_are_reduced_to_themselves():
    for op in (ops.sum, ops.mean, ops.max, ops.min, ops.prod, ops.logsumexp):
        assert op(np.array(3.0)) == 3.0


def test_the_records_count_a_few_operations_an_element():
    for name, each in [("sum", 1), ("mean", 1), ("max", 1), ("min", 1), ("prod", 1), ("logsumexp", 3)]:
        assert REGISTRY[name].flops({"*": (2, 3), "x": (2, 3)}) == 6 * each, name
