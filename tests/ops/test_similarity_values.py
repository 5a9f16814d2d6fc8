"""Cosine similarity and InfoNCE by hand and by loops of math.fsum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError


def cosine(x, y):
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e6])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cosine_similarity_is_the_loop_over_vectors_which_broadcast(size, axis):
    g = np.random.default_rng(0)
    x, y = size * g.standard_normal((3, 4)), np.moveaxis(g.standard_normal((1, 3 if axis == 0 else 4)), -1, axis)
    s = ops.cosine_similarity(x, y, axis=axis)
    vectors, other = np.moveaxis(x, axis, -1), y.ravel()
    np.testing.assert_allclose(s, [cosine(v, other) for v in vectors], rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(ops.cosine_similarity(x[0], x), ops.cosine_similarity(x, x[0]))


def test_the_gradient_of_cosine_similarity_is_across_the_vector():
    x, y = tensor(np.array([3.0, 4.0]), requires_grad=True), tensor(np.array([2.0, 0.0]), requires_grad=True)
    s = ops.cosine_similarity(x, y)
    assert s.item() == pytest.approx(0.6, rel=1e-15)
    s.backward()
    # (ŷ - s x̂) / |x| = ((1, 0) - 0.6 (0.6, 0.8)) / 5
    np.testing.assert_allclose(x.grad, [0.64 / 5, -0.48 / 5], rtol=1e-14)
    np.testing.assert_allclose(y.grad, [0, 0.8 / 2], atol=1e-16)


def test_a_number_stretched_along_the_axis_gathers_the_gradients_of_all_its_copies():
    x, y = tensor(np.array([[2.0], [-2.0]]), requires_grad=True), np.array([[3.0, 4.0], [3.0, 4.0]])
    s = ops.cosine_similarity(x, y)
    np.testing.assert_allclose(s.data, np.array([7, -7]) / (5 * math.sqrt(2)), rtol=1e-15)
    s.backward(gradient=[1.0, 1.0])
    np.testing.assert_allclose(x.grad, [[0], [0]], atol=1e-15)  # growing turns no vector
    x.grad = None
    ops.cosine_similarity(x, y, eps=10.0).backward(gradient=[1.0, 1.0])
    np.testing.assert_allclose(x.grad, [[0.07], [0.07]], rtol=1e-14)  # (3 + 4) / 10² where both are divided by eps


def test_a_vector_of_zeros_gives_zero_and_a_finite_gradient():
    x, y = tensor(np.zeros(2), requires_grad=True), np.array([3.0, 4.0])
    s = ops.cosine_similarity(x, y, eps=0.5)
    s.backward()
    assert s.item() == 0
    np.testing.assert_allclose(x.grad, [0.6 / 0.5, 0.8 / 0.5], rtol=1e-15)


def test_vectors_shorter_than_eps_are_divided_by_it():
    short = tensor(np.array([0.03, 0.04]), requires_grad=True)
    s = ops.cosine_similarity(short, np.array([3.0, 4.0]), eps=0.1)
    assert s.item() == pytest.approx(0.05 / 0.1, rel=1e-15)
    s.backward()
    np.testing.assert_allclose(short.grad, [6, 8], rtol=1e-14)  # (0.6, 0.8) / eps: nothing is taken off along x


def test_what_cosine_similarity_cannot_do_is_said():
    with pytest.raises(ShapeError, match=r"cosine_similarity: x has shape \(2, 3\), which has no axis 2"):
        ops.cosine_similarity(np.ones((2, 3)), np.ones(3), axis=2)
    with pytest.raises(ShapeError, match=r"cosine_similarity: y has shape \(2,\), which does not broadcast"):
        ops.cosine_similarity(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ConfigError, match="cosine_similarity: eps is 0, expected a number above 0"):
        ops.cosine_similarity(np.ones(3), np.ones(3), eps=0)


# ---------------------------------------------------------------- InfoNCE


def contrast(queries, keys, temperature, normalize):
    """For each query the negative log-likelihood of its own key among all, by math.fsum."""
    losses = []
    for i, query in enumerate(queries):
        scores = [
            (cosine(query, key) if normalize else math.fsum((query * key).tolist())) / temperature for key in keys
        ]
        peak = max(scores)
        losses.append(peak + math.log(math.fsum(math.exp(s - peak) for s in scores)) - scores[i])
    return np.array(losses)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_picks_the_key_of_each_query_and_both_ways_the_query_of_each_key(temperature, normalize):
    g = np.random.default_rng(1)
    queries, keys = g.standard_normal((5, 3)), g.standard_normal((5, 3))
    settings = {"temperature": temperature, "normalize": normalize}
    there, back = contrast(queries, keys, **settings), contrast(keys, queries, **settings)
    np.testing.assert_allclose(ops.info_nce(queries, keys, reduction="none", **settings), there, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ops.info_nce(queries, keys, **settings), there.mean(), rtol=1e-12)
    both = ops.info_nce(queries, keys, symmetric=True, reduction="sum", **settings)
    np.testing.assert_allclose(both, (there + back).sum() / 2, rtol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_is_cross_entropy_of_the_products_with_labels_in_order(symmetric):
    g = np.random.default_rng(2)
    arrays = g.standard_normal((4, 3)), g.standard_normal((4, 3))
    one, other = ([tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    ops.info_nce(*one, temperature=0.5, normalize=False, symmetric=symmetric).backward()
    scores = ops.matmul(other[0], other[1].T) * 2.0
    loss = ops.cross_entropy(scores, np.arange(4))
    if symmetric:
        loss = (loss + ops.cross_entropy(scores.T, np.arange(4))) * 0.5
    loss.backward()
    for mine, composed in zip(one, other, strict=True):
        np.testing.assert_allclose(mine.grad, composed.grad, rtol=1e-12, atol=1e-15)


def test_the_length_of_a_vector_that_is_normalised_does_not_count():
    g = np.random.default_rng(3)
    queries, keys = g.standard_normal((4, 3)), g.standard_normal((4, 3))
    assert ops.info_nce(1024 * queries, keys / 1024) == ops.info_nce(queries, keys)
    leaf = tensor(queries, requires_grad=True)
    ops.info_nce(leaf, keys).backward()
    np.testing.assert_allclose((leaf.grad * queries).sum(axis=1), 0, atol=1e-15)


def test_a_batch_that_is_told_apart_has_a_loss_that_keeps_its_digits():
    x = np.eye(2, dtype=np.float32)
    loss = ops.info_nce(x, x, temperature=0.025)
    np.testing.assert_allclose(loss, math.exp(-40), rtol=1e-6)


def test_one_example_has_nothing_to_be_confused_with():
    x = tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    loss = ops.info_nce(x, np.array([[-3.0, 5.0]]), symmetric=True)
    assert loss.item() == 0
    loss.backward()
    np.testing.assert_array_equal(x.grad, [[0, 0]])


def test_a_query_of_zeros_is_as_far_from_every_key():
    queries, keys = tensor(np.zeros((2, 3)), requires_grad=True), tensor(np.eye(2, 3), requires_grad=True)
    loss = ops.info_nce(queries, keys)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-15)
    assert np.isfinite(queries.grad).all()
    assert not keys.grad.any()


@pytest.mark.parametrize("bad", [0, -0.1, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(bad):
    with pytest.raises(ConfigError, match=f"info_nce: temperature is {bad}, expected a number above 0"):
        ops.info_nce(np.ones((2, 3)), np.ones((2, 3)), temperature=bad)


def test_a_query_without_a_key_is_refused():
    with pytest.raises(ShapeError, match="info_nce: keys has B=3, but queries has B=2"):
        ops.info_nce(np.ones((2, 3)), np.ones((3, 3)))
