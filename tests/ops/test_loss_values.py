"""Softmax cross-entropy by math.fsum: labels left out, classes weighed, labels smoothed, losses almost 0."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minilora import kernels, ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError


def rng(seed=0):
    return np.random.default_rng(seed)


def log_likelihoods(logits, labels):
    """-log softmax at the labels, in float64 by math.fsum."""
    rows = np.asarray(logits, np.float64)
    found = []
    for row, label in zip(rows.reshape(-1, rows.shape[-1]), labels.reshape(-1), strict=True):
        peak = row.max()
        found.append(peak + math.log(math.fsum(math.exp(x - peak) for x in row)) - row[label])
    return np.array(found).reshape(labels.shape)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_cross_entropy_is_logsumexp_minus_the_label_even_for_huge_logits(size):
    g = rng(7)
    logits = (size * g.standard_normal((3, 4, 9))).astype(np.float32)
    labels = g.integers(0, 9, (3, 4))
    expected = log_likelihoods(logits, labels)
    got = ops.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * size)
    np.testing.assert_allclose(ops.cross_entropy(logits, labels), expected.mean(), rtol=2e-6)
    np.testing.assert_allclose(ops.cross_entropy(logits, labels, reduction="sum"), expected.sum(), rtol=2e-6)


def test_uniform_logits_lose_the_logarithm_of_the_vocabulary():
    assert ops.cross_entropy(np.zeros((2, 8)), np.array([0, 7])) == pytest.approx(math.log(8), rel=1e-15)


def test_ignored_labels_count_neither_in_the_loss_nor_in_the_gradient():
    logits = rng(8).standard_normal((4, 5))
    labels = np.array([1, -100, 4, -100])
    x, fewer = tensor(logits, requires_grad=True), tensor(logits[[0, 2]], requires_grad=True)
    loss, expected = ops.cross_entropy(x, labels), ops.cross_entropy(fewer, labels[[0, 2]])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-15)
    loss.backward()
    expected.backward()
    np.testing.assert_array_equal(x.grad[[1, 3]], 0)
    np.testing.assert_allclose(x.grad[[0, 2]], fewer.grad, rtol=1e-14)


def test_the_gradient_of_cross_entropy_is_softmax_minus_one_at_the_label():
    x = tensor(np.log(np.array([[1.0, 2.0, 5.0]])), requires_grad=True)
    ops.cross_entropy(x, np.array([1])).backward()
    np.testing.assert_allclose(x.grad, [[1 / 8, 2 / 8 - 1, 5 / 8]], rtol=1e-14)


def test_cross_entropy_without_counted_labels_is_zero_with_zero_gradient():
    x = tensor(np.ones((2, 3)), requires_grad=True)
    loss = ops.cross_entropy(x, np.array([-100, -100]))
    assert loss.item() == 0
    loss.backward()
    np.testing.assert_array_equal(x.grad, 0)


def test_another_ignored_index_can_be_chosen():
    logits = rng(9).standard_normal((2, 3))
    assert ops.cross_entropy(logits, np.array([0, 2]), ignore_index=0) == pytest.approx(
        log_likelihoods(logits[1:], np.array([2]))[0]
    )


@pytest.mark.parametrize("bad", [3, -1])
def test_a_label_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(ShapeError, match=f"cross_entropy: labels holds {bad}, expected 0 to 2 or -100"):
        ops.cross_entropy(np.ones((2, 3)), np.array([0, bad]))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match="cross_entropy: reduction is 'total', expected 'mean', 'sum' or 'none'"):
        ops.cross_entropy(np.ones((1, 3)), np.array([0]), reduction="total")


def weighed(logits, labels, weight, smoothing, reduction):
    """The loss of rows of logits, as torch defines it, by math.fsum over every class of every label."""
    losses, divisor = [], []
    for row, label in zip(logits, labels, strict=True):
        if label == -100:
            losses.append(0.0)
            continue
        of_class = [w * log_likelihoods(row, np.array(c)) for c, w in enumerate(weight)]
        losses.append((1 - smoothing) * of_class[label] + smoothing / len(row) * math.fsum(of_class))
        divisor.append(weight[label])
    return {"none": losses, "sum": math.fsum(losses), "mean": math.fsum(losses) / math.fsum(divisor)}[reduction]


WEIGHT, LABELS = np.array([0.5, 2.0, 0.25, 4.0]), np.array([3, -100, 0, 1, 3])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_weights_and_smoothing_are_the_sum_over_classes(weight, smoothing, reduction):
    logits = 3 * rng(10).standard_normal((5, 4))
    found = ops.cross_entropy(logits, LABELS, weight, label_smoothing=smoothing, reduction=reduction)
    expected = weighed(logits, LABELS, np.ones(4) if weight is None else weight, smoothing, reduction)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_weights_one_and_smoothing_zero_are_the_plain_loss():
    logits = rng(11).standard_normal((5, 4))
    assert ops.cross_entropy(logits, LABELS, np.ones(4)) == ops.cross_entropy(logits, LABELS)
    both = [tensor(logits, requires_grad=True) for _ in range(2)]
    for leaf, weight in zip(both, (np.ones(4), None), strict=True):
        ops.cross_entropy(leaf, LABELS, weight).backward()
    np.testing.assert_allclose(both[0].grad, both[1].grad, rtol=1e-14, atol=1e-17)


def test_the_gradients_of_a_weighed_mean_by_hand():
    x = tensor(np.zeros((2, 2)), requires_grad=True)
    w = tensor(np.array([1.0, 3.0]), requires_grad=True)
    loss = ops.cross_entropy(x, np.array([0, 1]), w)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-15)
    loss.backward()
    np.testing.assert_allclose(x.grad, [[-1 / 8, 1 / 8], [3 / 8, -3 / 8]], rtol=1e-15)  # w / 4 · (p - 1)
    np.testing.assert_allclose(w.grad, [0, 0], atol=1e-16)  # both labels lose the same, however they count
    y = tensor(np.log(np.array([[1.0, 3.0], [1.0, 1.0]])), requires_grad=True)
    w.grad = None
    ops.cross_entropy(y, np.array([0, 1]), w).backward()
    # losses log 4 and log 2, mean (log 4 + 3 log 2) / 4 = 5/4 log 2; d/dw = (loss - mean) / 4
    np.testing.assert_allclose(w.grad, [0.75 / 4 * math.log(2), -0.25 / 4 * math.log(2)], rtol=1e-14)


def test_classes_without_weight_count_nowhere():
    logits = rng(12).standard_normal((3, 3))
    x = tensor(logits, requires_grad=True)
    loss = ops.cross_entropy(x, np.array([0, 1, 0]), np.array([0.0, 2.0, 1.0]))
    assert loss.item() == pytest.approx(ops.cross_entropy(logits[1:2], np.array([1])).item(), rel=1e-15)
    loss.backward()
    np.testing.assert_array_equal(x.grad[[0, 2]], 0)
    nothing = ops.cross_entropy(x, np.array([0, 0, 0]), np.array([0.0, 2.0, 1.0]))
    assert nothing.item() == 0
    nothing.backward()


def test_without_counted_labels_huge_logits_and_weights_get_a_gradient_of_zero():
    x, w = tensor(np.full((2, 3), 1e6), requires_grad=True), tensor(np.ones(3), requires_grad=True)
    ops.cross_entropy(x, np.array([-100, -100]), w, label_smoothing=0.1).backward()
    np.testing.assert_array_equal(x.grad, np.zeros((2, 3)))
    np.testing.assert_array_equal(w.grad, np.zeros(3))


def test_a_loss_of_less_than_one_unit_in_the_last_place_keeps_its_digits_in_float64():
    x = tensor(np.array([[0.0, -50.0], [-700.0, 0.0]]), requires_grad=True)
    losses = ops.cross_entropy(x, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(losses.data, [math.exp(-50), math.exp(-700)], rtol=1e-13)
    losses.backward(gradient=[1.0, 1.0])
    np.testing.assert_allclose(x.grad, [[-math.exp(-50), math.exp(-50)], [math.exp(-700), -math.exp(-700)]], rtol=1e-13)


def plain_float32(logits, labels, reduction):
    """The training loss and its gradient in float32, step by step as they are rounded."""
    counted = labels != -100
    peak = logits.max(axis=-1, keepdims=True)
    log_total = peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))
    rows = np.arange(len(labels))
    losses = np.where(counted, log_total[:, 0] - logits[rows, np.where(counted, labels, 0)], np.float32(0))
    count = counted.sum() if reduction == "mean" else 1
    share = np.where(counted, 1 / count, 0).astype(np.float32)[:, None]
    grad = np.exp(logits - log_total) * share
    grad[rows[counted], labels[counted]] -= share[counted, 0]
    return np.float32(losses.sum(dtype=np.float64) / count), grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [0.1, 3.0, 100.0])
def test_the_plain_loss_in_numpy_has_these_very_bits(size, reduction, monkeypatch):
    monkeypatch.setattr(kernels, "use_native", lambda: False)
    g = rng(13)
    logits = (size * g.standard_normal((20, 33))).astype(np.float32)
    labels = np.where(g.random(20) < 0.3, -100, g.integers(0, 33, 20))
    labels[0] = logits[0].argmax()
    x = tensor(logits, requires_grad=True)
    loss = ops.cross_entropy(x, labels, reduction=reduction)
    loss.backward()
    expected, grad = plain_float32(logits, labels, reduction)
    assert loss.data == expected
    assert loss.dtype == x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT.astype(np.float32)])
def test_numpy_numbers_as_settings_keep_float32(weight, smoothing):
    x = tensor(rng(14).standard_normal((5, 4)).astype(np.float32), requires_grad=True)
    loss = ops.cross_entropy(x, LABELS, weight, label_smoothing=np.float64(smoothing))
    loss.backward()
    assert loss.dtype == x.grad.dtype == np.float32


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_a_smoothing_outside_its_range_is_refused(bad):
    with pytest.raises(ConfigError, match=f"cross_entropy: label_smoothing is {bad}, expected 0 to 1"):
        ops.cross_entropy(np.ones((1, 3)), np.array([0]), label_smoothing=bad)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_a_weight_below_zero_is_refused(bad):
    with pytest.raises(ShapeError, match=f"cross_entropy: weight holds {bad}, expected numbers of at least 0"):
        ops.cross_entropy(np.ones((1, 3)), np.array([0]), np.array([1.0, bad, 2.0]))


def test_every_loss_names_itself_and_its_choices_where_the_reduction_is_unknown():
    x = np.ones((2, 2))
    calls = {
        "mse_loss": lambda **r: ops.mse_loss(x, x, **r),
        "huber_loss": lambda **r: ops.huber_loss(x, x, **r),
        "binary_cross_entropy_with_logits": lambda **r: ops.binary_cross_entropy_with_logits(x, x, **r),
        "info_nce": lambda **r: ops.info_nce(x, x, **r),
    }
    for (name, call), bad in itertools.product(calls.items(), ("total", None)):
        with pytest.raises(ConfigError, match=f"{name}: reduction is {bad!r}, expected 'mean', 'sum' or 'none'"):
            call(reduction=bad)
    with pytest.raises(ConfigError, match="kl_div: reduction is 'rows', expected 'mean', 'sum', 'none' or 'batchmean'"):
        ops.kl_div(x, x, reduction="rows")
