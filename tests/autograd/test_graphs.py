"""Whole graphs, drawn at random: backward gives what finite differences of the program give."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minilora import ops
from minilora.autograd import Interval, tensor
from minilora.testing.differences import Tally, assert_gradient
from minilora.testing.strategies import arrays, generators

STEPS = {
    "add": lambda a, b: ops.add(a, b),
    "sub": lambda a, b: ops.sub(a, b),
    "mul": lambda a, b: ops.mul(a, b),
    "swiglu": lambda a, b: ops.swiglu(a, b),
    "halves, the second unused": lambda a, b: ops.split(ops.concat([a, b]), 2)[0],
    "halves, crossed": lambda a, b: ops.mul(*ops.split(ops.concat([a, b]), 2)),
    "rows": lambda a, b: ops.add(ops.sum(a, axis=-1, keepdims=True), b),
    "norm": lambda a, b: ops.mul(ops.rms_norm(a, np.ones(3), eps=0.1), b),
    "reshaped": lambda a, b: ops.linear(ops.reshape(a, shape=(1, 2, 3)), np.eye(3)).reshape(2, 3) + b,
}


def run(program, leaves):
    """Apply each step (name, i, j) to values i and j so far; every value may be used any number of times."""
    values = list(leaves)
    for name, i, j in program:
        # Halved so that products of products stay within what differences can follow.
        values.append(ops.mul(STEPS[name](tensor(0.5) * values[i % len(values)], values[j % len(values)]), 0.5))
    return ops.add(values[-1], values[len(values) // 2])


@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), max_size=8),
    st.lists(arrays((2, 3), Interval(-1, 1), decades=(0, 0)), min_size=2, max_size=2),
    generators(),
)
def test_backward_agrees_with_finite_differences_of_the_whole_program(program, data, rng):
    leaves = [tensor(x, requires_grad=True) for x in data]
    out = run(program, leaves)
    cotangent = rng.standard_normal(out.shape)
    out.backward(cotangent)
    for i, leaf in enumerate(leaves):
        gradient = np.zeros((2, 3)) if leaf.grad is None else leaf.grad
        assert_gradient(
            lambda *xs: [np.asarray(run(program, [tensor(x) for x in xs]).data)],
            data, i, gradient, [cotangent], rng, Tally(), f"gradient for leaf {i}",
        )  # fmt: skip
