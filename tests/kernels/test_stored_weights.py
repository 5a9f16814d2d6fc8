"""Products with a weight in the bytes of its file, beside the same weight decoded to float32 first."""

from __future__ import annotations

import numpy as np
import pytest
from formats.gguf_builder import random_blocks

import minilora as ml
from minilora import kernels
from minilora.formats.quant import STORAGES
from minilora.kernels import FrozenWeight

STORED = [name for name in kernels.STORAGES if name != "f32"]
SIZES = (96, 160)  # of W: several blocks, and a panel that is cut
EPS = 2.0**-24


def stored_weight(storage: str, lines: int, length: int, *, transposed: bool) -> FrozenWeight:
    """A random W whose lines run over its outputs if transposed, else over its inputs."""
    raw = random_blocks(storage, (lines, length), np.random.default_rng(0), scale=0.1)
    return FrozenWeight.from_blocks(np.frombuffer(raw, np.uint8).reshape(lines, -1), storage, transposed=transposed)


@pytest.mark.native
def test_the_kernel_reads_what_loading_leaves_as_it_is():
    from minilora.kernels import _kernels

    assert tuple(_kernels.STORAGES) == kernels.STORAGES


@pytest.mark.native
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 50, 130])
@pytest.mark.parametrize("transposed", [True, False], ids=["W (N, K)", "W (K, N)"])
@pytest.mark.parametrize("storage", STORED)
def test_product_and_gradient_are_those_of_the_decoded_weight(storage, transposed, rows):
    from minilora.kernels import native

    weight = stored_weight(storage, *(SIZES[::-1] if transposed else SIZES), transposed=transposed)
    matrix = weight.dequantize()
    assert weight.nbytes < matrix.nbytes
    rng = np.random.default_rng(1)
    x, grad = (rng.standard_normal((rows, width), dtype=np.float32) for width in weight.shape)
    exact, size = x @ matrix.astype(np.float64), np.abs(x) @ np.abs(matrix.astype(np.float64))
    back, back_size = grad @ matrix.T.astype(np.float64), np.abs(grad) @ np.abs(matrix.T.astype(np.float64))
    seen = set()
    for threads in (1, 2, 3):
        y, _ = native.lora_forward(x, weight, None, None, None, 1.0, threads)
        grad_x = native.lora_backward(grad, None, None, weight, None, None, 1.0, (True, False, False), threads)[0]
        seen.add(y.tobytes() + grad_x.tobytes())
    assert len(seen) == 1
    assert np.all(np.abs(y - exact) <= (SIZES[0] + 2) * EPS * size)
    assert np.all(np.abs(grad_x - back) <= (SIZES[1] + 2) * EPS * back_size)
    if transposed or rows > 16:  # the same order of summation, so the same bits
        plain, _ = native.lora_forward(x, FrozenWeight(matrix), None, None, None, 1.0, 2)
        assert y.tobytes() == plain.tobytes()


@pytest.mark.parametrize("storage", [*STORED, "q4_k", "q6_k"])
def test_training_a_layer_over_a_stored_weight_gives_the_gradients_of_the_decoded_one(storage):
    weight = stored_weight(storage, 48, max(STORAGES[storage].block, 64), transposed=True)
    results = []
    for W in (weight, FrozenWeight(weight.dequantize())):
        draw = np.random.default_rng(3)
        x, A, B = (
            ml.tensor(draw.standard_normal(shape, dtype=np.float32), requires_grad=True)
            for shape in ((5, weight.shape[0]), (weight.shape[0], 4), (4, 48))
        )
        y = ml.lora_matmul(x, W, A, B, 0.5)
        y.backward(np.ones(y.shape, np.float32))
        results.append((y.data, x.grad, A.grad, B.grad))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
