"""Moving elements: NumPy's results, views where NumPy gives views, gradients by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ConfigError, MiniloraError, ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


def gradient(f, x, cotangent):
    t = tensor(np.asarray(x, np.float64), requires_grad=True)
    f(t).backward(gradient=cotangent)
    return t.grad


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (lambda: ops.reshape(X, (4, -1)), lambda: X.reshape(4, -1)),
        (lambda: ops.transpose(X), lambda: X.T),
        (lambda: ops.transpose(X, (2, 0, -2)), lambda: X.transpose(2, 0, 1)),
        (lambda: ops.swapaxes(X, 0, -1), lambda: X.swapaxes(0, 2)),
        (lambda: ops.broadcast_to(X[:, :1], (5, 2, 3, 4)), lambda: np.broadcast_to(X[:, :1], (5, 2, 3, 4))),
        (lambda: ops.squeeze(X[:, :1, :1]), lambda: X[:, 0, 0]),
        (lambda: ops.squeeze(X[:, :1, :1], -1), lambda: X[:, :1, 0]),
        (lambda: ops.expand_dims(X, (0, -1)), lambda: X[None, ..., None]),
        (lambda: ops.concat([X, X[:, :1]], axis=1), lambda: np.concatenate([X, X[:, :1]], 1)),
        (lambda: ops.concat([X, X[0]], axis=None), lambda: np.concatenate([X, X[0]], None)),
        (lambda: ops.concat(tensor(X)), lambda: np.concatenate(X)),
        (lambda: ops.stack([X, -X]), lambda: np.stack([X, -X])),
        (lambda: ops.stack([X, -X], axis=-1), lambda: np.stack([X, -X], -1)),
        (lambda: ops.unstack(X, -1)[3], lambda: X[..., 3]),
        (lambda: ops.pad(X[0], 1, constant_values=(3, 4)), lambda: np.pad(X[0], 1, constant_values=(3, 4))),
        (lambda: ops.pad(X[0, 0, 0], 2), lambda: X[0, 0, 0]),
        (
            lambda: ops.pad(X, ((0, 1), (2, 0), (1, 1)), constant_values=7),
            lambda: np.pad(X, ((0, 1), (2, 0), (1, 1)), constant_values=7),
        ),
        (lambda: ops.pad(X, 2, "reflect"), lambda: np.pad(X, ((2, 2), (2, 2), (2, 2)), "reflect")),
        (lambda: ops.pad(X, (1, 0), "wrap"), lambda: np.pad(X, (1, 0), "wrap")),
        (lambda: ops.pad(X, 1, "edge"), lambda: np.pad(X, 1, "edge")),
        (lambda: ops.pad(X, 1, "symmetric"), lambda: np.pad(X, 1, "symmetric")),
        (lambda: ops.flip(X), lambda: np.flip(X)),
        (lambda: ops.flip(X, (0, -1)), lambda: X[::-1, :, ::-1]),
        (lambda: ops.roll(X, 3), lambda: np.roll(X, 3)),
        (lambda: ops.roll(X, (1, -1), (0, 2)), lambda: np.roll(X, (1, -1), (0, 2))),
        (lambda: ops.repeat(X, 2), lambda: np.repeat(X, 2)),
        (lambda: ops.repeat(X, [1, 0, 3], axis=1), lambda: np.repeat(X, [1, 0, 3], axis=1)),
        (lambda: tensor(X).T.data, lambda: X.T),
        (lambda: tensor(X).transpose(1, 2, 0).data, lambda: X.transpose(1, 2, 0)),
        (lambda: tensor(X).swapaxes(0, 1).data, lambda: X.swapaxes(0, 1)),
        (lambda: tensor(X).flatten().data, lambda: X.flatten()),
        (lambda: tensor(X).ravel().data, lambda: X.ravel()),
        (lambda: tensor(X[:1]).squeeze().data, lambda: X[0]),
        (lambda: tensor(X).repeat(2, axis=0).data, lambda: X.repeat(2, 0)),
        (lambda: tensor(X).reshape(6, 4).data, lambda: X.reshape(6, 4)),
    ],
)
def test_results_are_numpys(ours, numpys):
    np.testing.assert_array_equal(ours(), numpys())


def test_split_cuts_as_numpy_does():
    for x, where, axis in [
        (X, 3, 1), (X, 2, -1), (X, 1, 0), (X, [1, 2], 2), (X, [0, 5], 0), (X, [2, 1], 2), (X, [-1], 1), (X, [], 1),
        (X[:0], 1, 0), (X[:0], 3, 0),
    ]:  # fmt: skip
        for mine, numpys in zip(ops.split(x, where, axis), np.split(x, where, axis), strict=True):
            np.testing.assert_array_equal(mine, numpys)


def test_moving_elements_costs_no_floating_point_operation():
    moves = (
        "broadcast_to concat expand_dims flip gather index pad repeat reshape roll split squeeze stack swapaxes take "
        "transpose unstack embedding"
    )
    assert {REGISTRY[name].flops({}) for name in moves.split()} == {0}
    assert ops.scatter_add.flops({"values": (2, 3)}) == 6


def test_split_and_concat_undo_each_other():
    x = np.arange(12.0).reshape(2, 6)
    parts = ops.split(x, 3, axis=-1)
    np.testing.assert_array_equal(parts[1], x[:, 2:4])
    np.testing.assert_array_equal(ops.concat(parts, axis=-1), x)


def test_iterating_over_a_tensor_gives_its_rows_and_their_gradients_come_back():
    t = tensor(X, requires_grad=True)
    first, second = t
    (first * 2.0 + second).sum().backward()
    np.testing.assert_array_equal(t.grad, np.stack([np.full((3, 4), 2.0), np.ones((3, 4))]))
    assert [row.shape for row in t] == [(3, 4)] * 2
    with pytest.raises(TypeError, match="iteration over a tensor without axes"):
        iter(tensor(np.array(1.0)))


def test_what_only_changes_the_view_copies_nothing():
    for f in (
        lambda x: ops.reshape(x, (6, 4)),
        ops.transpose,
        ops.flip,
        lambda x: ops.expand_dims(x, 0),
        lambda x: ops.split(x, 2)[1],
        lambda x: ops.index(x, (slice(None), 1)),
        lambda x: ops.broadcast_to(x, (2, *X.shape)),
    ):
        assert np.shares_memory(f(X), X)


def test_numpy_takes_a_tensor_that_loses_no_gradient_by_it():
    assert np.shares_memory(np.asarray(tensor(X)), X)
    assert np.array(tensor(X), np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(tensor(X)), X)
    with pytest.raises(
        MiniloraError, match="__array__: NumPy would lose the gradient of this tensor\n  use an operator"
    ):
        np.asarray(tensor(X, requires_grad=True))


@pytest.mark.parametrize(
    ("call", "setting"),
    [
        (ops.flip, [0]),
        (lambda x, shift: ops.roll(x, shift, (0, 1)), [1, 2]),
        (lambda x, axes: ops.roll(x, 1, axes), [0, 2]),
        (lambda x, counts: ops.repeat(x, counts, 1), [2, 0, 1]),
        (lambda x, counts: ops.repeat(x, counts, 1), np.array([2, 0, 1])),
        (lambda x, cuts: ops.concat(ops.split(x, cuts, 2)[::-1], 2), [1, 3]),
        (lambda x, width: ops.pad(x, width, "wrap"), [1, 2]),
        (ops.transpose, [2, 0, 1]),
        (ops.broadcast_to, [2, 2, 3, 4]),
        (ops.reshape, [4, 6]),
    ],
)
def test_a_setting_that_the_caller_changes_afterwards_changes_no_gradient(call, setting):
    t, same, kept = tensor(X, requires_grad=True), tensor(X, requires_grad=True), tuple(setting)
    y = call(t, setting)
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    setting[:] = [0] * len(setting)
    y.backward(gradient=cotangent)
    call(same, kept).backward(gradient=cotangent)
    np.testing.assert_array_equal(t.grad, same.grad)


def test_gradients_by_hand():
    grad = gradient(ops.transpose, [[1.0, 2.0, 3.0]], [[10], [20], [30]])
    np.testing.assert_array_equal(grad, [[10, 20, 30]])
    grad = gradient(lambda t: ops.concat([t, -1.0 * t, t], axis=1), [[1.0], [2.0]], [[1, 10, 100], [2, 20, 200]])
    np.testing.assert_array_equal(grad, [[91], [182]])
    grad = gradient(lambda t: ops.concat([t, [[5.0, 6.0, 7.0]], t], axis=None), [1.0, 2.0], [1, 2, 9, 9, 9, 10, 20])
    np.testing.assert_array_equal(grad, [11, 22])
    grad = gradient(lambda t: ops.stack([t, t * 2.0], axis=1), [1.0, 2.0], [[1, 10], [2, 20]])
    np.testing.assert_array_equal(grad, [21, 42])
    grad = gradient(lambda t: ops.concat(ops.split(t, [3, 1])), [1.0, 2.0, 3.0, 4.0], [1, 2, 3, 40, 50, 60])
    np.testing.assert_array_equal(grad, [1, 42, 53, 60])  # cut at 3 and at 1: t[:3], t[3:1], t[1:] overlap
    grad = gradient(lambda t: ops.pad(t, (2, 1)), [1.0, 2.0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(grad, [3, 4])
    grad = gradient(lambda t: ops.pad(t, ((1, 0), (0, 2)), "edge"), [[1.0, 2.0]], [[1, 2, 3, 4], [10, 20, 30, 40]])
    np.testing.assert_array_equal(grad, [[11, 99]])
    grad = gradient(lambda t: ops.repeat(t, 3, axis=0), [[1.0, 2.0]], [[1, 2], [10, 20], [100, 200]])
    np.testing.assert_array_equal(grad, [[111, 222]])
    grad = gradient(lambda t: ops.flip(t, 1), [[1.0, 2.0]], [[1, 10]])
    np.testing.assert_array_equal(grad, [[10, 1]])
    grad = gradient(lambda t: ops.broadcast_to(t, (2, 3)), [[1.0], [2.0]], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(grad, [[6], [15]])
    grad = gradient(lambda t: ops.repeat(t, [2, 0, 1]), [1.0, 2.0, 3.0], [1, 10, 100])
    np.testing.assert_array_equal(grad, [11, 0, 100])
    grad = gradient(lambda t: ops.pad(t, 2, "reflect"), [1.0, 2.0, 3.0], [1, 10, 100, 1e3, 1e4, 1e5, 1e6])
    np.testing.assert_array_equal(grad, [1e2 + 1e6, 10 + 1e3 + 1e5, 1 + 1e4])  # laid out 3 2 1 2 3 2 1
    grad = gradient(lambda t: ops.roll(t, 1), [1.0, 2.0, 3.0], [1, 10, 100])
    np.testing.assert_array_equal(grad, [10, 100, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.reshape(X, (5, 5)), r"reshape: x has shape \(2, 3, 4\), which does not fit shape \(5, 5\)"),
        (lambda: ops.transpose(X, (0, 1)), r"transpose: x has shape \(2, 3, 4\), which does not fit axes \(0, 1\)"),
        (lambda: ops.swapaxes(X, 0, 3), r"swapaxes: x has shape \(2, 3, 4\), which does not fit axis1 0, axis2 3"),
        (lambda: ops.broadcast_to(X, (2, 3)), r"broadcast_to: x has shape \(2, 3, 4\), which does not fit shape"),
        (lambda: ops.squeeze(X, 0), r"squeeze: x has shape \(2, 3, 4\), which does not fit axis 0"),
        (lambda: ops.expand_dims(X, 7), r"expand_dims: x has shape \(2, 3, 4\), which does not fit axis 7"),
        (lambda: ops.flip(X, 3), r"flip: x has shape \(2, 3, 4\), which does not fit axis 3"),
        (lambda: ops.roll(X, 1, 3), r"roll: x has shape \(2, 3, 4\), which does not fit shift 1, axis 3"),
        (lambda: ops.repeat(X, [1, 2], 1), r"repeat: x has shape \(2, 3, 4\), which does not fit repeats"),
        (lambda: ops.pad(X, ((1, 1), (1, 1))), r"pad: x has shape \(2, 3, 4\), which does not fit pad_width"),
        (lambda: ops.repeat(X, -1), r"repeat: x has shape \(2, 3, 4\), which does not fit repeats -1, axis None"),
        (
            lambda: ops.repeat(X, 1.5),
            r"repeat: x has shape \(2, 3, 4\), which does not fit repeats 1.5.*: expected integ",
        ),
        (lambda: ops.pad(X[:0], 1, "edge"), r"pad: x has shape \(0, 3, 4\), .* mode 'edge': can't extend empty axis 0"),
        (lambda: ops.unstack(X, 3), r"unstack: x has shape \(2, 3, 4\), which does not fit axis 3"),
        (
            lambda: ops.roll(X, (1, 2, 3), (0, 1)),
            r"roll: x has shape \(2, 3, 4\), which does not fit shift \(1, 2, 3\)",
        ),
        (lambda: ops.split(X, 0), r"split: x has shape \(2, 3, 4\), .*size 2 does not divide into 0 equal parts"),
        (
            lambda: ops.split(X, [1.5]),
            r"split: x has shape \(2, 3, 4\), which does not fit indices_or_sections \[1.5\]",
        ),
        (
            lambda: ops.concat([X, X[:, 1:], X]),
            r"concat: .*the shapes of xs are \[\(2, 3, 4\), \(2, 2, 4\), \(2, 3, 4\)\]",
        ),
        (lambda: ops.concat([]), r"concat: need at least one array to concatenate; the shapes of xs are \[\]"),
        (lambda: ops.concat([X], axis=3), r"concat: axis 3 is out of bounds.*the shapes of xs are \[\(2, 3, 4\)\]"),
        (lambda: tensor(X).reshape(2.0, 12), r"reshape: x has shape \(2, 3, 4\), which does not fit shape \(2.0, 12\)"),
        (lambda: ops.split(X, 5, 1), r"split: x has shape \(2, 3, 4\), .*size 3 does not divide into 5 equal parts"),
        (lambda: ops.split(X, 2, 3), r"split: x has shape \(2, 3, 4\), which does not fit axis 3"),
        (lambda: ops.stack([X, X[0]]), r"stack: .*\(2, 3, 4\).*\(3, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_operators_name_and_the_shape(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_pad_knows_five_modes():
    with pytest.raises(ConfigError, match="pad: mode is 'mean', expected 'constant', 'edge', 'reflect'"):
        ops.pad(X, 1, "mean")
