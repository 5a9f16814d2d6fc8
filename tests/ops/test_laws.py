"""Every registered operator has a complete record and obeys every law. Nothing to add when adding an operator."""

from __future__ import annotations

import pytest

import minilora.ops  # noqa: F401  (fills the registry)
from minilora.autograd import REGISTRY
from minilora.testing.opcheck import assert_complete, check, kernel_law, laws

CASES = [
    pytest.param(law, op, id=f"{op.name}-{law.__name__}", marks=[pytest.mark.native] if law is kernel_law else [])
    for op in REGISTRY.values()
    for law in laws(op)
]


@pytest.mark.parametrize("op", REGISTRY.values(), ids=lambda op: op.name)
def test_record_of_the_operator_is_complete(op):
    assert_complete(op)


@pytest.mark.parametrize(("law", "op"), CASES)
def test_operator_obeys_law(law, op, record_property):
    tally = check(law, op)
    record_property("calls", tally.calls)
    record_property("slopes", tally.compared)
    record_property("doubtful", tally.doubtful)
    assert tally.calls > 0
