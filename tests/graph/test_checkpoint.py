"""checkpoint: the same bits as without it, in less memory; and a clear error where it could not be the same."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import MiniloraError, nn, ops
from minilora.autograd import check_writes, watched_by
from minilora.nn.linear import LowRank
from minilora.optim import AdamW


def rng(seed=0):
    return np.random.default_rng(seed)


def trained(*shape, seed=0, dtype=np.float64):
    return ml.tensor(rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def plain(f, *inputs):
    return f(*inputs)


class Block:
    """A LoRA layer with dropout, an activation and a residual: frozen W, trained A, B and gain."""

    def __init__(self, width, seed, dtype=np.float64, p=0.3):
        self.layer = nn.Linear.from_weight(ml.tensor(rng(seed).standard_normal((width, width)).astype(dtype) * 0.3))
        self.low = LowRank(
            trained(width, 2, seed=seed, dtype=dtype), trained(2, width, seed=seed + 1, dtype=dtype), 0.5, p
        )
        self.low.rng = rng(seed)
        self.gain = ml.tensor(np.ones(width, dtype), requires_grad=True)

    def __call__(self, x):
        h = ops.rms_norm(x, self.gain)
        return x + ops.silu(ops.linear(h, self.layer.weight) + self.low(h))

    @property
    def parameters(self):
        return [self.low.A, self.low.B, self.gain]


def results(apply, x, blocks, steps=1, passes=None):
    """Run the blocks, go back, and return the outputs, every gradient and what the generators draw next."""
    for i, block in enumerate(blocks):
        block.low.rng = rng(i)
        for p in block.parameters:
            p.grad = None
    found = []
    for _ in range(steps):
        h = x
        for block in blocks[:passes]:
            h = apply(block, h)
        found.append(h.data)
        (h * h).sum().backward()
    x_grad = [x.grad.copy()] if isinstance(x, ml.Tensor) and x.requires_grad else []
    return [*found, *x_grad, *(p.grad for b in blocks for p in b.parameters), *(b.low.rng.random(3) for b in blocks)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_outputs_gradients_and_later_draws_have_the_same_bits_as_without(dtype, requires_grad):
    blocks = [Block(6, seed, dtype) for seed in range(4)]
    x = rng(9).standard_normal((5, 6)).astype(dtype)
    expected = results(plain, ml.tensor(x, requires_grad), blocks, steps=2)
    found = results(ml.checkpoint, ml.tensor(x, requires_grad), blocks, steps=2)
    assert len(expected) == len(found) == 2 + requires_grad + 4 * 3 + 4
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_checkpoints_inside_checkpoints_give_the_same_bits():
    blocks = [Block(6, seed) for seed in range(8)]

    def tree(chosen, x):
        if len(chosen) == 1:
            return ml.checkpoint(chosen[0], x)
        half = len(chosen) // 2
        left = ml.checkpoint(lambda x: tree(chosen[:half], x), x)
        return ml.checkpoint(lambda x: tree(chosen[half:], x), left)

    x = rng(9).standard_normal((5, 6))
    expected = results(plain, ml.tensor(x, requires_grad=True), blocks)
    found = results(lambda _, x: tree(blocks, x), ml.tensor(x, requires_grad=True), blocks, passes=1)
    assert len(expected) == len(found) == 2 + 8 * 3 + 8
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@given(
    program=st.lists(st.tuples(st.sampled_from(["add", "mul", "silu", "drop", "lora"]), st.integers(0, 9)), max_size=8),
    cuts=st.lists(st.booleans(), min_size=8, max_size=8),
    seed=st.integers(0, 99),
)
def test_any_program_gives_the_same_whichever_parts_are_checkpointed(program, cuts, seed):
    x, w = trained(3, 4, seed=seed), rng(seed).standard_normal((4, 4))
    a, b = trained(4, 2, seed=seed + 1), trained(2, 4, seed=seed + 2)
    generator = rng()

    def part(kind, pick, values):
        one, two = values[pick % len(values)], values[pick // 2 % len(values)]
        made = {
            "add": lambda: one + two,
            "mul": lambda: one * two,
            "silu": lambda: ops.silu(one),
            "drop": lambda: ops.dropout(one, 0.5, generator),
            "lora": lambda: ops.lora_matmul(one, w, a, b, 0.5),
        }
        return made[kind]()

    def run(checkpointed):
        generator.bit_generator.state = rng(seed).bit_generator.state
        for leaf in (x, a, b):
            leaf.grad = None
        values = [x]
        for (kind, pick), wanted in zip(program, checkpointed, strict=False):
            call = ml.checkpoint if wanted else plain
            values.append(call(lambda *v, kind=kind, pick=pick: part(kind, pick, v), *values))
        values[-1].sum().backward()
        return values[-1].data, [leaf.grad for leaf in (x, a, b)], generator.random()

    out, grads, draw = run([False] * 8)
    out2, grads2, draw2 = run(cuts)
    np.testing.assert_array_equal(out, out2)
    assert draw == draw2
    for one, other in zip(grads, grads2, strict=True):
        assert (one is None) == (other is None)
        if one is not None:  # the parts of a sum may be added in another order
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(one).max(initial=0))


# ---------------------------------------------------------------- what requires a gradient


def test_closed_over_parameters_get_gradients_where_the_input_requires_none():
    weight, x = trained(2), np.array([3.0, 5.0])
    out = ml.checkpoint(lambda x: x * weight, x)
    assert out.requires_grad
    out.sum().backward()
    np.testing.assert_array_equal(weight.grad, x)


@pytest.mark.parametrize("x", [np.ones(3), ml.tensor(np.ones(3))])
def test_where_nothing_is_trained_the_result_is_fs_own(x):
    made = []

    def f(x):
        made.append(x * 2.0)
        return made[-1]

    assert ml.checkpoint(f, x) is made[0]
    assert not getattr(made[0], "requires_grad", False)


def test_inside_no_grad_nothing_is_recorded_and_f_runs_once():
    runs, weight = [], trained(2)
    with ml.no_grad():
        out = ml.checkpoint(lambda: runs.append(1) or weight * 2.0)
    assert not out.requires_grad
    assert runs == [1]


def test_a_computed_tensor_that_f_closes_over_gets_its_gradient_through_its_own_tape():
    x = ml.tensor(np.array([2.0]), requires_grad=True)
    hidden = x * x
    out = ml.checkpoint(lambda y: y * hidden * hidden, x)
    (out + hidden).sum().backward()
    np.testing.assert_array_equal(x.grad, [5 * 2.0**4 + 2 * 2.0])  # d(x⁵ + x²)


def test_f_may_return_a_tensor_that_it_was_given_or_closes_over():
    x, weight = trained(2), trained(2, seed=1)
    same, other, hidden = ml.checkpoint(lambda y: (y, weight, y * 2.0), x)
    np.testing.assert_array_equal(same.data, x.data)
    (same * 3.0 + other * 5.0 + hidden).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 5])
    np.testing.assert_array_equal(weight.grad, [5, 5])


def test_inputs_that_are_no_tensors_come_to_f_as_they_are_in_both_runs():
    seen, x = [], trained(2)

    def f(x, *rest):
        seen.append(rest)
        return x * rest[0]

    given = (2.0, "text", None, np.ones(2), {"a": x})
    ml.checkpoint(f, x, *given).sum().backward()
    assert len(seen) == 2
    for run in seen:
        assert all(one is other for one, other in zip(run, given, strict=True))
    np.testing.assert_array_equal(x.grad, [2, 2])


# ---------------------------------------------------------------- several outputs


def test_outputs_that_get_no_gradient_are_not_walked():
    x, unused, calls = ml.tensor(np.array([0.0, 4.0]), requires_grad=True), trained(2), []
    unused.register_hook(calls.append)
    first, second = ml.checkpoint(lambda x: (x * 2.0, ops.sqrt(x) * unused), x)
    with np.errstate(all="raise"):  # 0 times the infinite slope of the root at 0 would be NaN
        first.sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2])
    assert unused.grad is None
    assert calls == []
    assert second.requires_grad


def test_an_output_without_gradient_stays_so_beside_one_with():
    x, constant = trained(2), np.ones(3)
    out, mask, array = ml.checkpoint(lambda x: (x * 2.0, ml.tensor(x.data > 0), constant), x)
    assert out.requires_grad
    assert not mask.requires_grad
    assert array is constant
    out.sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_a_tuple_of_one_stays_a_tuple():
    out = ml.checkpoint(lambda x: (x * 2.0,), trained(2))
    assert type(out) is tuple
    assert len(out) == 1


@pytest.mark.parametrize(
    ("result", "found"),
    [(None, "NoneType"), ([1], "list"), ((np.ones(1), {}), "a tuple with dict"), (3.0, "float")],
)
def test_a_result_that_is_no_tensor_is_named(result, found):
    with pytest.raises(MiniloraError) as caught:
        ml.checkpoint(lambda: result)
    assert str(caught.value) == f"checkpoint: f returned {found}, expected a Tensor or a tuple of them"


# ---------------------------------------------------------------- hooks, contexts, generators


def test_hooks_fire_once_with_the_whole_gradient_on_inputs_parameters_and_inside():
    x, weight, seen = trained(2), trained(2, seed=1), []
    x.register_hook(lambda g: seen.append(("x", g.tolist())))
    weight.register_hook(lambda g: seen.append(("weight", g.tolist())))

    def f(x):
        hidden = x * 2.0
        hidden.register_hook(lambda g: seen.append(("inside", g.tolist())))
        return hidden + weight

    out = ml.checkpoint(f, x)
    out.register_hook(lambda g: g * 10)
    (out + weight + x).sum().backward()
    assert sorted(seen) == [("inside", [10, 10]), ("weight", [11, 11]), ("x", [21, 21])]
    np.testing.assert_array_equal(x.grad, [21, 21])
    np.testing.assert_array_equal(weight.grad, [11, 11])


def test_the_second_run_is_in_the_context_of_the_first():
    chosen, seen, x = nn.adapters.AdapterChoice(), [], trained(2)

    def f(x):
        seen.append((chosen.current(), (x * 1.0).requires_grad))
        return x * 2.0

    with chosen.during("a"):
        out = ml.checkpoint(f, x).sum()
    with ml.no_grad(), chosen.during("b"):
        out.backward()
    assert seen == [("a", True), ("a", True)]


def test_a_generator_among_the_inputs_is_replayed_whatever_is_drawn_from_it():
    x, generator = trained(50), rng(3)
    noise = rng(3).standard_normal(50)
    out = ml.checkpoint(lambda x, g: x * g.standard_normal(50), x, generator)
    generator.random(7)
    after = generator.bit_generator.state
    out.sum().backward()
    np.testing.assert_array_equal(x.grad, noise)
    assert generator.bit_generator.state == after


def test_a_generator_is_put_back_also_when_the_second_run_fails():
    x, generator, runs = trained(3), rng(3), []

    def f(x):
        runs.append(1)
        y = ops.dropout(x, 0.5, generator)
        if len(runs) == 2:
            raise RuntimeError("second run")
        return y

    out = ml.checkpoint(f, x).sum()
    after = generator.bit_generator.state
    with pytest.raises(RuntimeError, match="second run"):
        out.backward()
    assert generator.bit_generator.state == after


def test_a_trace_counts_both_runs_and_one_vjp():
    x = trained(3)
    with ml.trace() as t:
        ml.checkpoint(lambda x: x * x, x).sum().backward()
    assert {row.name: (row.calls, row.pulls) for row in t.rows} == {"mul": (2, 1), "sum": (1, 1)}


# ---------------------------------------------------------------- writes in place, and runs that differ


def test_a_parameter_that_an_optimiser_has_changed_in_the_meantime_is_an_error():
    bias, weight, x = trained(2), trained(2, seed=1), np.ones(2)
    out = ml.checkpoint(lambda x: ops.relu(x * weight + bias), x).sum()  # no rule of these keeps the bias
    bias.grad = np.ones(2)
    AdamW([bias], lr=0.1).step()
    with pytest.raises(
        MiniloraError, match=r"checkpoint needs an array float64 \(2,\) that was written in place after"
    ):
        out.backward()


def test_an_input_that_was_written_in_the_meantime_is_an_error():
    x, weight = ml.tensor(np.ones(2)), trained(2)
    out = ml.checkpoint(lambda x: x * weight, x).sum()
    x[0] = 5.0
    with pytest.raises(MiniloraError, match="checkpoint needs an array float64"):
        out.backward()


def test_writes_before_the_forward_and_after_the_backward_are_no_error():
    weight, x = trained(2), np.ones(2)
    optimiser = AdamW([weight], lr=0.1)
    for _ in range(3):
        weight.grad = None
        ml.checkpoint(lambda x: ops.silu(x * weight), x).sum().backward()
        optimiser.step()


def test_inside_check_writes_a_changed_ndarray_is_an_error_whether_input_or_closed_over():
    weight, x, constant = trained(2), np.ones(2), np.ones(2)
    for changed, message in ((x, "checkpoint needs an array"), (constant, "checkpoint: f gave something else")):
        with check_writes():
            out = ml.checkpoint(lambda x: ops.silu(x + constant) * weight, x).sum()
        changed += 1
        with pytest.raises(MiniloraError, match=message):
            out.backward()


def test_inside_check_writes_randomness_that_is_not_replayed_is_an_error():
    weight, generator = trained(2), rng()
    with check_writes():
        out = ml.checkpoint(lambda: weight * generator.random(2)).sum()
    with pytest.raises(MiniloraError) as caught:
        out.backward()
    assert str(caught.value) == (
        "checkpoint: f gave something else when it was run again in backward\n"
        "  it must draw random numbers only by ops.dropout or from Generators among its inputs, and read nothing that "
        "changes"
    )


def test_inside_check_writes_an_honest_part_passes():
    with check_writes():
        expected = results(plain, trained(5, 6), [Block(6, 0)])
        found = results(ml.checkpoint, trained(5, 6), [Block(6, 0)])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("second", [lambda x: x[0], lambda x: (x, x), lambda x: x.detach()])
def test_another_output_in_the_second_run_is_an_error(second):
    x, runs = trained(2), []

    def f(x):
        runs.append(1)
        return x * 2.0 if len(runs) == 1 else second(x)

    out = ml.checkpoint(f, x).sum()
    with pytest.raises(MiniloraError, match="checkpoint: f gave something else"):
        out.backward()


def test_another_tensor_in_the_second_run_is_an_error():
    x, one, other, runs = trained(2), trained(2, seed=1), trained(2, seed=2), []

    def f(x):
        runs.append(1)
        return x * (one if len(runs) == 1 else other)

    out = ml.checkpoint(f, x).sum()
    with pytest.raises(MiniloraError) as caught:
        out.backward()
    assert str(caught.value) == (
        "checkpoint: f used another trained tensor when it was run again in backward\n"
        "  it must compute the same from the same tensors each time"
    )


def test_the_tape_is_consumed_once():
    out = ml.checkpoint(lambda x: x * 2.0, trained(2)).sum()
    out.backward()
    with pytest.raises(MiniloraError, match="the tape was consumed already"):
        out.backward()


# ---------------------------------------------------------------- memory


def chain(apply, blocks, x):
    """Forward and backward through the blocks; return the peak of traced memory, in arrays of the size of x."""
    for block in blocks:
        block.low.rng = rng(0)
    gc.collect()
    tracemalloc.start()
    h = x
    for block in blocks:
        h = apply(block, h)
    h.sum().backward()
    del h
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / x.nbytes


def test_a_chain_of_checkpointed_parts_keeps_one_array_a_part_and_the_inside_of_one():
    x = rng().standard_normal((1000, 32))
    inside = chain(plain, [Block(32, 0)], x)
    many = [Block(32, seed) for seed in range(16)]
    without, with_checkpoints = chain(plain, many, x), chain(ml.checkpoint, many, x)
    assert without > 16 * 3  # each part keeps several arrays
    assert with_checkpoints < 16 + inside + 3


def test_nested_checkpoints_keep_a_square_root_of_the_arrays():
    x = rng().standard_normal((1000, 32))
    inside = chain(plain, [Block(32, 0)], x)
    groups = [[Block(32, 4 * i + j) for j in range(4)] for i in range(4)]

    class Group:
        def __init__(self, blocks):
            self.blocks = blocks
            self.low = blocks[0].low

        def __call__(self, x):
            for block in self.blocks:
                x = ml.checkpoint(block, x)
            return x

    assert chain(ml.checkpoint, [Group(blocks) for blocks in groups], x) < 4 + 4 + inside + 3


def test_arrays_inside_are_dead_after_the_forward_and_nothing_is_alive_after_the_backward():
    x, seen = trained(100), []

    def f(x):
        hidden = ops.exp(x * 2.0)  # exp keeps its output
        seen.append(weakref.ref(hidden.data))
        return ops.silu(hidden)

    gc.disable()  # no cycle may be needed to free them
    try:
        out = ml.checkpoint(f, x)
        assert seen[0]() is None
        node = weakref.ref(out)
        out.sum().backward()
        assert seen[1]() is None
        kept = weakref.ref(out.data)
        del out
        assert node() is None
        assert kept() is None
    finally:
        gc.enable()


def test_a_checkpoint_that_is_never_walked_is_freed_without_the_collector():
    x = trained(10)
    gc.disable()
    try:
        out = ml.checkpoint(lambda x: ops.exp(x), x)
        data = weakref.ref(out.data)
        del out
        assert data() is None
    finally:
        gc.enable()


def test_a_chain_of_2000_checkpoints_needs_no_deep_stack():
    x = ml.tensor(np.ones(1), requires_grad=True)
    h = x
    for _ in range(2000):
        h = ml.checkpoint(lambda y: y + 1.0, h)
    h.sum().backward()
    assert (h.item(), x.grad.item()) == (2001, 1)


def test_a_plain_watch_around_a_checkpoint_sees_its_calls():
    x, seen = trained(2), []

    def watch(op, rule, arrays, params, need):
        seen.append(op.name)
        return rule, op.run(rule, arrays, params, need)

    with watched_by(watch):
        ml.checkpoint(lambda x: x * 2.0, x)
    assert seen == ["mul"]
