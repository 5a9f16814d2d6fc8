"""Attention, convolution, pooling, up-sampling and time steps: values and gradients are torch's, in float64.

Bounds. A sum of n products is off by n · eps / 2 of the sum of their absolute values, in whatever order it
is added (see minilora.testing.tolerance). Two computations are compared, so wherever a result is such a
sum the bound is (n + 4) · eps times the same sum of absolute values, which torch computes here from the
absolute values of the operands; 4 is for the few roundings that are not sums. For attention see ``near``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilora import ops
from minilora.autograd import tensor

EPS = float(np.finfo(np.float64).eps)
DRAWS = 30


def pulled(call, arrays, grad, leaf, gradient):
    """The value of a call and the gradients for its arrays; torch's and ours differ in how leaves are made."""
    leaves = [None if a is None else leaf(a) for a in arrays]
    out = call(*leaves)
    out.backward(gradient(grad(tuple(out.shape))))
    return out.detach().numpy(), [np.asarray(x.grad) for x in leaves if x is not None]


def ours(call, arrays, grad):
    return pulled(call, arrays, grad, lambda a: tensor(a, requires_grad=True), np.asarray)


def theirs(call, arrays, grad):
    return pulled(call, arrays, grad, lambda a: torch.tensor(a, requires_grad=True), torch.tensor)


def assert_agrees(mine, torchs, bounds):
    for found, wanted, bound in zip((mine[0], *mine[1]), (torchs[0], *torchs[1]), bounds, strict=True):
        assert found.shape == wanted.shape
        assert np.all(np.abs(found - wanted) <= bound), float(
            np.max(np.abs(found - wanted) / np.maximum(bound, 1e-300))
        )


def assert_sums_agree(our_call, torch_call, arrays, rng, terms):
    """Compare two calls whose results are sums of at most ``terms`` products of the operands."""
    weights = {}

    def grad(shape):
        return weights.setdefault(shape, rng.standard_normal(shape))

    def size(shape):
        return np.abs(grad(shape))

    mine, torchs = ours(our_call, arrays, grad), theirs(torch_call, arrays, grad)
    value, grads = theirs(torch_call, [None if a is None else np.abs(a) for a in arrays], size)
    assert_agrees(mine, torchs, [(terms + 4) * EPS * a for a in (value, *grads)])


@pytest.mark.parametrize("axes", [1, 2])
def test_convolution_and_its_gradients_are_torchs(axes):
    rng = np.random.default_rng(axes)
    for _ in range(DRAWS):
        batch, inputs, outputs, groups = (int(n) for n in rng.integers(1, 4, 4))
        kernel, dilation, stride, padding = (rng.integers(a, 4, axes) for a in (1, 1, 1, 0))
        size = np.maximum(dilation * (kernel - 1) + 1 - 2 * padding, 1) + rng.integers(0, 9, axes)
        settings = {
            "stride": tuple(map(int, stride)), "padding": tuple(map(int, padding)),
            "dilation": tuple(map(int, dilation)), "groups": groups,
        }  # fmt: skip
        if rng.random() < 0.2:
            settings.update(stride=1, padding="same")
        x = rng.standard_normal((batch, groups * inputs, *size))
        weight = rng.standard_normal((groups * outputs, inputs, *kernel))
        bias = rng.standard_normal(groups * outputs) if rng.random() < 0.5 else None
        our_conv, torch_conv = ((ops.conv1d, F.conv1d), (ops.conv2d, F.conv2d))[axes - 1]
        terms = max(inputs, outputs) * math.prod(kernel) + batch * math.prod(size + 2 * padding)
        assert_sums_agree(
            lambda *a, f=our_conv, s=settings: f(*a, **s),
            lambda *a, f=torch_conv, s=settings: f(*a, **s),
            [x, weight, bias], rng, terms,
        )  # fmt: skip


@pytest.mark.parametrize("axes", [1, 2])
def test_average_pooling_and_its_gradient_are_torchs(axes):
    rng = np.random.default_rng(10 + axes)
    for _ in range(DRAWS):
        settings, size = pool_settings(rng, axes)
        settings["count_include_pad"] = bool(rng.random() < 0.5)
        x = rng.standard_normal((2, 3, *size))
        our_pool, torch_pool = ((ops.avg_pool1d, F.avg_pool1d), (ops.avg_pool2d, F.avg_pool2d))[axes - 1]
        assert_sums_agree(
            lambda a, f=our_pool, s=settings: f(a, **s), lambda a, f=torch_pool, s=settings: f(a, **s),
            [x], rng, math.prod(settings["kernel_size"]),
        )  # fmt: skip


@pytest.mark.parametrize("axes", [1, 2])
def test_max_pooling_is_torchs_among_equal_elements_infinities_and_nan_too(axes):
    rng = np.random.default_rng(20 + axes)
    for _ in range(DRAWS):
        settings, size = pool_settings(rng, axes)
        x = rng.choice([-np.inf, -2.0, -1.0, 0.0, 1.0, np.inf, np.nan], (2, 3, *size), p=[0.2, *[0.17] * 4, 0.06, 0.06])
        our_pool, torch_pool = ((ops.max_pool1d, F.max_pool1d), (ops.max_pool2d, F.max_pool2d))[axes - 1]

        def grad(shape):
            return np.arange(1.0, math.prod(shape) + 1).reshape(shape)  # integers: any order of adding is exact

        mine = ours(lambda a, f=our_pool, s=settings: f(a, **s), [x], grad)
        torchs = theirs(lambda a, f=torch_pool, s=settings: f(a, **s), [x], grad)
        np.testing.assert_array_equal(mine[0], torchs[0])
        np.testing.assert_array_equal(mine[1][0], torchs[1][0])


def pool_settings(rng, axes):
    kernel = rng.integers(1, 4, axes)
    padding = rng.integers(0, kernel // 2 + 1)
    stride = None if rng.random() < 0.3 else tuple(map(int, rng.integers(1, 4, axes)))
    settings = {"kernel_size": tuple(map(int, kernel)), "stride": stride, "padding": tuple(map(int, padding))}
    return settings, kernel + rng.integers(0, 7, axes)


def test_nearest_up_sampling_and_its_gradient_are_torchs():
    rng = np.random.default_rng(30)
    for _ in range(DRAWS):
        factors = tuple(map(int, rng.integers(1, 4, rng.integers(1, 3))))
        assert_sums_agree(
            lambda a, f=factors: ops.upsample_nearest(a, f),
            lambda a, f=factors: F.interpolate(a, scale_factor=f, mode="nearest"),
            [rng.standard_normal((2, 3, *rng.integers(1, 6, len(factors))))], rng, math.prod(factors),
        )  # fmt: skip


def near(q, k, v, weights, scale, grad):
    """How far y and the gradients for q, k, v of (B, H, T | S, D) may be off in two computations: first order bounds.

    A score is off by (D + 4) · eps of its absolute terms, so a weight, a quotient of exponentials of
    scores, by a relative two times the largest such error, and (S + 8) · eps for its own sum. y and the
    gradient for v are sums of S or T products with weights; a gradient of a score is w (a - Σ w a), a = g · v:
    two weights in a product, and sums of D and S terms; those for q and k are sums of S or T such terms, and
    those for k and v of the heads that share one, 4 at most.
    """
    q, k, v, grad = (np.abs(a) for a in (q, k, v, grad))
    (time, width), keys = q.shape[2:], k.shape[2]
    scores = abs(scale) * q @ k.swapaxes(2, 3)
    off = EPS * (2 * (width + 4) * scores.max(initial=0.0) + keys + 8)
    a = grad @ v.swapaxes(2, 3)
    inner = abs(scale) * weights * (a + (weights * a).sum(axis=-1, keepdims=True))
    y, grad_v = weights @ v, weights.swapaxes(2, 3) @ grad
    more = EPS * (keys + time + width + 12)
    return [(off + more) * y, (2 * off + more) * inner @ k, (2 * off + more) * inner.swapaxes(2, 3) @ q,
            (off + more) * grad_v]  # fmt: skip


def test_attention_and_its_gradients_are_torchs():
    rng = np.random.default_rng(40)
    unseen = 0
    for _ in range(DRAWS):
        batch, time, groups, share, width = (int(n) for n in rng.integers(1, 5, 5))
        causal, window = bool(rng.random() < 0.5), None if rng.random() < 0.4 else int(rng.integers(1, 5))
        keys = time + int(rng.integers(0, 4)) if causal else int(rng.integers(1, 8))
        scale = None if rng.random() < 0.5 else float(rng.uniform(-2, 2))
        mask = rng.random((batch, keys)) < 0.7
        seen = torch.ones(time, keys, dtype=torch.bool)
        if causal:
            seen = seen.tril(keys - time)
        if window is not None:
            seen = seen.triu(keys - time - window + 1).tril(keys - time + window - 1)
        seen = seen & torch.tensor(mask)[:, None, None]
        unseen += int((~seen.any(dim=-1)).sum())

        def torch_call(q, k, v, seen=seen, scale=scale):
            heads_first = (a.transpose(1, 2) for a in (q, k, v))
            return F.scaled_dot_product_attention(*heads_first, attn_mask=seen, scale=scale, enable_gqa=True).transpose(
                1, 2
            )

        settings = {"causal": causal, "window": window, "scale": scale}
        q = 2 * rng.standard_normal((batch, time, groups * share, width))
        k, v = 2 * rng.standard_normal((2, batch, keys, groups, width))
        g = rng.standard_normal(q.shape)
        mine = ours(lambda *a, m=mask, s=settings: ops.attention(*a, m, **s), [q, k, v], lambda _, g=g: g)
        torchs = theirs(torch_call, [q, k, v], lambda _, g=g: g)

        factor = 1 / math.sqrt(width) if scale is None else scale
        first = [a.swapaxes(1, 2) for a in (q, k, v, g)]
        first[1:3] = (np.repeat(a, share, axis=1) for a in first[1:3])
        scores = torch.tensor(factor * first[0] @ first[1].swapaxes(2, 3)).masked_fill(~seen, -torch.inf)
        weights = torch.softmax(scores, dim=-1).nan_to_num(0.0).numpy()
        bounds = near(*first[:3], weights, factor, first[3])
        for i in (2, 3):  # the gradients for keys and values add up over the query heads that share one
            bounds[i] = bounds[i].reshape(batch, groups, share, keys, width).sum(axis=2)
        assert_agrees(mine, torchs, [b.swapaxes(1, 2) for b in bounds])
    assert unseen > 10  # queries that see no key: both give zero


def test_time_step_embeddings_are_those_of_guided_diffusions_code_in_torch():
    t = np.array([0.0, 1.0, 17.5, 999.0])
    for dim in (2, 5, 64):
        half = dim // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)

        def torch_call(steps, frequencies=frequencies, dim=dim):
            angles = steps[:, None] * frequencies
            return F.pad(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1), (0, dim % 2))

        g = np.random.default_rng(dim).standard_normal((len(t), dim))
        mine = ours(lambda steps, dim=dim: ops.timestep_embedding(steps, dim), [t], lambda _, g=g: g)
        torchs = theirs(torch_call, [t], lambda _, g=g: g)
        # A frequency is the exponential of a number down to -9.3, itself rounded some times, and so right to 32 eps.
        off = 32 * EPS * (1 + t)
        assert_agrees(mine, torchs, [off[:, None], off * (np.abs(g).sum(axis=1))])
