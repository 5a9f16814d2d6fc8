"""The head and its loss as one operator: what cross_entropy of linear gives, a few rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import kernels, ops
from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError
from minilora.kernels import FrozenWeight
from minilora.ops import linear_loss


def operands(seed=0, shape=(4, 9), width=5, classes=11):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < 0.3, -100, rng.integers(0, classes, shape))
    return rng.standard_normal((*shape, width)), rng.standard_normal((width, classes)), labels, rng


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("trained", ["x", "W", "xW"])
def test_it_is_cross_entropy_of_linear_with_the_same_gradients(trained, reduction, monkeypatch):
    monkeypatch.setattr(linear_loss, "CHUNK", 7)  # so that several chunks add to the gradient of W
    x, W, labels, rng = operands()
    cotangent = rng.standard_normal(labels.shape if reduction == "none" else ())
    results = []
    for whole in (True, False):
        a, b = tensor(x, requires_grad="x" in trained), tensor(W, requires_grad="W" in trained)
        if whole:
            loss = ops.linear_cross_entropy(a, b, labels, reduction=reduction)
        else:
            loss = ops.cross_entropy(ops.linear(a, b), labels, reduction=reduction)
        loss.backward(cotangent)
        results.append((loss.data, a.grad, b.grad))
    for got, want in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_numpy_never_holds_more_logits_than_a_chunk(monkeypatch):
    rows = []

    class Counted(FrozenWeight):
        def __rmatmul__(self, x):
            rows.append(len(x))
            return super().__rmatmul__(x)

    monkeypatch.setattr(kernels, "use_native", lambda: False)
    monkeypatch.setattr(linear_loss, "CHUNK", 7)
    x, W, labels, _ = operands()
    ops.linear_cross_entropy(x, Counted(W), labels)
    assert max(rows) <= 7
    assert sum(rows) == (labels != -100).sum()


def test_without_a_counted_label_loss_and_gradients_are_zero():
    x, W, labels, _ = operands()
    for reduction in ("mean", "sum"):
        a, b = tensor(x, requires_grad=True), tensor(W, requires_grad=True)
        loss = ops.linear_cross_entropy(a, b, np.full_like(labels, -100), reduction=reduction)
        assert loss.item() == 0
        loss.backward()
        assert not a.grad.any()
        assert not b.grad.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_label_that_is_almost_certain_keeps_its_digits(dtype):
    """1 - softmax is 1e-20 here, and the difference of 1 and softmax would be 0."""
    x = tensor(np.array([[46.0, 0.0]], dtype), requires_grad=True)
    loss = ops.linear_cross_entropy(x, np.eye(2, dtype=dtype), np.array([0]))
    loss.backward()
    rest = np.exp(-46.0)
    np.testing.assert_allclose(loss.item(), rest, rtol=1e-6)
    np.testing.assert_allclose(x.grad, [[-rest, rest]], rtol=1e-6)


def test_another_ignored_index_may_be_a_class():
    x, W, _, _ = operands(shape=(3,))
    labels = np.array([0, 4, 0])
    found = ops.linear_cross_entropy(x, W, labels, ignore_index=0)
    assert found == pytest.approx(float(ops.cross_entropy(x[1:2] @ W, labels[1:2])), rel=1e-13)


def test_a_gradient_that_arrives_as_one_is_not_copied():
    x, W, labels, _ = operands()
    record, need = linear_loss.linear_cross_entropy, (True, True, False)
    params = {"ignore_index": -100, "reduction": "mean"}
    _, saved = record.run(record.reference, (x, W, labels), params, need)
    assert record.reference.vjp(np.ones(()), saved, need, **params)[1] is saved[-1]
    assert record.reference.vjp(np.full((), 2.0), saved, need, **params)[1] is not saved[-1]


@pytest.mark.parametrize("bad", [11, -1])
def test_a_label_outside_the_vocabulary_is_refused(bad):
    x, W, labels, _ = operands()
    labels[2, 3] = bad
    with pytest.raises(ShapeError, match=f"linear_cross_entropy: labels holds {bad}, expected 0 to 10 or -100"):
        ops.linear_cross_entropy(x, W, labels)


def test_an_unknown_reduction_is_refused():
    x, W, labels, _ = operands()
    with pytest.raises(ConfigError, match="linear_cross_entropy: reduction is 'all', expected 'mean', 'sum' or 'none'"):
        ops.linear_cross_entropy(x, W, labels, reduction="all")
