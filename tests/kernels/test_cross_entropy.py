"""The compiled cross-entropy, of logits and of a linear layer, against float64 and against NumPy in float32."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from minilora import kernels, ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ShapeError
from minilora.kernels import FrozenWeight

EPS = 2.0**-24
pytestmark = pytest.mark.native
REDUCTIONS = ("mean", "sum", "none")


def gamma(terms):
    return terms * EPS / (1 - terms * EPS)


def run(name, rule, operands, params, trained, cotangent=None):
    """The loss and the gradients of an operator by one of its rules, with gradients for the operands at ``trained``."""
    record = REGISTRY[name]
    need = tuple(i in trained for i in range(len(operands)))
    loss, saved = record.run(rule, operands, params, need)
    grad = np.ones_like(loss) if cotangent is None else np.asarray(cotangent, loss.dtype)
    return loss, *(rule.vjp(grad, saved, need, **params) if trained else ())


def problem(n, d, v, *, order="nk", ignored=0.2, seed=0, size=3.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d), dtype=np.float32)
    stored = (size / np.sqrt(max(d, 1)) * rng.standard_normal((v, d))).astype(np.float32)
    w = stored.T if order == "nk" else np.ascontiguousarray(stored.T)
    labels = np.where(rng.random(n) < ignored, -100, rng.integers(0, v, n))
    return x, w, labels


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("order", ["nk", "kn"])
@pytest.mark.parametrize("shape", [(1, 7, 33), (37, 24, 501), (530, 64, 1100)])
def test_the_error_is_at_most_four_times_that_of_numpy(shape, order, reduction):
    operands = problem(*shape, order=order, ignored=0.2 if shape[0] > 1 else 0.0)
    params = {"ignore_index": -100, "reduction": reduction}
    cotangent = np.random.default_rng(1).standard_normal(shape[0] if reduction == "none" else ())
    record = REGISTRY["linear_cross_entropy"]
    exact = [a.astype(np.float64) for a in operands[:2]]
    want = run("linear_cross_entropy", record.reference, (*exact, operands[2]), params, (0, 1), cotangent)
    numpys = run("linear_cross_entropy", record.reference, operands, params, (0, 1), cotangent)
    ours = run("linear_cross_entropy", record.kernel, operands, params, (0, 1), cotangent)
    for what, a, b, c in zip(("loss", "grad_x", "grad_W"), want, numpys, ours, strict=False):
        assert c.shape == a.shape
        assert c.dtype == np.float32
        # One rounding of the result itself is granted, where NumPy happens to be exact.
        error, allowed = np.abs(c - a).max(), 4 * np.abs(b - a).max() + EPS * np.abs(a).max()
        print(f"{what}: {error:.2e}, NumPy {np.abs(b - a).max():.2e}")
        assert error <= allowed, what


@pytest.mark.parametrize("size", [1e-3, 5.0, 60.0])
def test_the_loss_of_logits_is_right_to_the_bound_of_the_header(size):
    rng = np.random.default_rng(3)
    logits = (size * rng.standard_normal((6, 5, 700))).astype(np.float32)
    labels = np.where(rng.random((6, 5)) < 0.3, -100, rng.integers(0, 700, (6, 5)))
    labels[0, 0] = logits[0, 0].argmax()
    logits[1, 1, 5], labels[1, 1] = logits[1, 1].max() + 30, 5  # its loss is below EPS, and keeps its digits
    cotangent = rng.standard_normal((6, 5)).astype(np.float32)
    params = {"ignore_index": -100, "reduction": "none", "label_smoothing": 0.0}
    operands = (logits, labels, None)
    losses, grad, *_ = run("cross_entropy", REGISTRY["cross_entropy"].kernel, operands, params, (0,), cotangent)
    double = logits.astype(np.float64)
    relative = gamma(2 * np.ptp(double, axis=-1) + 2060)
    for i in np.ndindex(labels.shape):
        if labels[i] == -100:
            assert losses[i] == 0
            assert not grad[i].any()
            continue
        shares = np.exp(double[i] - double[i][labels[i]])  # of the label's; no difference is taken of what is large
        shares[labels[i]] = 0
        others = shares.sum()
        want = cotangent[i] * shares / (1 + others)
        want[labels[i]] = cotangent[i] * -others / (1 + others)
        assert abs(losses[i] - np.log1p(others)) <= relative[i] * np.log1p(others)
        assert np.all(np.abs(grad[i] - want) <= relative[i] * np.abs(want) + 1e-37)


def test_other_losses_are_the_references_to_the_bit():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 9), dtype=np.float32), rng.integers(0, 9, 5)
    weight = rng.random(9, dtype=np.float32)
    record = REGISTRY["cross_entropy"]
    for given, smoothing in ((weight, 0.0), (None, 0.1), (weight, 0.1)):
        params = {"ignore_index": -100, "reduction": "mean", "label_smoothing": smoothing}
        trained = (0,) if given is None else (0, 2)
        operands = logits, labels, given
        one = run("cross_entropy", record.reference, operands, params, trained)
        other = run("cross_entropy", record.kernel, operands, params, trained)
        for a, b in zip(one, other, strict=True):
            assert (a is b) if a is None else np.array_equal(a, b)


@pytest.mark.parametrize("order", ["nk", "kn"])
def test_threads_change_no_bit(order, monkeypatch):
    x, w, labels = problem(150, 40, 900, order=order)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(kernels, "_set_threads", threads)
        for params in ({"reduction": "mean"}, {"reduction": "none"}):
            a, b = tensor(x, requires_grad=True), tensor(w, requires_grad=True)
            loss = ops.linear_cross_entropy(a, b, labels, **params)
            loss.backward(np.ones(loss.shape))
            c = tensor(x @ w, requires_grad=True)
            second = ops.cross_entropy(c, labels, **params)
            second.backward(np.ones(loss.shape))
            found.append([p.tobytes() for p in (loss.data, a.grad, b.grad, second.data, c.grad)])
    assert found[:2] == found[2:4] == found[4:]


def test_read_only_and_strided_operands_give_the_same_bits():
    x, w, labels = problem(40, 24, 300, order="kn")
    wide, apart = np.zeros((40, 48), np.float32), np.zeros((24, 600), np.float32)
    wide[:, ::2], apart[:, ::2] = x, w
    labels32 = np.repeat(labels.astype(np.int32), 2)[::2]
    results = []
    for operands in ((x, w, labels), (wide[:, ::2], apart[:, ::2], labels32), (x, FrozenWeight(w), labels)):
        for array in operands:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        leaf = tensor(operands[0], requires_grad=True)
        loss = ops.linear_cross_entropy(leaf, *operands[1:])
        loss.backward()
        results.append((loss.data.tobytes(), leaf.grad.tobytes()))
    assert results[0] == results[1] == results[2]
    logits, spread = x @ w, np.zeros((40, 600), np.float32)
    spread[:, ::2] = logits
    logits.flags.writeable = spread.flags.writeable = False
    both = [tensor(a, requires_grad=True) for a in (logits, spread[:, ::2])]
    losses = [ops.cross_entropy(leaf, labels) for leaf in both]
    for loss in losses:
        loss.backward()
    assert losses[0].data == losses[1].data
    assert np.array_equal(both[0].grad, both[1].grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_row_without_label_is_not_even_multiplied(reduction):
    x, w, labels = problem(40, 24, 300)
    x[labels == -100] = np.nan
    leaf, weight = tensor(x, requires_grad=True), tensor(w, requires_grad=True)
    loss = ops.linear_cross_entropy(leaf, weight, labels, reduction=reduction)
    loss.backward(np.ones(loss.shape))
    assert np.all(np.isfinite(loss.data))
    assert not leaf.grad[labels == -100].any()
    assert np.all(np.isfinite(weight.grad))


def test_the_logits_never_exist_all_at_once(monkeypatch):
    from minilora.kernels import native

    x, w, labels = problem(2400, 8, 4000)
    monkeypatch.setattr(native._own, "space", None, raising=False)
    leaf = tensor(x, requires_grad=True)
    tracemalloc.start()
    ops.linear_cross_entropy(leaf, FrozenWeight(w), labels).backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4000 * 512 + kernels.threads() * 850_000 + 1_000_000 < 4 * 4000 * 2400 / 3


def test_fewer_rows_never_need_a_larger_workspace():
    from minilora.kernels import _kernels

    for n in (1, 7, 49152, 2_000_000):
        needed = [_kernels.linear_cross_entropy_workspace(m, n, 5, 2) for m in range(1200)]
        assert needed == sorted(needed)


def test_a_long_call_is_cut_and_gives_the_same(monkeypatch):
    from minilora.kernels import native

    x, w, labels = problem(97, 40, 300, ignored=0)
    factors = np.random.default_rng(5).standard_normal(97).astype(np.float32)
    whole = native.linear_cross_entropy(x, w, labels, factors, (True, True), 2)
    calls, original = [], native._kernels.linear_cross_entropy
    monkeypatch.setattr(native._kernels, "linear_cross_entropy", lambda *a: calls.append(len(a[0])) or original(*a))
    for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
        monkeypatch.setattr(native, name, 30 * 300 * 40 * 3 / 2)
    cut = native.linear_cross_entropy(x, w, labels, factors, (True, True), 2)
    assert calls == [25, 25, 25, 22]
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_no_call_for_a_large_vocabulary_is_longer_than_its_share(monkeypatch):
    from minilora.kernels import native

    seen = []
    monkeypatch.setattr(native._kernels, "chosen", lambda: "x86-64-v3")
    monkeypatch.setattr(native._kernels, "linear_cross_entropy", lambda *a: seen.append(len(a[0])))
    x, w = np.zeros((1024, 576), np.float32), np.zeros((576, 49152), np.float32)
    native.linear_cross_entropy(x, w, np.zeros(1024, np.int64), np.ones(1024, np.float32), (True, False), 2)
    assert sum(seen) == 1024
    assert max(seen) * 576 * 49152 * 2 <= 2 * native.CALL_WORK
    assert max(seen) - min(seen) < len(seen)


def arguments():
    return {
        "x": np.zeros((3, 5), np.float32), "w": np.zeros((5, 7), np.float32), "labels": np.zeros(3, np.int64),
        "factors": np.ones(3, np.float32), "need": (True, True), "n_threads": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.zeros((3, 6), np.float32), "linear_cross_entropy: w is (5, 7), need (K, N) = (6, 7)"),
        ("x", np.zeros((3, 5)), "linear_cross_entropy: x is float64 (3, 5), need C-contiguous float32 (M, K)"),
        ("w", np.zeros((7, 6), np.float32).T, "linear_cross_entropy: w is (7, 6), need (N, K) = (7, 5)"),
        ("labels", np.zeros(4, np.int64), "linear_cross_entropy: labels is (4,), need (M,) = (3,)"),
        ("labels", np.array([0, 7, 0]), "linear_cross_entropy: labels holds 7, need labels below N = 7"),
        ("labels", np.array([0, 0, -1]), "linear_cross_entropy: labels holds -1, need labels below N = 7"),
        ("factors", np.ones(2, np.float32), "linear_cross_entropy: factors is (2,), need (M,) = (3,)"),
        ("factors", None, "linear_cross_entropy: a gradient needs factors"),
    ],
)
def test_what_the_kernel_cannot_read_is_refused_by_name(name, value, message):
    from minilora.kernels import native

    with pytest.raises(ShapeError) as caught:
        native.linear_cross_entropy(**{**arguments(), name: value})
    assert message in str(caught.value)


def test_the_wrapper_of_given_logits_refuses_what_does_not_fit():
    from minilora.kernels import _kernels, native

    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError, match=r"cross_entropy_forward: labels holds 3, need labels below N = 3"):
        native.cross_entropy_forward(logits, np.array([0, 3]), 1)
    row = np.zeros(2, np.float32)
    with pytest.raises(ShapeError, match=r"cross_entropy_backward: factors is \(1,\), need \(M,\) = \(2,\)"):
        _kernels.cross_entropy_backward(logits.copy(), logits, row, row, row[:1], np.zeros(2, np.int64), 1)
    with pytest.raises(ValueError, match="linear_cross_entropy: workspace has 8 bytes, need"):
        _kernels.linear_cross_entropy(
            np.zeros(2, np.float32), None, None, logits, np.zeros((3, 4), np.float32).view(np.uint8), None,
            np.zeros(2, np.int64), np.zeros(8, np.uint8), False, 0, False, 1,
        )  # fmt: skip
