"""The optimiser's compiled kernels against NumPy, which serves every array that they do not take."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minilora import kernels
from minilora.autograd import tensor
from minilora.errors import ShapeError
from minilora.optim import AdamW, clip_grad_norm

pytestmark = pytest.mark.native
SHAPES = [(), (1,), (0, 3), (5, 7), (33,), (100, 90), (8192,), (8193,), (3, 8191)]


@pytest.fixture
def backend(monkeypatch):
    """Switch the compiled kernel on or off."""

    def choose(native):
        monkeypatch.setattr(kernels, "use_native", lambda: native)

    return choose


def drawn(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in SHAPES]
    grads = [
        [
            (10.0 ** rng.integers(-6, 3) * rng.standard_normal(shape)).astype(np.float32).astype(dtype)
            for shape in SHAPES
        ]
        for _ in range(12)
    ]
    return [tensor(w, requires_grad=True) for w in start], grads


def trained(dtype=np.float32, clip=None):
    """All arrays of the parameters and the optimiser's state after some steps, which not all parameters make."""
    leaves, grads = drawn(dtype)
    optimizer = AdamW(leaves, lr=0.01, weight_decay=0.1)
    for step, row in enumerate(grads):
        for i, (leaf, grad) in enumerate(zip(leaves, row, strict=True)):
            leaf.grad = None if (step + i) % 5 == 0 else grad.copy()
        if clip:
            clip_grad_norm(leaves, clip)
        optimizer.step()
    state = optimizer.state_dict()["state"]
    assert len({state[i]["step"] for i in state}) > 1
    return [(leaf.data, state[i]["exp_avg"], state[i]["exp_avg_sq"]) for i, leaf in enumerate(leaves)]


def test_the_error_of_many_steps_is_at_most_four_times_that_of_numpy(backend):
    backend(False)
    exact, numpys = trained(np.float64), trained()
    backend(True)
    for i, rows in enumerate(zip(exact, numpys, trained(), strict=True)):
        for what, a, b, c in zip(("weight", "mean", "square"), *rows, strict=True):
            error, reference = (float(np.abs(x - a).max(initial=0.0)) for x in (c, b))
            print(f"{what} of {SHAPES[i]}: {error:.2e}, NumPy {reference:.2e}")
            # One rounding a step of the result itself is granted: in a small array NumPy may happen to be exact.
            assert error <= 4 * reference + 12 * 2.0**-24 * float(np.abs(a).max(initial=0.0)), (i, what)


def test_threads_change_no_bit(monkeypatch, backend):
    backend(True)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(kernels, "_set_threads", threads)
        found.append([a.tobytes() for row in trained(clip=1.0) for a in row])
    assert found[0] == found[1] == found[2]


def test_cutting_a_call_changes_no_bit(monkeypatch, backend):
    from minilora.kernels import native

    backend(True)
    whole = [a.tobytes() for row in trained(clip=1.0) for a in row]
    calls, original = [], native._kernels.adamw
    monkeypatch.setattr(native._kernels, "adamw", lambda *a: calls.append(int(a[2].sum())) or original(*a))
    monkeypatch.setattr(native, "CALL_FLOATS", 8192)
    assert [a.tobytes() for row in trained(clip=1.0) for a in row] == whole
    assert len(calls) > 12
    assert max(calls) < 2 * 8192


def test_one_call_moves_all_that_is_float32_and_contiguous(monkeypatch, backend):
    from minilora.kernels import native

    backend(True)
    moved, original = [], native.adamw
    monkeypatch.setattr(
        native, "adamw", lambda weights, *a, **k: moved.append(len(weights)) or original(weights, *a, **k)
    )
    store = np.ones((4, 6), np.float32)
    parameters = [np.ones(3, np.float32), np.ones(3), store[:, ::2], np.ones((2, 2), np.float32)]
    leaves = [tensor(p, requires_grad=True) for p in parameters]
    for leaf in leaves:
        leaf.grad = np.full(leaf.shape, 2.0, leaf.dtype)
    leaves[3].grad.flags.writeable = False
    AdamW(leaves, lr=0.25, weight_decay=0.0).step()
    assert moved == [2]
    for leaf in leaves:
        np.testing.assert_allclose(leaf.data, 0.75, rtol=1e-6)
    assert np.all(store[:, 1::2] == 1)


@pytest.mark.parametrize("shared", ["weights", "gradient"])
def test_arrays_that_share_memory_move_one_after_the_other(shared, backend):
    results = []
    for native in (False, True):
        backend(native)
        store, other = np.arange(6, dtype=np.float32), np.ones(4, np.float32)
        leaves = [tensor(store[:4], requires_grad=True), tensor(store[2:] if shared == "weights" else other, True)]
        for leaf in leaves:
            leaf.grad = np.ones(4, np.float32)
        if shared == "gradient":
            leaves[1].grad = store[:4]
        AdamW(leaves, lr=0.1, weight_decay=0.5).step()
        clip_grad_norm([SimpleNamespace(grad=store[:4]), SimpleNamespace(grad=store[2:])], 1.0)
        results.append((store.tobytes(), other.tobytes()))
    assert results[0] == results[1]


def test_the_norm_and_what_is_clipped_are_numpys(backend):
    results = []
    for native in (False, True):
        backend(native)
        leaves, grads = drawn(seed=3)
        for leaf, grad in zip(leaves, grads[0], strict=True):
            leaf.grad = grad
        leaves.append(SimpleNamespace(grad=np.array([1e3, -2e3])))
        results.append((clip_grad_norm(leaves, 0.5), [leaf.grad for leaf in leaves]))
    (want, numpys), (norm, ours) = results
    # Squares are exact in float64; each sum has as many roundings as elements, and the root halves them.
    assert abs(norm - want) <= sum(g.size for g in numpys) * 2.0**-53 * want
    for a, b in zip(numpys, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=2.0**-23)  # the factor may be another float32


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_touches_nothing(bad, backend):
    backend(True)
    grad = np.ones(9000, np.float32)
    grad[8500] = bad
    before = grad.copy()
    assert not math.isfinite(clip_grad_norm([SimpleNamespace(grad=grad)], 0.1))
    np.testing.assert_array_equal(grad, before)


def test_arrays_that_do_not_fit_are_refused():
    from minilora.kernels import _kernels, native

    def some(n):
        return [np.zeros(n, np.float32)]

    with pytest.raises(ShapeError, match="adamw: a weight, its mean, its square and its gradient differ in size"):
        native.adamw(some(3), some(3), some(3), some(4), np.ones((2, 1), np.float32), 1, 0.1, 0.9, 0.1, 1e-8, 1)
    with pytest.raises(ValueError, match="contiguous"):
        native.square_sum([np.zeros((4, 4), np.float32)[:, ::2]], 1)
    fixed = np.zeros(3, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        native.scale([fixed], 2.0, 1)
    at = np.zeros((4, 1), np.uintp)
    with pytest.raises(ShapeError, match=r"adamw: factors is \(1, 2\), need \(2, arrays\) = \(2, 1\)"):
        _kernels.adamw(at, np.ones((1, 2), np.float32), np.zeros(1, np.intp), 1, 0.1, 0.9, 0.1, 1e-8, 1)
    with pytest.raises(ValueError, match="square_sum: workspace has 0 numbers"):
        _kernels.square_sum(np.zeros(1, np.uintp), np.zeros(0), np.ones(1, np.intp), 1)
    assert native.square_sum([], 1) == 0
