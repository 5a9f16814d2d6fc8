"""AdamW against the published formula in float64, and what it does with odd parameters and settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError
from minilora.optim import AdamW


def trained(data: np.ndarray, grad: np.ndarray | None = None):
    """A trained tensor with a gradient."""
    leaf = tensor(data, requires_grad=True)
    leaf.grad = grad
    return leaf


def closed_form(start: np.ndarray, grads: list[np.ndarray], lr, betas, eps, weight_decay) -> np.ndarray:
    """AdamW with no running state: each step's means are sums over all gradients so far."""
    weight = start.astype(np.float64)
    for t in range(1, len(grads) + 1):
        seen = np.stack(grads[:t]).astype(np.float64)
        ages = np.arange(t - 1, -1, -1).reshape(-1, *[1] * start.ndim)
        by_age = [(1 - beta) * beta ** ages.astype(np.float64) for beta in betas]
        mean = (by_age[0] * seen).sum(0) / by_age[0].sum()
        square = (by_age[1] * seen**2).sum(0) / by_age[1].sum()
        weight = weight - lr * (weight_decay * weight + mean / (np.sqrt(square) + eps))
    return weight


settings_of_adamw = st.fixed_dictionaries(
    {
        "lr": st.floats(0, 0.5),
        "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999])),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
    }
)


@given(
    shape=st.sampled_from([(), (1,), (0, 3), (5,), (3, 4)]),
    steps=st.integers(1, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
    log10_grad=st.integers(-6, 6),
    seed=st.integers(0, 2**32 - 1),
    settings=settings_of_adamw,
)
def test_steps_follow_the_published_formula(shape, steps, dtype, log10_grad, seed, settings):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(shape).astype(dtype)
    grads = [(10.0**log10_grad * rng.standard_normal(shape)).astype(dtype) for _ in range(steps)]
    leaf = trained(np.array(start))
    optimizer = AdamW([leaf], **settings)
    for grad in grads:
        leaf.grad = np.array(grad)
        optimizer.step()
    want = closed_form(start, grads, **settings)
    # A step adds a few roundings of numbers no larger than the weight and its update. Where beta1's memory
    # is the longer one, mean / root is bounded only by the root of beta2's largest weight, (1 - beta2)**-0.5.
    quotient = 1 / math.sqrt(1 - settings["betas"][1]) + 1
    size = np.abs(start.astype(np.float64)) + steps * settings["lr"] * quotient
    bound = 16 * np.finfo(dtype).eps * steps * size
    assert leaf.data.dtype == dtype
    assert np.all(np.abs(leaf.data - want) <= bound)


def test_the_first_step_moves_by_lr_whatever_the_gradients_size():
    leaf = trained(np.zeros(3, np.float32), np.array([1e-3, -7.0, 2e4], np.float32))
    AdamW([leaf], lr=0.25, weight_decay=0.0).step()
    np.testing.assert_allclose(leaf.data, [-0.25, 0.25, -0.25], rtol=2e-5)


def test_the_weight_is_updated_in_place_and_may_be_a_strided_view():
    store = np.ones((4, 6), np.float32)
    leaf = trained(store[:, ::2], np.ones((4, 3), np.float32))
    view = leaf.data
    AdamW([leaf], lr=0.1).step()
    assert leaf.data is view
    assert np.all(store[:, ::2] < 1)
    assert np.all(store[:, 1::2] == 1)


def test_a_parameter_without_gradient_is_skipped_with_its_decay_and_count():
    still, moving = trained(np.ones(2)), trained(np.ones(2), np.ones(2))
    optimizer = AdamW([still, moving], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert np.array_equal(still.data, np.ones(2))
    still.grad = np.ones(2)
    moving.grad = None
    optimizer.step()
    assert np.array_equal(still.data, moving.data)  # each has had one first step


def test_the_gradient_is_read_only_to_the_optimiser():
    grad = np.full(3, 2.0, np.float32)
    grad.setflags(write=False)
    AdamW([trained(np.ones(3, np.float32), grad)]).step()


def test_zero_grad_forgets_every_gradient():
    leaf = trained(np.ones(2), np.ones(2))
    AdamW([leaf]).zero_grad()
    assert leaf.grad is None


@given(before=st.integers(0, 5), after=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_loaded_state_goes_on_with_the_same_bits(before, after, seed):
    rng = np.random.default_rng(seed)
    leaf = trained(rng.standard_normal((2, 3)).astype(np.float32))
    optimizer = AdamW([leaf], lr=0.03, betas=(0.8, 0.95), weight_decay=0.1)
    grads = rng.standard_normal((before + after, 2, 3)).astype(np.float32)
    for grad in grads[:before]:
        leaf.grad = grad.copy()
        optimizer.step()
    twin = trained(leaf.data.copy())
    second = AdamW([twin], lr=1.0)
    second.load_state_dict(optimizer.state_dict())
    for grad in grads[before:]:
        leaf.grad, twin.grad = grad.copy(), grad.copy()
        optimizer.step()
        second.step()
    assert np.array_equal(leaf.data, twin.data)


def test_a_state_dict_is_a_copy():
    leaf = trained(np.ones(2), np.ones(2))
    optimizer = AdamW([leaf])
    saved = optimizer.state_dict()
    optimizer.step()
    assert saved["state"][0]["step"] == 0
    assert not saved["state"][0]["exp_avg"].any()


def test_a_state_of_other_parameters_is_refused_before_anything_changes():
    optimizer = AdamW([trained(np.ones(2))], lr=0.5)
    with pytest.raises(ShapeError, match=r"exp_avg of parameter 0 has shape \(3,\), .* has \(2,\)"):
        optimizer.load_state_dict(AdamW([trained(np.ones(3))]).state_dict())
    with pytest.raises(ConfigError, match="the state is of 2 parameters, this optimiser has 1"):
        optimizer.load_state_dict(AdamW([trained(np.ones(2)), trained(np.ones(2))]).state_dict())
    with pytest.raises(ConfigError, match="eps, state missing"):
        optimizer.load_state_dict({"lr": 1.0, "betas": (0.9, 0.99), "weight_decay": 0.0})
    assert optimizer.lr == 0.5


def test_a_gradient_of_another_shape_is_refused_before_anything_moves():
    good, bad = trained(np.ones(2), np.ones(2)), trained(np.ones(3), np.ones(2))
    with pytest.raises(ShapeError, match=r"gradient of parameter 1 has shape \(2,\), .* has \(3,\)"):
        AdamW([good, bad]).step()
    assert np.array_equal(good.data, np.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr is -1.0, wanted a finite number >= 0"),
        ({"lr": math.nan}, r"lr is nan"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, wanted 0 <= beta < 1"),
        ({"eps": 0.0}, r"eps is 0.0, wanted a finite number > 0"),
        ({"weight_decay": -0.1, "eps": -1}, r"eps is -1.*; weight_decay is -0.1"),
    ],
)
def test_settings_out_of_range_are_named_all_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        AdamW([trained(np.ones(1))], **settings)


def test_parameters_that_cannot_be_trained_are_refused():
    leaf = trained(np.ones(1))
    with pytest.raises(ConfigError, match="nothing to train"):
        AdamW([])
    with pytest.raises(ConfigError, match="given twice"):
        AdamW([leaf, leaf])
    with pytest.raises(ConfigError, match=r"parameter 0 is a tuple.*second item of each pair"):
        AdamW([("weight", leaf)])
    with pytest.raises(ConfigError, match="parameter 0 holds int64"):
        AdamW([tensor(np.ones(1, np.int64))])
