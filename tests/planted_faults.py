"""The catalogue of planted faults: ways in which a vector–Jacobian product can be wrong.

A fault changes the gradients that a right vjp returned, or what it was given. It is planted into a
copy of an operator's record; the registry never sees it. A fault that changes nothing for an operator on
any draw (transposing where no gradient has two axes of one size) is excluded there, by that reason alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minilora.autograd import Op
from minilora.autograd.registry import Rule


@dataclass
class Planted:
    """A record with a wrong vjp, which notes whether the fault has changed anything yet."""

    op: Op
    changed: bool = field(default=False)


def on_largest(change):
    """A fault of the one gradient of a call with the most elements; the others stay right."""

    def fault(parts, grad):
        sizes = [-1 if p is None else np.size(p) for p in parts]
        at = int(np.argmax(sizes))
        if sizes[at] < 0:
            return parts
        return tuple(change(np.asarray(p), grad) if i == at else p for i, p in enumerate(parts))

    return fault


def scaled(factor):
    return on_largest(lambda g, _: g * g.dtype.type(factor))


def at_one_element(change):
    """Change the element in the middle."""

    def fault(g, _):
        g = np.array(g)
        if g.size:
            g.flat[g.size // 2] = change(g.flat[g.size // 2])
        return g

    return on_largest(fault)


def first_cotangent(grad):
    return (grad[0] if grad else np.zeros(0)) if isinstance(grad, tuple) else grad


def mean_over_axis(g, _):
    """What summing over the wrong axis leaves: the same number along it."""
    return np.broadcast_to(g.mean(axis=0, keepdims=True), g.shape) if g.ndim and g.size else g


def not_summed(g, _):
    """A broadcast that was not undone: an axis of size one comes back stretched."""
    at = next((i for i, n in enumerate(g.shape) if n == 1), None)
    return g if at is None else np.repeat(g, 2, axis=at)


def transposed(g, _):
    if g.ndim < 2 or g.shape[-1] != g.shape[-2]:
        return g
    return g.swapaxes(-1, -2)


def constant_added(g, _):
    return g + g.dtype.type(1e-3)


def missing_last_term(g, _):
    g = np.array(g)
    if g.ndim and g.size:
        g[..., -1] = 0
    return g


def swapped(parts, grad):
    """Two operands get each other's gradient."""
    real = [i for i, p in enumerate(parts) if p is not None]
    for i in real:
        for j in real:
            if i < j and np.shape(parts[i]) == np.shape(parts[j]) and parts[i].dtype == parts[j].dtype:
                parts = list(parts)
                parts[i], parts[j] = parts[j], parts[i]
                return tuple(parts)
    return parts


def when(condition, fault):
    return lambda parts, grad: fault(parts, grad) if condition(parts, grad) else parts


def _has_axis_of_one(parts, grad):
    return any(1 in np.shape(p) for p in parts if p is not None)


def _not_contiguous(parts, grad):
    return not first_cotangent(grad).flags.c_contiguous


def _single(parts, grad):
    return first_cotangent(grad).dtype == np.float32


def _empty(parts, grad):
    return first_cotangent(grad).size == 0 and any(np.size(p) for p in parts if p is not None)


def squashed(g, _):
    """Tiny gradients taken for zero."""
    return np.where(np.abs(g) < 1e-9, g.dtype.type(0), g)


AFTER: dict[str, Callable] = {  # what is done to the gradients that the right vjp returned
    "factor 2": scaled(2),
    "factor 1/2": scaled(0.5),
    "factor 1.01": scaled(1.01),
    "factor 1 + 1e-4": scaled(1 + 1e-4),
    "scaled by 1e-9": scaled(1e-9),
    "sign": scaled(-1),
    "zero": scaled(0),
    "one element by 1 %": at_one_element(lambda v: v * 1.01),
    "one element without sign": at_one_element(abs),
    "one NaN": at_one_element(lambda v: np.nan),
    "one infinity": at_one_element(lambda v: np.inf),
    "constant added": on_largest(constant_added),
    "last row missing": on_largest(missing_last_term),
    "reversed": on_largest(lambda g, _: g[::-1] if g.ndim else g),
    "transposed where square": on_largest(transposed),
    "summed over the wrong axis": on_largest(mean_over_axis),
    "broadcast not undone": on_largest(not_summed),
    "swapped with another operand's": swapped,
    "tiny taken for zero": on_largest(squashed),
    "other dtype": on_largest(lambda g, _: g.astype(np.float64 if g.dtype == np.float32 else np.float32)),
    "wrong for an axis of one": when(_has_axis_of_one, scaled(1.5)),
    "wrong where not contiguous": when(_not_contiguous, scaled(1.5)),
    "wrong in float32": when(_single, scaled(1.01)),
    "one where nothing flows": when(_empty, on_largest(lambda g, _: g + 1)),
    "none": on_largest(lambda g, _: None),
}


def _given(change):
    """A fault of what the vjp is given: the cotangent of the first output."""

    def planted(grad):
        if isinstance(grad, tuple):
            return (change(grad[0]), *grad[1:]) if grad else grad
        return change(grad)

    return planted


def _without_last(g):
    g = np.array(g)
    if g.size:
        g.flat[-1] = 0
    return g


BEFORE: dict[str, Callable] = {  # what is done to the cotangent before the right vjp sees it
    "last cotangent lost": _given(lambda g: _without_last(g)),
    "cotangent squared": _given(lambda g: g * np.abs(g)),
    "cotangent averaged": _given(lambda g: np.broadcast_to(g.mean(), g.shape).astype(g.dtype) if g.size else g),
    "cotangent rounded to half": _given(lambda g: np.clip(g, -6e4, 6e4).astype(np.float16).astype(g.dtype)),
    "memory order instead of axes": _given(
        lambda g: np.lib.stride_tricks.as_strided(g, g.shape, np.zeros(g.shape, g.dtype).strides)
        if min(g.strides, default=0) >= 0 else g
    ),
}  # fmt: skip

FAULTS = (*AFTER, *BEFORE, "need ignored", "wrong where another is not needed")


def plant(op: Op, fault: str) -> Planted:
    """A copy of ``op`` whose vjp has the fault."""
    right = op.reference.vjp
    record = copy.copy(op)
    planted = Planted(record)

    def wrong(grad, saved, need, **params):
        if fault in BEFORE:
            there = BEFORE[fault](grad)
            parts, good = right(there, saved, need, **params), right(grad, saved, need, **params)
        elif fault == "need ignored":
            good = right(grad, saved, need, **params)
            parts = tuple(np.zeros(1) if p is None else p for p in good)
        elif fault == "wrong where another is not needed":
            good = right(grad, saved, need, **params)
            partly = sum(need) == 1 and len(need) > 1
            parts = tuple(1.5 * p if partly and p is not None else p for p in good)
        else:
            good = right(grad, saved, need, **params)
            parts = AFTER[fault](good, grad)
        planted.changed = planted.changed or not all(map(_alike, good, parts))
        return parts

    record.reference = Rule(op.reference.forward, wrong)
    record.kernel = None
    return planted


def _alike(a, b):
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
