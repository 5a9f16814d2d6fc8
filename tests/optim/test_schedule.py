"""Schedules: bounds, meeting points and shape, for every length of run and of warm-up."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError
from minilora.optim import SCHEDULES, learning_rate


@st.composite
def runs(draw):
    steps = draw(st.integers(1, 60))
    return steps, draw(st.integers(0, steps)), draw(st.sampled_from(SCHEDULES))


@given(runs())
def test_the_rate_rises_to_lr_once_then_never_rises_and_no_step_is_wasted(run):
    steps, warmup, schedule = run
    rest = {"lr": 0.4, "steps": steps, "warmup": warmup, "schedule": schedule}
    rates = [learning_rate(step, **rest) for step in range(1, steps + 1)]
    top = max(warmup, 1) - 1
    assert rates[top] == 0.4
    assert all(0 < rate <= 0.4 for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))


def test_cosine_is_half_way_down_in_the_middle():
    # 1 .. 9 after no warm-up: step 1 has the full rate, step 9 would be followed by 0 at step 10.
    assert learning_rate(1, lr=2.0, steps=8) == 2.0
    assert learning_rate(5, lr=2.0, steps=8) == pytest.approx(1.0)
    assert learning_rate(3, lr=2.0, steps=8) == pytest.approx(1.0 + math.sqrt(0.5))


def test_linear_falls_by_the_same_amount_each_step():
    rates = [learning_rate(s, lr=1.0, steps=6, warmup=2, schedule="linear") for s in range(1, 7)]
    assert rates == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_constant_stays():
    assert {learning_rate(s, lr=0.1, steps=5, schedule="constant") for s in range(1, 6)} == {0.1}


def test_unknown_schedules_and_steps_outside_the_run_are_refused():
    with pytest.raises(ConfigError, match="schedule is 'cosin', wanted one of cosine, linear, constant"):
        learning_rate(1, lr=1.0, steps=2, schedule="cosin")
    with pytest.raises(ConfigError, match="step 3 with warmup 0 of 2 steps"):
        learning_rate(3, lr=1.0, steps=2)
    with pytest.raises(ConfigError, match="step 1 with warmup 3 of 2 steps"):
        learning_rate(1, lr=1.0, steps=2, warmup=3)
