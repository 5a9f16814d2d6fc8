"""Attention and rotary positions against loops over elements, complex numbers, and what they must not depend on."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ConfigError, ShapeError


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- rotary


def test_rotary_multiplies_each_pair_by_a_complex_number_of_its_angle():
    g = rng(2)
    x, angle = g.standard_normal((2, 3, 4, 6)), g.uniform(-3, 3, (2, 3, 3))
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)[:, :, None, :]
    y = ops.rotary(x, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(y, np.concatenate([turned.real, turned.imag], axis=-1), rtol=1e-13, atol=1e-14)


def test_rotary_keeps_the_product_of_query_and_key_a_function_of_their_distance():
    g = rng(3)
    q, k, frequency = g.standard_normal((1, 1, 1, 4)), g.standard_normal((1, 1, 1, 4)), np.array([1.0, 0.1])

    def at(x, position):
        angle = (position * frequency)[None, None]
        return ops.rotary(x, np.cos(angle), np.sin(angle))

    assert np.sum(at(q, 7) * at(k, 3)) == pytest.approx(np.sum(at(q, 104) * at(k, 100)), rel=1e-12)


def test_rotary_refuses_a_width_that_is_not_twice_the_angles():
    with pytest.raises(ShapeError, match="rotary: x has D=6, but cos has E=2; expected D = 2 E"):
        ops.rotary(np.ones((1, 1, 1, 6)), np.ones((1, 1, 2)), np.ones((1, 1, 2)))


# ---------------------------------------------------------------- attention


def sees(query, key, causal, window):
    """May a query at one position look at a key at another?"""
    return not ((causal and key > query) or (window is not None and abs(key - query) >= window))


def weights_by_element(q, k, mask, causal=True, window=None, scale=None):
    """The softmax weights as a dictionary (batch, query, head) -> {key: weight}, in Python numbers."""
    (batch, time, heads, width), (_, keys, groups, _) = q.shape, k.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    found = {}
    for b, t, h in np.ndindex(batch, time, heads):
        group, position = h * groups // heads, keys - time + t
        seen = [s for s in range(keys) if sees(position, s, causal, window) and (mask is None or mask[b, s])]
        scores = {s: scale * math.fsum(q[b, t, h] * k[b, s, group]) for s in seen}
        total = math.fsum(math.exp(score) for score in scores.values())
        found[b, t, h] = {s: math.exp(score) / total for s, score in scores.items()}
    return found


def attention_by_element(q, k, v, mask, **settings):
    y = np.zeros_like(q)
    for (b, t, h), weights in weights_by_element(q, k, mask, **settings).items():
        for s, weight in weights.items():
            y[b, t, h] += weight * v[b, s, h * k.shape[2] // q.shape[2]]
    return y


def drawn(seed, time, keys, heads, groups, masked):
    g = rng(seed)
    q = g.standard_normal((2, time, heads, 4))
    k, v = g.standard_normal((2, keys, groups, 4)), g.standard_normal((2, keys, groups, 4))
    return q, k, v, g.random((2, keys)) < 0.6 if masked else None


@pytest.mark.parametrize(("time", "keys"), [(1, 1), (3, 3), (1, 5), (2, 5)])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_loop_over_elements(time, keys, heads, groups, masked):
    q, k, v, mask = drawn(time * 100 + keys * 10 + heads, time, keys, heads, groups, masked)
    np.testing.assert_allclose(
        ops.attention(q, k, v, mask), attention_by_element(q, k, v, mask), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(("time", "keys"), [(5, 5), (1, 5), (2, 6), (5, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 9])
@pytest.mark.parametrize("scale", [None, 0.7, -2.0, 0.0])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_scales_and_both_directions_are_the_loop_over_elements(time, keys, window, scale, masked):
    q, k, v, mask = drawn(time * 100 + keys, time, keys, 4, 2, masked)
    for causal in (True, False) if keys >= time else (False,):
        settings = {"causal": causal, "window": window, "scale": scale}
        expected = attention_by_element(q, k, v, mask, **settings)
        np.testing.assert_allclose(ops.attention(q, k, v, mask, **settings), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 2), (False, None), (False, 2)])
def test_the_gradient_for_the_values_is_the_sum_of_the_weights_that_looked_at_them(causal, window):
    q, k, v, mask = drawn(17, 4, 5, 4, 2, True)
    leaf = tensor(v, requires_grad=True)
    out = ops.attention(q, k, leaf, mask, causal=causal, window=window)
    grad = rng(18).standard_normal(q.shape)
    out.backward(gradient=grad)
    expected = np.zeros_like(v)
    for (b, t, h), weights in weights_by_element(q, k, mask, causal, window).items():
        for s, weight in weights.items():
            expected[b, s, h // 2] += weight * grad[b, t, h]
    np.testing.assert_allclose(leaf.grad, expected, rtol=1e-12, atol=1e-14)


def test_a_window_as_wide_as_the_sequence_or_wider_changes_no_bit():
    q, k, v, _ = drawn(19, 4, 6, 2, 1, False)
    for causal in (True, False):
        all_of_it = ops.attention(q, k, v, causal=causal)
        for window in (6, np.int8(6), sys.maxsize, 10**30):
            np.testing.assert_array_equal(ops.attention(q, k, v, causal=causal, window=window), all_of_it)


def test_a_window_of_one_sees_the_own_position_alone():
    q, k, v, _ = drawn(20, 3, 5, 2, 2, False)
    for causal in (True, False):
        np.testing.assert_allclose(ops.attention(q, k, v, causal=causal, window=1), v[:, 2:], rtol=1e-15)


def test_without_causality_the_order_of_the_keys_does_not_matter():
    q, k, v, mask = drawn(21, 3, 6, 2, 2, True)
    order = rng(22).permutation(6)
    np.testing.assert_allclose(
        ops.attention(q, k[:, order], v[:, order], mask[:, order], causal=False),
        ops.attention(q, k, v, mask, causal=False), rtol=1e-13, atol=1e-15,
    )  # fmt: skip


def test_a_query_that_sees_no_key_gives_zero_and_passes_no_gradient():
    g = rng(5)
    q, k, v = (tensor(g.standard_normal((1, 3, 2, 4)), requires_grad=True) for _ in range(3))
    y = ops.attention(q, k, v, np.array([[False, False, True]]))
    np.testing.assert_array_equal(y.data[0, :2], 0)
    np.testing.assert_array_equal(y.data[0, 2], v.data[0, 2])
    y.backward(gradient=np.ones(y.shape))
    np.testing.assert_array_equal(q.grad, 0)
    np.testing.assert_array_equal(v.grad[0], np.stack([np.zeros((2, 4)), np.zeros((2, 4)), np.ones((2, 4))]))


def test_a_query_before_the_first_key_sees_none_of_them_through_a_window():
    g = rng(23)
    q, k, v = (tensor(g.standard_normal((1, n, 1, 3)), requires_grad=True) for n in (4, 1, 1))
    y = ops.attention(q, k, v, causal=False, window=2)  # query 3 stands beside the only key, query 2 one before it
    np.testing.assert_array_equal(y.data[0, :2], 0)
    np.testing.assert_allclose(y.data[0, 2:, 0], np.repeat(v.data[0, :, 0], 2, axis=0), rtol=1e-15)
    y.backward(gradient=np.ones(y.shape))
    np.testing.assert_array_equal(v.grad, np.full((1, 1, 1, 3), 2.0))
    np.testing.assert_array_equal(q.grad, 0)


@pytest.mark.parametrize("settings", [{}, {"causal": False}, {"window": 1}, {"causal": False, "window": 2}])
def test_a_row_that_is_all_padding_gives_zero(settings):
    x = np.ones((1, 2, 1, 3), np.float32)
    y = tensor(x, requires_grad=True)
    out = ops.attention(y, y, y, np.zeros((1, 2), bool), **settings)
    np.testing.assert_array_equal(out.data, 0)
    out.backward(gradient=np.ones(out.shape))
    np.testing.assert_array_equal(y.grad, 0)


def test_the_values_of_padding_change_nothing():
    g = rng(6)
    q, k, v = (g.standard_normal((1, 4, 2, 4)) for _ in range(3))
    mask = np.array([[False, True, True, True]])
    before = ops.attention(q, k, v, mask)
    k[0, 0], v[0, 0] = 1e8, -1e8
    np.testing.assert_array_equal(ops.attention(q, k, v, mask), before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_with_huge_scores_picks_the_largest(dtype):
    q = np.full((1, 1, 1, 4), 1e4, dtype)
    k = np.stack([np.full((1, 1, 4), 1e4), np.full((1, 1, 4), -1e4)], axis=1).astype(dtype)
    v = np.stack([np.full((1, 1, 4), 7), np.full((1, 1, 4), 9)], axis=1).astype(dtype)
    leaf = tensor(v, requires_grad=True)
    out = ops.attention(q, k, leaf)
    np.testing.assert_allclose(out.data, 7)
    out.backward(gradient=np.ones(out.shape))
    np.testing.assert_allclose(leaf.grad[0, :, 0, 0], [1, 0], atol=1e-6)


def test_attention_keeps_the_values_only_where_queries_or_keys_need_a_gradient():
    q, k, v, _ = drawn(24, 2, 2, 2, 2, False)
    settings = {"causal": True, "window": None, "scale": None}
    for need, kept in (((False, False, True), False), ((True, False, False), True), ((False, True, True), True)):
        _, saved = REGISTRY["attention"].run(REGISTRY["attention"].reference, (q, k, v, None), settings, (*need, False))
        assert any(array is v for array in saved) == kept


def test_attention_refuses_fewer_keys_than_queries_and_heads_that_do_not_divide():
    q, short = np.ones((1, 3, 2, 4)), np.ones((1, 2, 2, 4))
    with pytest.raises(ShapeError, match=r"attention: q has T=3, H=2 and k has S=2, G=2; expected S ≥ T"):
        ops.attention(q, short, short)
    three = np.ones((1, 3, 3, 4))
    with pytest.raises(ShapeError, match=r"H a multiple of G"):
        ops.attention(q, three, three)
    with pytest.raises(ShapeError) as caught:
        ops.attention(q, three, three, causal=False)
    assert str(caught.value) == "attention: q has T=3, H=2 and k has S=3, G=3; expected H a multiple of G"


@pytest.mark.parametrize("window", [0, -1, 1.5, "all"])
def test_attention_refuses_a_window_that_is_no_positive_integer(window):
    x = np.ones((1, 2, 1, 3))
    with pytest.raises(ConfigError) as caught:
        ops.attention(x, x, x, window=window)
    assert str(caught.value) == f"attention: window is {window!r}, expected an integer of at least 1, or None"


@pytest.mark.parametrize("scale", [math.inf, math.nan, "1"])
def test_attention_refuses_a_scale_that_is_not_finite(scale):
    x = np.ones((1, 2, 1, 3))
    with pytest.raises(ConfigError) as caught:
        ops.attention(x, x, x, scale=scale)
    assert str(caught.value) == f"attention: scale is {scale!r}, expected a finite number, or None"


def test_attention_and_rotary_count_their_operations():
    sizes = {"B": 2, "T": 3, "H": 4, "S": 5, "G": 2, "D": 6, "E": 3}
    assert REGISTRY["attention"].flops(sizes) == 2 * 3 * 4 * 5 * (2 * 6 + 2 * 6)  # q · k, and weights times v
    assert REGISTRY["rotary"].flops(sizes) == 2 * 3 * 4 * 3 * 6  # per pair of components 4 products, 2 sums
