"""A receipt's numbers: norms, identities of weights, and what is said where there is nothing to compare with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autograd import tensor
from minilora.kernels import FrozenWeight
from minilora.lora.receipt import LayerReceipt, change_norm, weight_identity, weight_norm
from minilora.nn import Linear


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_norm_of_the_change_is_that_of_the_product(width_in, rank, width_out, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((width_in, rank)), rng.standard_normal((rank, width_out))
    # The Gram matrices lose half the digits where A · B nearly cancels: sqrt(eps) of the factors' sizes.
    size = np.linalg.norm(a) * np.linalg.norm(b)
    assert abs(change_norm(a, b) - np.linalg.norm(a @ b)) <= 1e-7 * size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_is_the_same_whether_trained_or_frozen_and_in_either_layout(dtype):
    matrix = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
    layers = [
        Linear.from_weight(weight)
        for weight in (
            tensor(matrix),
            tensor(np.asfortranarray(matrix)),
            FrozenWeight(matrix),
            FrozenWeight(np.asfortranarray(matrix)),
        )
    ]
    assert len({weight_identity(layer) for layer in layers}) == 1
    assert weight_identity(layers[0])[0] == {np.float32: "f32", np.float64: "f64"}[dtype]
    for layer in layers:
        assert weight_norm(layer) == pytest.approx(np.linalg.norm(matrix), rel=1e-6)
    changed = matrix.copy()
    changed[4, 2] = np.nextafter(changed[4, 2], 9, dtype=dtype)
    assert weight_identity(Linear.from_weight(FrozenWeight(changed))) != weight_identity(layers[0])


def test_a_transposed_matrix_is_another_weight():
    matrix = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    one, two = (Linear.from_weight(FrozenWeight(m)) for m in (matrix, matrix.T))
    assert weight_identity(one) != weight_identity(two)


def test_stored_blocks_are_hashed_as_they_are_stored():
    blocks = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)  # two rows of one q8_0 block
    layer = Linear.from_weight(FrozenWeight.from_blocks(blocks, "q8_0"))
    assert weight_identity(layer) == ("q8_0", layer.weight.sha256())


def test_a_change_of_a_zero_weight_is_infinitely_large():
    assert LayerReceipt("q", 1, 1.0, 2.0, 0.0).relative == math.inf
    assert LayerReceipt("q", 1, 1.0, 0.0, 0.0).relative == 0.0
    assert LayerReceipt("q", 1, 1.0, 1.0, 4.0).relative == 0.25
