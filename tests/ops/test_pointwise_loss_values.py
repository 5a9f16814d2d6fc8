"""Squared error, Huber, logistic and Kullback–Leibler losses, element by element with Python's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError


def squared(x, t):
    return (x - t) ** 2


def huber(x, t):
    d = abs(x - t)
    return d * d / 2 if d <= 1 else d - 0.5


def logistic(x, t):
    """-t log σ(x) - (1 - t) log(1 - σ(x)), by the side on which no exponential overflows."""
    of_one = math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x
    of_zero = math.log1p(math.exp(x)) if x < 0 else math.log1p(math.exp(-x)) + x
    return t * of_one + (1 - t) * of_zero


def divergence(x, t):
    return t * (math.log(t) - x)


LOSSES = {
    "mse_loss": squared,
    "huber_loss": huber,
    "binary_cross_entropy_with_logits": logistic,
    "kl_div": divergence,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 100.0])
def test_a_loss_is_that_of_each_element_their_sum_or_mean(name, size):
    g = np.random.default_rng(0)
    x, t = size * g.standard_normal((3, 4)), g.random((3, 4))
    loss = getattr(ops, name)
    each = np.vectorize(LOSSES[name], otypes=[float])(x, t)
    np.testing.assert_allclose(loss(x, t, reduction="none"), each, rtol=1e-12)
    np.testing.assert_allclose(loss(x, t, reduction="sum"), math.fsum(each.flat), rtol=1e-12)
    np.testing.assert_allclose(loss(x, t), math.fsum(each.flat) / 12, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_nothing_is_zero(name):
    x = tensor(np.ones((0, 3)), requires_grad=True)
    loss = getattr(ops, name)(x, np.ones((0, 3)))
    assert loss.item() == 0
    loss.backward()
    assert x.grad.shape == (0, 3)


def gradients(loss, *arrays, **settings):
    leaves = [tensor(np.asarray(a), requires_grad=True) for a in arrays]
    loss(*leaves, reduction="sum", **settings).backward()
    return [leaf.grad for leaf in leaves]


def test_squared_error_and_its_gradients_by_hand():
    x, t = tensor(np.array([1.0, 5.0]), requires_grad=True), tensor(np.array([3.0, 2.0]), requires_grad=True)
    loss = ops.mse_loss(x, t)
    assert loss.item() == (4 + 9) / 2
    loss.backward()
    np.testing.assert_array_equal(x.grad, [-2, 3])
    np.testing.assert_array_equal(t.grad, [2, -3])


def test_huber_is_squared_up_to_delta_and_linear_beyond():
    x, t = np.array([0.5, 2.0, -5.0, 7.0]), np.array([0.0, 0.0, 0.0, 7.0])
    np.testing.assert_array_equal(ops.huber_loss(x, t, delta=2.0, reduction="none"), [0.125, 2, 2 * 4, 0])
    grad_x, grad_t = gradients(ops.huber_loss, x, t, delta=2.0)
    np.testing.assert_array_equal(grad_x, [0.5, 2, -2, 0])
    np.testing.assert_array_equal(grad_t, -grad_x)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan])
def test_huber_refuses_a_delta_that_is_not_above_zero(bad):
    with pytest.raises(ConfigError, match=f"huber_loss: delta is {bad}, expected a number above 0"):
        ops.huber_loss(np.ones(2), np.ones(2), delta=bad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_settings_that_are_numpy_numbers_keep_the_dtype(dtype):
    x = np.ones((2, 2), dtype)
    assert ops.huber_loss(3 * x, x, delta=np.float64(0.5)).dtype == dtype
    assert ops.info_nce(x, x, temperature=np.float64(0.5)).dtype == dtype
    assert ops.cosine_similarity(x, x, eps=np.float64(0.5)).dtype == dtype


# ---------------------------------------------------------------- logistic


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size_give_a_finite_loss_and_small_ones_keep_their_digits(dtype):
    x, t = np.array([[50.0, -50.0, 1e6, -1e6]], dtype), np.array([[1.0, 0.0, 0.0, 1.0]], dtype)
    near, small = {"rtol": 4 * np.finfo(dtype).eps}, math.exp(-50)
    loss = ops.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_allclose(loss, [[small, small, 1e6, 1e6]], **near)
    grad_x, grad_t = gradients(ops.binary_cross_entropy_with_logits, x, t)
    np.testing.assert_allclose(grad_x, [[-small, small, 1, -1]], **near)
    np.testing.assert_array_equal(grad_t, -x)


def test_the_weight_of_a_yes_multiplies_its_losses_alone():
    g = np.random.default_rng(1)
    x, t, weight = g.standard_normal((4, 3)), (g.random((4, 3)) < 0.5).astype(float), np.array([0.5, 1.0, 10.0])
    plain, weighed = (ops.binary_cross_entropy_with_logits(x, t, w, reduction="none") for w in (None, weight))
    np.testing.assert_allclose(weighed, plain * np.where(t == 1, weight, 1), rtol=1e-14)
    grad_x, grad_t, grad_weight = gradients(ops.binary_cross_entropy_with_logits, x, t, weight)
    np.testing.assert_allclose(grad_weight, np.where(t == 1, plain, 0).sum(axis=0), rtol=1e-14)
    sigmoid = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(grad_x, np.where(t == 1, -weight * (1 - sigmoid), sigmoid), rtol=1e-13)
    np.testing.assert_allclose(grad_t, -weight * np.log(sigmoid) + np.log(1 - sigmoid), rtol=1e-12)


def test_a_tiny_logit_gives_the_target_a_gradient_of_all_its_digits():
    grad_t = gradients(ops.binary_cross_entropy_with_logits, [[3e-12, -3e-12]], [[0.5, 0.5]])[1]
    np.testing.assert_array_equal(grad_t, [[-3e-12, 3e-12]])


# ---------------------------------------------------------------- Kullback–Leibler


def test_the_divergence_of_two_distributions_by_hand():
    target, estimate = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    rows = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)]
    found = ops.kl_div(np.log(estimate), target, reduction="batchmean")
    assert found == pytest.approx(math.fsum(rows) / 2, rel=1e-15)
    np.testing.assert_array_equal(ops.kl_div(np.log(estimate), target, reduction="none")[1, 1], 0)
    log_estimate, log_target = np.log(estimate), np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    np.testing.assert_allclose(
        ops.kl_div(log_estimate, log_target, reduction="none", log_target=True),
        ops.kl_div(log_estimate, np.exp(log_target), reduction="none"),
        rtol=1e-13,
    )


def test_the_gradients_of_the_divergence_by_hand():
    grad_x, grad_t = gradients(ops.kl_div, np.log([0.25, 0.75]), np.array([0.5, 1.0]))
    np.testing.assert_array_equal(grad_x, [-0.5, -1])
    np.testing.assert_allclose(grad_t, [1 + math.log(2), 1 - math.log(0.75)], rtol=1e-15)  # 1 + log t - x
    grad_x, grad_t = gradients(ops.kl_div, np.log([0.25, 0.75]), np.log([0.5, 1.0]), log_target=True)
    np.testing.assert_allclose(grad_x, [-0.5, -1], rtol=1e-15)
    np.testing.assert_allclose(grad_t, [0.5 * (1 + math.log(2)), 1 - math.log(0.75)], rtol=1e-14)


def test_a_probability_that_vanished_in_softmax_stops_no_gradient():
    scores = tensor(np.array([0.0, -1000.0]), requires_grad=True)
    ops.kl_div(np.log([0.5, 0.5]), ops.softmax(scores), reduction="sum").backward()
    np.testing.assert_array_equal(scores.grad, [0, 0])


def test_a_batch_mean_divides_by_the_first_axis_alone():
    x, t = np.zeros((2, 3, 4)), np.full((2, 3, 4), math.e)
    assert ops.kl_div(x, t, reduction="batchmean") == pytest.approx(math.e * 12, rel=1e-15)
    assert ops.kl_div(np.zeros(()), np.array(math.e), reduction="batchmean") == pytest.approx(math.e, rel=1e-15)
    assert ops.kl_div(np.zeros((0, 4)), np.zeros((0, 4)), reduction="batchmean") == 0


def test_logarithms_given_as_probabilities_are_refused_with_the_way_out():
    with pytest.raises(
        ShapeError, match=r"kl_div: target holds -0\.5, expected probabilities of at least 0\n.*log_target"
    ):
        ops.kl_div(np.zeros(3), np.array([0.0, -0.5, 0.2]))
