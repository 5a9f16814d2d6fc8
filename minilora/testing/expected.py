"""What a call should give, in float64 by the reference, and how far other ways to compute it may be off. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd.registry import Rule
from minilora.testing import tolerance
from minilora.testing.draws import Call, frozen
from minilora.testing.moves import movement

Array = NDArray[Any]


class Expected:
    """What the reference gives in float64 for a call, and how far a computation in ``dtype`` may be off."""

    def __init__(self, call: Call, grads: Sequence[Array], dtype: Any, rng: np.random.Generator) -> None:
        self.op, self.names, self.grads = call.op, call.names, grads
        self.exact = exact = call.cast(np.float64)

        def pulled(*inputs: Any) -> list[Array]:
            there = exact.having(dict(enumerate(inputs[: len(call.arrays)])))
            parts = there.vjp(inputs[len(call.arrays) :], there.forward()[1])
            return [np.asarray(parts[i]) for i in exact.real]

        inputs = [*exact.arrays, *(np.asarray(g, np.float64) for g in grads)]
        self.outs = exact.forward()[0]
        self.parts = dict(zip(exact.real, pulled(*inputs), strict=True)) if exact.real else {}
        count = tolerance.roundings(np.shape(a) for a in inputs if a is not None)
        out_size = _size(outputs_of(exact), exact.arrays, rng)
        part_size = _size(pulled, inputs, rng) if exact.real else 0.0
        self.out_bound = tolerance.rounding_bound(count, out_size, dtype)
        part_size = max([part_size, *(self._height(inputs[len(exact.arrays) :], exact.arrays[i]) for i in exact.real)])
        self.part_bound = tolerance.rounding_bound(count, part_size, dtype)

    def _height(self, grads: Sequence[Array], x: Array) -> float:
        """The size of terms of x's gradient that cancel to the last bit however the operands move, as in a layer norm
        of two elements: that of the outputs for each unit of x."""
        height = sum(float(np.sum(np.abs(g * out))) for g, out in zip(grads, self.outs, strict=True))
        return height / (float(np.abs(x).max(initial=0.0)) or 1.0)

    def assert_given_by(
        self, other: Call, how: str, rule: Rule | None = None, positions: Sequence[int] | None = None, grads: Any = None
    ) -> None:
        """Fail unless ``other`` gives the same by ``rule``, with the gradients at ``positions`` needed."""
        need = other.need(positions)
        outs, saved = other.forward(need, rule)
        for want, out in zip(self.outs, outs, strict=True):
            _assert_close(want, out, self.out_bound, f"{self.op.name}: the output {how}")
        if not any(need):
            return
        for i, part in enumerate(other.vjp(grads or self.grads, saved, need, rule)):
            where = f"{self.op.name}: the gradient for {self.names[i]} {how}"
            if need[i]:
                assert part is not None, f"{where} is None"
                _assert_close(self.parts[i], part, self.part_bound, where)
            else:
                assert part is None, f"{where} should be None: it is not needed"


def _size(function: Callable[..., Sequence[Array]], arrays: Sequence[Any], rng: np.random.Generator) -> float:
    """The size that rounding is relative to: of the results, or how far they move with the operands.

    A step inside the operator may be rounded at the size of the operands themselves, so theirs counts as a
    factor. And the result itself is rounded, even where all operands are zero and cannot move.
    """
    results = [*movement(function, arrays, rng), [np.asarray(out) for out in function(*arrays)]]
    size = max((float(np.abs(r).max(initial=0.0)) for result in results for r in result), default=0.0)
    real = (a for a in arrays if isinstance(a, np.ndarray) and a.dtype.kind == "f")
    return size * max(1.0, *(float(np.abs(a).max(initial=0.0)) for a in real), 1.0)


def _assert_close(want: Array, got: Array, bound: float, what: str) -> None:
    assert np.shape(got) == np.shape(want), f"{what} has shape {np.shape(got)}, expected {np.shape(want)}"
    assert np.all(np.isfinite(got)), f"{what} is not finite"
    off = float(np.abs(np.asarray(got, np.float64) - want).max(initial=0.0))
    assert off <= bound, f"{what} is off by {off:.3e}, allowed {bound:.3e}"


def assert_shapes(call: Call, outs: Sequence[Array]) -> None:
    """Fail where an output's shape is not what the signature says; ``?`` says nothing."""
    sizes = call.op.signature.check(call.op.name, call.arrays)
    declared = call.op.signature.outputs
    if len(declared) != len(outs):
        assert len(declared) == 1, f"{call.op.name}: {len(outs)} outputs, the signature has {len(declared)}"
        declared = declared * len(outs)  # one name stands for any number of outputs
    for operand, out in zip(declared, outs, strict=True):
        if operand.axes == ("?",):
            continue
        wanted: list[Any] = []
        for axis in operand.axes:
            if axis in ("*", "..."):
                wanted.extend(sizes.get(axis, ()))
            else:
                wanted.append(int(axis) if axis.isdigit() else sizes.get(axis))
        fits = len(wanted) == out.ndim and all(w in (None, n) for w, n in zip(wanted, out.shape, strict=True))
        assert fits, f"{call.op.name}: {operand.name} has shape {out.shape}, the signature says {tuple(wanted)}"


def outputs_of(call: Call) -> Callable[..., Sequence[Array]]:
    def function(*arrays: Any) -> Sequence[Array]:
        return call.having(dict(enumerate(arrays))).forward()[0]

    return function


def pull_of(call: Call) -> Callable[[Sequence[Any], Sequence[Array]], Sequence[Array | None]]:
    def pull(arrays: Sequence[Any], grads: Sequence[Array]) -> Sequence[Array | None]:
        there = call.having(dict(enumerate(arrays)))
        return there.vjp(grads, there.forward()[1])

    return pull


def cotangents_of(outs: Sequence[Array], rng: np.random.Generator, scale: float = 1.0) -> list[Array]:
    return [frozen(np.asarray(scale * rng.standard_normal(o.shape), o.dtype)) for o in outs]


def same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """True if all arrays have the same shapes and values; None equals None."""
    return len(these) == len(those) and all(
        a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True)
        for a, b in zip(these, those, strict=True)
    )
