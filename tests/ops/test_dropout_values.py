"""Dropout by hand: what a mask does, what a Generator draws, and the settings that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ConfigError, ops, tensor
from minilora.ops.dropout import noting_draws, replaying


def test_masked_dropout_zeroes_what_is_not_kept_and_scales_the_rest():
    x = tensor(np.array([1.0, 2.0, 3.0, 4.0]), requires_grad=True)
    y = ops.masked_dropout(x, np.array([True, False, True, False]), p=0.5)
    np.testing.assert_array_equal(y.data, [2, 0, 6, 0])
    y.backward(gradient=np.ones(4))
    np.testing.assert_array_equal(x.grad, [2, 0, 2, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_drops_where_the_generators_float32_numbers_are_below_p(dtype):
    x = np.arange(1, 25, dtype=dtype).reshape(4, 6)
    drawn = np.random.default_rng(7).random((4, 6), np.float32)
    out = ops.dropout(x, 0.25, np.random.default_rng(7))
    assert out.dtype == dtype
    for row in range(4):
        for column in range(6):
            kept = drawn[row, column] >= 0.25
            assert out[row, column] == (x[row, column] * dtype(1 / 0.75) if kept else 0)


def test_dropout_keeps_a_share_of_1_minus_p_and_the_mean():
    out = ops.dropout(np.ones(100_000), 0.3, np.random.default_rng(0))
    four_deviations = 4 * math.sqrt(0.3 * 0.7 / 100_000)
    assert abs(np.count_nonzero(out) / 100_000 - 0.7) < four_deviations
    assert abs(out.mean() - 1) < four_deviations / 0.7


def test_each_call_draws_anew_and_a_seed_draws_the_same():
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    first, second = ops.dropout(np.ones(64), 0.5, one), ops.dropout(np.ones(64), 0.5, one)
    assert (first != second).any()
    np.testing.assert_array_equal(ops.dropout(np.ones(64), 0.5, two), first)


def test_the_gradient_passes_where_the_output_is_not_dropped():
    x = tensor(np.ones((5, 7)), requires_grad=True)
    y = ops.dropout(x, 0.4, np.random.default_rng(1))
    y.backward(gradient=np.full((5, 7), 2.0))
    np.testing.assert_array_equal(x.grad, 2 * y.data)
    assert 0 < np.count_nonzero(y.data) < 35


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_drawn_or_changed_outside_training_or_with_p_0(p, training):
    x, generator = tensor(np.ones(3), requires_grad=True), np.random.default_rng(5)
    assert ops.dropout(x, p, generator, training=training) is x
    assert generator.bit_generator.state == np.random.default_rng(5).bit_generator.state


@pytest.mark.parametrize("p", [1, 1.0, 1.5, -0.1, math.nan])
def test_a_probability_outside_its_range_is_refused(p):
    message = f"dropout: p is {p}, expected at least 0 and below 1\n  to drop everything, multiply by 0"
    with pytest.raises(ConfigError) as caught:
        ops.dropout(np.ones(2), p, np.random.default_rng(0))
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        ops.masked_dropout(np.ones(2), np.ones(2, bool), p=p)
    assert str(caught.value) == "masked_" + message


@pytest.mark.parametrize("generator", [None, 0, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused(generator):
    with pytest.raises(ConfigError) as caught:
        ops.dropout(np.ones(2), 0.5, generator)
    assert str(caught.value) == (
        f"dropout: generator is {generator!r}, expected a numpy Generator\n  make one with np.random.default_rng(seed)"
    )


# ---------------------------------------------------------------- drawing the same again


def test_replaying_draws_the_same_masks_and_puts_the_generators_back():
    one, two, untouched = (np.random.default_rng(seed) for seed in (1, 2, 3))
    x = np.ones(50)

    def masks():
        return [ops.dropout(x, 0.5, one), ops.dropout(x, 0.5, two), ops.dropout(x, 0.5, one)]

    ops.dropout(x, 0.5, one)
    with noting_draws() as states:
        first = masks()
    assert len(states) == 2
    masks()
    later = [generator.bit_generator.state for generator in (one, two, untouched)]
    with replaying(states):
        again = masks()
    np.testing.assert_array_equal(first, again)
    assert [generator.bit_generator.state for generator in (one, two, untouched)] == later


def test_an_inner_block_notes_draws_for_the_outer_one_too():
    generator = np.random.default_rng(0)
    with noting_draws() as outer:
        with noting_draws() as inner:
            first = ops.dropout(np.ones(50), 0.5, generator)
        ops.dropout(np.ones(50), 0.5, generator)
    assert list(outer) == list(inner)
    with replaying(outer):
        np.testing.assert_array_equal(ops.dropout(np.ones(50), 0.5, generator), first)


def test_generators_that_share_their_bits_are_replayed_as_one():
    bits = np.random.PCG64(0)
    with noting_draws() as states:
        first = [ops.dropout(np.ones(50), 0.5, np.random.Generator(bits)) for _ in range(2)]
    with replaying(states):
        again = [ops.dropout(np.ones(50), 0.5, np.random.Generator(bits)) for _ in range(2)]
    np.testing.assert_array_equal(first, again)
