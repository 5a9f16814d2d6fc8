"""The compiled attention against float64, under the bound of csrc/minilora.h, and against NumPy's own error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import ops
from minilora.autograd import REGISTRY, tensor
from minilora.errors import ShapeError
from minilora.testing.opcheck import strict

pytestmark = pytest.mark.native
EPS = 2.0**-24
ATTENTION = REGISTRY["attention"]
ALL = (True, True, True, False)
DEFAULTS = {"causal": True, "window": None, "scale": None}


def run(q, k, v, mask, grad, rule="kernel", need=ALL, **settings):
    """Return y and the gradients (None where not needed) by the kernel or by the reference."""
    settings, chosen = {**DEFAULTS, **settings}, getattr(ATTENTION, rule)
    y, saved = ATTENTION.run(chosen, (q, k, v, mask), settings, need)
    return y, *chosen.vjp(grad, saved, need, **settings)[:3]


def exact(q, k, v, mask, grad, **settings):
    return run(*(None if a is None else a.astype(a.dtype if a.dtype == bool else float) for a in (q, k, v, mask, grad)),
               "reference", **settings)  # fmt: skip


def drawn(seed, batch, time, keys, heads, groups, width, masked=False, size=1.0):
    rng = np.random.default_rng(seed)
    q, grad = (rng.standard_normal((batch, time, heads, width), dtype=np.float32) for _ in range(2))
    k, v = (rng.standard_normal((batch, keys, groups, width), dtype=np.float32) for _ in range(2))
    mask = rng.random((batch, keys)) < 0.7 if masked else None
    q *= np.float32(size)
    return q, k, v, mask, grad


def bounds(q, k, v, mask, grad, *, causal, window, scale):
    """Return how far y and the gradients may be off; csrc/tests/test_attention.c derives the numbers of roundings."""
    (batch, time, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    q, k, v, grad = (array.astype(np.float64) for array in (q, k, v, grad))
    scale = 1 / np.sqrt(max(width, 1)) if scale is None else scale
    k, v = (np.repeat(array, heads // groups, axis=2) for array in (k, v))
    position, key = np.arange(time)[:, None] + keys - time, np.arange(keys)
    hidden = (key > position) & causal
    if window is not None:
        hidden |= np.abs(key - position) >= window
    hidden = np.broadcast_to(hidden, (batch, heads, time, keys)).copy()
    if mask is not None:
        hidden |= ~mask[:, None, None, :]
    scores = np.where(hidden, -np.inf, scale * np.einsum("bthd,bshd->bhts", q, k))
    sizes = np.where(hidden, 0, abs(scale) * np.einsum("bthd,bshd->bhts", abs(q), abs(k)))
    peak = scores.max(axis=-1, keepdims=True, initial=-1e300)
    span = np.maximum(0, peak - np.where(hidden, np.inf, scores).min(axis=-1, keepdims=True, initial=1e300))
    weights = np.exp(scores - peak)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    blocks, z = np.ceil(keys / 128) + 1, sizes.max(axis=-1, keepdims=True, initial=0)
    of_y = 2 * (width + 3) * z + 4 * span + 14 * blocks + 340
    of_w = 2 * (width + 3) * z + 3 * span + 6 * blocks + 85
    terms = np.einsum("bthd,bshd->bhts", abs(grad), abs(v))
    change = abs(scale) * weights * (terms + (weights * terms).sum(axis=-1, keepdims=True))

    def growth(t):
        return 1.01 * np.expm1(np.minimum(t * EPS, 40))

    def by_group(array):
        return array.reshape(batch, keys, groups, heads // groups, width).sum(axis=3)

    of_change = of_w + of_y + 2 * width + 8
    return tuple(
        bound + 1e-30
        for bound in (
            np.einsum("bhts,bshd->bthd", growth(of_y) * weights, abs(v)),
            np.einsum("bhts,bshd->bthd", growth(of_change + 130 + blocks) * change, abs(k)),
            by_group(np.einsum("bhts,bthd->bshd", growth(of_change + 160 + time) * change, abs(q))),
            by_group(np.einsum("bhts,bthd->bshd", growth(of_w + 160 + time) * weights, abs(grad))),
        )
    )


NAMES = ("y", "grad_q", "grad_k", "grad_v")
widths = st.sampled_from([0, 1, 3, 16, 17, 31, 32, 33, 64, 100, 257])


@st.composite
def problems(draw):
    causal, time = draw(st.booleans()), draw(st.sampled_from([0, 1, 2, 5, 14, 15, 33, 60, 130]))
    keys = draw(st.sampled_from([0, 1, 2, 31, 33, 127, 129, 257, 300])) + (time if causal else 0)
    groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    arrays = drawn(draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2)), time, keys, groups * share, groups,
                   draw(widths), draw(st.booleans()), draw(st.sampled_from([1e-3, 1, 30])))  # fmt: skip
    settings = {
        "causal": causal,
        "window": draw(st.sampled_from([None, 1, 2, 40])),
        "scale": draw(st.sampled_from([None, 0.7, -1.0])),
    }
    return arrays, settings


@given(problem=problems())
def test_attention_and_its_gradients_are_within_the_rounding_bound(problem):
    arrays, settings = problem
    for array in arrays:
        if array is not None:
            array.flags.writeable = False
    got, want = run(*arrays, **settings), exact(*arrays, **settings)
    for name, one, other, bound in zip(NAMES, got, want, bounds(*arrays, **settings), strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        # Written so that NaN fails.
        assert np.all(np.abs(one - other) <= bound), f"{name}: off by {np.abs(one - other).max()}"


@pytest.mark.parametrize("size", [1.0, 10.0, 1e3], ids=lambda size: f"scores of {size:g}")
@pytest.mark.parametrize(
    "shape", [(2, 256, 256, 9, 3, 64), (1, 600, 600, 3, 1, 64), (2, 64, 64, 4, 4, 32), (1, 1, 1500, 9, 3, 64)]
)
def test_the_largest_error_is_at_most_four_times_that_of_numpy(shape, size):
    arrays = drawn(0, *shape, masked=True, size=size)
    got, numpy, want = run(*arrays), run(*arrays, "reference"), exact(*arrays)
    for name, one, other, exactly in zip(NAMES, got, numpy, want, strict=True):
        ours, theirs = np.abs(one - exactly).max(), np.abs(other - exactly).max()
        print(f"{shape} scores of {size:g}: {name} off by {ours:.2e}, NumPy by {theirs:.2e}")
        assert ours <= 4 * theirs, name


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((2, 100, 130, 6, 2, 40), {}),
        ((1, 300, 300, 3, 1, 64), {"window": 50}),
        ((3, 90, 70, 9, 9, 32), {"causal": False}),
        ((1, 1, 2000, 9, 3, 64), {}),
        ((1, 20, 1500, 3, 1, 64), {"causal": False, "window": 300}),
    ],
)
def test_one_two_and_three_threads_and_any_cut_into_calls_give_the_same_bits(shape, settings, monkeypatch):
    from minilora import kernels
    from minilora.kernels import native

    arrays, seen = drawn(1, *shape, masked=True), set()
    for threads, work in itertools.product((1, 2, 3), (5e9, 1)):
        monkeypatch.setattr(kernels, "_set_threads", threads)
        for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
            monkeypatch.setattr(native, name, work)
        seen.add(b"".join(array.tobytes() for array in run(*arrays, **settings)))
    assert len(seen) == 1


def test_no_call_is_longer_than_its_share(monkeypatch):
    from minilora.kernels import native

    calls = []
    original = native._kernels.attention_backward
    monkeypatch.setattr(
        native._kernels, "attention_backward", lambda *args: calls.append(args[11:13]) or original(*args)
    )
    for name in ("CALL_WORK", "BASELINE_CALL_WORK"):
        monkeypatch.setattr(native, name, 2 * 5 * (9 * 2) * 11 * 8)
    run(*drawn(2, 3, 9, 11, 4, 2, 8))
    assert calls == [(0, 2), (2, 4), (4, 6)]


def test_keys_and_values_in_a_longer_cache_are_read_where_they_lie(monkeypatch):
    from minilora.kernels import native

    q, k, v, mask, grad = drawn(3, 3, 5, 40, 6, 2, 16, masked=True)
    held = [np.full((3, 64, 2, 16), np.nan, np.float32) for _ in range(2)]
    for room, array in zip(held, (k, v), strict=True):
        room[:, :40] = array
        room.flags.writeable = False
    passed = []
    original = native._kernels.attention_forward
    monkeypatch.setattr(native._kernels, "attention_forward", lambda *args: passed.extend(args[3:5]) or original(*args))
    views = [room[:, :40] for room in held]
    for one, other in zip(run(q, *views, mask, grad), run(q, k, v, mask, grad), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.shares_memory(array, room) for array, room in zip(passed[:2], held, strict=True))


def relaid(array, order):
    """Return an equal array whose axes lie in memory in this order."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 0, 1, 2), (1, 0, 2, 3), (0, 1, 3, 2)])
def test_any_memory_layout_gives_the_same_bits(order):
    q, k, v, mask, grad = drawn(4, 3, 7, 9, 4, 2, 5, masked=True)
    want = run(q, k, v, mask, grad)
    shuffled = run(*(relaid(array, order) for array in (q, k, v)), np.asfortranarray(mask), relaid(grad, order))
    reversed_batch = run(q[::-1], k[::-1], v[::-1], mask[::-1], grad[::-1])
    for one, other, backwards in zip(want, shuffled, reversed_batch, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, backwards[::-1])


def test_one_entry_repeated_over_the_batch_without_copies_is_read_right():
    q, k, v, _, grad = drawn(5, 3, 7, 9, 4, 2, 5)
    one_k, one_v = (np.broadcast_to(array[:1], array.shape) for array in (k, v))
    want = run(q, one_k.copy(), one_v.copy(), None, grad)
    for one, other in zip(run(q, one_k, one_v, None, grad), want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("need", [n for n in itertools.product((False, True), repeat=3) if any(n)])
def test_only_the_needed_gradients_are_formed_and_only_what_they_need_is_kept(need):
    arrays = drawn(6, 2, 30, 40, 6, 2, 16)
    every, some = run(*arrays), run(*arrays, need=(*need, False))
    for wanted, one, other in zip((True, *need), some, every, strict=True):
        assert (one is not None) == wanted
        if wanted:
            np.testing.assert_array_equal(one, other)
    y, saved = ATTENTION.run(ATTENTION.kernel, arrays[:4], DEFAULTS, (*need, False))
    for array in (arrays[2], y):
        assert any(kept is array for kept in saved) == (need[0] or need[1])
    # No (T, S) matrix: two numbers a query beside what exists already.
    assert sum(
        kept.size for kept in saved if not any(kept is array for array in (*arrays, y)) and kept is not None
    ) == (2 * 2 * 30 * 6)


def test_without_a_gradient_nothing_of_the_softmax_is_kept():
    _, saved = ATTENTION.run(ATTENTION.kernel, drawn(6, 2, 3, 4, 6, 2, 16)[:4], DEFAULTS, (False,) * 4)
    assert saved[4] is None


@pytest.mark.parametrize("settings", [{}, {"causal": False}, {"window": 1}])
def test_padding_that_hides_everything_gives_zeros_and_no_gradient(settings):
    q, k, v, _, grad = drawn(7, 2, 20, 20, 6, 2, 16)
    mask = np.zeros((2, 20), bool)
    mask[1, 7] = True
    with strict():
        results = run(q, k, v, mask, grad, **settings)
    for array in results:
        np.testing.assert_array_equal(array[0], 0)
    seeing = slice(7, 8) if "window" in settings else slice(None) if "causal" in settings else slice(7, None)
    want = np.zeros_like(q[1])
    want[seeing] = np.repeat(v[1, 7:8], 3, axis=1)
    np.testing.assert_array_equal(results[0][1], want)


def test_a_window_of_one_is_the_own_value_and_passes_its_gradient_on():
    q, k, v, _, grad = drawn(8, 1, 50, 300, 3, 3, 16)
    y, grad_q, grad_k, grad_v = run(q, k, v, None, grad, window=1)
    np.testing.assert_array_equal(y, v[:, 250:])
    np.testing.assert_array_equal(grad_v, np.concatenate([np.zeros((1, 250, 3, 16)), grad], axis=1))
    # d softmax of one weight is 0, but for the rounding of delta = grad . y and of grad . v.
    limit = 2 * (16 + 2) * EPS * (np.abs(grad) * np.abs(y)).sum(axis=-1, keepdims=True) / 4
    assert np.all(np.abs(grad_q) <= limit * np.abs(k[:, 250:]) * 1.01)
    assert np.all(np.abs(grad_k[:, 250:]) <= limit * np.abs(q) * 1.01)
    np.testing.assert_array_equal(grad_k[:, :250], 0)


def test_scores_of_ten_thousand_pick_the_largest_key_without_overflow():
    q = np.zeros((1, 200, 2, 8), np.float32)
    k, v = np.zeros((1, 200, 1, 8), np.float32), drawn(9, 1, 1, 200, 2, 1, 8)[2]
    q[..., 0], k[..., 0] = 1e4, np.linspace(-1, 1, 200)[:, None]
    grad = np.ones_like(q)
    with strict():
        y, grad_q, grad_k, grad_v = run(q, k, v, None, grad, scale=1.0)
    # The scores rise by 100 a key, so each query looks at its own position alone.
    np.testing.assert_array_equal(y, np.repeat(v, 2, axis=2))
    np.testing.assert_array_equal(grad_v, np.full_like(v, 2.0))
    assert np.isfinite(grad_q).all()
    assert np.isfinite(grad_k).all()


def test_nan_reaches_the_queries_that_see_it_and_no_others():
    q, k, v, _, _ = drawn(10, 1, 300, 300, 2, 1, 16)
    k[0, 270, 0, 3] = np.nan
    y = ATTENTION.run(ATTENTION.kernel, (q, k, v, None), DEFAULTS, (False,) * 4)[0]
    assert np.isfinite(y[0, :270]).all()
    assert np.isnan(y[0, 270:]).all()


def test_attention_through_tensors_uses_the_kernel_and_equals_the_reference():
    q, k, v, mask, grad = drawn(11, 2, 70, 90, 6, 3, 24, masked=True)
    leaves = [tensor(array, requires_grad=True) for array in (q, k, v)]
    out = ops.attention(*leaves, mask, causal=False, window=30)
    out.backward(gradient=grad)
    settings = {"causal": False, "window": 30}
    got = out.data, *(leaf.grad for leaf in leaves)
    limits = bounds(q, k, v, mask, grad, scale=None, **settings)
    for one, other, bound in zip(got, exact(q, k, v, mask, grad, **settings), limits, strict=True):
        assert np.all(np.abs(one - other) <= bound)


def forward_with(**changed):
    from minilora.kernels import _kernels

    x = {
        "y": np.zeros((2, 3, 4, 5), np.float32), "stats": None, "q": np.zeros((2, 3, 4, 5), np.float32),
        "k": np.zeros((2, 6, 2, 5), np.float32), "v": np.zeros((2, 6, 2, 5), np.float32), "mask": None,
        "space": np.zeros(1 << 22, np.uint8), "first": 0, "last": 4, "window": 0, "causal": True, "scale": 1.0,
        "threads": 1,
    }  # fmt: skip
    _kernels.attention_forward(*{**x, **changed}.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": np.zeros((2, 6, 3, 5), np.float32)}, "q has H=4 heads and k has G=3, need H a multiple of G"),
        ({"v": np.zeros((2, 7, 2, 5), np.float32)}, r"v is \(2, 7, 2, 5\), need \(B, S, G, D\) = \(2, 6, 2, 5\)"),
        ({"y": np.zeros((2, 3, 4, 4), np.float32)}, r"y is \(2, 3, 4, 4\), need \(B, T, H, D\) = \(2, 3, 4, 5\)"),
        ({"mask": np.zeros((2, 5), np.uint8)}, r"mask is \(2, 5\), need \(B, S\) = \(2, 6\)"),
        ({"k": np.zeros((2, 6, 2, 10), np.float32)[..., ::2]}, "k is not packed over its last 3 axes"),
        ({"q": np.zeros((2, 6, 4, 5), np.float32)[:, :3]}, "q is not packed over its last 4 axes"),
    ],
)
def test_the_wrapper_refuses_what_does_not_fit(changed, message):
    with pytest.raises(ShapeError, match=f"attention_forward: {message}"):
        forward_with(**changed)


def test_the_wrapper_refuses_pairs_that_do_not_exist_and_a_small_workspace():
    with pytest.raises(ValueError, match=r"attention_forward: pairs \[0, 5\) of 4"):
        forward_with(last=5)
    with pytest.raises(ValueError, match="attention_forward: workspace has 8 bytes, need"):
        forward_with(space=np.zeros(8, np.uint8))
