"""Adapters start as an exact no-op, from (seed, path) alone, and a wrong call leaves the model as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autograd import tensor
from minilora.errors import AdapterError, ConfigError
from minilora.lora import (
    LoraConfig,
    active_adapter,
    adapter_layers,
    adapter_parameters,
    adapters_disabled,
    add_adapter,
    delete_adapter,
    set_adapter,
)
from minilora.nn import Linear

ALL = LoraConfig(target_modules="all-linear", r=2)


def factors(model, name="default"):
    return {path: (low.A.data, low.B.data) for path, low in adapter_layers(model, name)}


def fill(model, name="default", seed=0):
    rng = np.random.default_rng(seed)
    for _, low in adapter_layers(model, name):
        low.B.data[...] = rng.standard_normal(low.B.shape) * 0.1


def snapshot(model):
    return [
        (path, sorted(vars(module)), dict(getattr(module, "adapters", {}))) for path, module in model.named_modules()
    ]


def test_a_new_adapter_changes_no_bit_of_the_output(tiny, x):
    model = tiny()
    before = model(x)
    add_adapter(model, ALL)
    after = model(tensor(x))
    assert after.requires_grad
    assert np.array_equal(before, after.data)


@given(seed=st.integers(-(2**70), 2**70))
def test_the_start_depends_on_seed_and_path_alone(seed):
    from minilora.lora.attach import start

    def layer():
        return Linear(5, 3)

    one, two = start(layer(), ALL, "a.b", seed), start(layer(), ALL, "a.b", seed)
    assert np.array_equal(one.A.data, two.A.data)
    assert not np.array_equal(one.A.data, start(layer(), ALL, "a.c", seed).A.data)
    assert not np.array_equal(one.A.data, start(layer(), ALL, "a.b", seed + 1).A.data)


def test_adding_a_target_does_not_change_anothers_start(tiny):
    few, many = tiny(), tiny()
    add_adapter(few, LoraConfig(target_modules=["q_proj"], r=2), seed=3)
    add_adapter(many, ALL, seed=3)
    some, every = factors(few), factors(many)
    assert len(some) == 3
    for path, (a, _) in some.items():
        assert np.array_equal(a, every[path][0])


def test_the_start_is_the_same_on_every_machine_and_version():
    from minilora.lora.attach import start

    a = start(Linear(4, 3), ALL, "model.layers.0.self_attn.q_proj", 0).A.data
    # Pinned: a change here would change what a seed means for everyone.
    assert a.dtype == np.float32
    assert np.array_equal(a.ravel()[:3], np.array([-0.03102601, -0.06860323, 0.40328845], np.float32))


def test_a_is_uniform_within_one_over_root_in_and_b_is_zero():
    layer = Linear(400, 30)
    add_adapter(layer, LoraConfig(target_modules="all-linear", r=50))
    ((_, low),) = adapter_layers(layer, "default")
    bound = 1 / np.sqrt(400)
    a = low.A.data
    assert np.abs(a).max() <= np.float32(bound)
    assert np.abs(a).max() > 0.99 * bound
    # 20,000 draws: the mean's deviation is bound / sqrt(3 * 20000), the variance's bound^2 sqrt(4 / 45 / 20000).
    assert abs(a.mean()) < 5 * bound / np.sqrt(60_000)
    assert abs(a.var() - bound**2 / 3) < 5 * bound**2 * np.sqrt(4 / 45 / 20_000)
    assert not low.B.data.any()


def test_gaussian_has_standard_deviation_one_over_r_and_false_fills_b_too():
    layer = Linear(400, 30)
    add_adapter(layer, LoraConfig(target_modules="all-linear", r=50, init_lora_weights="gaussian"), "g")
    add_adapter(layer, LoraConfig(target_modules="all-linear", r=50, init_lora_weights=False), "f")
    (_, g), (_, f) = adapter_layers(layer, "g")[0], adapter_layers(layer, "f")[0]
    assert abs(g.A.data.std() * 50 - 1) < 5 / np.sqrt(2 * 20_000)
    assert not g.B.data.any()
    assert 0.9 / np.sqrt(50) < np.abs(f.B.data).max() <= np.float32(1 / np.sqrt(50))


def test_factors_have_the_dtype_of_the_weight(x):
    layer = Linear(6, 3)
    layer.weight = tensor(layer.weight.data.astype(np.float64))
    add_adapter(layer, ALL)
    assert {t.dtype for t in adapter_parameters(layer)} == {np.dtype(np.float64)}


def test_each_layer_has_its_own_rank_and_scale(tiny):
    model = tiny()
    add_adapter(
        model,
        LoraConfig(target_modules="all-linear", r=4, lora_alpha=6, rank_pattern={r"layers\.0.*": 1}, use_rslora=True),
    )
    for path, low in adapter_layers(model, "default"):
        rank = 1 if ".0." in path else 4
        assert low.A.shape[1] == low.B.shape[0] == rank
        assert low.scale == 6 / rank**0.5


def test_the_output_is_that_of_the_merged_weight(tiny, x):
    model = tiny()
    add_adapter(model, LoraConfig(target_modules="all-linear", r=2, lora_alpha=3))
    fill(model)
    layer = model.model.layers[0].self_attn.q_proj
    low = layer.adapters["default"]
    merged = layer.weight.dequantize() + low.scale * low.A.data @ low.B.data
    # Two sums of six and two products each; eps times terms times their size.
    assert np.allclose(np.asarray(layer(x).data), x @ merged, atol=32 * 1.2e-7 * np.abs(x).sum(), rtol=0)


def test_the_first_adapter_is_active_and_set_adapter_chooses(tiny, x):
    model = tiny()
    base = model(x)
    set_adapter(model, None)
    add_adapter(model, ALL, "a")
    add_adapter(model, ALL, "b", seed=1)
    fill(model, "a")
    fill(model, "b", seed=1)
    assert active_adapter(model) == "a"
    with_a = model(x).data
    set_adapter(model, "b")
    with_b = model(x).data
    assert not np.array_equal(with_a, base)
    assert not np.array_equal(with_a, with_b)
    set_adapter(model, None)
    assert np.array_equal(model(x), base)
    set_adapter(model, "a")
    assert np.array_equal(model(x).data, with_a)


def test_adapters_are_disabled_inside_the_block_and_in_this_thread_only(tiny, x):
    model = tiny()
    with adapters_disabled(model):
        base = model(x)
    add_adapter(model, ALL)
    fill(model)
    adapted = model(x).data
    seen = []
    with adapters_disabled(model):
        assert active_adapter(model) is None
        assert np.array_equal(model(x), base)
        thread = threading.Thread(target=lambda: seen.append(model(x)))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError), adapters_disabled(model):
            raise RuntimeError
    assert np.array_equal(seen[0].data, adapted)
    assert np.array_equal(model(x).data, adapted)


def test_two_models_do_not_share_their_choice(tiny, x):
    one, two = tiny(), tiny()
    for model in (one, two):
        add_adapter(model, ALL)
        fill(model)
    with adapters_disabled(one):
        assert not np.array_equal(one(x), two(x).data)


def test_parameters_are_a_and_b_of_the_active_adapter_in_order(tiny):
    model = tiny()
    add_adapter(model, LoraConfig(target_modules=["q_proj"], r=2), "a")
    add_adapter(model, LoraConfig(target_modules=["v_proj"], r=3), "b")
    assert [t.shape for t in adapter_parameters(model)] == [(6, 2), (2, 6)] * 3
    assert [t.shape for t in adapter_parameters(model, "b")] == [(6, 3), (3, 4)] * 3
    assert all(t.requires_grad for t in adapter_parameters(model))
    assert len(dict(model.named_parameters())) == 12


def test_gradients_reach_a_and_b_and_nothing_else(tiny, x):
    model = tiny()
    add_adapter(model, LoraConfig(target_modules=["q_proj"], r=2))
    fill(model)
    y = model(x)
    y.backward(np.ones(y.shape, np.float32))
    assert all(t.grad is not None and np.abs(t.grad).max() > 0 for t in adapter_parameters(model))


def test_dropout_is_seeded_and_only_in_training(tiny, x):
    def run(training):
        model = tiny().train(training)
        add_adapter(model, LoraConfig(target_modules="all-linear", r=2, lora_dropout=0.5), seed=4)
        fill(model)
        return np.asarray(model(x).data)

    assert np.array_equal(run(True), run(True))
    assert np.array_equal(run(False), run(False))
    assert not np.array_equal(run(True), run(False))


def test_a_deleted_adapter_leaves_the_model_as_it_was(tiny, x):
    model = tiny()
    base = model(x)
    add_adapter(model, ALL)
    fill(model)
    delete_adapter(model, "default")
    assert active_adapter(model) is None
    assert np.array_equal(model(x), base)
    assert all(module.choice is None for _, module in model.named_modules() if isinstance(module, Linear))
    add_adapter(model, ALL)
    assert active_adapter(model) == "default"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: add_adapter(m, ALL),
            AdapterError,
            r"Tiny already has an adapter 'default'\n  pass another name, or",
        ),
        (
            lambda m: add_adapter(m, ALL, "a.b"),
            ConfigError,
            r"adapter name is 'a\.b', wanted text without dots",
        ),
        (lambda m: add_adapter(m, ALL, ""), ConfigError, r"adapter name is '', wanted text"),
        (
            lambda m: add_adapter(m, ALL, "x", seed=1.5),
            ConfigError,
            r"add_adapter: seed is 1.5, wanted a whole number",
        ),
        (
            lambda m: add_adapter(m, LoraConfig(target_modules=["no"]), "x"),
            AdapterError,
            r"'no' matches no module",
        ),
        (
            lambda m: set_adapter(m, "x"),
            AdapterError,
            r"Tiny has no adapter 'x'; it has 'default'\n  call add_adapter or",
        ),
        (lambda m: set_adapter(m, ["default"]), ConfigError, r"several at once are not supported yet"),
        (lambda m: delete_adapter(m, "x"), AdapterError, r"Tiny has no adapter 'x'"),
        (lambda m: adapter_parameters(m, "x"), AdapterError, r"Tiny has no adapter 'x'"),
        (
            lambda m: add_adapter(m.model.layers[0], ALL, "x"),
            AdapterError,
            r"carries adapters that were added to another",
        ),
    ],
)
def test_a_wrong_call_says_so_and_leaves_the_model_as_it_was(tiny, x, call, error, message):
    model = tiny()
    add_adapter(model, ALL)
    fill(model)
    before, output = snapshot(model), model(x).data
    with pytest.raises(error, match=message):
        call(model)
    assert snapshot(model) == before
    assert active_adapter(model) == "default"
    assert np.array_equal(model(x).data, output)


def test_a_model_without_adapters_says_so(tiny):
    model = tiny()
    set_adapter(model, None)  # nothing to turn off is no error
    assert model.adapter_choice is None
    with pytest.raises(AdapterError, match=r"Tiny has no active adapter to train\n  call add_adapter"):
        adapter_parameters(model)
    with pytest.raises(AdapterError, match=r"Tiny has no adapter 'a'; it has none"):
        set_adapter(model, "a")
