"""The laws that every operator obeys, checked from its record alone; nothing is written per operator.

A law is a function (call, rng, tally) that looks at one drawn call and fails with AssertionError.
``laws(op)`` lists those that apply to a record, ``check(law, op)`` draws calls with Hypothesis and runs it.

    for law in laws(REGISTRY["rms_norm"]):
        check(law, REGISTRY["rms_norm"])

Every array that a law hands to an operator is read-only, and a warning or an overflow is a failure.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Op, Tensor, tensor
from minilora.autograd.registry import Rule
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight
from minilora.testing import tolerance
from minilora.testing.differences import Comparison, Tally, assert_right, claims, directions
from minilora.testing.draws import Call, axes, frozen
from minilora.testing.slopes import Neighbourhood, movement
from minilora.testing.tolerance import DOUBLE
from minilora.testing.variants import lock, mistakes, relaid, small_calls, subsets, with_scalars

Array = NDArray[Any]
Law = Callable[[Call, np.random.Generator, Tally], None]
MAY_BE_DISCARDED = 0.1  # of the calls of an operator
OTHER_LAWS = 200  # examples at most of every law but the one of gradients
ELEMENTS, BLOCKS = 16, 4  # an operand with more elements than 16 is checked in 2 · (4 + 1) random directions


def gradient_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Each gradient is that of certified finite differences, for cotangents of 1e-12 to 1e+6."""
    outs, saved = call.forward()
    grads = _cotangents(outs, rng, 10.0 ** rng.integers(-12, 7))
    parts = call.vjp(grads, saved)
    for i in call.real:
        where = f"{call.op.name}: gradient for {call.names[i]}"
        assert parts[i] is not None, f"{where} is missing"
        assert np.shape(parts[i]) == call.arrays[i].shape, (
            f"{where} has shape {np.shape(parts[i])}, the operand has {call.arrays[i].shape}"
        )
        # A comparison with NaN is false, so without this it could be discarded unseen.
        assert np.all(np.isfinite(parts[i])), f"{where} is not finite"
    near = Neighbourhood(_outputs(call), call.arrays, [grads], rng)
    comparison = Comparison(near, claims(_pull(call), call.arrays, [grads], [parts], rng), DOUBLE.rtol)
    for i in call.real:
        along = directions(call.arrays[i], i, rng, ELEMENTS, BLOCKS)
        assert_right(comparison, along, f"{call.op.name}: gradient for {call.names[i]}", tally)
    for factor in (2.0**-40, 2.0**20):  # a power of two rounds nothing, so this holds to the bit
        scaled = call.vjp([frozen(factor * g) for g in grads], saved)
        for i in call.real:
            assert _same((factor * np.asarray(parts[i]),), (scaled[i],)), (
                f"{call.op.name}: gradient for {call.names[i]} is not linear: cotangents times {factor:.0e} "
                "give another multiple"
            )


def need_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Whatever subset of gradients is needed, those are the same and the others None."""
    outs, saved = call.forward()
    grads = _cotangents(outs, rng)
    parts = call.vjp(grads, saved)
    for subset in subsets(call.real):
        need = call.need(subset)
        some_outs, some_saved = call.forward(need)
        where = f"{call.op.name}: with only {[call.names[i] for i in subset]} needed"
        assert _same(outs, some_outs), f"{where} the output differs"
        if not subset:
            continue  # a plain forward: nothing is recorded
        for i, part in enumerate(call.vjp(grads, some_saved, need)):
            if i in subset:
                assert part is not None, f"{where} its gradient is None"
                assert _same((parts[i],), (part,)), f"{where} the gradient for {call.names[i]} differs"
            else:
                assert part is None, f"{where} there is a gradient for {call.names[i]}, expected None"


def output_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Outputs have the signature's shapes; outputs and gradients keep float32 and float64, also beside a scalar."""
    for dtype in (np.float32, np.float64):
        typed = call.cast(dtype)
        outs, saved = typed.forward()
        _assert_shapes(typed, outs)
        for variant in (typed, *with_scalars(typed)):
            outs, saved = variant.forward()
            for out in outs:
                assert out.dtype.kind != "f" or out.dtype == dtype, (
                    f"{call.op.name}: {np.dtype(dtype)} operands give {out.dtype} in {variant}"
                )
            if not variant.real:
                continue
            parts = variant.vjp(_cotangents(outs, rng), saved)
            for i in variant.real:
                part, where = np.asarray(parts[i]), f"{call.op.name}: gradient for {call.names[i]}"
                assert part.dtype == dtype, f"{where} is {part.dtype} for {np.dtype(dtype)} operands"
                assert part.shape == variant.arrays[i].shape, (
                    f"{where} has shape {part.shape}, the operand has {variant.arrays[i].shape}"
                )


def single_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Computed in float32, outputs and gradients are those of float64 within float32's rounding."""
    single = call.cast(np.float32)
    grads = _cotangents(single.forward()[0], rng)
    _Expected(single, grads, np.float32, rng).assert_given_by(single, "in float32")


def purity_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Operands, cotangents and saved arrays are never written, and the same call gives the same bits."""
    before = [np.array(a) for a in call.arrays if a is not None]
    outs, saved = call.forward()
    kept = [np.array(o) for o in outs]
    lock(saved)
    grads = _cotangents(outs, rng)
    first, second = call.vjp(grads, saved), call.vjp(grads, saved)
    assert _same(kept, outs), f"{call.op.name}: the vjp changed the forward's output"
    assert _same(first, second), f"{call.op.name}: two calls of the vjp differ"
    assert _same(outs, call.forward()[0]), f"{call.op.name}: two forwards differ"
    after = [a for a in call.arrays if a is not None]
    assert _same(before, after), f"{call.op.name}: an operand was written"


def layout_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Fortran order, strides, reversed and transposed views give what contiguous arrays give."""
    other = call.having({i: relaid(a, rng) for i, a in enumerate(call.arrays) if isinstance(a, np.ndarray)})
    grads = _cotangents(call.forward()[0], rng)
    expected = _Expected(call, grads, np.float64, rng)
    expected.assert_given_by(other, "for other memory layouts", grads=[relaid(g, rng) for g in grads])


def empty_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Axes of size 0 and 1 work, each by itself and all together; or are refused by a ShapeError with the name."""
    op, found = call.op, 0
    for small in small_calls(op, rng):
        try:
            small.forward()
        except ShapeError as error:
            if not str(error).startswith(f"{op.name}: "):
                raise AssertionError(f"{op.name}: the error does not name the operator: {error}") from error
            continue
        found += any(a.size == 0 for a in small.arrays if a is not None)
        output_law(small, rng, tally)
        purity_law(small, rng, tally)
        need_law(small, rng, tally)
        gradient_law(small, rng, tally)
    assert found or not axes(op), f"{op.name}: none of its draws has an empty operand"


def optional_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Any of the optional operands may be absent; the other gradients are right all the same."""
    present = [i for i, o in enumerate(call.operands) if o.optional and call.arrays[i] is not None]
    for absent in subsets(present):
        fewer = call.having(dict.fromkeys(absent))
        gradient_law(fewer, rng, tally)
        need_law(fewer, rng, tally)


def frozen_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """A FrozenWeight in place of an array gives the same outputs and gradients, and gets none itself."""
    weights = [i for i, o in enumerate(call.operands) if o.kind == "weight"]
    in_order: tuple[Callable[[Any], Any], ...] = (np.ascontiguousarray, np.asfortranarray)
    for dtype, ordered in itertools.product((np.float32, np.float64), in_order):
        plain = call.cast(dtype)
        held = plain.having({i: FrozenWeight(ordered(plain.arrays[i])) for i in weights})
        expected = _Expected(plain, _cotangents(plain.forward()[0], rng), dtype, rng)
        expected.assert_given_by(held, "with a FrozenWeight")


def shape_error_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """An operand of a wrong size, dtype or number of axes is refused by a ShapeError that names it and the operator."""
    for i, wrong, what in mistakes(call):
        operand = call.operands[i].name
        bad = call.having({i: wrong})
        try:
            call.op(**bad.keywords())
        except ShapeError as error:
            if not re.match(rf"{call.op.name}: .*\b{operand}\b", str(error)):
                raise AssertionError(f"{call.op.name}: the error for {operand} with {what} is: {error}") from error
        else:
            raise AssertionError(f"{call.op.name}: {operand} with {what} is accepted in {bad}")


def tape_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Through Tensors and backward come the same bits as from the rule, and ndarrays give ndarrays."""
    outs, saved = call.forward()
    plain = call.op(**call.keywords())
    plain = plain if isinstance(plain, tuple) else (plain,)
    assert all(type(p) is np.ndarray for p in plain), f"{call.op.name}: ndarrays give {[type(p) for p in plain]}"
    assert _same(outs, plain), f"{call.op.name}: a call with ndarrays gives another output"
    if not call.real:
        return
    leaves = {i: tensor(call.arrays[i], requires_grad=True) for i in call.real}
    result = call.op(**call.having(leaves).keywords())
    recorded = result if isinstance(result, tuple) else (result,)
    assert all(isinstance(t, Tensor) and t.requires_grad for t in recorded), f"{call.op.name}: output is not recorded"
    assert _same(outs, [t.data for t in recorded]), f"{call.op.name}: a call with Tensors gives another output"
    if not recorded:
        return
    last = len(recorded) - 1  # the other outputs get no cotangent, which counts as zero
    grad = _cotangents(outs, rng)[last]
    parts = call.vjp([*(frozen(np.zeros_like(o)) for o in outs[:last]), grad], saved)
    recorded[last].backward(grad)
    for i, leaf in leaves.items():
        assert leaf.grad is not None, f"{call.op.name}: backward leaves no gradient for {call.names[i]}"
        assert _same((parts[i],), (leaf.grad,)), f"{call.op.name}: backward gives another gradient for {call.names[i]}"


def kernel_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """The compiled kernel gives what the reference gives in float64, within float32's rounding, for every need."""
    rule = call.op.kernel
    assert rule is not None
    single = call.cast(np.float32)
    grads = _cotangents(single.forward()[0], rng)
    expected = _Expected(single, grads, np.float32, rng)
    strided = single.having({i: relaid(a, rng) for i, a in enumerate(single.arrays) if isinstance(a, np.ndarray)})
    weights = [i for i, o in enumerate(call.operands) if o.kind == "weight"]
    held = single.having({i: FrozenWeight(single.arrays[i]) for i in weights})
    for variant in (single, strided, held):
        cotangents = [relaid(g, rng) for g in grads] if variant is strided else grads
        for subset in subsets(variant.real):
            expected.assert_given_by(variant, "by the kernel", rule, subset, cotangents)


def laws(op: Op) -> tuple[Law, ...]:
    """The laws that apply to ``op``. kernel_law, where there is a kernel, is the last; it needs the compiled module."""
    found: list[Law] = [
        gradient_law, need_law, output_law, single_law, purity_law, layout_law, empty_law, shape_error_law, tape_law,
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
        most = profile.max_examples if law is gradient_law else min(profile.max_examples, OTHER_LAWS)
        settings = hypothesis.settings(profile, max_examples=most, deadline=None)

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


def _outputs(call: Call) -> Callable[..., Sequence[Array]]:
    def function(*arrays: Any) -> Sequence[Array]:
        return call.having(dict(enumerate(arrays))).forward()[0]

    return function


def _pull(call: Call) -> Callable[[Sequence[Any], Sequence[Array]], Sequence[Array | None]]:
    def pull(arrays: Sequence[Any], grads: Sequence[Array]) -> Sequence[Array | None]:
        there = call.having(dict(enumerate(arrays)))
        return there.vjp(grads, there.forward()[1])

    return pull


def _cotangents(outs: Sequence[Array], rng: np.random.Generator, scale: float = 1.0) -> list[Array]:
    return [frozen(np.asarray(scale * rng.standard_normal(o.shape), o.dtype)) for o in outs]


def _same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """True if all arrays have the same shapes and values; None equals None."""
    return len(these) == len(those) and all(
        a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True)
        for a, b in zip(these, those, strict=True)
    )


class _Expected:
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
        out_size = _size(_outputs(exact), exact.arrays, rng)
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


def _assert_shapes(call: Call, outs: Sequence[Array]) -> None:
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
