"""Activation functions against the math module, also far out, where careless formulas lose their digits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError
from minilora.ops.erf import erfc_of

ACTIVATIONS = [
    ops.sigmoid, ops.tanh, ops.relu, ops.leaky_relu, ops.silu, ops.erf, ops.gelu, ops.softplus,
    lambda x: ops.gelu(x, approximate="tanh"), lambda x: ops.swiglu(x, x),
]  # fmt: skip
FAR = [-700.0, -300.0, -40.0, -20.0, -8.5, -8.0, -1.0, -1e-9, 0.0, 1e-300, 0.46875, 0.47, 3.9, 4.1, 20.0, 700.0]


def gradient(f, x):
    t = tensor(np.asarray(x), requires_grad=True)
    f(t).backward(gradient=np.ones(t.shape))
    return t.grad


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)


@pytest.mark.parametrize("x", FAR)
def test_sigmoid_keeps_its_digits_far_below_zero(x):
    assert ops.sigmoid(np.array([x]))[0] == pytest.approx(logistic(x), rel=1e-12, abs=0)
    assert gradient(ops.sigmoid, [x])[0] == pytest.approx(logistic(x) * logistic(-x), rel=1e-11, abs=0)


def test_sigmoid_in_float32_is_right_to_a_few_units_in_the_last_place_everywhere():
    x = np.linspace(-87, 87, 20001, dtype=np.float32)
    wide = x.astype(np.float64)
    exact = 1 / (1 + np.exp(-wide))
    np.testing.assert_allclose(ops.sigmoid(x), exact, rtol=4 * np.finfo(np.float32).eps, atol=0)
    np.testing.assert_allclose(gradient(ops.sigmoid, x), exact * exact[::-1], rtol=1e-6, atol=0)
    assert ops.sigmoid(np.array([-1e6, 1e6], np.float32)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("x", FAR)
def test_erf_is_the_math_modules_to_a_few_units_in_the_last_place(x):
    assert ops.erf(np.array([x]))[0] == pytest.approx(math.erf(x), rel=1e-15, abs=0)
    assert ops.erf(np.array([-x]))[0] == pytest.approx(math.erf(-x), rel=1e-15, abs=0)


def test_erf_over_its_whole_range_in_both_precisions():
    x = np.concatenate([np.linspace(-7, 7, 4001), np.logspace(-300, 0, 301)])
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(ops.erf(x), exact, rtol=1e-15, atol=0)
    single = x.astype(np.float32)
    exact = np.array([math.erf(v) for v in single.astype(np.float64)])
    np.testing.assert_allclose(ops.erf(single), exact, rtol=1.2e-7, atol=1e-45)


def test_erfc_keeps_its_digits_over_its_whole_range():
    x = np.concatenate([np.linspace(-7, 26, 4001), [-1e300, -np.inf, 0.46875, -0.46875, 4.0, -4.0]])
    np.testing.assert_allclose(erfc_of(x), [math.erfc(v) for v in x], rtol=2e-15, atol=0)
    assert erfc_of(np.array([27.5, 1e300, np.inf])).tolist() == [0, 0, 0]


def test_erf_ends_at_one():
    assert ops.erf(np.array([-np.inf, -1e300, 1e300, np.inf])).tolist() == [-1, -1, 1, 1]
    assert gradient(ops.erf, [-1e300, 0.0, 1e300]).tolist() == [0, 2 / math.sqrt(math.pi), 0]


@pytest.mark.parametrize("x", [-37.0, -20.0, -5.0, -0.5, 0.0, 0.5, 5.0, 40.0])
def test_gelu_is_x_times_the_normal_distribution_also_in_its_tail(x):
    share = 0.5 * math.erfc(-x / math.sqrt(2))
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    # The argument of erfc is itself rounded, which its tail magnifies by about x².
    assert ops.gelu(np.array([x]))[0] == pytest.approx(x * share, rel=1e-15 * (4 + x * x), abs=0)
    assert gradient(ops.gelu, [x])[0] == pytest.approx(share + x * density, rel=1e-14 * (4 + x * x), abs=1e-300)


@pytest.mark.parametrize("x", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_the_tanh_form_of_gelu_is_gpt_2s(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    assert ops.gelu(np.array([x]), approximate="tanh")[0] == pytest.approx(0.5 * x * (1 + math.tanh(inner)), rel=1e-14)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_far_out_is_zero_or_the_identity(approximate):
    x = np.array([-1e30, -1e6, 1e6, 1e30])

    def gelu(t):
        return ops.gelu(t, approximate=approximate)

    assert gelu(x).tolist() == [0, 0, 1e6, 1e30]
    assert gradient(gelu, x).tolist() == [0, 0, 1, 1]
    assert gelu(x.astype(np.float32)).tolist() == [0, 0, 1e6, np.float32(1e30)]
    largest = np.finfo(np.float32).max
    assert gradient(gelu, np.array([-largest, largest])).tolist() == [0, 1]


def test_gelu_knows_two_forms():
    with pytest.raises(ConfigError, match="gelu: approximate is 'fast', expected 'none' or 'tanh'"):
        ops.gelu(np.ones(1), approximate="fast")


def test_tanh_and_its_gradient_where_it_is_nearly_one():
    x = np.array([0.0, 0.5, 18.0, -18.0, 300.0])
    np.testing.assert_array_equal(ops.tanh(x), np.tanh(x))
    exact = [1.0, 1 / math.cosh(0.5) ** 2, 1 / math.cosh(18) ** 2, 1 / math.cosh(18) ** 2, 1 / math.cosh(300) ** 2]
    np.testing.assert_allclose(gradient(ops.tanh, x), exact, rtol=1e-13, atol=0)


def test_relu_and_its_leaky_form():
    x = np.array([-2.0, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(ops.relu(x), [0, 0, 3])
    np.testing.assert_array_equal(gradient(ops.relu, x), [0, 0, 1])
    np.testing.assert_array_equal(ops.leaky_relu(x, negative_slope=0.5), [-1, 0, 3])
    np.testing.assert_array_equal(gradient(lambda t: ops.leaky_relu(t, negative_slope=0.5), x), [0.5, 0.5, 1])
    np.testing.assert_allclose(ops.leaky_relu(x), [-0.02, 0, 3], rtol=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("x", [-200.0, -3.0, 0.0, 3.0, 1e6])
def test_softplus_neither_overflows_nor_loses_its_tail(x, beta):
    exact = math.log1p(math.exp(-abs(x * beta))) / beta + max(x, 0)
    assert ops.softplus(np.array([x]), beta=beta)[0] == pytest.approx(exact, rel=1e-14, abs=0)
    assert gradient(lambda t: ops.softplus(t, beta=beta), [x])[0] == pytest.approx(logistic(beta * x), rel=1e-11, abs=0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_softplus_refuses_a_beta_that_is_not_positive_or_not_finite(beta):
    with pytest.raises(ConfigError, match=rf"softplus: beta is {beta}, expected a positive, finite number"):
        ops.softplus(np.ones(1), beta=beta)


# ---------------------------------------------------------------- SiLU, SwiGLU


@pytest.mark.parametrize("x", [-300.0, -20.0, -1.0, 0.0, 0.5, 3.0, 20.0])
def test_silu_is_x_times_the_logistic_function(x):
    s = logistic(x)
    assert ops.silu(np.array([x]))[0] == pytest.approx(x * s, rel=1e-14, abs=0)
    assert gradient(ops.silu, [x])[0] == pytest.approx(s + x * s * logistic(-x), rel=1e-13, abs=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swiglu_at_ten_thousand_is_up_times_gate_or_zero(dtype):
    gate = tensor(np.array([1e4, -1e4, 0], dtype), requires_grad=True)
    up = tensor(np.array([2, 2, 2], dtype), requires_grad=True)
    out = ops.swiglu(gate, up)
    np.testing.assert_array_equal(out.data, [2e4, 0, 0])
    out.backward(gradient=np.ones(3))
    np.testing.assert_array_equal(gate.grad, [2, 0, 1])  # d silu / d x is 1, 0 and 1/2 there
    np.testing.assert_array_equal(up.grad, [1e4, 0, 0])


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_swallowed(activation):
    assert np.isnan(activation(np.array([1.0, np.nan]))).tolist() == [False, True]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_array_without_axes_stays_one(activation):
    x = np.array(0.7, np.float32)
    assert (activation(x).shape, activation(x).dtype) == ((), np.float32)
    assert activation(x) == activation(np.array([0.7, -1.0], np.float32))[0]
    assert gradient(activation, x) == gradient(activation, x[None])[0]


def test_numpy_numbers_as_settings_keep_float32():
    x = np.array([-1.0, 2.0], np.float32)
    for name, activation in [
        ("leaky_relu", lambda t: ops.leaky_relu(t, negative_slope=np.float64(0.1))),
        ("softplus", lambda t: ops.softplus(t, beta=np.float64(2))),
    ]:
        assert activation(x).dtype == gradient(activation, x).dtype == np.float32, name
