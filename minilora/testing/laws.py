"""The laws that every operator obeys. Each looks at one drawn call and fails with AssertionError. NumPy only.

A law is a function (call, rng, tally). Every array that it hands to an operator is read-only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, tensor
from minilora.autograd.writes import arrays_in
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight
from minilora.testing.claims import claims
from minilora.testing.differences import Comparison, Tally, assert_right
from minilora.testing.draws import Call, axes, frozen
from minilora.testing.expected import Expected, assert_shapes, cotangents_of, outputs_of, pull_of, same
from minilora.testing.moves import directions
from minilora.testing.slopes import Neighbourhood
from minilora.testing.tolerance import DOUBLE
from minilora.testing.variants import lock, mistakes, relaid, small_calls, subsets, with_scalars

Array = NDArray[Any]
Law = Callable[[Call, np.random.Generator, Tally], None]
UNDERFLOW = 1e-280  # below which factors may have lost bits: a weight of exp(-700) times a small cotangent
ELEMENTS, BLOCKS = 16, 4  # an operand with more elements than 16 is checked in 2 · (4 + 1) random directions


def gradient_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Each gradient is that of certified finite differences, for cotangents of 1e-12 to 1e+6."""
    outs, saved = call.forward()
    grads = cotangents_of(outs, rng, 10.0 ** rng.integers(-12, 7))
    parts = call.vjp(grads, saved)
    for i in call.real:
        where = f"{call.op.name}: gradient for {call.names[i]}"
        assert parts[i] is not None, f"{where} is missing"
        assert np.shape(parts[i]) == call.arrays[i].shape, (
            f"{where} has shape {np.shape(parts[i])}, the operand has {call.arrays[i].shape}"
        )
        # A comparison with NaN is false, so without this it could be discarded unseen.
        assert np.all(np.isfinite(parts[i])), f"{where} is not finite"
    near = Neighbourhood(outputs_of(call), call.arrays, [grads], rng)
    comparison = Comparison(near, claims(pull_of(call), call.arrays, [grads], [parts], rng), DOUBLE.rtol)
    for i in call.real:
        along = directions(call.arrays[i], i, rng, ELEMENTS, BLOCKS)
        assert_right(comparison, along, f"{call.op.name}: gradient for {call.names[i]}", tally)
    for factor in (2.0**-40, 2.0**20):  # a power of two rounds nothing, so this holds to the bit
        scaled = call.vjp([frozen(factor * g) for g in grads], saved)
        for i in call.real:
            off = np.abs(factor * np.asarray(parts[i]) - scaled[i])
            assert np.all(off <= UNDERFLOW), (
                f"{call.op.name}: gradient for {call.names[i]} is not linear: cotangents times {factor:.0e} "
                "give another multiple"
            )


def need_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Whatever subset of gradients is needed, those are the same and the others None."""
    outs, saved = call.forward()
    grads = cotangents_of(outs, rng)
    parts = call.vjp(grads, saved)
    for subset in subsets(call.real):
        need = call.need(subset)
        some_outs, some_saved = call.forward(need)
        where = f"{call.op.name}: with only {[call.names[i] for i in subset]} needed"
        assert same(outs, some_outs), f"{where} the output differs"
        if not subset:
            continue  # a plain forward: nothing is recorded
        for i, part in enumerate(call.vjp(grads, some_saved, need)):
            if i in subset:
                assert part is not None, f"{where} its gradient is None"
                assert same((parts[i],), (part,)), f"{where} the gradient for {call.names[i]} differs"
            else:
                assert part is None, f"{where} there is a gradient for {call.names[i]}, expected None"


def output_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Outputs have the signature's shapes; outputs and gradients keep float32 and float64, also beside a scalar."""
    for dtype in (np.float32, np.float64):
        typed = call.cast(dtype)
        outs, saved = typed.forward()
        assert_shapes(typed, outs)
        for variant in (typed, *with_scalars(typed)):
            outs, saved = variant.forward()
            for out in outs:
                assert out.dtype.kind != "f" or out.dtype == dtype, (
                    f"{call.op.name}: {np.dtype(dtype)} operands give {out.dtype} in {variant}"
                )
            if not variant.real:
                continue
            parts = variant.vjp(cotangents_of(outs, rng), saved)
            for i in variant.real:
                part, where = np.asarray(parts[i]), f"{call.op.name}: gradient for {call.names[i]}"
                assert part.dtype == dtype, f"{where} is {part.dtype} for {np.dtype(dtype)} operands"
                assert part.shape == variant.arrays[i].shape, (
                    f"{where} has shape {part.shape}, the operand has {variant.arrays[i].shape}"
                )


def single_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Computed in float32, outputs and gradients are those of float64 within float32's rounding."""
    single = call.cast(np.float32)
    grads = cotangents_of(single.forward()[0], rng)
    Expected(single, grads, np.float32, rng).assert_given_by(single, "in float32")


def purity_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Operands, cotangents and saved arrays are never written, and the same call gives the same bits."""
    before = [np.array(a) for a in call.arrays if a is not None]
    outs, saved = call.forward()
    kept = [np.array(o) for o in outs]
    lock(saved)
    grads = cotangents_of(outs, rng)
    first, second = call.vjp(grads, saved), call.vjp(grads, saved)
    assert same(kept, outs), f"{call.op.name}: the vjp changed the forward's output"
    assert same(first, second), f"{call.op.name}: two calls of the vjp differ"
    assert same(outs, call.forward()[0]), f"{call.op.name}: two forwards differ"
    after = [a for a in call.arrays if a is not None]
    assert same(before, after), f"{call.op.name}: an operand was written"


def layout_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """Fortran order, strides, reversed and unaligned views give what contiguous arrays give."""
    other = call.having({i: relaid(a, rng) for i, a in enumerate(call.arrays) if isinstance(a, np.ndarray)})
    grads = cotangents_of(call.forward()[0], rng)
    expected = Expected(call, grads, np.float64, rng)
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
        expected = Expected(plain, cotangents_of(plain.forward()[0], rng), dtype, rng)
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
    assert same(outs, plain), f"{call.op.name}: a call with ndarrays gives another output"
    if not call.real:
        return
    leaves = {i: tensor(call.arrays[i], requires_grad=True) for i in call.real}
    result = call.op(**call.having(leaves).keywords())
    recorded = result if isinstance(result, tuple) else (result,)
    assert all(isinstance(t, Tensor) and t.requires_grad for t in recorded), f"{call.op.name}: output is not recorded"
    assert same(outs, [t.data for t in recorded]), f"{call.op.name}: a call with Tensors gives another output"
    if not recorded:
        return
    last = len(recorded) - 1  # the other outputs get no cotangent, which counts as zero
    grad = cotangents_of(outs, rng)[last]
    parts = call.vjp([*(frozen(np.zeros_like(o)) for o in outs[:last]), grad], saved)
    recorded[last].backward(grad)
    for i, leaf in leaves.items():
        assert leaf.grad is not None, f"{call.op.name}: backward leaves no gradient for {call.names[i]}"
        assert same((parts[i],), (leaf.grad,)), f"{call.op.name}: backward gives another gradient for {call.names[i]}"


def saves_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """The record's ``saves`` names every operand that is kept for the vjp, and no real one that is not.

    Of operands of any number some may be kept, and integers may be kept in another form.
    """
    if not call.op.formula:
        return
    stated = [item.strip() for item in call.op.saves.split(",")]
    kept = list(arrays_in(call.forward()[1]))
    for operand in call.op.signature.inputs:
        arrays = [a for o, a in zip(call.operands, call.arrays, strict=True) if o is operand]
        arrays = [a for a in arrays if isinstance(a, np.ndarray) and a.size]
        if not arrays:
            continue
        is_kept = any(np.shares_memory(a, k) for a in arrays for k in kept)
        named = any(re.match(rf"{operand.name}( (where|if) .*)?$", item) for item in stated)
        assert named or not is_kept, (
            f"{call.op.name}: {operand.name} is saved, but saves={call.op.saves!r} does not say so"
        )
        may_differ = operand.variadic or not operand.differentiable
        assert is_kept or may_differ or not named, (
            f"{call.op.name}: saves={call.op.saves!r} names {operand.name}, which is not saved"
        )


def kernel_law(call: Call, rng: np.random.Generator, tally: Tally) -> None:
    """The compiled kernel gives what the reference gives in float64, within float32's rounding, for every need."""
    rule = call.op.kernel
    assert rule is not None
    single = call.cast(np.float32)
    grads = cotangents_of(single.forward()[0], rng)
    expected = Expected(single, grads, np.float32, rng)
    strided = single.having({i: relaid(a, rng) for i, a in enumerate(single.arrays) if isinstance(a, np.ndarray)})
    weights = [i for i, o in enumerate(call.operands) if o.kind == "weight"]
    held = single.having({i: FrozenWeight(single.arrays[i]) for i in weights})
    for variant in (single, strided, held):
        cotangents = [relaid(g, rng) for g in grads] if variant is strided else grads
        for subset in subsets(variant.real):
            expected.assert_given_by(variant, "by the kernel", rule, subset, cotangents)
