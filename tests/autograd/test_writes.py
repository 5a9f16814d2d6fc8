"""Arrays that backward still needs and that were written in place: an error, never a wrong gradient."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from minilora import ops, optim
from minilora.autograd import check_writes, tensor, writes
from minilora.errors import MiniloraError

WRITTEN = r"backward: mul needs an array float64 \(2,\) that was written in place after the forward pass\n.*or give"


def leaf(*values):
    return tensor(np.array(values, np.float64), requires_grad=True)


def test_a_write_to_a_saved_operand_is_found():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = (x * y).sum()
    y[0] = 9.0
    with pytest.raises(MiniloraError, match=WRITTEN):
        z.backward()
    assert x.grad is None
    assert y.grad is None


def test_a_write_to_an_operand_that_no_rule_saved_changes_nothing():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = (x + y).sum()
    y[...] = 9.0
    z.backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_a_write_before_the_forward_is_no_fault():
    x = leaf(1.0, 2.0)
    x[1] = 5.0
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 10])


def test_a_constant_is_watched_too():
    x, c = leaf(1.0, 2.0), tensor(np.array([3.0, 4.0]))
    z = (x * c).sum()
    c[:] = 0
    with pytest.raises(MiniloraError, match=WRITTEN):
        z.backward()


def test_a_write_through_one_view_is_found_in_another():
    base = np.arange(4.0)
    x, view = leaf(1.0, 2.0), tensor(base[2:])
    z = (x * view).sum()
    tensor(base.reshape(2, 2))[0, 0] = 7.0  # the same memory; which part of it is not looked at
    with pytest.raises(MiniloraError, match=WRITTEN):
        z.backward()


@pytest.mark.parametrize("optimiser", [lambda p: optim.AdamW(p, lr=0.1)])
def test_an_optimiser_step_between_forward_and_backward_is_found(optimiser):
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    step = optimiser([x, y])
    (x * y).sum().backward()
    late = (x * y).sum()
    step.step()
    with pytest.raises(MiniloraError, match=WRITTEN):
        late.backward()
    (x * y).sum().backward()  # a new forward sees the new values


def test_replacing_data_is_no_write_since_the_tape_has_the_old_array():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = (x * y).sum()
    y.data = np.zeros(2)
    z.backward()
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_a_computed_tensor_cannot_be_written():
    y = leaf(1.0, 2.0) * 2.0
    with pytest.raises(MiniloraError, match="writable: this tensor was computed; write to a copy"):
        y[0] = 1.0
    np.testing.assert_array_equal(y.data, [2, 4])


def test_a_value_that_requires_a_gradient_cannot_be_written():
    with pytest.raises(MiniloraError, match="__setitem__: the value requires a gradient"):
        tensor(np.ones(2))[0] = leaf(1.0)
    c = tensor(np.ones(2))
    c[tensor(np.array([1]))] = tensor(np.array([5.0]))
    np.testing.assert_array_equal(c.data, [1, 5])


def test_augmented_assignment_makes_a_new_tensor():
    x = leaf(1.0, 2.0)
    y = before = x * 1.0
    y *= 3.0
    assert y is not before
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_a_plain_write_is_found_by_checksum_where_that_is_switched_on():
    constant = np.array([3.0, 4.0])
    for checked in (True, False):
        x = leaf(1.0, 2.0)
        with check_writes() if checked else check_nothing():
            z = (x * constant).sum()
        constant[0] += 1.0
        if checked:
            with pytest.raises(MiniloraError, match=WRITTEN):
                z.backward()
        else:
            z.backward()


def check_nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_checksums_change_no_result_and_look_into_every_kind_of_saved_thing():
    x = leaf(1.0, 2.0)
    with check_writes():
        swiglu = ops.swiglu(x, x)
        strided = (x * np.arange(4.0)[::2]).sum()
        loss = swiglu.sum() + strided + ops.cross_entropy(x.reshape(1, 2), np.array([1]))
    loss.backward()
    y = leaf(1.0, 2.0)
    (ops.swiglu(y, y).sum() + (y * np.arange(4.0)[::2]).sum() + ops.cross_entropy(y.reshape(1, 2), [1])).backward()
    np.testing.assert_array_equal(x.grad, y.grad)


def test_a_plain_write_to_one_element_of_many_is_found():
    many = np.zeros((100, 100), np.float32)
    x = tensor(np.ones((100, 100), np.float32), requires_grad=True)
    with check_writes():
        z = (x * many.T).sum()
    many[57, 3] = 1e-30
    with pytest.raises(MiniloraError, match=r"mul needs an array float32 \(100, 100\)"):
        z.backward()


def test_threads_do_not_see_each_others_switch():
    seen = {}

    def other():
        x, c = leaf(1.0), np.ones(1)
        z = (x * c).sum()
        c[0] = 2.0
        z.backward()  # unseen here
        seen["gradient"] = float(x.grad[0])

    with check_writes():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == {"gradient": 2.0}


def test_notes_of_writes_die_with_their_memory():
    before = len(writes._written)
    kept = tensor(np.zeros(3))
    for _ in range(100):
        kept[0] = 1.0
        tensor(np.zeros(3))[0] = 1.0
    gc.collect()
    assert len(writes._written) == before + 1


def test_a_large_part_of_the_graph_is_untouched_by_a_late_error():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    inner = x * y
    outer = (inner * inner).sum()
    x[0] = 0.0
    with pytest.raises(MiniloraError, match=WRITTEN):
        outer.backward()
    assert x.grad is None
    assert y.grad is None
