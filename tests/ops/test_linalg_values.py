"""Products of arrays against NumPy's, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ConfigError, ShapeError
from minilora.kernels.frozen import FrozenWeight


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((4, 3), (3,)),
        ((4, 3), (3, 2)),
        ((5, 4, 3), (3, 2)),
        ((5, 4, 3), (3,)),
        ((3,), (5, 3, 2)),
        ((5, 1, 4, 3), (2, 3, 6)),
        ((4, 3), (5, 3, 2)),
        ((0, 3), (3, 2)),
        ((4, 0), (0, 2)),
    ],
)
def test_matmul_and_the_at_operator_are_numpys(left, right):
    x, y = random(*left), random(*right, seed=1)
    np.testing.assert_allclose(ops.matmul(x, y), x @ y, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose((tensor(x) @ y).data, x @ y, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose((x @ tensor(y)).data, x @ y, rtol=1e-13, atol=1e-14)


def by_loops(subscripts, xs, g):
    """The result, and the gradients for a cotangent ``g``: a loop over all values of all letters; size 1 stretches."""
    left, output = subscripts.split("->")
    terms, sizes = left.split(","), {}
    for term, x in zip(terms, xs, strict=True):
        for c, n in zip(term, x.shape, strict=True):
            sizes[c] = n if sizes.get(c, 1) == 1 else sizes[c]
    y, grads = np.zeros([sizes[c] for c in output]), [np.zeros(x.shape) for x in xs]
    for values in itertools.product(*map(range, sizes.values())):
        at = dict(zip(sizes, values, strict=True))
        out = tuple(at[c] for c in output)
        places = [tuple(at[c] % n for c, n in zip(t, x.shape, strict=True)) for t, x in zip(terms, xs, strict=True)]
        factors = [x[place] for x, place in zip(xs, places, strict=True)]
        y[out] += math.prod(factors)
        for i, (grad, place) in enumerate(zip(grads, places, strict=True)):
            grad[place] += g[out] * math.prod(factors[:i] + factors[i + 1 :])
    return y, grads


def assert_given_by_loops(f, subscripts, xs):
    leaves = [tensor(x, requires_grad=True) for x in xs]
    result = f(*leaves)
    g = random(*result.shape, seed=9)
    y, grads = by_loops(subscripts, xs, g)
    np.testing.assert_allclose(result.data, y, rtol=1e-12, atol=1e-13)
    result.backward(gradient=g)
    for leaf, grad in zip(leaves, grads, strict=True):
        np.testing.assert_allclose(leaf.grad, grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("subscripts", "left", "right"),
    [
        ("k,k->", (3,), (3,)),
        ("k,kn->n", (3,), (3, 2)),
        ("mk,k->m", (4, 3), (3,)),
        ("mk,kn->mn", (4, 3), (3, 2)),
        ("mk,kn->mn", (4, 0), (0, 2)),
        ("bmk,kn->bmn", (2, 4, 3), (3, 5)),
        ("bmk,k->bm", (2, 4, 3), (3,)),
        ("k,bkn->bn", (3,), (2, 3, 4)),
        ("mk,bkn->bmn", (4, 3), (2, 3, 5)),
        ("bmk,bkn->bmn", (1, 4, 3), (2, 3, 5)),
        ("abmk,bkn->abmn", (2, 1, 4, 3), (3, 3, 2)),
        ("abmk,abkn->abmn", (1, 2, 2, 3), (3, 1, 3, 2)),
        ("abmk,kn->abmn", (2, 0, 2, 3), (3, 2)),
    ],
)
def test_matmul_and_its_gradients_are_loops_over_elements(subscripts, left, right):
    assert_given_by_loops(ops.matmul, subscripts, [random(*left), random(*right, seed=1)])


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij->ji", [(2, 3)]),
        ("ij->i", [(2, 3)]),
        ("ii->", [(3, 3)]),
        ("ii->i", [(3, 3)]),
        ("iji->j", [(2, 3, 2)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("ik,jk,k->ij", [(2, 3), (4, 3), (3,)]),
        ("ij,kl->j", [(2, 3), (2, 2)]),
        ("ii,ij->j", [(3, 3), (3, 2)]),
        ("ij,ij->ij", [(1, 3), (2, 1)]),
        ("ij,jk->k", [(2, 1), (3, 2)]),
        ("i,i->", [(1,), (3,)]),
        ("i,i->i", [(1,), (0,)]),
        ("ij,j,->i", [(2, 3), (3,), ()]),
        ("aij,ajk->aik", [(1, 2, 3), (2, 3, 2)]),
    ],
)
def test_einsum_and_its_gradients_are_loops_over_elements(subscripts, shapes):
    xs = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    assert_given_by_loops(lambda *ts: ops.einsum(subscripts, *ts), subscripts, xs)


@pytest.mark.parametrize(
    ("x", "y", "flops"),
    [
        ((3,), (3,), 2 * 3),
        ((4, 3), (3,), 2 * 4 * 3),
        ((3,), (3, 5), 2 * 3 * 5),
        ((2, 4, 3), (3, 5), 2 * 2 * 4 * 3 * 5),
        ((2, 1, 4, 3), (6, 3, 5), 2 * 2 * 6 * 4 * 3 * 5),
    ],
)
def test_matmul_counts_a_product_and_a_sum_for_each_term(x, y, flops):
    assert ops.matmul.flops({"x": x, "y": y}) == flops


def test_einsum_keeps_an_operand_only_for_the_gradients_of_the_others():
    x, y = random(2, 3), random(3, 4)
    for need, kept in [((True, False), (False, True)), ((False, True), (True, False)), ((True, True), (True, True))]:
        _, (saved, *_) = ops.einsum.reference.forward("ij,jk->ik", (x, y), need=need)
        assert tuple(s is not None for s in saved) == kept


def test_the_gradients_of_a_product_by_hand():
    x, y = tensor(np.array([[1.0, 2.0]]), requires_grad=True), tensor(np.array([[3.0], [4.0]]), requires_grad=True)
    (x @ y).backward()
    np.testing.assert_array_equal(x.grad, [[3, 4]])
    np.testing.assert_array_equal(y.grad, [[1], [2]])
    u, v = tensor(np.array([1.0, 2.0]), requires_grad=True), tensor(np.array([3.0, 4.0, 5.0]), requires_grad=True)
    ops.outer(u, v).backward(gradient=np.array([[1.0, 0, 0], [0, 0, 10]]))
    assert (u.grad.tolist(), v.grad.tolist()) == ([3, 50], [1, 0, 20])


def test_a_frozen_weight_stands_on_the_right_of_the_at_operator():
    w = random(3, 2).astype(np.float32)
    np.testing.assert_allclose(
        (tensor(np.ones((4, 3), np.float32)) @ FrozenWeight(w)).data, np.ones((4, 3)) @ w, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ii", [(3, 3)]),
        ("ii->i", [(3, 3)]),
        ("ij->", [(2, 3)]),
        ("ij->ji", [(2, 3)]),
        ("i,j->ij", [(2,), (3,)]),
        ("...ij,...jk->...ik", [(5, 2, 3), (1, 3, 4)]),
        ("b...,b...->...", [(2, 3), (2, 3)]),
        ("...ij,...jk", [(5, 4, 2, 3), (4, 3, 4)]),
        ("i...,...i", [(3, 5, 1), (4, 3)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
        ("ijj->i", [(2, 3, 3)]),
        ("ba", [(2, 3)]),
        ("i,i,i->", [(3,), (3,), (3,)]),
        ("ij,j->ij", [(2, 3), (1,)]),
        (" i j , j k -> i k ", [(2, 3), (3, 4)]),
        (",i->i", [(), (3,)]),
    ],
)
def test_einsum_is_numpys(subscripts, shapes):
    xs = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    np.testing.assert_allclose(ops.einsum(subscripts, *xs), np.einsum(subscripts, *xs), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(ops.einsum(subscripts, xs), np.einsum(subscripts, *xs), rtol=1e-13, atol=1e-14)


def test_a_letter_that_was_summed_away_spreads_its_gradient():
    x = tensor(random(2, 3), requires_grad=True)
    ops.einsum("ij->j", x).backward(gradient=[1.0, 10.0, 100.0])
    np.testing.assert_array_equal(x.grad, [[1, 10, 100]] * 2)
    square = tensor(random(3, 3), requires_grad=True)
    ops.einsum("ii", square).backward()
    np.testing.assert_array_equal(square.grad, np.eye(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.matmul(random(2, 3), random(4, 2)),
            ShapeError,
            r"matmul: x has shape \(2, 3\) and y \(4, 2\); axis -1 of x has size 3, but axis -2 of y has 4",
        ),
        (lambda: ops.matmul(random(3), random(4)), ShapeError, r"axis -1 of x has size 3, but axis -1 of y has 4"),
        (
            lambda: ops.matmul(np.array(1.0), random(4)),
            ShapeError,
            r"matmul: x has shape \(\), expected at least one axis",
        ),
        (
            lambda: ops.matmul(random(2, 3, 4), random(3, 4, 2)),
            ShapeError,
            r"leading axes \(2,\) and \(3,\) do not broadcast",
        ),
        (lambda: ops.outer(random(2, 2), random(2)), ShapeError, r"outer: x has shape \(2, 2\), expected \[M\]"),
        (
            lambda: ops.einsum("ij,jk->ik", random(2, 3), random(4, 2)),
            ShapeError,
            r"einsum: operand 1 of xs .*'j' has size 4",
        ),
        (
            lambda: ops.einsum(3, random(2)),
            ConfigError,
            r"einsum: subscripts is int, expected a string such as 'ij,jk->ik'",
        ),
        (
            lambda: ops.einsum("i->ii", random(2)),
            ConfigError,
            r"name 'i' in the result, expected what an operand has, and",
        ),
        (lambda: ops.einsum("i->...i", random(2)), ConfigError, r"name '...' in the result"),
        (
            lambda: ops.einsum("...i,i->...", random(2), random(2, 2)),
            ShapeError,
            r"operand 1 of xs has shape .* axes 'i'",
        ),
        (
            lambda: ops.einsum("...,...->...", random(2, 3), random(4, 3)),
            ShapeError,
            r"operand 1 of xs has shape \(4, 3\), in which an axis of '...' has size 4, but an operand before it has 2",
        ),
        (lambda: ops.einsum("ii", random(2, 3)), ShapeError, r"'i' has size 3, but its first has 2"),
        (lambda: ops.einsum("ij", random(2)), ShapeError, r"operand 0 of xs has shape \(2,\), expected the axes 'ij'"),
        (lambda: ops.einsum("i,j", random(2)), ShapeError, r"subscripts 'i,j' are for 2 operands, but xs has 1"),
        (lambda: ops.einsum("i1->i", random(2)), ConfigError, r"subscripts 'i1->i' hold 'i1', expected letters"),
        (lambda: ops.einsum("i->k", random(2)), ConfigError, r"name 'k' in the result, expected what an operand has"),
        (lambda: ops.einsum("i...->i", random(2, 2)), ConfigError, r"lose the ellipsis"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_einsum_counts_a_product_of_all_operands_for_each_combination_of_letters():
    count = REGISTRY["einsum"].flops
    assert count({"subscripts": "ij,jk->ik", "xs": ((2, 3), (3, 4))}) == 2 * 2 * 3 * 4
    assert count({"subscripts": "...i->...", "xs": ((5, 2, 3),)}) == 5 * 2 * 3
    assert count({"subscripts": "ij,j,i", "xs": ((2, 3), (1,), (2,))}) == 3 * 2 * 3
