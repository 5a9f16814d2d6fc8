"""Recording and walking back: what the engine promises, whatever the operators are."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

import minilora.ops as ops
from minilora.autograd import enable_grad, is_recording, no_grad, tensor
from minilora.errors import MiniloraError, ShapeError
from minilora.kernels.frozen import FrozenWeight


def leaf(*values):
    return tensor(np.array(values, np.float64), requires_grad=True)


def test_a_tensor_used_twice_gets_both_gradients():
    x = leaf(3.0, -2.0)
    (x * x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [7.0, -3.0])


def test_a_tensor_that_is_both_operands_of_one_call_gets_both_gradients():
    x = leaf(1.0, 2.0)
    (x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 2.0])


def test_a_diamond_is_walked_once_for_each_edge():
    x = leaf(2.0)
    a = x * 3.0
    b, c = a * a, a + 1.0
    (b * c).sum().backward()  # d (9x²)(3x + 1) / dx = 81x² + 18x
    np.testing.assert_array_equal(x.grad, [81 * 4 + 18 * 2.0])


def test_a_ladder_of_diamonds_takes_time_in_its_nodes_not_in_its_paths():
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2^60 paths
        y = y * 0.5 + y * 0.5
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0])


def test_a_shortcut_waits_for_the_long_way():
    x = leaf(2.0)
    short = x * 5.0
    long = short
    for _ in range(4):
        long = long * 2.0
    (short + long).sum().backward()
    np.testing.assert_array_equal(x.grad, [5 + 80.0])


def test_two_backwards_add_up():
    x = leaf(1.0, 2.0)
    (x * 2.0).sum().backward()
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [5.0, 5.0])


def test_a_second_backward_on_the_same_graph_says_that_the_tape_was_consumed():
    loss = (leaf(1.0) * 2.0).sum()
    loss.backward()
    with pytest.raises(MiniloraError, match=r"backward: the tape was consumed already \(at sum\)\n  run the forward"):
        loss.backward()


def test_a_consumed_part_below_is_found_before_any_gradient_changes():
    x = leaf(1.0)
    shared = x * 2.0
    (shared * 3.0).sum().backward()
    before = x.grad.copy()
    with pytest.raises(MiniloraError, match=r"the tape was consumed already \(at mul\)"):
        (shared + x).sum().backward()
    np.testing.assert_array_equal(x.grad, before)


def test_backward_starts_from_a_given_gradient():
    x = leaf(1.0, 2.0)
    (x * x).backward(gradient=[10, 1])
    np.testing.assert_array_equal(x.grad, [20.0, 4.0])


def test_backward_of_many_elements_asks_for_a_gradient():
    with pytest.raises(ShapeError, match=r"backward: the tensor has shape \(2,\), expected one element\n.*gradient="):
        (leaf(1.0, 2.0) * 2.0).backward()


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"backward: gradient has shape \(3,\), but the tensor has \(2,\)"):
        (leaf(1.0, 2.0) * 2.0).backward(gradient=np.ones(3))


def test_backward_without_a_trained_array_says_what_to_do():
    with pytest.raises(MiniloraError, match=r"(?s)nothing here requires a gradient\n.*requires_grad=True"):
        tensor(np.ones(1)).backward()


def test_backward_of_a_leaf_adds_to_its_own_gradient():
    x = leaf(4.0)
    x.backward()
    x.backward(gradient=[2.0])
    np.testing.assert_array_equal(x.grad, [3.0])


def test_integers_cannot_require_a_gradient():
    with pytest.raises(MiniloraError, match="tensor: dtype int64 cannot require a gradient, expected float32"):
        tensor(np.arange(3), requires_grad=True)


def test_a_computed_tensor_has_no_gradient_of_its_own():
    y = leaf(1.0) * 2.0
    assert y.grad is None
    with pytest.raises(MiniloraError, match="grad: only a tensor made with requires_grad=True"):
        y.grad = np.ones(1)


def test_a_gradient_can_be_cleared():
    x = leaf(1.0)
    (x * 2.0).sum().backward()
    x.grad = None
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [3.0])


def test_detach_cuts_the_tape_and_keeps_the_array():
    x = leaf(2.0)
    y = (x * 3.0).detach()
    assert not y.requires_grad
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, [6.0])
    assert x.detach().data is x.data


def test_no_grad_records_nothing_and_ends_with_its_block():
    x = leaf(1.0)
    with no_grad():
        assert not is_recording()
        assert not (x * 2.0).requires_grad
        with pytest.raises(RuntimeError, match="inner"), no_grad():
            raise RuntimeError("inner")
        assert not is_recording()
    assert (x * 2.0).requires_grad


def test_enable_grad_records_inside_a_no_grad():
    x = leaf(1.0)
    with no_grad(), enable_grad():
        assert (x * 2.0).requires_grad


def test_threads_do_not_see_each_others_no_grad():
    x, seen = leaf(1.0), {}
    inside, checked = threading.Event(), threading.Event()

    def other():
        inside.wait(10)
        seen["other"] = (x * 2.0).requires_grad
        checked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with no_grad():
        inside.set()
        assert checked.wait(10)
        seen["here"] = (x * 2.0).requires_grad
    thread.join()
    assert seen == {"other": True, "here": False}


def test_an_unused_output_counts_as_zero():
    x = tensor(np.arange(4.0), requires_grad=True)
    first, _ = ops.split(x, 2)
    (first * first).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 2, 0, 0])


def test_all_outputs_of_one_call_are_gathered_before_its_vjp():
    x = tensor(np.arange(4.0), requires_grad=True)
    first, second = ops.split(x, 2)
    (first * second * second).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 9, 0, 6])


def test_a_tuple_of_one_output_stays_a_tuple():
    x = tensor(np.arange(4.0).reshape(2, 2), requires_grad=True)
    (only,) = ops.split(x, 1)
    (only * only).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.data)


def test_variadic_operands_each_get_their_part():
    a, c = leaf(1.0, 2.0), leaf(3.0)
    joined = ops.concat([a, np.ones(2), c, a])
    joined.backward(gradient=np.arange(7.0))
    np.testing.assert_array_equal(a.grad, [0 + 5.0, 1 + 6.0])
    np.testing.assert_array_equal(c.grad, [4.0])


def test_ndarrays_give_an_ndarray_and_a_tensor_gives_a_tensor():
    assert type(ops.add(np.ones(2), np.ones(2))) is np.ndarray
    assert type(ops.sum(np.ones(2))) is np.ndarray
    plain = ops.add(tensor(np.ones(2)), np.ones(2))
    assert not plain.requires_grad
    np.testing.assert_array_equal(plain.data, [2.0, 2.0])


def test_lists_are_taken_as_arrays():
    np.testing.assert_array_equal(ops.embedding([[1, 0]], np.array([[1.0], [2.0]])), [[[2.0], [1.0]]])
    assert ops.cross_entropy([[0.0, 0.0]], [1]) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((), {"z": np.ones(1), "weight": np.ones(1)}, "missing a required argument: 'x'"),
        ((np.ones(1), np.ones(1)), {"z": 1}, "got an unexpected keyword argument 'z'"),
        ((np.ones(1), np.ones(1)), {"x": np.ones(1)}, "multiple values for argument 'x'"),
        ((np.ones(1), np.ones(1), 1e-6), {}, "too many positional arguments"),
    ],
)
def test_wrong_arguments_raise_what_python_raises(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        ops.rms_norm(*args, **kwargs)


@pytest.mark.parametrize("number", [np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.uint8(2)], ids=repr)
def test_a_numpy_number_beside_an_array_counts_as_a_python_number(number):
    for compute in (lambda x, n: x * n, lambda x, n: n - x, lambda x, n: n + x):
        x = tensor(np.ones(3, np.float32), requires_grad=True)
        y = compute(x, number)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.data, compute(x.data, 2))
        y.sum().backward()
        assert x.grad.dtype == np.float32
    assert ops.mul(np.ones(3, np.float32), number).dtype == np.float32


def test_numpy_numbers_alone_and_arrays_of_one_element_keep_their_dtype():
    assert ops.mul(np.float32(2), np.float32(3)).dtype == np.float32
    assert ops.mul(np.ones(3, np.float32), np.array(2.0)).dtype == np.float64
    with pytest.raises(ShapeError, match="mul: y has dtype bool, expected float32 or float64"):
        ops.mul(np.ones(3, np.float32), np.bool_(True))


def test_operators_work_from_the_left_of_an_array_or_number():
    x = leaf(2.0, 4.0)
    y = np.array([1.0, 1.0]) - (3 * x) + (1 - x) * -1.0
    y.backward(gradient=[1.0, 1.0])
    np.testing.assert_array_equal(y.data, [1 - 6 + 1.0, 1 - 12 + 3.0])
    np.testing.assert_array_equal(x.grad, [-2.0, -2.0])


def test_matmul_with_an_array_on_either_side():
    x = tensor(np.ones((2, 3)), requires_grad=True)
    assert (x @ np.ones((3, 4))).shape == (2, 4)
    assert (np.ones((4, 2)) @ x).shape == (4, 3)


def test_a_frozen_weight_gets_no_gradient_and_passes_one_on():
    w = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    x = tensor(np.ones((1, 2), np.float32), requires_grad=True)
    frozen = FrozenWeight(w)
    ops.linear(x, frozen).backward(gradient=np.ones((1, 3)))
    np.testing.assert_array_equal(x.grad, w.sum(axis=1)[None])
    assert not hasattr(frozen, "grad")


def test_gradients_are_owned_and_do_not_alias():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    given = np.ones(2)
    (x + y).backward(gradient=given)
    x.grad += 100
    np.testing.assert_array_equal(y.grad, [1.0, 1.0])
    np.testing.assert_array_equal(given, [1.0, 1.0])


def test_a_gradient_that_came_as_a_broadcast_view_can_be_written():
    x = tensor(np.ones((2, 3)), requires_grad=True)
    x.sum().backward()
    x.grad[0, 0] = 5
    assert x.grad.sum() == 10


def test_a_gradient_has_the_dtype_of_its_array():
    x = tensor(np.ones(2, np.float32), requires_grad=True)
    (x * x).sum().backward(gradient=np.float64(1))
    assert x.grad.dtype == np.float32


def chain(x, length):
    y = x
    for _ in range(length):
        y = y * 1.0
    return y


def test_a_chain_of_a_hundred_thousand_calls_goes_back_and_leaves_no_memory_behind():
    """With the garbage collector off, so that a cycle that keeps arrays alive would show."""
    x = leaf(1.0)
    gc.collect()
    gc.disable()
    try:
        chain(x, 20_000).sum().backward()  # fills the free lists, which Python keeps until it collects
        before = sys.getallocatedblocks()
        y = chain(x, 100_000).sum()
        held = sys.getallocatedblocks() - before
        y.backward()
        del y
        left = sys.getallocatedblocks() - before
    finally:
        gc.enable()
    np.testing.assert_array_equal(x.grad, [2.0])
    assert held > 1_000_000
    assert left < 100


def test_a_chain_of_a_hundred_thousand_calls_is_dropped_without_backward():
    """Deep graphs are freed node by node: no overflow of the C stack, nothing left for the garbage collector."""
    x = leaf(1.0)
    gc.collect()
    gc.disable()
    try:
        y = x * x
        first = weakref.ref(y.data)
        y = y * y  # keeps it
        y = chain(y, 100_000)
        assert first() is not None
        del y
        assert first() is None
        assert gc.collect() < 100
    finally:
        gc.enable()


def test_an_intermediate_that_no_rule_saved_dies_in_the_forward():
    x = leaf(1.0, 2.0)
    y = x + 1.0
    array = weakref.ref(y.data)
    z = y + 1.0
    gc.disable()
    try:
        del y
        assert array() is None
    finally:
        gc.enable()
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])


def test_an_input_is_not_kept_for_a_weight_that_is_frozen():
    x = tensor(np.ones((2, 3)), requires_grad=True)
    h = x * 2.0
    array = weakref.ref(h.data)
    y = ops.linear(h, FrozenWeight(np.ones((3, 4))))
    del h
    assert array() is None
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 8.0))


def test_backward_frees_what_was_saved_without_the_garbage_collector():
    x = leaf(1.0, 2.0)
    gc.collect()
    gc.disable()
    try:
        y = x * x
        saved = weakref.ref(y.data)
        loss = (y * y).sum()
        del y
        assert saved() is not None  # the second product keeps it
        loss.backward()
        assert saved() is None
        assert loss.data == 17.0
    finally:
        gc.enable()


def test_dropping_a_graph_frees_it_without_the_garbage_collector():
    x = leaf(1.0, 2.0)
    gc.collect()
    gc.disable()
    try:
        y = x * x
        saved = weakref.ref(y.data)
        loss = (y * y).sum()
        del y, loss
        assert saved() is None
    finally:
        gc.enable()


def test_while_walking_back_a_used_node_lets_go_of_its_arrays(define):
    alive = []

    @define("x[*] -> y[*]", source="test")
    def watched(x):
        y = x + 1
        return y, (y,)

    @watched.defvjp
    def _(grad, saved, need):
        alive.append([ref() is not None for ref in refs])
        return (grad,)

    x, refs = leaf(1.0), []
    y = x
    for _ in range(3):
        y = watched(y)
        refs.append(weakref.ref(y.data))
    loss = y * 1.0
    del y
    loss.backward()
    assert alive == [[True, True, True], [True, True, False], [True, False, False]]


def test_an_operator_without_vjp_says_so(define):
    @define("x[*] -> y[*]", source="test")
    def half(x):
        return x / 2, None

    np.testing.assert_array_equal(half(np.ones(1)), [0.5])
    with pytest.raises(ValueError, match=r"half has no vjp: give it one with @half\.defvjp"):
        half(leaf(1.0))


def test_a_vjp_that_returns_too_few_gradients_is_named(define):
    @define("x[*], y[*] -> z[*]", source="test")
    def pair(x, y):
        return x + y, None

    pair.defvjp(lambda grad, saved, need: (grad,))
    with pytest.raises(MiniloraError, match="pair: the vjp returned 1 gradients for 2 operands"):
        pair(leaf(1.0), leaf(1.0)).backward()


def test_two_operators_cannot_share_a_name(define):
    with pytest.raises(ValueError, match="an operator named 'add' is registered already"):

        @define("x[*] -> y[*]", source="test")
        def add(x):
            return x, None


def test_a_signature_that_names_what_the_function_does_not_take_is_refused(define):
    with pytest.raises(ValueError, match=r"wrong: the signature names \['y'\], which the function does not take"):

        @define("x[*], y[*] -> z[*]", source="test")
        def wrong(x):
            return x, None


def test_operands_of_any_number_may_be_given_one_by_one_where_they_come_last(define):
    @define("*xs[?] -> y[?]", source="test")
    def combined(sign, xs):
        return sign * np.sum(xs, axis=0), len(xs)

    combined.defvjp(lambda grad, count, need, *, sign: (sign * grad,) * count)
    x, y = leaf(1.0), leaf(5.0)
    for result in (combined(-1, x, y), combined(-1, (x, y)), combined(-1, xs=[x, y]), combined(sign=-1, xs=(x, y))):
        assert result.data == -6
    np.testing.assert_array_equal(combined(2, np.ones(1)), [2.0])
