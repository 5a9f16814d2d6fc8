"""The frozen linear map and the LoRA product: by hand, and what a zero B or rank 0 leaves unchanged to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_lora_product_by_hand():
    x, w = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
    a, b = np.array([[1.0], [1.0]]), np.array([[1.0, 2.0, 3.0]])
    # x W = [1, 2, 1]; x A = 3; 0.5 · 3 · B = [1.5, 3, 4.5]; bias 10
    y = ops.lora_matmul(x, w, a, b, 0.5, np.full(3, 10.0))
    np.testing.assert_array_equal(y, [[12.5, 15, 15.5]])


def test_the_lora_gradients_by_hand():
    x = tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    a = tensor(np.array([[1.0], [1.0]]), requires_grad=True)
    b = tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    ops.lora_matmul(x, np.eye(2), a, b, 2.0).backward(gradient=[[1.0, 10.0]])
    # g Bᵀ · 2 = 2 (1 + 20) = 42; dA = xᵀ 42; dB = 2 · (x A) g = 6 g; dx = g + 42 Aᵀ
    np.testing.assert_array_equal(a.grad, [[42], [84]])
    np.testing.assert_array_equal(b.grad, [[6, 60]])
    np.testing.assert_array_equal(x.grad, [[43, 52]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_rank_zero_or_a_zero_b_leaves_the_output_unchanged_to_the_bit(dtype, rank):
    g = rng(1)
    x, w = g.standard_normal((5, 7)).astype(dtype), g.standard_normal((7, 3)).astype(dtype)
    a, b = g.standard_normal((7, rank)).astype(dtype), np.zeros((rank, 3), dtype)
    plain = ops.linear(x, w)
    np.testing.assert_array_equal(ops.lora_matmul(x, w, a, b, 2.0), plain)
    bias = g.standard_normal(3).astype(dtype)
    np.testing.assert_array_equal(ops.lora_matmul(x, w, a, b, 2.0, bias), ops.linear(x, w, bias))


def test_a_zero_b_gives_a_no_gradient_but_b_one():
    x = tensor(np.ones((1, 2)), requires_grad=True)
    a, b = tensor(np.ones((2, 1)), requires_grad=True), tensor(np.zeros((1, 2)), requires_grad=True)
    ops.lora_matmul(x, np.eye(2), a, b).sum().backward()
    np.testing.assert_array_equal(a.grad, [[0], [0]])
    np.testing.assert_array_equal(b.grad, [[2, 2]])


def test_a_wrong_size_is_reported_with_operator_and_operand():
    with pytest.raises(ShapeError) as caught:
        ops.lora_matmul(np.ones((2, 4)), np.ones((4, 3)), np.ones((5, 1)), np.ones((1, 3)))
    assert str(caught.value) == (
        "lora_matmul: A has K=5, but x has K=4\n"
        "  signature: x[*, K], W:weight[K, N], A[K, R], B[R, N], bias?[N] -> y[*, N]"
    )


def test_linear_takes_a_vector_a_matrix_and_a_stack():
    w, x = rng().standard_normal((3, 2)), rng().standard_normal((4, 5, 3))
    np.testing.assert_allclose(ops.linear(x, FrozenWeight(w)), np.einsum("abk,kn->abn", x, w), rtol=1e-13)
    np.testing.assert_allclose(ops.linear(x[0, 0], w), x[0, 0] @ w, rtol=1e-13)
