"""Products of arrays against NumPy's, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
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
    if left != (0, 3):
        np.testing.assert_allclose((tensor(x) @ y).data, x @ y, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose((x @ tensor(y)).data, x @ y, rtol=1e-13, atol=1e-14)


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
