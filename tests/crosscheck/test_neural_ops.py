"""Softmax, losses and norms: values and gradients are torch's, in float64, for every setting that both have.

Bounds. Two right computations differ by rounding alone, which acts as if every operand moved by a relative
n · eps, n the roundings on the way (see minilora.testing.tolerance). How far a value or gradient moves with
its operands is measured on torch: PROBES random movements by a relative STEP. The largest, over STEP,
is the size that n · eps is relative to; n is the sizes of all axes and a constant for the pointwise steps.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilora import ops
from minilora.autograd import tensor
from minilora.testing.tolerance import roundings

EPS = float(np.finfo(np.float64).eps)
STEP, PROBES = 1e-6, 4
REDUCTIONS = ("mean", "sum", "none")


def ours(call, arrays, grad):
    """The value of a call, and the gradients for its arrays."""
    leaves = [None if a is None else tensor(a, requires_grad=True) for a in arrays]
    out = call(*leaves)
    out.backward(gradient=grad(out.shape))
    return [out.data, *(leaf.grad for leaf in leaves if leaf is not None)]


def theirs(call, arrays, grad):
    leaves = [None if a is None else torch.tensor(a, requires_grad=True) for a in arrays]
    out = call(*leaves)
    out.backward(torch.tensor(grad(tuple(out.shape))))
    return [out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf is not None)]


def assert_agrees(our_call, torch_call, arrays, seed):
    rng = np.random.default_rng(seed)
    weights = {}

    def grad(shape):
        return np.asarray(weights.setdefault(shape, rng.standard_normal(shape)))

    mine, torchs = ours(our_call, arrays, grad), theirs(torch_call, arrays, grad)
    sizes = [np.abs(a) for a in torchs]
    for _ in range(PROBES):
        near = [None if a is None else a * (1 + STEP * rng.choice([-1.0, 1.0], a.shape)) for a in arrays]
        moved = theirs(torch_call, near, grad)
        sizes = [np.maximum(s, np.abs(m - t) / STEP) for s, m, t in zip(sizes, moved, torchs, strict=True)]
    count = roundings(a.shape for a in arrays if a is not None)
    assert len(mine) == len(torchs)
    for found, wanted, size in zip(mine, torchs, sizes, strict=True):
        assert found.shape == wanted.shape
        off, bound = np.abs(found - wanted).max(initial=0), count * EPS * size.max(initial=0)
        assert off <= bound, (off, bound)


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def some(array, present):
    return array if present else None


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_softmax_and_its_logarithm(size, axis):
    x = size * numbers(1, 3, 4, 5)
    assert_agrees(lambda t: ops.softmax(t, axis), lambda t: F.softmax(t, axis), [x], 2)
    assert_agrees(lambda t: ops.log_softmax(t, axis), lambda t: F.log_softmax(t, axis), [x], 3)


@pytest.mark.parametrize(
    ("reduction", "smoothing", "weighed", "ignored"),
    [*itertools.product(REDUCTIONS, (0.0, 0.1, 1.0), (False, True), (-100, 2))],
)
def test_cross_entropy(reduction, smoothing, weighed, ignored):
    logits, weight = 3 * numbers(4, 8, 5), some(np.random.default_rng(5).uniform(0.1, 4, 5), weighed)
    labels = np.array([0, ignored, 4, 1, 1, 3, ignored, 0])
    torch_weight, torch_labels = (None if a is None else torch.tensor(a) for a in (weight, labels))
    settings = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
    assert_agrees(
        lambda t: ops.cross_entropy(t, labels, weight, **settings),
        lambda t: F.cross_entropy(t, torch_labels, torch_weight, **settings),
        [logits], 6,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [0.01, 1.0, 20.0])
def test_pointwise_losses(size, reduction):
    x, t = size * numbers(7, 4, 3), numbers(8, 4, 3)
    settings = {"reduction": reduction}
    assert_agrees(lambda *a: ops.mse_loss(*a, **settings), lambda *a: F.mse_loss(*a, **settings), [x, t], 9)
    for delta in (0.5, 2.0):
        assert_agrees(
            lambda *a, d=delta: ops.huber_loss(*a, delta=d, **settings),
            lambda *a, d=delta: F.huber_loss(*a, delta=d, **settings),
            [x, t], 10,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighed", [False, True])
def test_binary_cross_entropy_with_logits(weighed, reduction):
    g = np.random.default_rng(11)
    logits, target, weight = 5 * numbers(12, 4, 3), g.random((4, 3)), some(g.uniform(0.1, 4, 3), weighed)
    torch_weight = None if weight is None else torch.tensor(weight)  # which has no gradient there
    assert_agrees(
        lambda *a: ops.binary_cross_entropy_with_logits(*a, weight, reduction=reduction),
        lambda *a: F.binary_cross_entropy_with_logits(*a, pos_weight=torch_weight, reduction=reduction),
        [logits, target], 13,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div(log_target, reduction):
    log_p, target = (torch.log_softmax(torch.tensor(numbers(s, 4, 3)), -1).numpy() for s in (14, 15))
    settings = {"reduction": reduction, "log_target": log_target}
    assert_agrees(
        lambda *a: ops.kl_div(*a, **settings), lambda *a: F.kl_div(*a, **settings),
        [log_p, target if log_target else np.exp(target)], 16,
    )  # fmt: skip


@pytest.mark.parametrize("axis", [0, -1])
def test_cosine_similarity_of_arrays_that_broadcast(axis):
    x, y = numbers(17, 2, 3, 4), numbers(18, 2, 1, 4)
    assert_agrees(
        lambda *a: ops.cosine_similarity(*a, axis=axis), lambda *a: F.cosine_similarity(*a, dim=axis), [x, y], 19
    )


def test_cosine_similarity_of_vectors_shorter_than_eps_whose_gradient_torch_has_otherwise():
    """torch goes back through |x| also where it divided by eps, which is not the slope of what it computed."""
    x, y = 0.1 * numbers(36, 5, 4), numbers(37, 5, 4)
    wanted = F.cosine_similarity(torch.tensor(x), torch.tensor(y), eps=0.5).numpy()
    assert (np.linalg.norm(x, axis=1) < 0.5).all()
    np.testing.assert_allclose(ops.cosine_similarity(x, y, eps=0.5), wanted, rtol=20 * EPS, atol=20 * EPS)


@pytest.mark.parametrize(
    ("reduction", "normalize", "symmetric"), [*itertools.product(REDUCTIONS, (True, False), (False, True))]
)
def test_info_nce_as_torch_puts_it_together(reduction, normalize, symmetric):
    def composed(queries, keys):
        if normalize:
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        scores, labels = queries @ keys.T / 0.2, torch.arange(6)
        there = F.cross_entropy(scores, labels, reduction=reduction)
        return (there + F.cross_entropy(scores.T, labels, reduction=reduction)) / 2 if symmetric else there

    settings = {"normalize": normalize, "symmetric": symmetric, "reduction": reduction}
    assert_agrees(
        lambda *a: ops.info_nce(*a, temperature=0.2, **settings), composed, [numbers(20, 6, 4), numbers(21, 6, 4)], 22
    )


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("gain", "shift"), [(False, False), (True, False), (True, True)])  # torch needs the gain
def test_norms(gain, shift, size):
    for shape, width in (((2, 3, 6), 6), ((5, 6), 6)):
        x, weight, bias = (
            size * (numbers(23, *shape) + 0.5),
            some(numbers(24, width), gain),
            some(numbers(25, 6), shift),
        )
        assert_agrees(
            lambda *a: ops.layer_norm(*a, eps=1e-5), lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-5),
            [x, weight, bias], 26,
        )  # fmt: skip
    shapes = (2, 6), (2, 6, 5), (2, 6, 2, 3)
    for shape, groups in [*itertools.product(shapes, (1, 2)), *itertools.product(shapes[1:], (3, 6))]:
        x, weight, bias = size * numbers(27, *shape), some(numbers(28, 6), gain), some(numbers(29, 6), shift)
        assert_agrees(
            lambda *a, n=groups: ops.group_norm(*a, num_groups=n), lambda x, w, b, n=groups: F.group_norm(x, n, w, b),
            [x, weight, bias], 30,
        )  # fmt: skip
    if gain and not shift:
        assert_agrees(
            lambda *a: ops.rms_norm(*a, eps=1e-5), lambda x, w: F.rms_norm(x, (6,), w, 1e-5),
            [size * numbers(31, 2, 3, 6), numbers(32, 6)], 33,
        )  # fmt: skip


def test_the_bound_would_see_one_part_in_a_million():
    x = numbers(34, 4, 5)
    with pytest.raises(AssertionError):
        assert_agrees(lambda t: ops.softmax(t) * (1 + 1e-6), lambda t: F.softmax(t, -1), [x], 35)
