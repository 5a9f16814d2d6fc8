"""gradcheck and check_vjp accept right gradients of any magnitude, reject wrong ones, and say what they saw."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import tensor
from minilora.errors import ConfigError
from minilora.testing import check_vjp, gradcheck

MAGNITUDES = (1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6)


def drawn(magnitude, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return magnitude * rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)


def rms(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rms_vjp(g, x):
    r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return r * (g - x * r * np.mean(g * x * r, axis=-1, keepdims=True))


def logsumexp(x):
    peak = x.max(axis=-1, keepdims=True)
    return (peak + np.log(np.exp(x - peak).sum(axis=-1, keepdims=True)))[..., 0]


W = np.random.default_rng(7).standard_normal((4, 3))
RIGHT = {  # name -> (f, vjp)
    "x²": (lambda x: x * x, lambda g, x: 2 * x * g),
    "Σ x²": (lambda x: np.sum(x * x), lambda g, x: 2 * x * g),
    "x W": (lambda x: x @ W, lambda g, x: g @ W.T),
    "relu": (lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0)),
    "|x|": (np.abs, lambda g, x: g * np.sign(x)),
    "1 / x": (lambda x: 1 / x, lambda g, x: -g / (x * x)),
    "log |x|": (lambda x: np.log(np.abs(x)), lambda g, x: g / x),
    "rms norm": (rms, rms_vjp),
    "logsumexp": (logsumexp, lambda g, x: g[..., None] * np.exp(x - logsumexp(x)[..., None])),
    "norm": (
        lambda x: np.sqrt(np.sum(x * x, -1)),
        lambda g, x: g[..., None] * x / np.sqrt(np.sum(x * x, -1))[..., None],
    ),
    "standard deviation": (
        lambda x: x.std(-1),
        lambda g, x: g[..., None] * (x - x.mean(-1, keepdims=True)) / (x.shape[-1] * x.std(-1, keepdims=True)),
    ),
    "10 + x": (lambda x: 10 + x, lambda g, x: g),
}  # fmt: skip


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_of_any_magnitude_is_accepted(name, magnitude):
    f, vjp = RIGHT[name]
    if name == "logsumexp" and magnitude == 1e3:
        magnitude = 10  # at 1e3 some of its slopes are 1e-200, beside values of 1e3
    for seed in range(2):
        check_vjp(f, vjp, drawn(magnitude, 3, 4, seed=seed), seed=seed)


@pytest.mark.parametrize("x", [-745.1, -744.0, -730.0, -720.0])
def test_what_is_too_small_for_all_its_digits_is_as_good_as_nothing(x):
    at = np.array(x)
    check_vjp(np.exp, lambda g, x: g * np.exp(x), at)  # between 5e-324 and 2e-308
    check_vjp(np.exp, lambda g, x: g * 0.0, at)
    with pytest.raises(AssertionError, match=r"is wrong|cannot be judged"):
        check_vjp(np.exp, lambda g, x: g * 1e-300, at)
    with pytest.raises(AssertionError, match="is wrong"):
        check_vjp(np.exp, lambda g, x: g * 1.01 * np.exp(x), np.array(-690.0))


@pytest.mark.parametrize(
    ("factor", "magnitude"), [*((1 + 1e-4, m) for m in MAGNITUDES), (2, 1e-12), (-1, 1e-12), (0, 1e6), (1e-9, 1e6)]
)
def test_a_factor_on_one_element_of_a_thousand_is_rejected(factor, magnitude):
    def vjp(g, x):
        part = g * (2 * x + 3 * magnitude)
        part[17, 3] *= factor
        return part

    x = drawn(magnitude, 100, 10)
    with pytest.raises(AssertionError, match=r"input 0 \(x\), float64 \(100, 10\), is wrong at \[17, 3\]"):
        check_vjp(lambda x: x * x + 3 * magnitude * x, vjp, x)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("factor", [2, 1 + 1e-4])
def test_a_factor_on_the_gradient_of_a_sum_is_rejected_and_without_it_accepted(factor, magnitude):
    x, w = drawn(magnitude, 5, 4), drawn(1.0, 4, 3, seed=1)

    def vjp(g, x, w):
        return g @ w.T, factor * (x.T @ g)

    with pytest.raises(AssertionError, match=r"input 1 \(w\)"):
        check_vjp(lambda x, w: x @ w, vjp, x, w)
    factor = 1
    check_vjp(lambda x, w: x @ w, vjp, x, w)


def test_one_wrong_element_of_twenty_thousand_is_found_along_random_directions():
    def vjp(g, x):
        part = 2 * x * g
        part[100, 7] *= 1.01
        return part

    x = drawn(1.0, 200, 100)
    check_vjp(lambda x: x * x, lambda g, x: 2 * x * g, x)
    with pytest.raises(
        AssertionError, match=r"is wrong along a random direction \(relative, through 1/32 of elements\)"
    ):
        check_vjp(lambda x: x * x, vjp, x)


def test_the_message_says_input_element_both_numbers_bound_and_where_it_comes_from():
    def f(a, b):
        return a * b

    with pytest.raises(AssertionError) as caught:
        check_vjp(f, lambda g, a, b: (g * b, 1.01 * g * a), np.array([1.0, 2.0]), np.array([3.0, 5.0]))
    text = str(caught.value)
    assert text.startswith("check_vjp: the gradient for input 1 (b), float64 (2,), is wrong at [0], and so in 1 other")
    for part in ("judged as float64", "finite difference", "off by", "step", "vjp", "allowed", "1.5e-08 of all terms"):
        assert part in text, part


def test_gradcheck_follows_tensors_and_names_the_input():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 4)), tensor(rng.standard_normal((4, 2)), requires_grad=True)
    gradcheck(lambda x, w: ops.silu(x @ w), x, w)
    gradcheck(lambda x, w: ((x @ w).sum(), x * 2.0), x, w)

    def without_x(x, w):  # detach cuts the graph, so no gradient arrives for x
        return tensor(x.data) @ w

    with pytest.raises(AssertionError, match=r"gradcheck: the gradient for input 0 \(x\).* is wrong at \[0, 0\]"):
        gradcheck(without_x, x, w)


def test_gradcheck_wants_tensors_back():
    with pytest.raises(AssertionError, match="output 0 is ndarray, expected a Tensor"):
        gradcheck(lambda x: np.tanh(x.data), np.ones(3))


def test_integer_inputs_are_handed_on_and_have_no_gradient():
    ids, table = np.array([2, 0, 2]), drawn(1.0, 3, 2)

    def vjp(g, ids, table):
        part = np.zeros_like(table)
        np.add.at(part, ids, g)
        return None, part

    check_vjp(lambda ids, table: table[ids] ** 1, vjp, ids, table)
    gradcheck(lambda ids, table: ops.embedding(ids, table), ids, table)
    with pytest.raises(AssertionError, match=r"returned a gradient for input 0 \(ids\), which is int64; expected None"):
        check_vjp(lambda ids, table: table[ids], lambda g, ids, table: (np.zeros(3), vjp(g, ids, table)[1]), ids, table)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (1, 1), (2, 3, 2)])
def test_arrays_of_any_shape_and_outputs_of_any_number_are_checked(shape):
    x = drawn(1.0, *shape)
    check_vjp(lambda x: (np.sin(x), np.sum(x)), lambda gs, x: (gs[0] * np.cos(x) + gs[1],), x)
    check_vjp(lambda x: np.sin(x)[None], lambda g, x: g[0] * np.cos(x), x)
    gradcheck(lambda x: ops.silu(x), x)


def test_a_wrong_form_is_named():
    x = np.ones((2, 3))
    forms = {
        "has shape (3, 2), the input has (2, 3)": lambda g, x: g.T,
        "is float32, the input is float64": lambda g, x: g.astype(np.float32),
        "is None, expected an array of shape (2, 3)": lambda g, x: None,
        "the vjp returned 2 gradients for 1 inputs": lambda g, x: (g, g),
        "is not finite: nan at [0, 1]": lambda g, x: np.where(np.arange(6).reshape(2, 3) == 1, np.nan, g),
        "is not finite: inf at [0, 0]": lambda g, x: g + np.inf,
    }
    for text, vjp in forms.items():
        with pytest.raises(AssertionError) as caught:
            check_vjp(lambda x: x + 0, vjp, x)
        assert text in str(caught.value), text
    with pytest.raises(AssertionError, match="the vjp returned ndarray, expected a tuple of 2 gradients"):
        check_vjp(lambda x, y: x + y, lambda g, x, y: g, x, x)


def test_a_function_that_writes_is_reported():
    def writes(x):
        x += 1
        return x * 2

    def vjp_writes(g, x):
        g *= 2
        return g

    with pytest.raises(AssertionError, match=r"the function writes its input 0 \(x\)"):
        check_vjp(writes, lambda g, x: 2 * g, np.ones(3))
    with pytest.raises(AssertionError, match="the vjp writes its cotangent"):
        check_vjp(lambda x: 2 * x, vjp_writes, np.ones(3))


def test_what_is_not_deterministic_is_reported():
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="the function is not deterministic: two calls give different output 0"):
        check_vjp(lambda x: x + 1e-9 * rng.standard_normal(x.shape), lambda g, x: g, np.ones(3))
    with pytest.raises(AssertionError, match=r"the vjp is not deterministic: .* for input 0 \(x\)"):
        check_vjp(lambda x: x + 0, lambda g, x: g * (1 + 1e-9 * rng.random()), np.ones(3))


def test_values_that_are_not_finite_are_failures():
    with pytest.raises(AssertionError, match=r"input 0 \(x\) is not finite: nan at \[1\]"):
        check_vjp(np.abs, lambda g, x: g, np.array([1.0, np.nan]))
    with pytest.raises(AssertionError, match=r"output 0 is not finite: inf at \[0\]"), np.errstate(divide="ignore"):
        check_vjp(lambda x: 1 / x, lambda g, x: g, np.array([0.0, 1.0]))
    with pytest.raises(AssertionError, match=r"not finite on both sides"):
        check_vjp(np.sqrt, lambda g, x: g * 0, np.zeros(1))


def test_misuse_is_a_config_error():
    with pytest.raises(ConfigError, match="no input is real"):
        check_vjp(lambda x: x, lambda g, x: None, np.arange(3))
    with pytest.raises(ConfigError, match=r"input 0 \(x\) has dtype float16, wanted float32 or float64"):
        check_vjp(lambda x: x, lambda g, x: g, np.ones(3, np.float16))


def test_a_kink_is_named_and_so_is_one_that_is_near():
    def relu_vjp(g, x):
        return g * (x > 0)

    with pytest.raises(
        AssertionError, match=r"(?s)cannot be judged \(kink\) at \[1\].*a kink: the slopes .* differ by"
    ):
        check_vjp(lambda x: np.maximum(x, 0), relu_vjp, np.array([1.0, 0.0, -1.0]))
    check_vjp(lambda x: np.maximum(x, 0), relu_vjp, np.array([1.0, 1e-12, -1e-12]))
    for wrong in (0.5, 0.0):  # what differences over the kink would give, and what is right on the other side
        x = np.array([1.0, 1e-12, -1.0])
        with pytest.raises(AssertionError, match=r"is wrong at \[1\]"):
            check_vjp(lambda x: np.maximum(x, 0), lambda g, x, wrong=wrong: g * np.where(x == 1e-12, wrong, x > 0), x)


@pytest.mark.parametrize("power", [2, 3, 4, 5])
def test_a_slope_of_zero_at_a_point_of_symmetry_is_accepted_and_no_other(power):
    x = np.array([0.0, 1.0])
    for weight in (1.0, 1e-9):
        check_vjp(lambda x, w=weight: w * x**power, lambda g, x, w=weight: w * power * x ** (power - 1) * g, x)
        with pytest.raises(AssertionError):
            check_vjp(
                lambda x, w=weight: w * x**power, lambda g, x, w=weight: w * g * (power * x ** (power - 1) + 1e-3), x
            )
        with pytest.raises(AssertionError, match=r"is wrong at \[0\]"):
            check_vjp(
                lambda x, w=weight: w * (x**power + 1e-3 * x),
                lambda g, x, w=weight: w * g * np.where(x, power + 1e-3, 0),
                x,
            )


def test_noise_is_inconclusive_and_atol_says_how_much_may_be_ignored():
    def noisy(x):
        return np.round(x, 5)  # far coarser than float64

    with pytest.raises(
        AssertionError, match=r"(?s)cannot be judged \(inconclusive\).*rounding.*no verdict is a failure"
    ):
        check_vjp(noisy, lambda g, x: g, np.array([0.3, 0.7]))

    def hidden(x):  # the slope of x[1] is lost in the rounding of the sum, and np.abs breaks the complex step
        return np.float64(np.sum(np.abs(x) ** 2))

    x = np.array([1e6, 1e-9])
    with pytest.raises(AssertionError, match=r"cannot be judged \(inconclusive\) at \[1\]"):
        check_vjp(hidden, lambda g, x: 2 * x * g, x)
    with pytest.raises(AssertionError, match=r"cannot be judged \(inconclusive\) at \[1\]"):
        check_vjp(hidden, lambda g, x: 2 * x * g * np.array([1, 2.0]), x)
    check_vjp(hidden, lambda g, x: 2 * x * g, x, atol=1e-6)


def test_the_complex_step_and_longer_numbers_confirm_what_differences_cannot_see():
    x = np.array([1e6, 1e-9])
    check_vjp(lambda x: np.sum(x * x), lambda g, x: 2 * x * g, x)  # complex numbers work here
    check_vjp(lambda x: np.sum(np.abs(x)), lambda g, x: np.sign(x) * g, np.array([1e6, 1e-5]))  # and here they do not
    with pytest.raises(AssertionError, match=r"at \[1\]"):
        check_vjp(lambda x: np.sum(x * x), lambda g, x: 2 * x * g * np.array([1, 2.0]), x)


def test_the_complex_step_is_not_trusted_where_it_is_wrong():
    """np.real drops the imaginary part: the complex step gives the slope 0, and differences the right one."""
    check_vjp(lambda x: np.real(x) * 3, lambda g, x: 3 * g, drawn(1.0, 4))
    with pytest.raises(AssertionError, match="is wrong"):
        check_vjp(lambda x: np.real(x) * 3, lambda g, x: 0 * g, drawn(1.0, 4))


@pytest.mark.parametrize("given", [np.float32, np.float64])
def test_a_function_that_computes_in_float32_is_judged_as_such(given):
    x = drawn(1.0, 3, 4).astype(given)

    def f(x):
        return np.tanh(x.astype(np.float32) @ W.astype(np.float32))

    def right(g, x):
        y = np.tanh(x.astype(np.float32) @ W.astype(np.float32))
        return ((g * (1 - y * y)) @ W.T.astype(np.float32)).astype(x.dtype)

    check_vjp(f, right, x)
    with pytest.raises(AssertionError, match=r"(?s)is wrong .*judged as float32.*of all terms"):
        check_vjp(f, lambda g, x: (right(g, x) * 1.01).astype(x.dtype), x)


def test_float32_inputs_of_a_function_that_keeps_float64_are_judged_by_sharper_differences():
    x = drawn(1.0, 5).astype(np.float32)
    check_vjp(lambda x: x * x * x, lambda g, x: 3 * x * x * g, x)
    with pytest.raises(AssertionError, match="judged as float32"):
        check_vjp(lambda x: x * x * x, lambda g, x: np.float32(1 + 2e-3) * 3 * x * x * g, x)


def test_a_tolerance_of_ones_own_takes_the_place_of_the_derived_one():
    def vjp(g, x):
        return (1 + 1e-5) * 2 * x * g

    x = drawn(1.0, 4)
    check_vjp(lambda x: x * x, vjp, x, rtol=1e-4)
    with pytest.raises(AssertionError, match=r"1\.0e-06 of all terms"):
        check_vjp(lambda x: x * x, vjp, x, rtol=1e-6)


def test_a_gradient_that_is_not_linear_in_the_cotangent_is_rejected():
    for fault in (lambda g: g * np.abs(g), lambda g: np.where(np.abs(g) < 1e-6, 0, g), np.abs):
        with pytest.raises(AssertionError, match="is wrong"):
            check_vjp(lambda x: x * x, lambda g, x, fault=fault: 2 * x * fault(g), drawn(1.0, 6))
