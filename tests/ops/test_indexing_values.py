"""Indexing against NumPy's own over many keys, rows of a table, gradients of what was picked twice, and refusals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ShapeError
from minilora.ops import indexing

X = np.arange(24.0).reshape(2, 3, 4)
KEYS = [
    0, -1, (1, 2), (1, 2, 3), slice(None, None, -1), (slice(1), ..., slice(None, None, 2)), None, (..., None, 0),
    [1, 0, 0], (0, [2, 2]), ([0, 1], slice(None), [3, 3]), (slice(None), np.array([[0, 1], [2, 2]])), X > 11,
    (slice(None), np.array([True, False, True])), (1, [], 0), ..., np.int64(1), (np.array([True, False]), 1),
    (slice(0, 0), 1), True, False, (), (slice(None), (0, 2)), [], np.zeros((0, 2), int), np.array([1, 0], np.uint64),
    ([0, 1], [2, 2], None, [3, 0]), (X[0] > 5)[None].repeat(2, 0), ([[0], [1]], slice(None), [[1, 1]]),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_kind_of_key_picks_what_numpy_picks_and_sends_the_gradient_back(key):
    t = tensor(X, requires_grad=True)
    picked = t[key]
    np.testing.assert_array_equal(picked.data, X[key])
    cotangent = np.random.default_rng(0).standard_normal(picked.shape)
    picked.backward(gradient=cotangent)
    wanted = np.zeros(X.shape)
    np.add.at(wanted, key, cotangent)
    np.testing.assert_array_equal(t.grad, wanted)


def test_tensors_of_integers_are_keys_too():
    np.testing.assert_array_equal(tensor(X)[tensor(np.array([1, 1]))].data, X[[1, 1]])


IDS = np.array([[[0, 1, 2, 0]], [[2, 2, 1, 2]]])


@pytest.mark.parametrize(
    ("pick", "given", "written"),
    [
        (lambda t, ids: t[ids], np.array([0, 0]), 1),
        (lambda t, mask: t[mask], X > 11, False),
        (lambda t, start: t[:, start:2], np.array(1), 0),
        (lambda t, at: t[at], np.array(1), 0),
        (lambda t, ids: t[ids], [0, 0], 1),
        (lambda t, ids: ops.take(t, ids, 0), np.array([0, 0]), 1),
        (lambda t, ids: ops.gather(t, ids, 1), IDS, 1),
        (lambda t, ids: ops.scatter_add(np.zeros((2, 3, 4)), ids, t[:, :1], 1), IDS, 1),
    ],
)
def test_a_key_that_the_caller_changes_afterwards_changes_no_gradient(pick, given, written):
    t, same = tensor(X, requires_grad=True), tensor(X, requires_grad=True)
    key = given.copy()
    y, wanted = pick(t, key), pick(same, given)
    if isinstance(key, list):
        key[:] = [written] * len(key)
    else:
        key[...] = written
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(gradient=cotangent)
    wanted.backward(gradient=cotangent)
    np.testing.assert_array_equal(t.grad, same.grad)


def test_a_basic_key_gives_a_view_and_an_array_a_copy():
    assert np.shares_memory(ops.index(X, (0, slice(None, None, -1), None, ...)), X)
    assert not np.shares_memory(ops.index(X, [0]), X)


def test_only_positions_that_may_repeat_are_added_up_one_by_one(monkeypatch):
    """np.add.at is many times slower than an assignment, so slices and masks do without."""

    def refuse(*args):
        raise AssertionError("added one by one")

    monkeypatch.setattr(indexing, "np", SimpleNamespace(**{**vars(np), "add": SimpleNamespace(at=refuse)}))
    for key in (1, slice(0, 1), (..., None, -1), X > 3, (slice(None), np.array([True, False, True]))):
        t = tensor(X, requires_grad=True)
        t[key].backward(gradient=np.ones(X[key].shape))
        assert t.grad.sum() == X[key].size
    with pytest.raises(AssertionError, match="added one by one"):
        tensor(X, requires_grad=True)[[0, 0]].sum().backward()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (2, r"index: x has shape \(2, 3, 4\), which the index \[2\] does not fit: index 2 is out of bounds"),
        ((0, 0, 0, 0), r"which the index \[0, 0, 0, 0\] does not fit: too many indices"),
        (([0, 1], [0, 1, 2]), r"which the index \[\[0, 1\], \[0, 1, 2\]\] does not fit: shape mismatch"),
        (np.ones((3, 3), bool), r"which the index \[bool\[3, 3\]\] does not fit: boolean index did not match"),
        (0.5, r"which the index \[0.5\] does not fit: "),
        ("a", r"which the index \[a\] does not fit: "),
        (slice("a", None), r"which the index \[a:\] does not fit: "),
        ([[0], [1, 2]], r"does not fit: "),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_shown_with_the_shape(key, message):
    with pytest.raises(ShapeError, match=message):
        tensor(X)[key]


def test_take_gather_and_scatter_add_are_numpys():
    ids = np.array([[0, -1], [1, 1]])
    np.testing.assert_array_equal(ops.take(X, ids, 1), np.take(X, ids, 1))
    np.testing.assert_array_equal(ops.take(X, ids), np.take(X, ids))
    np.testing.assert_array_equal(ops.take(X, ids.astype(np.uint64) % 2, 1), np.take(X, ids % 2, 1))
    np.testing.assert_array_equal(ops.take(X, np.zeros((2, 0), int), 1), np.zeros((2, 2, 0, 4)))
    np.testing.assert_array_equal(tensor(X).take(3).data, X.take(3))
    np.testing.assert_array_equal(ops.take(X, -1, 2), np.take(X, -1, 2))
    np.testing.assert_array_equal(tensor(X).take(tensor(np.array([1, 1])), axis=-1).data, X.take([1, 1], axis=-1))
    along = np.array([[[0, 1, 2, 0]], [[2, 2, 2, 2]]])
    np.testing.assert_array_equal(ops.gather(X, along, 1), np.take_along_axis(X, along, 1))
    y = ops.scatter_add(np.zeros((1, 3)), np.array([[0, 2, 2, 0, 2]]), np.array([[1.0, 2, 3, 4, 5]]))
    np.testing.assert_array_equal(y, [[5, 0, 10]])


def test_scatter_add_leaves_its_operand_alone_and_gives_both_their_gradient():
    x, values = tensor(np.zeros(3), requires_grad=True), tensor(np.ones(4), requires_grad=True)
    y = ops.scatter_add(x, np.array([0, 2, 2, -1]), values)
    np.testing.assert_array_equal(y.data, [1, 0, 3])
    np.testing.assert_array_equal(x.data, 0)
    y.backward(gradient=[1, 10, 100])
    np.testing.assert_array_equal(x.grad, [1, 10, 100])
    np.testing.assert_array_equal(values.grad, [1, 100, 100, 100])


def test_gather_and_scatter_add_undo_each_other_as_transposes():
    """<gather(x), v> = <x, scatter_add(0, v)> for any indices."""
    rng = np.random.default_rng(3)
    x, ids = rng.standard_normal((4, 5)), rng.integers(-5, 5, (4, 7))
    v = rng.standard_normal((4, 7))
    left = np.sum(ops.gather(x, ids) * v)
    assert left == pytest.approx(np.sum(x * ops.scatter_add(np.zeros((4, 5)), ids, v)), rel=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.take(X, np.array([3]), 1), r"take: indices holds 3, but x has shape \(2, 3, 4\) and size 3 along"),
        (lambda: ops.take(X, np.array([0, -4]), 1), r"take: indices holds -4, but x has shape \(2, 3, 4\) and size 3"),
        (lambda: ops.take(X, np.array([24])), r"take: indices holds 24, but x has .* and size 24 along axis None"),
        (
            lambda: ops.take(X[:0], np.array([0]), 0),
            r"take: indices holds 0, but x has shape \(0, 3, 4\) and size 0 along",
        ),
        (
            lambda: ops.gather(X, np.zeros(4, int)),
            r"gather: indices has shape \(4,\), but x has \(2, 3, 4\); expected as",
        ),
        (
            lambda: ops.gather(X, np.zeros((1, 1, 1), int), 3),
            r"gather: x has shape \(2, 3, 4\), which does not fit axis 3",
        ),
        (lambda: ops.scatter_add(X, np.full((2, 3, 1), 4), np.ones((2, 3, 1))), r"scatter_add: indices holds 4, but x"),
        (lambda: ops.take(X, np.array([0]), 3), r"take: x has shape \(2, 3, 4\), which does not fit axis 3"),
        (lambda: ops.gather(X, np.zeros((2, 2, 4), int), 0), r"gather: indices has shape \(2, 2, 4\), but x has"),
        (lambda: ops.gather(X, np.zeros((2, 2, 4), int), 2), r"gather: indices has shape \(2, 2, 4\), but x has"),
        (lambda: ops.gather(X, np.full((2, 3, 1), -5)), r"gather: indices holds -5, but x has shape"),
        (
            lambda: ops.scatter_add(X, np.zeros((2, 3, 1), int), np.ones((2, 3))),
            r"scatter_add: values has shape \(2, 3\), expected \(2, 3, 1\)",
        ),
    ],
)
def test_positions_that_are_not_there_are_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_embedding_adds_the_gradients_of_a_repeated_id():
    table = tensor(np.arange(8.0).reshape(4, 2), requires_grad=True)
    out = ops.embedding(np.array([[3, 1], [3, 3]]), table)
    np.testing.assert_array_equal(out.data, [[[6, 7], [2, 3]], [[6, 7], [6, 7]]])
    out.backward(gradient=[[[1, 10], [2, 20]], [[3, 30], [4, 40]]])
    np.testing.assert_array_equal(table.grad, [[0, 0], [2, 20], [0, 0], [8, 80]])


@pytest.mark.parametrize("bad", [4, -1])
def test_embedding_refuses_an_id_outside_its_table(bad):
    with pytest.raises(ShapeError, match=f"embedding: ids holds {bad}, but weight has rows 0 to 3"):
        ops.embedding(np.array([0, bad]), np.ones((4, 2)))
