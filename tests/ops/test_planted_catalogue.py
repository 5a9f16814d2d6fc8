"""Every operator with every fault of the catalogue: the laws reject each one, and nothing else."""

from __future__ import annotations

import numpy as np
import planted_faults
import pytest

import minilora.ops  # noqa: F401  (fills the registry)
from minilora.autograd import REGISTRY
from minilora.errors import ShapeError
from minilora.testing.differences import Tally
from minilora.testing.draws import FILLS, axes, draw
from minilora.testing.opcheck import (
    gradient_law,
    layout_law,
    need_law,
    output_law,
    purity_law,
    single_law,
    small_calls,
    strict,
)  # fmt: skip

LAWS = (gradient_law, output_law, need_law, layout_law, single_law, purity_law)
DRAWS = 60  # a fault is given up after so many calls, the smallest sizes among them
OPERATORS = [op for op in REGISTRY.values() if any(o.differentiable for o in op.signature.inputs)]


def calls_of(op, rng):
    """Calls of ordinary sizes, and then those with axes of 0 and 1."""
    names = axes(op)
    for i in range(DRAWS):
        sizes = {n: tuple(int(s) for s in rng.integers(1, 4, rng.integers(1, 3))) for n in names if n in ("*", "...")}
        sizes.update({n: int(rng.integers(2, 4)) for n in names if n not in sizes})
        yield draw(op, rng, sizes, fill=FILLS[i % len(FILLS)] if i % 3 == 0 else "random")
    yield from small_calls(op, rng)


def rejected(op, fault, seed=0):
    """The law that rejects the fault; "" where it changed nothing on any call; None where it was let through."""
    rng = np.random.default_rng(seed)
    wrong = planted_faults.plant(op, fault)
    for call in calls_of(wrong.op, rng):
        try:
            with strict():
                call.forward()
        except ShapeError:
            continue  # refused, as for an empty operand
        for law in LAWS:
            try:
                with strict():
                    law(call, rng, Tally())
            except (AssertionError, ValueError, TypeError, FloatingPointError, RuntimeWarning, IndexError):
                if wrong.changed:
                    return law.__name__
                raise
    return None if wrong.changed else ""


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_every_fault_that_changes_a_gradient_is_rejected(op, record_property):
    outcome = {fault: rejected(op, fault) for fault in planted_faults.FAULTS}
    let_through = [fault for fault, law in outcome.items() if law is None]
    assert not let_through, f"{op.name}: nothing rejects a vjp with {let_through}"
    excluded = [fault for fault, law in outcome.items() if law == ""]
    record_property("planted", len(outcome) - len(excluded))
    record_property("excluded", len(excluded))
    assert len(outcome) - len(excluded) >= 12, f"{op.name}: only {len(outcome) - len(excluded)} faults change anything"
