"""Hooks: who may look at a gradient, when, and what comes of what they return."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import MiniloraError, ShapeError


def leaf(*values, dtype=np.float64):
    return tensor(np.array(values, dtype), requires_grad=True)


def test_a_hook_on_a_leaf_sees_the_whole_gradient_once():
    x, seen = leaf(2.0, 3.0), []
    x.register_hook(lambda g: seen.append(g.copy()))
    (x * x + x).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], [5, 7])
    np.testing.assert_array_equal(x.grad, [5, 7])


def test_a_hook_sees_the_gradient_of_this_backward_not_what_had_added_up_before():
    x, seen = leaf(2.0), []
    x.grad = np.array([100.0])
    x.register_hook(lambda g: seen.append(float(g[0])))
    (x * 3.0).sum().backward()
    assert seen == [3.0]
    np.testing.assert_array_equal(x.grad, [103.0])


def test_a_hook_on_a_computed_tensor_sees_what_arrives_from_all_its_consumers_before_its_rule_runs():
    x, seen = leaf(2.0), []
    y = x * 10.0
    y.register_hook(lambda g: seen.append((float(g[0]), x.grad)))
    (y * 3.0 + y).sum().backward()
    assert seen == [(4.0, None)]
    np.testing.assert_array_equal(x.grad, [40.0])


def test_what_a_hook_returns_goes_on_and_none_changes_nothing():
    x = leaf(1.0, 1.0)
    y = x * 2.0
    y.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: None)
    y.register_hook(lambda g: g + 1)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [22.0, 22.0])


def test_a_gradient_that_a_hook_replaces_keeps_the_dtype_and_may_not_change_its_shape():
    x = leaf(1.0, 1.0, dtype=np.float32)
    remove = x.register_hook(lambda g: g.astype(np.float64) * 2)
    (x * x).sum().backward()
    assert x.grad.dtype == np.float32
    remove()
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"hook: it returned a gradient of shape \(\), expected \(2,\)"):
        (x * x).sum().backward()


def test_each_output_of_a_call_has_hooks_of_its_own():
    x, seen = leaf(1.0, 2.0, 3.0, 4.0), []
    first, second = ops.split(x, 2)
    second.register_hook(lambda g: seen.append(g.tolist()))
    first.register_hook(lambda g: g * 0)
    (first + second * 5.0).sum().backward()
    assert seen == [[5.0, 5.0]]
    np.testing.assert_array_equal(x.grad, [0, 0, 5, 5])


def test_a_removed_hook_is_not_called_again():
    x, seen = leaf(1.0), []
    remove = x.register_hook(lambda g: seen.append(1))
    (x * 2.0).sum().backward()
    remove()
    (x * 2.0).sum().backward()
    assert seen == [1]


def test_a_hook_may_remove_itself_while_it_runs():
    x, seen = leaf(1.0), []

    def once(g):
        seen.append("once")
        remove()

    remove = x.register_hook(once)
    x.register_hook(lambda g: seen.append("always"))
    for _ in range(2):
        (x * 2.0).sum().backward()
    assert seen == ["once", "always", "always"]


def test_a_hook_cannot_write_the_gradient_since_others_may_share_it():
    x, y = leaf(1.0), leaf(1.0)
    x.register_hook(lambda g: g.__imul__(0))
    with pytest.raises(ValueError, match="read-only"):
        (x + y).sum().backward()


def test_no_hook_is_called_where_no_gradient_arrives():
    x, seen = leaf(1.0, 2.0), []
    first, second = ops.split(x, 2)
    second.register_hook(lambda g: seen.append(g))
    first.sum().backward()
    assert seen == []


def test_a_hook_on_a_constant_is_refused():
    with pytest.raises(MiniloraError, match="register_hook: this tensor requires no gradient"):
        tensor(np.ones(1)).register_hook(print)


def test_a_hook_on_the_loss_itself_scales_all_that_is_below():
    x = leaf(3.0)
    loss = (x * x).sum()
    loss.register_hook(lambda g: g * 0.5)
    loss.backward()
    np.testing.assert_array_equal(x.grad, [3.0])
