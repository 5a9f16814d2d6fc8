"""grad and value_and_grad: derivatives by hand, nested arguments, no trace in the tapes of the caller."""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import pytest

import minilora as ml
from minilora import ConfigError, FrozenWeight, MiniloraError, ShapeError, ops


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_gradient_of_a_quadratic_form_is_that_by_hand():
    x, matrix = rng().standard_normal(4), rng(1).standard_normal((4, 4))
    value, gradient = ml.value_and_grad(lambda x: ops.sum(x * ops.matmul(matrix, x)))(x)
    assert value == pytest.approx(math.fsum(x[i] * matrix[i, j] * x[j] for i in range(4) for j in range(4)), rel=1e-13)
    by_hand = [math.fsum((matrix[i, j] + matrix[j, i]) * x[j] for j in range(4)) for i in range(4)]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-13)


def test_grad_is_the_second_part_of_value_and_grad_and_both_give_plain_arrays():
    x = np.array([3.0, 4.0], np.float32)
    value, gradient = ml.value_and_grad(lambda x: (x * x).sum())(x)
    assert type(value) is type(gradient) is np.ndarray
    assert (value, value.shape, value.dtype) == (25, (), np.float32)
    np.testing.assert_array_equal(gradient, [6, 8])
    np.testing.assert_array_equal(ml.grad(lambda x: (x * x).sum())(x), gradient)


def test_argnums_choose_the_arguments_and_the_others_come_as_they_are():
    seen = []

    def f(x, name, y, *, scale):
        seen.append((type(x), name, type(y)))
        return (x * y).sum() * scale

    x, y = np.array([1.0, 2.0]), np.array([5.0, 7.0])
    np.testing.assert_array_equal(ml.grad(f)(x, "n", y, scale=2.0), [10, 14])
    np.testing.assert_array_equal(ml.grad(f, 2)(x, "n", y, scale=2.0), [2, 4])
    np.testing.assert_array_equal(ml.grad(f, -1)(x, "n", y, scale=2.0), [2, 4])
    both = ml.grad(f, (2, 0))(x, "n", y, scale=1.0)
    assert type(both) is tuple
    np.testing.assert_array_equal(both, [[1, 2], [5, 7]])
    one = ml.grad(f, (0,))(x, "n", y, scale=1.0)
    assert type(one) is tuple
    assert len(one) == 1
    assert seen[:2] == [(ml.Tensor, "n", np.ndarray), (np.ndarray, "n", ml.Tensor)]


Layer = namedtuple("Layer", "weight bias")


def test_nested_arguments_give_gradients_of_the_same_structure_shapes_and_dtypes():
    parameters = {
        "layers": [Layer(np.ones((2, 3), np.float32), np.zeros(3, np.float32)), (np.ones((), np.float64),)],
        "scale": 2.0,
        "unused": [np.ones((0, 4), np.float32), np.ones(2)],
    }

    def f(p):
        layer = p["layers"][0]
        return (
            (ops.linear(np.ones((1, 2), np.float32), layer.weight, layer.bias)).sum() * p["layers"][1][0] * p["scale"]
        )

    found = ml.grad(f)(parameters)
    assert list(found) == list(parameters)
    weight, bias = found["layers"][0]
    assert type(found["layers"][0]) is Layer
    assert type(found["layers"][1]) is tuple
    np.testing.assert_array_equal(weight, np.full((2, 3), 2, np.float32), strict=True)
    np.testing.assert_array_equal(bias, np.full(3, 2, np.float32), strict=True)
    np.testing.assert_array_equal(found["layers"][1][0], np.array(12.0), strict=True)
    np.testing.assert_array_equal(found["scale"], np.array(6.0), strict=True)
    np.testing.assert_array_equal(found["unused"][0], np.zeros((0, 4), np.float32), strict=True)
    np.testing.assert_array_equal(found["unused"][1], np.zeros(2), strict=True)


@pytest.mark.parametrize(
    "f",
    [lambda x: ml.tensor(np.ones(1)), lambda x: (x.detach() * x.detach()).sum(), lambda x: ml.tensor(np.int64(3))],
    ids=["a constant", "a detached result", "an integer"],
)
def test_an_output_that_does_not_depend_on_the_argument_gives_zeros(f):
    _, gradient = ml.value_and_grad(f)(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3), np.float32), strict=True)


def test_the_identity_has_gradient_one_and_its_value_is_no_view_of_the_argument():
    x = np.array([2.5])
    value, gradient = ml.value_and_grad(lambda x: x)(x)
    np.testing.assert_array_equal(gradient, [1.0])
    assert not np.shares_memory(value, x)


def test_one_array_given_twice_is_two_arguments():
    x = np.array([3.0])
    np.testing.assert_array_equal(ml.grad(lambda a, b: (a * a * b).sum(), (0, 1))(x, x), [[18.0], [9.0]])


def test_read_only_and_non_contiguous_arguments_are_taken_and_stay_as_they_are():
    x = rng().standard_normal((4, 6))[::2, ::-1]
    x.flags.writeable = False
    before = x.copy()
    np.testing.assert_array_equal(ml.grad(lambda x: (x * x).sum())(x), 2 * before)
    np.testing.assert_array_equal(x, before)


# ---------------------------------------------------------------- the caller's tapes


def test_trained_tensors_that_f_closes_over_get_no_gradient_and_fire_no_hook():
    weight, calls = ml.tensor(np.array([2.0]), requires_grad=True), []
    weight.register_hook(calls.append)
    np.testing.assert_array_equal(ml.grad(lambda x: (x * weight * weight).sum())(np.array([1.0])), [4.0])
    assert weight.grad is None
    assert calls == []


def test_a_tape_that_f_closes_over_is_not_consumed():
    weight = ml.tensor(np.array([2.0]), requires_grad=True)
    hidden = weight * 3.0
    np.testing.assert_array_equal(ml.grad(lambda x: (x * hidden).sum())(np.array([1.0])), [6.0])
    assert ml.grad(lambda x: hidden.sum())(np.array([1.0])) == 0
    assert ml.grad(lambda x: hidden)(np.array([1.0])) == 0
    assert ml.grad(lambda x: weight)(np.array([1.0])) == 0
    hidden.sum().backward()
    np.testing.assert_array_equal(weight.grad, [3.0])


def test_gradients_are_taken_inside_no_grad_too_which_holds_again_afterwards():
    with ml.no_grad():
        np.testing.assert_array_equal(ml.grad(lambda x: (x * x).sum())(np.array([3.0])), [6.0])
        assert not (ml.tensor(np.ones(1), requires_grad=True) * 2.0).requires_grad


def test_what_f_computes_inside_its_own_no_grad_is_a_constant():
    def f(x):
        with ml.no_grad():
            constant = x * x
        return (x * constant).sum()

    np.testing.assert_array_equal(ml.grad(f)(np.array([3.0])), [9.0])


def test_a_gradient_inside_f_is_a_number_like_any_other():
    def f(x):
        slope = ml.grad(lambda y: (y * y * y).sum())(np.array([2.0]))
        return (x * slope).sum()

    np.testing.assert_array_equal(ml.grad(f)(np.array([1.0])), [12.0])


def test_a_descent_with_value_and_grad_finds_the_least_squares_solution():
    a, b = rng().standard_normal((20, 3)), rng(1).standard_normal(20)
    step = ml.value_and_grad(lambda w: ((ops.matmul(a, w) - b) ** 2.0).sum())
    w = np.zeros(3)
    for _ in range(500):
        w -= 0.01 * step(w)[1]
    np.testing.assert_allclose(w, np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-9)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("function", [ml.grad, ml.value_and_grad])
@pytest.mark.parametrize(
    ("f", "argnums", "args", "error", "message"),
    [
        (
            lambda x: x.data, 0, (np.ones(1),), MiniloraError,
            "{}: f returned ndarray, expected a Tensor of one element\n"
            "  compute it from the Tensors that f gets, by minilora.ops and Tensor's operators",
        ),
        (
            lambda x: None, 0, (np.ones(1),), MiniloraError,
            "{}: f returned NoneType, expected a Tensor of one element\n"
            "  compute it from the Tensors that f gets, by minilora.ops and Tensor's operators",
        ),
        (
            lambda x: x, 0, (np.ones((2, 3)),), ShapeError,
            "{}: f returned a tensor of shape (2, 3), expected one element\n  reduce it, for example with sum()",
        ),
        (
            lambda x: x, 1, (np.ones(1),), ConfigError,
            "{}: argnums is 1, but f was called with 1 positional arguments",
        ),
        (
            lambda x: x, (0, -3), (np.ones(1), np.ones(1)), ConfigError,
            "{}: argnums is -3, but f was called with 2 positional arguments",
        ),
        (lambda x: x, (0, -1), (np.ones(1),), ConfigError, "{}: argnums (0, -1) names an argument twice"),
        (
            lambda x: x, 0, (np.ones(1, int),), ConfigError,
            "{}: argument 0 has dtype int64, expected float32 or float64\n  convert it, or leave it out of argnums",
        ),
        (
            lambda x, y: x, 1, (1.0, {"a": [np.ones(1), np.ones(1, np.float16)]}), ConfigError,
            "{}: argument 1['a'][1] has dtype float16, expected float32 or float64\n"
            "  convert it, or leave it out of argnums",
        ),
        (
            lambda x: x, 0, ([None],), ConfigError,
            "{}: argument 0[0] is NoneType, expected float32 or float64\n  convert it, or leave it out of argnums",
        ),
        (
            lambda x: x, 0, (FrozenWeight(np.ones((2, 2), np.float32)),), ConfigError,
            "{}: argument 0 is a FrozenWeight, which has no gradient\n  leave it out of argnums",
        ),
        (
            lambda x: x, 0, (ml.tensor(np.ones(1), requires_grad=True),), ConfigError,
            "{}: argument 0 is a Tensor that requires a gradient, and there are no gradients of gradients\n"
            "  give its array, x.data",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_differentiated_is_named(function, f, argnums, args, error, message):
    with pytest.raises(error) as caught:
        function(f, argnums)(*args)
    assert type(caught.value) is error
    assert str(caught.value) == message.format(function.__name__)
