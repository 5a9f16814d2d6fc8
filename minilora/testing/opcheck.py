"""Checking an operator from its record alone: which laws it should obey, and calls drawn to test them.

    from minilora.testing.opcheck import assert_complete, check, laws

    assert_complete(op)
    for law in laws(op):
        check(law, op)

Nothing is written per operator. A warning or an overflow in an operator is a failure. ``check`` needs Hypothesis.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minilora.autograd import Index, Op
from minilora.errors import ShapeError
from minilora.testing.differences import Tally
from minilora.testing.draws import Call
from minilora.testing.laws import (
    Law,
    empty_law,
    frozen_law,
    gradient_law,
    kernel_law,
    layout_law,
    need_law,
    optional_law,
    output_law,
    purity_law,
    saves_law,
    shape_error_law,
    single_law,
    tape_law,
)  # fmt: skip
from minilora.testing.variants import small_calls

__all__ = [
    "Law", "Tally", "assert_complete", "check", "empty_law", "frozen_law", "gradient_law", "kernel_law", "laws",
    "layout_law", "need_law", "optional_law", "output_law", "purity_law", "saves_law", "shape_error_law", "single_law",
    "small_calls", "strict", "tape_law",
]  # fmt: skip
MAY_BE_DISCARDED = 0.1  # of the calls of an operator
OTHER_LAWS = 200  # examples at most of every law but the one of gradients


def assert_complete(op: Op) -> None:
    """Fail, naming the operator and all that is missing, unless its record says everything that others read there."""
    missing = [what for what in ("formula", "source") if not getattr(op, what)]
    if any(o.differentiable for o in op.signature.inputs) and op.reference.vjp is None:
        missing.append("a vjp")
    for operand in op.signature.inputs:  # a real operand without one may be any real number
        if operand.kind == "int" and op.draw is None and not isinstance(op.domain.get(operand.name), Index):
            missing.append(f"a domain Index for {operand.name}")
    assert not missing, f"{op.name}: its record lacks {', '.join(missing)}"


def laws(op: Op) -> tuple[Law, ...]:
    """The laws that apply to ``op``. kernel_law, where there is a kernel, is the last; it needs the compiled module."""
    found: list[Law] = [
        gradient_law, need_law, output_law, single_law, purity_law, layout_law, empty_law, shape_error_law, tape_law,
        saves_law,
    ]  # fmt: skip
    if any(o.optional for o in op.signature.inputs):
        found.append(optional_law)
    if any(o.kind == "weight" for o in op.signature.inputs):
        found.append(frozen_law)
    if op.kernel is not None:
        found.append(kernel_law)
    return tuple(found)


def check(law: Law, op: Op, settings: Any = None) -> Tally:
    """Run ``law`` on calls of ``op`` that Hypothesis draws; return what was looked at.

    settings  a hypothesis.settings, or None for the profile in force

    Fails where too many calls had a slope that could not be judged, since the law would then say little.
    """
    import hypothesis

    from minilora.testing import strategies

    tally = Tally()
    sizes = strategies.KERNEL_SIZES if law is kernel_law else strategies.SIZES
    if settings is None:
        profile = hypothesis.settings()
        examples = profile.max_examples if law is gradient_law else min(profile.max_examples, OTHER_LAWS)
        settings = hypothesis.settings(profile, max_examples=examples, deadline=None)

    @settings
    @hypothesis.given(strategies.calls(op, sizes, wide=law is gradient_law), strategies.generators())
    def run(call: Call, rng: np.random.Generator) -> None:
        with strict():
            if law is not empty_law:
                hypothesis.assume(not _refused(call))
            before = tally.discarded
            tally.calls += 1
            law(call, rng, tally)
            tally.doubtful += tally.discarded > before

    run() if law is not empty_law else _once(op, tally)
    # Three standard deviations above the share, since the draws are a sample.
    most = MAY_BE_DISCARDED * tally.calls + 3 * (MAY_BE_DISCARDED * tally.calls) ** 0.5
    assert tally.doubtful <= most, (
        f"{op.name}: {tally.doubtful} of {tally.calls} drawn calls had a slope that could not be judged, and "
        f"{MAY_BE_DISCARDED:.0%} may; make the rule stable, or its domain true"
    )
    return tally


@contextmanager
def strict() -> Iterator[None]:
    """Make warnings, overflow, division by zero and invalid operations errors."""
    with warnings.catch_warnings(), np.errstate(over="raise", divide="raise", invalid="raise"):
        warnings.simplefilter("error")
        yield


def _once(op: Op, tally: Tally) -> None:
    """empty_law enumerates its own calls, so it runs once, on the first of them."""
    rng = np.random.default_rng(0)
    with strict():
        tally.calls += 1
        empty_law(next(small_calls(op, rng)), rng, tally)


def _refused(call: Call) -> bool:
    """True if the operator refuses this call because an operand is empty."""
    try:
        call.forward()
    except ShapeError:
        if any(a is not None and a.size == 0 for a in call.arrays):
            return True
        raise
    return False
