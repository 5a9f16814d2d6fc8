"""Certified differences: what an estimate claims about its error holds, and what it cannot see it does not claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora.testing.moves import Direction, directions, ladder, movement, together
from minilora.testing.precision import precision_of
from minilora.testing.slopes import Neighbourhood
from minilora.testing.tolerance import DOUBLE, SINGLE

NOTHING = np.zeros(1)


def near(f, *arrays, precision=DOUBLE):
    outs = f(*arrays)
    rng = np.random.default_rng(0)
    return Neighbourhood(f, arrays, [[np.ones(np.shape(o)) for o in outs]], rng, precision)


def at(x):
    return Direction("at []", {0: np.ones(())}, (abs(float(x)), abs(float(x)), 1.0))


FUNCTIONS = {  # name -> (f, derivative by the math module)
    "exp": (np.exp, math.exp),
    "square": (lambda x: x * x, lambda x: 2 * x),
    "sine": (np.sin, math.cos),
    "tanh": (np.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "log": (lambda x: np.log(np.abs(x)), lambda x: 1 / x),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "a large constant": (lambda x: 1e3 + x, lambda x: 1.0),
    "relu": (lambda x: np.maximum(x, 0), lambda x: float(x > 0)),
    "a parabola with a bend": (lambda x: np.where(x > 1, x * x, 2 * x - 1), lambda x: 2 * x if x > 1 else 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_that_is_claimed_covers_the_error_that_is_made(name):
    f, derivative = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    believed = 0
    for _ in range(150):
        x = np.float64(10 ** rng.uniform(-12, 1.5) * rng.choice([-1, 1]))
        slope = near(lambda x: [f(x)], np.asarray(x)).slope(at(x), NOTHING)
        want = derivative(float(x))
        if slope.share(NOTHING) > DOUBLE.limit and slope.moved:
            continue
        believed += 1
        assert abs(slope.value[0] - want) <= slope.error[0] + 4e-16 * abs(want), (x, slope)
    assert believed >= 140


@pytest.mark.parametrize("gap", [1e-12, 1e-9, 1e-6, 1e-5, 1e-4, 3e-4])
def test_a_kink_inside_a_step_is_never_averaged_away(gap):
    """max(x, 1 + gap) at 1: steps of eps^¼ straddle the kink, and both of them give nearly the mean of the slopes."""
    x = np.asarray(1.0)
    around = near(lambda x: [np.maximum(x, 1 + gap)], x)
    for share in (1, 1 / 2, 1 / 10):
        found = around.estimate(at(x), 1e-2 * share)
        assert found.error[0] >= abs(found.value[0])
    slope = around.slope(at(x), NOTHING)
    assert abs(slope.value[0]) <= slope.error[0]


def test_two_steps_alone_would_certify_a_falsehood():
    """relu at 1e-12 with a step of 1e-4: both steps give 0.5 to twelve digits, which the fourth difference exposes."""
    x = np.asarray(1e-12)
    found = near(lambda x: [np.maximum(x, 0)], x).estimate(at(x), 1e-4)
    assert abs(found.value[0] - 0.5) < 1e-7
    assert found.truncation[0] < 2e-8
    assert found.asymmetry[0] > 0.49
    assert near(lambda x: [np.maximum(x, 0)], x).slope(at(x), NOTHING).value[0] == pytest.approx(1.0, rel=1e-8)


def test_steps_that_leave_the_domain_are_left_out():
    x = np.asarray(1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = near(lambda x: [np.log(x)], x).slope(at(x), NOTHING)
        assert slope.value[0] == pytest.approx(1e9, rel=1e-8)
        assert near(lambda x: [np.sqrt(x)], np.asarray(0.0)).slope(at(0.0), NOTHING) is None


def test_a_slope_that_small_steps_cannot_move_is_found_with_larger_ones():
    x = np.asarray(1e-12)
    slope = near(lambda x: [(x + 1e3) - 1e3], x).slope(at(x), NOTHING)
    assert slope.moved
    assert abs(slope.value[0] - 1) <= max(slope.error[0], 1e-8)


def test_a_function_that_stands_still_has_slope_zero_and_says_that_it_did_not_move():
    x = np.asarray(-1e-3)
    for f in (lambda x: np.maximum(x, 0), lambda x: 0 * x, np.floor):
        slope = near(lambda x, f=f: [f(x)], x).slope(at(x), NOTHING)
        assert not slope.moved
        assert slope.value[0] == 0


def test_noise_of_one_output_does_not_hide_a_small_one_that_does_not_depend_on_it():
    """1e9 beside 1e-9: rounding of the large output counts only where it depends on what is moved."""
    x = np.array([1e9, 1e-9])
    around = near(lambda x: [x * x], x)
    along = list(directions(x, 0, np.random.default_rng(0)))
    small = around.slope(along[1], NOTHING)
    assert small.value[0] == pytest.approx(2e-9, rel=1e-8)
    assert small.share(NOTHING) < 1e-8


def test_a_dependence_hidden_in_the_rounding_of_an_output_is_counted_as_error():
    """x[1] adds 1e-9 to a sum of 1e9, where it is lost: the slope of 1 may not be claimed to be 0."""
    x = np.array([1e9, 1e-9])
    around = near(lambda x: [x, np.sum(x)[None] * 1e-3], x)
    slope = around.slope(list(directions(x, 0, np.random.default_rng(0)))[1], NOTHING)
    assert abs(slope.value[0] - (1 + 1e-3)) <= slope.error[0]


def test_the_complex_step_is_exact_where_it_works_and_says_nothing_where_it_does_not():
    x = np.asarray(0.7)
    assert near(lambda x: [np.exp(x)], x).complex_slope(at(x))[0] == pytest.approx(math.exp(0.7), rel=1e-15)
    assert near(lambda x: [np.asarray(x).real], x).complex_slope(at(x)) is None


@pytest.mark.longdouble
def test_longer_numbers_are_used_where_the_function_keeps_them():
    x = np.asarray(0.7)
    longer = near(lambda x: [np.sin(x)], x).extended
    slope = longer.slope(at(x), NOTHING)
    assert abs(slope.value[0] - math.cos(0.7)) <= slope.error[0] < 1e-10
    assert near(lambda x: [np.sin(np.asarray(x, np.float64))], x).extended is None


def test_the_ladder_has_the_likely_steps_first_and_then_every_decade():
    steps = ladder((1e-12, 1e-12, 1.0), 1e-4)
    assert steps.all[: steps.first] == (1e-16, 1e-4)
    rest = np.sort(steps.all)
    assert rest[0] <= 1e-17
    assert rest[-1] >= 0.09
    assert np.all(rest[1:] / rest[:-1] < 20)
    assert ladder((0.0, 0.0, 0.0), 1e-4).first == 1


def test_small_arrays_are_moved_element_by_element_and_large_ones_in_parts_that_leave_nothing_out():
    rng = np.random.default_rng(0)
    small = list(directions(np.ones((10, 100)), 0, rng))
    assert len(small) == 1000
    assert all(np.count_nonzero(d.moves[0]) == 1 for d in small)
    large = list(directions(np.ones((10, 101)), 0, rng, blocks=4))
    assert len(large) == 10
    for half in (large[:4], large[5:9]):
        assert np.all(sum((d.moves[0] != 0).astype(int) for d in half) == 1)
    assert list(directions(np.ones((0, 3)), 0, rng)) == []
    assert list(together([np.ones(0)], [0], rng)) == []


def test_the_movement_of_a_result_is_the_size_of_terms_that_cancel_in_it():
    x = np.array([1e3, 1.0])
    sizes = [m[0] for m in movement(lambda x: [x[0] - x[0] * x[1]], [x], np.random.default_rng(0))]
    assert 1e2 < max(sizes) < 1e4


@pytest.mark.parametrize(
    ("f", "single"),
    [
        (np.tanh, False),
        (lambda x: x.sum(), False),
        (lambda x: np.tanh(x.astype(np.float32)), True),
        (lambda x: np.tanh(x.astype(np.float32)).astype(np.float64).sum(), True),
        (lambda x: np.tanh(x).astype(np.float32).astype(np.float64), True),
        (lambda x: 0 * x, False),
        (np.round, False),
        (lambda x: x + 1e9, False),
    ],
)
def test_float32_is_known_from_float64_by_the_dtype_or_by_the_rounding(f, single):
    x = np.random.default_rng(0).standard_normal(7)
    assert precision_of(lambda x: [np.asarray(f(x))], [x]) is (SINGLE if single else DOUBLE)
