"""Random expression graphs, made by Hypothesis: value and gradients are torch autograd's.

A graph has 5 to 40 operations over a few small arrays whose shapes broadcast; any value may be used any
number of times. Both sides compute in float64. The bound is relative to the sum of the absolute values of
all terms of a gradient: each operation's Jacobian is formed from its vjp, and absolute values are pulled
back through absolute Jacobians, so that cancellation cannot make the bound too narrow, nor any scale too wide.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minilora import ops
from minilora.autograd import tensor

AGREES = 1e-10
LARGEST = 1e8  # a graph that grows beyond this is drawn again, and counted
SHAPES = ((2, 3), (3,), (1, 3), (2, 1), ())
MASK = np.array([[True, False, True], [False, True, True]])

# name: (ours, torch's), each of one operand
UNARY = {
    "neg": (lambda x: -x, lambda x: -x),
    "exp": (lambda x: ops.exp(ops.tanh(x)), lambda x: torch.exp(torch.tanh(x))),
    "log": (lambda x: ops.log(x * x + 0.5), lambda x: torch.log(x * x + 0.5)),
    "sqrt": (lambda x: ops.sqrt(x * x + 1.0), lambda x: torch.sqrt(x * x + 1.0)),
    "sigmoid": (ops.sigmoid, torch.sigmoid),
    "silu": (ops.silu, torch.nn.functional.silu),
    "gelu": (ops.gelu, torch.nn.functional.gelu),
    "softplus": (ops.softplus, torch.nn.functional.softplus),
    "erf": (ops.erf, torch.erf),
    "square": (lambda x: x**2, lambda x: x**2),
    "sum": (lambda x: x.sum(), lambda x: x.sum()),
    "mean of the last axis": (
        lambda x: x.mean(axis=-1, keepdims=True) if x.ndim else x,
        lambda x: x.mean(dim=-1, keepdim=True) if x.ndim else x,
    ),
    "softmax": (
        lambda x: ops.softmax(x, axis=-1) if x.ndim else x,
        lambda x: torch.softmax(x, dim=-1) if x.ndim else x,
    ),
    "logsumexp": (
        lambda x: ops.logsumexp(x, axis=-1, keepdims=True) if x.ndim else x,
        lambda x: torch.logsumexp(x, dim=-1, keepdim=True) if x.ndim else x,
    ),
    "layer norm": (
        lambda x: ops.layer_norm(x, eps=0.1) if x.ndim else x,
        lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], eps=0.1) if x.ndim else x,
    ),
    "first of the last axis": (lambda x: x[..., :1] if x.ndim else x, lambda x: x[..., :1] if x.ndim else x),
    "elements with duplicates": (
        lambda x: x[..., [0, 0, -1]] if x.ndim else x,
        lambda x: x[..., [0, 0, -1]] if x.ndim else x,
    ),
    "product with its own square": (
        lambda x: x @ (x.T @ x) if x.ndim == 2 else x,
        lambda x: x @ (x.T @ x) if x.ndim == 2 else x,
    ),
}
# name: (ours, torch's), each of two operands that broadcast
BINARY = {
    "add": (lambda x, y: x + y, lambda x, y: x + y),
    "sub": (lambda x, y: x - y, lambda x, y: x - y),
    "mul": (lambda x, y: x * y, lambda x, y: x * y),
    "div": (lambda x, y: x / (y * y + 1.0), lambda x, y: x / (y * y + 1.0)),
    "maximum": (lambda x, y: ops.maximum(x, y), lambda x, y: torch.maximum(x, y)),
    "where": (
        lambda x, y: ops.where(MASK, x, y),
        lambda x, y: torch.where(torch.tensor(MASK), x, y),
    ),
    "outer product of rows": (
        lambda x, y: ops.einsum("...i,...j->...i", x, y) if x.ndim and y.ndim else x * y,
        lambda x, y: torch.einsum("...i,...j->...i", x, y) if x.ndim and y.ndim else x * y,
    ),
    "joined and cut": (
        lambda x, y: ops.concat([x, y], axis=-1)[..., 1:2] if x.shape == y.shape and x.ndim else x + y,
        lambda x, y: torch.cat([x, y], dim=-1)[..., 1:2] if x.shape == y.shape and x.ndim else x + y,
    ),
    "stacked": (
        lambda x, y: ops.stack([x, y, x]).mean(axis=0) if x.shape == y.shape else x * y,
        lambda x, y: torch.stack([x, y, x]).mean(dim=0) if x.shape == y.shape else x * y,
    ),
}


@st.composite
def graphs(draw):
    """(arrays, steps): a step is the name of an operation and its operands, counted back from the last value."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    numbers = st.floats(-2, 2).map(lambda v: round(v, 3))
    arrays = [
        np.array(draw(st.lists(numbers, min_size=n, max_size=n))).reshape(s)
        for s in shapes
        if (n := int(np.prod(s))) or True
    ]
    names = st.sampled_from([*UNARY, *BINARY, *BINARY])
    count = draw(st.integers(5, 40))
    steps = draw(st.lists(st.tuples(names, st.integers(0, 6), st.integers(0, 6)), min_size=count, max_size=count))
    return arrays, steps


def computed(steps, leaves, column):
    """The values of every step, by ours (column 0) or torch's (1), and for each step the positions of its operands."""
    values, wiring = list(leaves), []
    for name, i, j in steps:
        at = (len(values) - 1 - i % len(values), len(values) - 1 - j % len(values))
        at = at[:1] if name in UNARY else at
        function = (UNARY if name in UNARY else BINARY)[name][column]
        values.append(function(*(values[k] for k in at)))
        wiring.append((function, at))
    return values, wiring


def weights(shape):
    """What each element of a value counts for in the scalar, so that nothing cancels by symmetry."""
    return np.cos(1.0 + np.arange(int(np.prod(shape)))).reshape(shape)


def joined(values, leaves, constant=lambda array: array):
    """A scalar on which every computed value depends, so that no part of the graph is idle."""
    total = (values[len(leaves)] * constant(weights(values[len(leaves)].shape))).sum()
    for value in values[len(leaves) + 1 :]:
        total = total + (value * constant(weights(value.shape))).sum()
    return total


def absolute_terms(values, wiring, count):
    """For each leaf the sum of the absolute values of all terms of its gradient, by absolute Jacobians."""
    terms = [np.abs(weights(v.shape)) if i >= count else np.zeros(v.shape) for i, v in enumerate(values)]
    for step in range(len(wiring) - 1, -1, -1):
        function, at = wiring[step]
        out = count + step
        for cell in np.ndindex(values[out].shape):
            inputs = [tensor(values[k].data, requires_grad=True) for k in at]
            one = np.zeros(values[out].shape)
            one[cell] = 1.0
            function(*inputs).backward(one)
            for k, leaf in zip(at, inputs, strict=True):
                if leaf.grad is not None:
                    terms[k] = terms[k] + np.abs(leaf.grad) * terms[out][cell]
    return terms[:count]


def test_300_random_graphs_agree_with_torch():
    seen = {"graphs": 0, "discarded": 0, "operations": 0, "worst": 0.0}

    @settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def compare(graph):
        arrays, steps = graph
        leaves = [tensor(a.copy(), requires_grad=True) for a in arrays]
        values, wiring = computed(steps, leaves, 0)
        if not all(np.all(np.abs(v.data) < LARGEST) for v in values):
            seen["discarded"] += 1
            return
        theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
        their_values, _ = computed(steps, theirs, 1)
        for mine, other in zip(values, their_values, strict=True):
            assert mine.shape == tuple(other.shape)
        terms = absolute_terms(values, wiring, len(leaves))
        if not all(np.all(t < LARGEST**2) for t in terms):
            seen["discarded"] += 1
            return
        joined(values, leaves).backward()
        joined(their_values, theirs, torch.tensor).backward()
        seen["graphs"] += 1
        seen["operations"] += len(steps)
        for leaf, other, size in zip(leaves, theirs, terms, strict=True):
            got = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
            want = np.zeros(leaf.shape) if other.grad is None else other.grad.numpy()
            off = np.abs(got - want)
            assert np.all(off <= AGREES * size), (steps, got, want, size)
            seen["worst"] = max(seen["worst"], float(np.max(off / np.maximum(size, 1e-300), initial=0.0)))

    compare()
    print(
        f"\n{seen['graphs']} graphs of {seen['operations']} operations agree with torch {torch.__version__}; "
        f"worst {seen['worst']:.1e} of the absolute terms; {seen['discarded']} discarded"
    )
    assert seen["graphs"] >= 300 * 0.9
    assert seen["discarded"] <= 0.1 * (seen["graphs"] + seen["discarded"])


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_the_comparison_finds_an_operation_that_is_one_part_in_a_million_off(name):
    """The harness itself: a torch side that is slightly wrong is not within the bound."""
    x = np.array([[0.3, -1.1, 0.7], [1.9, 0.2, -0.4]])
    table = UNARY if name in UNARY else BINARY
    operands = [x] if name in UNARY else [x, x[::-1].copy()]
    leaves = [tensor(a, requires_grad=True) for a in operands]
    values, wiring = [*leaves, table[name][0](*leaves)], [(table[name][0], tuple(range(len(operands))))]
    terms = absolute_terms(values, wiring, len(leaves))
    joined(values, leaves).backward()
    theirs = [torch.tensor(a, requires_grad=True) for a in operands]
    joined([*theirs, table[name][1](*theirs)], theirs, torch.tensor).backward()
    for leaf, other, size in zip(leaves, theirs, terms, strict=True):
        want = other.grad.numpy()
        assert np.all(np.abs(leaf.grad - want) <= AGREES * size)
        assert np.any(np.abs(leaf.grad - (1 + 1e-6) * want) > AGREES * size) or not np.any(want)
