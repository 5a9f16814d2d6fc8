"""The machinery under the laws: complete records, what is saved, draws of every magnitude, what is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from minilora.autograd import Index, Interval
from minilora.testing import assert_complete, check, laws
from minilora.testing.differences import Tally
from minilora.testing.draws import WIDE, draw
from minilora.testing.opcheck import OTHER_LAWS, gradient_law, need_law, saves_law, strict
from minilora.testing.reals import reals

FAST = settings(
    max_examples=60, phases=[Phase.generate], database=None, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def product(define, name="product_of_two", forward=None, **described):
    def forward_of(x, y):
        return x * y, (x, y)

    function = forward or forward_of
    function.__name__ = name
    described = {"source": "product rule", "formula": "z = x y", "saves": "x, y"} | described
    record = define("x[*], y[*] -> z[*]", **described)(function)
    record.defvjp(
        lambda grad, saved, need: (grad * saved[1] if need[0] else None, grad * saved[0] if need[1] else None)
    )
    return record


def test_a_record_that_lacks_something_fails_by_name_and_says_all_that_is_missing(define):
    assert_complete(product(define))
    with pytest.raises(AssertionError, match="nameless: its record lacks formula, source"):
        assert_complete(product(define, "nameless", formula="", source=""))

    @define("ids:int[M], x[N] -> y[M]", source="indexing", formula="y = x[ids]")
    def picks(ids, x):
        return x[ids], (ids, x.shape)

    with pytest.raises(AssertionError, match="picks: its record lacks a vjp, a domain Index for ids"):
        assert_complete(picks)
    picks.defvjp(lambda grad, saved, need: (None, grad))
    picks.domain = {"ids": Index("N")}
    assert_complete(picks)


@pytest.mark.parametrize(
    ("saves", "text"),
    [
        ("x, y", None),
        ("y where x needs a gradient, x", None),
        ("x, the other factor", "y is saved, but saves='x, the other factor' does not say so"),
        ("", "x is saved, but saves='' does not say so"),
        ("x - y, y", "x is saved, but saves='x - y, y' does not say so"),
    ],
)
def test_a_record_says_which_operands_it_keeps(define, saves, text):
    record = product(define, saves=saves)
    if text is None:
        check(saves_law, record, FAST)
    else:
        with pytest.raises(AssertionError, match=f"product_of_two: {text}"):
            check(saves_law, record, FAST)


def test_a_record_may_not_say_that_it_keeps_what_it_copies(define):
    record = product(define, forward=lambda x, y: (x * y, (x.copy(), y)))
    with pytest.raises(AssertionError, match="saves='x, y' names x, which is not saved"):
        check(saves_law, record, FAST)


def test_half_of_the_draws_for_gradients_are_of_any_magnitude(define):
    record, rng = product(define), np.random.default_rng(0)
    sizes = []
    for _ in range(400):
        call = draw(record, rng, {"*": (3,)}, decades=WIDE)
        sizes.extend(float(np.abs(a).max()) for a in call.arrays)
    exponents = np.log10([s for s in sizes if s])
    assert exponents.min() < -11
    assert exponents.max() > 5.5
    assert np.all(np.histogram(exponents, bins=9, range=(-12, 6))[0] > 30)


@pytest.mark.parametrize(
    "domain",
    [
        Interval(), Interval(0), Interval(high=80), Interval(-1, 1), Interval(1, 3), Interval(100, 101), Interval(-1),
        Interval(kinks=(0.0,)), Interval(0, 1, kinks=(0.5,)), Interval(-4, 4, kinks=(-1.0, 1.0)),
        Interval(distinct=True), Interval(0, distinct=True), Interval(0, 1, distinct=True),
        Interval(high=1, distinct=True), Interval(kinks=(0.0,), distinct=True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("decades", [None, WIDE, (-3.0, 3.0)])
@pytest.mark.parametrize("fill", ["random", "zeros", "equal", "ends"])
def test_draws_lie_inside_their_domain_off_its_kinks_and_apart(domain, decades, fill):
    rng = np.random.default_rng(0)
    for shape in ((), (0,), (1,), (3, 4)) * 12:
        x = reals(domain, shape, rng, fill, decades)
        assert x.shape == shape
        assert np.isfinite(x).all()
        assert np.all((x > domain.low) & (x < domain.high))
        for kink in domain.kinks:
            assert np.all(np.abs(x - kink) >= 0.009 * abs(kink))
            assert not np.any(x == kink)
        if domain.distinct and x.size > 1:
            values = np.sort(x.ravel())
            gaps = np.diff(values) / np.maximum(np.abs(values[1:]), np.abs(values[:-1]))
            assert gaps.min() > 1e-3


def test_what_a_record_draws_itself_is_scaled_where_its_domain_allows(define):
    record = product(
        define, draw=lambda rng, sizes: {"x": np.ones(4), "y": np.full(4, 0.5)}, domain={"y": Interval(0, 1)}
    )
    rng = np.random.default_rng(0)
    calls = [draw(record, rng, {}, decades=WIDE) for _ in range(200)]
    assert all(np.all(c.arrays[1] == 0.5) for c in calls)
    assert min(np.abs(c.arrays[0]).max() for c in calls) < 1e-11
    assert all(np.array_equal(draw(record, rng, {}).arrays[0], np.ones(4)) for _ in range(5))


def test_the_count_of_examples_comes_from_the_profile_and_other_laws_get_fewer(define):
    record = product(define)
    before = settings.get_current_profile_name()
    settings.register_profile("many", max_examples=2 * OTHER_LAWS, database=None, deadline=None)
    try:
        settings.load_profile("many")
        assert check(need_law, record).calls == OTHER_LAWS
        assert check(gradient_law, record).calls > OTHER_LAWS
    finally:
        settings.load_profile(before)
    assert laws(record)[0] is gradient_law


def test_slopes_that_cannot_be_judged_are_counted_and_too_many_fail(define):
    def rough(x, y):  # the fifth digit of an output is noise to every step that float64 can take
        z = x * y
        return z * (1 + 1e-5 * np.sin(1e15 * np.log(np.abs(z)))), (x, y)

    record = product(define, forward=rough, domain={"x": Interval(kinks=(0.0,)), "y": Interval(kinks=(0.0,))})
    call = draw(record, np.random.default_rng(0), {"*": (3,)})
    tally = Tally()
    gradient_law(call, np.random.default_rng(0), tally)
    assert tally.discarded == 6
    assert tally.compared == 0
    with pytest.raises(
        AssertionError, match=r"product_of_two: \d+ of \d+ drawn calls had a slope that could not be judged"
    ):
        check(gradient_law, record, FAST)


def test_a_warning_an_overflow_and_a_division_by_zero_are_failures(define):
    for bad in (lambda x: x / 0, lambda x: np.exp(1e4 + 0 * x), lambda x: np.log(x - x)):
        with pytest.raises((FloatingPointError, RuntimeWarning)), strict():
            bad(np.ones(2))
