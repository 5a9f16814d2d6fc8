"""Time-step embeddings against the two codes whose layouts they have, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError


def guided_diffusion(t, dim, max_period):
    """Cosines, sines, and a zero if dim is odd; frequencies of i / half."""
    half = dim // 2
    frequencies = [math.exp(-math.log(max_period) * i / half) for i in range(half)]
    return [*(math.cos(t * f) for f in frequencies), *(math.sin(t * f) for f in frequencies), *[0.0] * (dim % 2)]


def ddpm(t, dim):
    """Ho's own code: sines, cosines, and a zero if dim is odd; frequencies of i / (half - 1)."""
    half = dim // 2
    step = math.log(10000) / (half - 1)
    frequencies = [math.exp(-step * i) for i in range(half)]
    return [*(math.sin(t * f) for f in frequencies), *(math.cos(t * f) for f in frequencies), *[0.0] * (dim % 2)]


TIMES = [0.0, 1.0, -2.5, 37.0, 999.0]


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("max_period", [10000, 50.0, 0.5])
def test_the_default_is_guided_diffusions_embedding(dim, max_period):
    y = ops.timestep_embedding(np.array(TIMES), dim, max_period=max_period)
    expected = [guided_diffusion(t, dim, max_period) for t in TIMES]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)  # angles to 2,000, each within half a unit


@pytest.mark.parametrize("dim", [4, 5, 32])
def test_flipped_and_shifted_it_is_ho_et_als_embedding(dim):
    y = ops.timestep_embedding(np.array(TIMES), dim, flip_sin_to_cos=False, downscale_freq_shift=1)
    np.testing.assert_allclose(y, [ddpm(t, dim) for t in TIMES], rtol=0, atol=1e-12)


def test_without_settings_the_period_is_ten_thousand():
    np.testing.assert_allclose(ops.timestep_embedding(np.array(7.0), 6), guided_diffusion(7.0, 6, 10000), rtol=1e-13)


def test_any_axes_may_lead_and_the_dtype_stays():
    t = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = ops.timestep_embedding(t, 4)
    assert (y.shape, y.dtype) == ((2, 3, 4), np.float32)
    np.testing.assert_array_equal(y[1, 2], ops.timestep_embedding(t[1, 2], 4))


def test_a_step_in_float32_is_turned_as_exactly_as_in_float64():
    t = np.array([999.0, 123456.0])
    exact = ops.timestep_embedding(t, 16)
    single = ops.timestep_embedding(t.astype(np.float32), 16)
    np.testing.assert_allclose(single, exact, rtol=0, atol=np.finfo(np.float32).eps)


def test_the_gradient_is_the_frequency_times_the_turned_embedding():
    t = tensor(np.array([0.7, 30.0]), requires_grad=True)
    grad = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    ops.timestep_embedding(t, 4, max_period=100.0).backward(gradient=grad)
    expected = [
        -g[0] * math.sin(s) - g[1] * 0.1 * math.sin(0.1 * s) + g[2] * math.cos(s) + g[3] * 0.1 * math.cos(0.1 * s)
        for s, g in zip(t.data, grad, strict=True)
    ]
    np.testing.assert_allclose(t.grad, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"dim": 0}, "dim is 0, expected an integer of at least 1"),
        ({"dim": 2.0}, "dim is 2.0, expected an integer of at least 1"),
        ({"dim": 4, "max_period": 0}, "max_period is 0, expected a positive number"),
        ({"dim": 4, "max_period": math.nan}, "max_period is nan, expected a positive number"),
        ({"dim": 4, "max_period": math.inf}, "max_period is inf, expected a positive number"),
        (
            {"dim": 3, "downscale_freq_shift": 1},
            "downscale_freq_shift is 1, expected less than 1, half of dim 3",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, found):
    with pytest.raises(ConfigError) as caught:
        ops.timestep_embedding(np.ones(2), **settings)
    assert str(caught.value) == f"timestep_embedding: {found}"
