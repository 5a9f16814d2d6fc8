"""Linear, LowRank and the choice of an adapter."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ShapeError
from minilora.kernels import FrozenWeight
from minilora.nn import AdapterChoice, Linear, LowRank


def rng(seed=0):
    return np.random.default_rng(seed)


def low_rank(seed=1, rank=2, scale=0.5, dropout=0.0, width=(4, 3)):
    g = rng(seed)
    a, b = (tensor(g.standard_normal(s), requires_grad=True) for s in ((width[0], rank), (rank, width[1])))
    return LowRank(a, b, scale, dropout, rng(seed))


@pytest.fixture
def layer():
    found = Linear.from_weight(FrozenWeight(rng().standard_normal((4, 3))), rng(5).standard_normal(3))
    found.choice = AdapterChoice()
    found.adapters = {"a": low_rank(1), "b": low_rank(2)}
    return found


def expected(layer, x, name=None):
    y = x @ layer.weight.dequantize() + layer.bias
    if name is not None:
        adapter = layer.adapters[name]
        y = y + adapter.scale * (x @ adapter.A.data) @ adapter.B.data
    return y


def test_a_new_layer_starts_within_one_over_root_in():
    layer = Linear(16, 5, rng=rng())
    assert (layer.in_features, layer.out_features) == layer.weight.shape == (16, 5)
    for value in (layer.weight, layer.bias):
        assert value.requires_grad
        assert value.dtype == np.float32
        assert 0.1 < np.abs(value.data).max() <= 0.25
    assert Linear(2, 2, bias=False).bias is None


def test_a_layer_is_drawn_again_from_the_same_seed():
    first, second = (Linear(3, 2, rng=rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first.weight.data, second.weight.data)


def test_a_trained_layer_gets_the_gradients_of_weight_bias_and_input():
    layer = Linear.from_weight(
        tensor(np.array([[1.0], [2.0]]), requires_grad=True), tensor(np.zeros(1), requires_grad=True)
    )
    x = tensor(np.array([[3.0, 5.0], [7.0, 11.0]]), requires_grad=True)
    layer(x).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, [[10], [16]])
    np.testing.assert_array_equal(layer.bias.grad, [2])
    np.testing.assert_array_equal(x.grad, [[1, 2], [1, 2]])


def test_a_bias_that_does_not_fit_the_weight_is_refused():
    with pytest.raises(ShapeError, match=r"Linear: bias has shape \(4,\), but weight has shape \(4, 3\) \(in, out\)"):
        Linear.from_weight(FrozenWeight(np.ones((4, 3))), np.ones(4))


def test_without_a_choice_no_adapter_is_active(layer):
    x = rng(3).standard_normal((2, 4))
    np.testing.assert_allclose(layer(x), expected(layer, x), rtol=1e-13)
    layer.choice = None
    assert layer.active_adapter() is None
    np.testing.assert_allclose(layer(x), expected(layer, x), rtol=1e-13)


def test_the_default_is_used_unless_a_block_chooses_another(layer):
    x = rng(3).standard_normal((2, 4))
    layer.choice.default = "a"
    np.testing.assert_allclose(layer(x).data, expected(layer, x, "a"), rtol=1e-13)
    with layer.choice.during("b"):
        np.testing.assert_allclose(layer(x).data, expected(layer, x, "b"), rtol=1e-13)
        with layer.choice.during(None):
            np.testing.assert_allclose(layer(x), expected(layer, x), rtol=1e-13)
        assert layer.active_adapter() is layer.adapters["b"]
    assert layer.active_adapter() is layer.adapters["a"]


def test_a_choice_ends_with_its_block_also_after_an_error(layer):
    with pytest.raises(RuntimeError, match="inside"), layer.choice.during("a"):
        raise RuntimeError("inside")
    assert layer.active_adapter() is None


def test_an_adapter_that_this_layer_does_not_have_changes_nothing_here(layer):
    x = rng(3).standard_normal((2, 4))
    with layer.choice.during("elsewhere"):
        np.testing.assert_allclose(layer(x), expected(layer, x), rtol=1e-13)


def test_two_models_choose_independently():
    first, second = AdapterChoice("x"), AdapterChoice("y")
    with first.during("z"):
        assert (first.current(), second.current()) == ("z", "y")
        with second.during(None):
            assert (first.current(), second.current()) == ("z", None)


def test_threads_do_not_see_each_others_choice(layer):
    inside, checked, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append(layer.choice.current())
        with layer.choice.during("b"):
            seen.append(layer.choice.current())
        checked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with layer.choice.during("a"):
        inside.set()
        assert checked.wait(10)
        assert layer.choice.current() == "a"
    thread.join()
    assert seen == [None, "b"]


def test_tasks_do_not_see_each_others_choice(layer):
    async def use(name):
        with layer.choice.during(name):
            await asyncio.sleep(0)
            return layer.choice.current()

    async def both():
        return await asyncio.gather(use("a"), use("b"))

    assert asyncio.run(both()) == ["a", "b"]


def test_only_the_active_adapter_gets_gradients_and_the_frozen_weight_none(layer):
    x = tensor(rng(3).standard_normal((2, 4)), requires_grad=True)
    with layer.choice.during("a"):
        layer(x).sum().backward()
    active, other = layer.adapters["a"], layer.adapters["b"]
    hidden_grad = 0.5 * np.ones((2, 3)) @ active.B.data.T
    np.testing.assert_allclose(active.A.grad, x.data.T @ hidden_grad, rtol=1e-13)
    np.testing.assert_allclose(active.B.grad, 0.5 * (x.data @ active.A.data).T @ np.ones((2, 3)), rtol=1e-13)
    assert other.A.grad is None
    assert other.B.grad is None


def test_dropout_falls_on_the_low_rank_path_only_and_only_in_training(layer):
    x = np.ones((1, 4))
    layer.adapters["a"] = adapter = low_rank(1, dropout=0.5)
    layer.choice.default = "a"
    plain = expected(layer, x)
    outcomes = {tuple(np.round(layer(x).data[0] - plain[0], 12)) for _ in range(200)}
    possible = set()
    for kept in np.ndindex(2, 2, 2, 2):  # each input of A stays, doubled, or goes
        y = 0.5 * (2.0 * np.array(kept) @ adapter.A.data) @ adapter.B.data
        possible.add(tuple(np.round(y, 12)))
    assert outcomes == possible
    adapter.eval()
    np.testing.assert_allclose(layer(x).data, expected(layer, x, "a"), rtol=1e-13)


def test_dropout_without_its_probability_or_in_evaluation_draws_nothing(layer):
    layer.choice.default = "a"
    layer.adapters["a"] = adapter = low_rank(1, dropout=0.5)
    before = adapter.rng.bit_generator.state
    adapter.eval()
    layer(np.ones((1, 4)))
    assert adapter.rng.bit_generator.state == before


def test_what_dropout_drops_gets_no_gradient(layer):
    layer.choice.default = "a"
    layer.adapters["a"] = adapter = low_rank(3, dropout=0.5)
    keep = rng(3).random((1, 4), np.float32) >= 0.5
    layer(np.ones((1, 4))).sum().backward()
    assert keep.any()
    assert not keep.all()
    np.testing.assert_array_equal(adapter.A.grad[~keep[0]], 0)
    assert np.all(adapter.A.grad[keep[0]] != 0)


def test_the_low_rank_part_by_itself_is_what_the_layer_adds(layer):
    x = rng(3).standard_normal((2, 4))
    np.testing.assert_allclose(
        layer.adapters["a"](x).data, expected(layer, x, "a") - expected(layer, x), rtol=1e-12, atol=1e-13
    )


def test_an_adapter_with_zero_b_is_an_exact_no_op():
    g = rng(1)
    layer = Linear.from_weight(FrozenWeight(g.standard_normal((4, 3)).astype(np.float32)))
    layer.choice = AdapterChoice("a")
    a, b = (tensor(v.astype(np.float32), requires_grad=True) for v in (g.standard_normal((4, 2)), np.zeros((2, 3))))
    layer.adapters["a"] = LowRank(a, b, 2.0)
    x = g.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_array_equal(layer(x).data, ops.linear(x, layer.weight))
