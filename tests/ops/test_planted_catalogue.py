"""Every operator with every fault of the catalogue: the laws reject each one, and nothing else."""

from __future__ import annotations

from dataclasses import replace

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
)
from minilora.testing.variants import relaid

LAWS = (gradient_law, output_law, need_law, *8 * (layout_law,), single_law, purity_law)  # eight random layouts
DRAWS = 60
OPERATORS = [op for op in REGISTRY.values() if any(o.differentiable for o in op.signature.inputs)]


def calls_of(op):
    """Calls of ordinary sizes, then those with axes of 0 and 1; all that the operator does not refuse."""
    rng, names = np.random.default_rng(0), axes(op)
    found = []
    for i in range(DRAWS):
        sizes = {n: tuple(int(s) for s in rng.integers(1, 4, rng.integers(1, 3))) for n in names if n in ("*", "...")}
        sizes.update({n: int(rng.integers(2, 4)) for n in names if n not in sizes})
        found.append(draw(op, rng, sizes, fill=FILLS[i % len(FILLS)] if i % 3 == 0 else "random"))
    found += small_calls(op, rng)
    return [call for call in found if not refuses(call)]


def refuses(call):
    try:
        with strict():
            call.forward()
    except ShapeError:
        return True  # for an empty operand, say
    return False


def provoke(call, rng):
    """Run the vjp in each way in which the laws run it, to see whether a fault changes anything here."""
    for typed in (call, call.cast(np.float32)):
        outs, saved = typed.forward()
        grads = [rng.standard_normal(o.shape).astype(o.dtype) for o in outs]
        typed.vjp(grads, saved)
        typed.vjp([relaid(g, rng) for g in grads], saved)
    grads = [np.asarray(1e-12 * g, o.dtype) for g, o in zip(grads, outs, strict=True)]
    typed.vjp(grads, saved)
    for i in call.real if len(call.names) > 1 else ():
        need = call.need([i])
        outs, saved = call.forward(need)
        call.vjp([np.ones_like(o) for o in outs], saved, need)


def rejected(calls, op, fault):
    """The law that rejects the fault; "" where it changed nothing on any call; None where it was let through."""
    rng = np.random.default_rng(1)
    wrong = planted_faults.plant(op, fault)
    changed = False
    for call in calls:
        call, wrong.changed = replace(call, op=wrong.op), False
        with strict():
            provoke(call, rng)
        if not wrong.changed:
            continue
        changed = True
        for law in LAWS:
            try:
                with strict():
                    law(call, rng, Tally())
            except (AssertionError, ValueError, TypeError, FloatingPointError, RuntimeWarning, IndexError):
                return law.__name__
    return None if changed else ""


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_every_fault_that_changes_a_gradient_is_rejected(op, record_property):
    calls = calls_of(op)
    outcome = {fault: rejected(calls, op, fault) for fault in planted_faults.FAULTS}
    let_through = [fault for fault, law in outcome.items() if law is None]
    assert not let_through, f"{op.name}: nothing rejects a vjp with {let_through}"
    excluded = [fault for fault, law in outcome.items() if law == ""]
    record_property("planted", len(outcome) - len(excluded))
    record_property("excluded", len(excluded))
    assert len(outcome) - len(excluded) >= 12, f"{op.name}: only {len(outcome) - len(excluded)} faults change anything"
