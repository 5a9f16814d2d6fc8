"""The compiled low-rank linear layer against float64, under the bound of csrc/minilora.h."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ShapeError

EPS = 2.0**-24
native_only = pytest.mark.native


def gamma(terms: int) -> float:
    """Return the relative error that a float32 sum of so many products may have, in any order of summation."""
    return terms * EPS / (1 - terms * EPS)


def product(left, right):
    """Return left @ right in float64, and the sum of its terms' absolute values."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return left @ right, np.abs(left) @ np.abs(right)


def native_forward(*arguments, threads=2):
    from minilora.kernels import native

    return native.lora_forward(*arguments, threads)


def native_backward(*arguments, threads=2):
    from minilora.kernels import native

    return native.lora_backward(*arguments, threads)


# 0, 1, odd, the edges of every tile (4, 6, 8, 14, 16, 32), both sides of the limits between paths, longer than a block.
sizes = st.sampled_from([0, 1, 2, 3, 5, 7, 13, 14, 15, 16, 17, 31, 32, 33, 48, 49, 65, 130]) | st.integers(0, 80)
lengths = sizes | st.sampled_from([319, 320, 321, 641])


@st.composite
def problems(draw):
    """Draw the operands of a LoRA linear layer, of widely differing sizes and magnitudes."""
    m, k, n, r = draw(sizes), draw(lengths), draw(lengths), draw(st.sampled_from([0, 1, 3, 8, 16, 17, 33]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def array(*shape):
        magnitude = 10.0 ** draw(st.integers(-3, 3))
        return (magnitude * rng.standard_normal(shape)).astype(np.float32)

    w = array(n, k).T if draw(st.booleans()) else array(k, n)
    low_rank = draw(st.booleans()) or r == 0
    a, b = (array(k, r), array(r, n)) if low_rank else (None, None)
    bias = array(n) if draw(st.booleans()) else None
    arrays = array(m, k), w, a, b, bias, array(m, n)
    for one in arrays:
        if one is not None:
            one.flags.writeable = False
    return *arrays, draw(st.sampled_from([0.0, 0.5, 2.0, -1.25]))


def assert_within(got, want, allowed, what):
    assert got.shape == want.shape, what
    assert got.dtype == np.float32, what
    # Written so that NaN fails; the tiny term allows for results below the smallest normal number.
    assert np.all(np.abs(got - want) <= allowed + 1e-37), f"{what}: off by {np.abs(got - want).max()}"


@native_only
@given(problem=problems())
def test_forward_is_within_the_rounding_bound(problem):
    x, w, a, b, bias, _, scale = problem
    y, hidden = native_forward(x, w, a, b, bias, scale)
    k = x.shape[1]
    want, size = product(x, w)
    terms = k
    if a is None:
        assert hidden is None
    else:
        exact, inner = product(x, a)
        assert_within(hidden, exact, gamma(k + 2) * inner, "hidden")
        # From the hidden that was returned, so that its error is not counted twice.
        update, update_size = product(hidden, b)
        want, size, terms = want + scale * update, size + abs(scale) * update_size, k + a.shape[1]
    if bias is not None:
        want, size = want + bias, size + np.abs(bias)
    assert_within(y, want, gamma(terms + 2) * size, "y")


@native_only
@given(problem=problems())
def test_backward_is_within_the_rounding_bound(problem):
    x, w, a, b, _, grad, scale = problem
    m, n, r = len(x), w.shape[1], 0 if a is None else a.shape[1]
    hidden = None if a is None else x @ a
    grad_x, grad_a, grad_b = native_backward(grad, x, hidden, w, a, b, scale, (True, True, True))
    want, size = product(grad, w.T)
    if a is None:
        assert grad_a is None
        assert grad_b is None
        inner_error = 0.0
    else:
        grad_h, inner = product(grad, b.T)
        factor = abs(scale)
        update = np.abs(grad_h) @ np.abs(a.T.astype(np.float64))
        want, size = want + scale * grad_h @ a.T.astype(np.float64), size + factor * update
        # grad_h is itself rounded; what multiplies it multiplies its error, and the rounding of that product.
        slack = gamma(n + 2) * inner
        inner_error = (1 + gamma(n + r + 2)) * factor * slack @ np.abs(a.T.astype(np.float64))
        across, across_size = product(x.T, grad_h)
        across_slack = (1 + gamma(m + 2)) * np.abs(x.T.astype(np.float64)) @ slack
        assert_within(grad_a, scale * across, factor * (gamma(m + 2) * across_size + across_slack), "grad_a")
        down, down_size = product(hidden.T, grad)
        assert_within(grad_b, scale * down, factor * gamma(m + 2) * down_size, "grad_b")
    assert_within(grad_x, want, gamma(n + r + 2) * size + inner_error, "grad_x")


@native_only
@pytest.mark.parametrize("transposed", [False, True], ids=["W (K, N)", "W (N, K)"])
@pytest.mark.parametrize("rank", [8, 400])
@pytest.mark.parametrize(("rows", "k"), [(1, 576), (5, 576), (60, 576), (140, 1536), (60, 320), (60, 316)])
def test_an_adapter_whose_b_is_zero_gives_the_bits_of_the_plain_layer(rows, k, rank, transposed):
    n = 331
    rng = np.random.default_rng(0)
    x, a, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, k), (k, rank), (n,)))
    w = rng.standard_normal((n, k), dtype=np.float32).T if transposed else rng.standard_normal((k, n), dtype=np.float32)
    for start in (None, bias):
        plain, _ = native_forward(x, w, None, None, start, 2.0)
        adapted, _ = native_forward(x, w, a, np.zeros((rank, n), np.float32), start, 2.0)
        assert adapted.tobytes() == plain.tobytes()


@native_only
def test_a_zero_adapter_changes_no_bit_of_a_product_cut_into_several_calls(monkeypatch):
    from minilora.kernels import native

    m, k, n = 140, 576, 331
    for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
        monkeypatch.setattr(native, name, m // 2 * k * n)
    rng = np.random.default_rng(0)
    x, a, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, 8), (n, k)))
    plain, _ = native_forward(x, w.T, None, None, None, 2.0)
    adapted, _ = native_forward(x, w.T, a, np.zeros((8, n), np.float32), None, 2.0)
    assert adapted.tobytes() == plain.tobytes()


@native_only
def test_a_long_sum_is_rounded_by_blocks_and_not_as_one_chain():
    # Roundings add up as a random walk: 1536 in a row are off by twice what 320 are. Here every term is positive,
    # so that the walk's steps are eps/2 of the sum so far, and a block's are smaller by as much as it is shorter.
    rng = np.random.default_rng(0)
    x, w = rng.random((140, 1536), dtype=np.float32), rng.random((1536, 192), dtype=np.float32)
    y, _ = native_forward(x, w, None, None, None, 1.0)
    chain = np.zeros_like(y)
    for k in range(x.shape[1]):
        chain += x[:, k : k + 1] * w[k]
    exact, _ = product(x, w)
    off = [np.sqrt(np.mean((got - exact) ** 2)) for got in (y, chain)]
    assert off[0] < 0.5 * off[1], off


@native_only
@pytest.mark.parametrize("transposed", [False, True], ids=["W (K, N)", "W (N, K)"])
@pytest.mark.parametrize("rank", [8, 40])
@pytest.mark.parametrize("rows", [1, 5, 17, 48, 49, 203])
def test_one_two_and_three_threads_give_the_same_bits(rows, rank, transposed):
    # Large enough not to take the serial path; odd, so that the last tile of each thread is cut.
    k, n = 405, 701
    rng = np.random.default_rng(0)
    x, grad, a, b, bias = (
        rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, k), (rows, n), (k, rank), (rank, n), (n,))
    )
    w = rng.standard_normal((n, k), dtype=np.float32).T if transposed else rng.standard_normal((k, n), dtype=np.float32)
    seen = set()
    for threads in (1, 2, 3):
        y, hidden = native_forward(x, w, a, b, bias, 0.5, threads=threads)
        grads = native_backward(grad, x, hidden, w, a, b, 0.5, (True, True, True), threads=threads)
        seen.add(b"".join(array.tobytes() for array in (y, hidden, *grads)))
    assert len(seen) == 1


@native_only
@given(problem=problems(), need=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_only_the_needed_gradients_are_formed(problem, need):
    x, w, a, b, _, grad, scale = problem
    hidden = None if a is None else x @ a
    every = native_backward(grad, x, hidden, w, a, b, scale, (True, True, True))
    some = native_backward(grad, x if need[1] else None, hidden if need[2] else None, w, a, b, scale, need)
    for wanted, one, other in zip(need, some, every, strict=True):
        assert (one is None) == (not wanted or other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


@native_only
def test_a_call_cut_into_blocks_of_rows_equals_the_whole(monkeypatch):
    from minilora.kernels import native

    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((100, 40), dtype=np.float32), rng.standard_normal((100, 70), dtype=np.float32)
    w, a = rng.standard_normal((70, 40), dtype=np.float32).T, rng.standard_normal((40, 8), dtype=np.float32)
    b = rng.standard_normal((8, 70), dtype=np.float32)

    def run():
        y, hidden = native_forward(x, w, a, b, None, 0.5)
        return y, hidden, *native_backward(grad, x, hidden, w, a, b, 0.5, (True, True, True))

    whole = run()
    calls = []
    original = native._kernels.lora_backward
    monkeypatch.setattr(native._kernels, "lora_backward", lambda *args: calls.append(1) or original(*args))
    for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
        monkeypatch.setattr(native, name, 30 * 70 * 40)
    cut = run()
    assert len(calls) == 4
    # Both are within the bound of the exact result, so within twice the bound of each other. grad_a and grad_b add
    # the four calls' sums, one rounding each more; a hidden or grad_h that multiplies brings its own bound.
    magnitude = [np.abs(array.astype(np.float64)) for array in (x, grad, w, a, b)]
    abs_x, abs_grad, abs_w, abs_a, abs_b = magnitude
    m, k, n, r = 100, 40, 70, 8
    low, high = gamma(k + r + 2) + gamma(k + 2), gamma(n + r + 2) + gamma(n + 2)
    inner, outer = abs_x @ abs_a, abs_grad @ abs_b.T
    bounds = (
        gamma(k + r + 2) * (abs_x @ abs_w) + 0.5 * low * (inner @ abs_b),
        gamma(k + 2) * inner,
        gamma(n + r + 2) * (abs_grad @ abs_w.T) + 0.5 * high * (outer @ abs_a.T),
        0.5 * (gamma(m + 6) + gamma(n + 2)) * (abs_x.T @ outer),
        0.5 * (gamma(m + 6) + gamma(k + 2)) * (inner.T @ abs_grad),
    )
    for name, one, other, bound in zip(("y", "hidden", "grad_x", "grad_a", "grad_b"), whole, cut, bounds, strict=True):
        # 1.001 covers the products of two bounds.
        assert np.all(np.abs(one.astype(np.float64) - other) <= 1.001 * 2 * bound), name


@native_only
def test_no_call_of_a_large_product_is_longer_than_its_share(monkeypatch):
    from minilora.kernels import native

    work = 49152 * 576
    for isa, limit in (("x86-64-v3", native.CALL_WORK), ("baseline", native.BASELINE_CALL_WORK)):
        monkeypatch.setattr(native._kernels, "chosen", lambda isa=isa: isa)
        rows = native._block_rows(1024, 49152, 576)
        assert rows * work <= limit < (rows + 1) * work


@native_only
def test_an_interrupt_is_heard_between_the_blocks_of_a_large_product(monkeypatch):
    from minilora.kernels import native

    for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
        monkeypatch.setattr(native, name, 1e6)
    x, w = np.ones((20000, 300), dtype=np.float32), np.ones((300, 400), dtype=np.float32)
    monkeypatch.setattr(
        native._kernels, "lora_forward", lambda *args: (time.sleep(0.01), os.kill(os.getpid(), signal.SIGINT))
    )
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        native_forward(x, w, None, None, None, 1.0)
    assert time.monotonic() - began < 5


def operands():
    return {
        "x": np.zeros((3, 5), np.float32), "w": np.zeros((5, 7), np.float32), "a": np.zeros((5, 2), np.float32),
        "b": np.zeros((2, 7), np.float32), "bias": np.zeros(7, np.float32), "scale": 1.0,
    }  # fmt: skip


@native_only
@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros((3, 6), np.float32), "lora_forward: w is (5, 7), need (K, N) = (6, 7)"),
        ("w", np.zeros((7, 6), np.float32).T, "lora_forward: w is (7, 6), need (N, K) = (7, 5)"),
        ("a", np.zeros((4, 2), np.float32), "lora_forward: a is (4, 2), need (K, R) = (5, 2)"),
        ("b", np.zeros((2, 8), np.float32), "lora_forward: b is (2, 8), need (R, N) = (2, 7)"),
        ("bias", np.zeros(6, np.float32), "lora_forward: bias is (6,), need (N,) = (7,)"),
        (
            "x",
            np.zeros((3, 5)),
            "lora_forward: x is float64 (3, 5), need C-contiguous float32 (M, K)\n  use np.array(x,",
        ),
        ("x", np.zeros(5, np.float32), "lora_forward: x is float32 (5,), need C-contiguous float32 (M, K)"),
        ("x", np.zeros((5, 3), np.float32).T, "lora_forward: x is float32 (3, 5), not C-contiguous, need"),
        (
            "w",
            np.zeros((5, 14), np.float32)[:, ::2],
            "w is float32 (5, 7), not C-contiguous, need C-contiguous float32, or",
        ),
        ("w", np.zeros((7, 5), np.float16).T, "lora_forward: w is float16 (7, 5), need C-contiguous float32, or its"),
        (
            "a",
            np.frombuffer(bytearray(41), np.uint8)[1:].view(np.float32).reshape(5, 2),
            "a is float32 (5, 2), not aligned",
        ),
    ],
)
def test_what_the_kernel_cannot_read_is_refused_by_name(name, array, message):
    with pytest.raises(ShapeError) as caught:
        native_forward(*{**operands(), name: array}.values())
    assert message in str(caught.value)


@native_only
def test_a_gradient_without_what_it_needs_is_refused():
    given_operands = operands()
    x, w, a, b = (given_operands[name] for name in "xwab")
    grad = np.zeros((3, 7), np.float32)
    with pytest.raises(ShapeError, match="grad_a needs x"):
        native_backward(grad, None, None, w, a, b, 1.0, (False, True, False))
    with pytest.raises(ShapeError, match=r"lora_backward: w is \(5, 7\), need \(K, N\) = \(5, 8\)"):
        native_backward(np.zeros((3, 8), np.float32), x, None, w, a, b, 1.0, (True, False, False))


@native_only
def test_the_wrapper_refuses_a_workspace_that_is_too_small():
    from minilora.kernels import _kernels

    given_operands = operands()
    y, small = np.zeros((3, 7), np.float32), np.zeros(8, np.uint8)
    lines = given_operands["w"].view(np.uint8)
    with pytest.raises(ValueError, match="lora_forward: workspace has 8 bytes, need"):
        _kernels.lora_forward(y, None, given_operands["x"], lines, None, None, None, small, 1.0, 0, False, 1)
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        _kernels.lora_forward(y, None, given_operands["x"], lines, None, None, None, small, 1.0, 0, False, 0)


@native_only
def test_the_compiled_kernel_answers_through_the_public_functions(monkeypatch):

    given_operands = operands()
    given_operands["x"][:] = 1
    given_operands["w"][:] = 2
    y, hidden = native_forward(*given_operands.values())
    assert np.all(y == 10)
    assert hidden.shape == (3, 2)
    x, w, a, b = (given_operands[name] for name in "xwab")
    grad_x, grad_a, grad_b = native_backward(y, x, hidden, w, a, b, 1.0, (True, False, True))
    assert np.all(grad_x == 140)
    assert grad_a is None
    assert np.all(grad_b == 0)
