"""Clipping: the joint norm, what it leaves alone, and gradients too large for float32 squares."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError
from minilora.optim import clip_grad_norm


def leaf(grad):
    return SimpleNamespace(data=None, grad=grad)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    log10=st.integers(-12, 25),
    max_norm=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_joint_norm_is_returned_and_never_exceeded(sizes, log10, max_norm, dtype, seed):
    rng = np.random.default_rng(seed)
    grads = [(10.0**log10 * rng.standard_normal(size)).astype(dtype) for size in sizes]
    whole = np.concatenate(grads).astype(np.longdouble)
    want = float(np.sqrt((whole**2).sum()))
    leaves = [leaf(grad.copy()) for grad in grads]
    norm = clip_grad_norm(leaves, max_norm)
    assert norm == pytest.approx(want, rel=1e-12)
    after = np.concatenate([part.grad for part in leaves])
    assert float(np.linalg.norm(after.astype(np.float64))) <= max_norm * (1 + 4 * np.finfo(dtype).eps)
    assert after.dtype == dtype
    if want + 1e-6 <= max_norm * (1 - 1e-12):
        assert np.array_equal(after, np.concatenate(grads))
    elif want > max_norm:  # same direction
        scaled = whole.astype(np.float64) * (max_norm / (want + 1e-6))
        np.testing.assert_allclose(after, scaled, rtol=4 * np.finfo(dtype).eps)


def test_parameters_without_gradient_are_passed_over():
    assert clip_grad_norm([leaf(None)], 1.0) == 0.0
    assert clip_grad_norm([leaf(None), leaf(np.array([3.0, 4.0]))], 10.0) == 5.0


def test_an_infinite_limit_only_measures():
    grad = np.array([3.0, 4.0])
    assert clip_grad_norm([leaf(grad)], math.inf) == 5.0
    assert np.array_equal(grad, [3.0, 4.0])


def test_large_float32_gradients_do_not_overflow_the_norm():
    grad = np.full(4, 1e30, np.float32)
    assert clip_grad_norm([leaf(grad)], 1.0) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(grad, 0.5, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_reported_and_touches_nothing(bad):
    first, second = np.array([1.0, bad]), np.array([2.0])
    norm = clip_grad_norm([leaf(first), leaf(second)], 0.5)
    assert not math.isfinite(norm)
    assert np.array_equal(first, [1.0, bad], equal_nan=True)
    assert np.array_equal(second, [2.0])


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ConfigError, match=r"max_norm is .*, wanted a number > 0"):
        clip_grad_norm([leaf(np.ones(1))], limit)
