"""One call of an operator with drawn operands: what the laws are about. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Index, Interval, Op
from minilora.autograd.registry import Rule
from minilora.signature import Operand
from minilora.testing.reals import magnitude_of, reals

Array = NDArray[Any]
FILLS = ("random", "zeros", "equal", "ends")  # what a drawn real operand holds
WIDE = (-12.0, 6.0)  # decades of magnitude, for laws that judge relative to what they look at
MODERATE = (-3.0, 3.0)  # and for those that compute in float32


@dataclass(frozen=True)
class Call:
    """An operator with its operands, in the signature's order, and parameters. All arrays are read-only."""

    op: Op
    arrays: tuple[Any, ...]
    params: dict[str, Any]

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The operand of the signature that each array stands for."""
        return tuple(self.op.signature.expand(len(self.arrays)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(o.name for o in self.operands)

    @property
    def real(self) -> tuple[int, ...]:
        """The positions of the arrays that have a gradient."""
        return tuple(
            i for i, (o, a) in enumerate(zip(self.operands, self.arrays, strict=True))
            if o.differentiable and isinstance(a, np.ndarray)
        )  # fmt: skip

    def need(self, positions: Sequence[int] | None = None) -> tuple[bool, ...]:
        """The ``need`` that asks for the gradients at ``positions``, or for all there are."""
        wanted = self.real if positions is None else positions
        return tuple(i in wanted for i in range(len(self.arrays)))

    def having(self, changes: Mapping[int, Any]) -> Call:
        """The same call with other arrays at some positions."""
        return replace(self, arrays=tuple(frozen(changes.get(i, a)) for i, a in enumerate(self.arrays)))

    def cast(self, dtype: Any) -> Call:
        """The same call with every real operand in ``dtype``."""
        return self.having({i: self.arrays[i].astype(dtype) for i in self.real})

    def forward(self, need: tuple[bool, ...] | None = None, rule: Rule | None = None) -> tuple[tuple[Array, ...], Any]:
        """Return (outputs, saved) of the reference or another rule, for all gradients unless ``need`` says less."""
        need = self.need() if need is None else need
        out, saved = self.op.run(rule or self.op.reference, self.arrays, self.params, need)
        outs = out if isinstance(out, tuple) else (out,)
        return tuple(np.asarray(o) for o in outs), (saved, isinstance(out, tuple))

    def vjp(
        self, grads: Sequence[Array], saved: Any, need: tuple[bool, ...] | None = None, rule: Rule | None = None
    ) -> tuple[Any, ...]:
        """Return the gradient for each array, None where there is none, from cotangents of the outputs."""
        need = self.need() if need is None else need
        vjp = (rule or self.op.reference).vjp
        assert vjp is not None, f"{self.op.name} has no vjp"
        kept, many = saved
        parts = vjp(tuple(grads) if many else grads[0], kept, need, **self.params)
        assert isinstance(parts, tuple), f"{self.op.name}: the vjp returned {type(parts).__name__}, expected a tuple"
        assert len(parts) == len(need), (
            f"{self.op.name}: the vjp returned {len(parts)} gradients for {len(need)} operands"
        )
        return parts

    def keywords(self) -> dict[str, Any]:
        """The arguments of a public call, by name."""
        rest = list(self.arrays)
        named: dict[str, Any] = {}
        spare = len(self.arrays) - len(self.op.signature.inputs) + 1
        for operand in self.op.signature.inputs:
            named[operand.name] = tuple(rest[:spare]) if operand.variadic else rest[0]
            del rest[: spare if operand.variadic else 1]
        return {**named, **self.params}

    def __repr__(self) -> str:
        def short(a: Any) -> str:
            return f"{a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else repr(a)

        arrays = ", ".join(f"{n}={short(a)}" for n, a in zip(self.names, self.arrays, strict=True))
        return f"{self.op.name}({', '.join([arrays, *(f'{k}={v!r}' for k, v in self.params.items())])})"


def draw(
    op: Op,
    rng: np.random.Generator,
    sizes: Mapping[str, Any],
    params: Mapping[str, Any] | None = None,
    fill: str = "random",
    decades: tuple[float, float] | None = None,
) -> Call:
    """Draw a call: by the record's own draw if it has one, else from its signature and domain.

    sizes    for each letter an int, for ``*`` and ``...`` a shape
    params   parameters to use; others are drawn from the record, or are the operator's defaults
    fill     one of FILLS
    decades  powers of ten between which the magnitude of each operand is drawn; None: about one
    """
    chosen = {name: values[int(rng.integers(len(values)))] for name, values in op.params.items()}
    chosen.update(params or {})
    if op.draw is None:
        drawn = _operands(op, rng, sizes, fill, decades)
    else:
        drawn = {name: _scaled(op, name, value, rng, decades) for name, value in op.draw(rng, sizes).items()}
    arrays, rest = op.bind((), {**chosen, **drawn})
    call = Call(op, tuple(map(frozen, arrays)), rest)
    op.signature.check(op.name, call.arrays)
    return call


def frozen(value: Any) -> Any:
    """``value``, as a view that cannot be written if it is an array."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def axes(op: Op) -> tuple[str, ...]:
    """Every letter of the operands' axes, and ``*`` and ``...`` where they occur."""
    named = dict.fromkeys(axis for o in op.signature.inputs for axis in o.axes)
    return tuple(a for a in named if a != "?" and not a.isdigit())


def _operands(
    op: Op, rng: np.random.Generator, sizes: Mapping[str, Any], fill: str, decades: tuple[float, float] | None
) -> dict[str, Any]:
    sizes = dict(sizes)
    for operand in op.signature.inputs:  # an index needs something to point at
        domain = op.domain.get(operand.name)
        if isinstance(domain, Index) and not domain.also and 0 not in _shape(operand, sizes, rng):
            sizes[domain.axis] = max(sizes[domain.axis], 1)
    given: dict[str, Any] = {}
    for operand in op.signature.inputs:
        count = int(rng.integers(1, 4)) if operand.variadic else 1
        values = tuple(_values(op, operand, rng, sizes, fill, decades) for _ in range(count))
        absent = operand.optional and rng.random() < 0.5
        given[operand.name] = None if absent else values if operand.variadic else values[0]
    return given


def _shape(operand: Operand, sizes: Mapping[str, Any], rng: np.random.Generator) -> tuple[int, ...]:
    if operand.axes == ("?",):
        return tuple(int(n) for n in rng.integers(0, 4, size=rng.integers(0, 4)))
    shape: list[int] = []
    for axis in operand.axes:
        if axis == "*":
            shape.extend(sizes["*"])
        elif axis == "...":  # drop leading axes, stretch others, so that the whole still broadcasts
            kept = sizes["..."][int(rng.integers(0, len(sizes["..."]) + 1)) :] if rng.random() < 0.3 else sizes["..."]
            shape.extend(1 if rng.random() < 0.2 else n for n in kept)
        else:
            shape.append(int(axis) if axis.isdigit() else sizes[axis])
    return tuple(shape)


def _values(
    op: Op, operand: Operand, rng: np.random.Generator, sizes: Mapping[str, Any], fill: str,
    decades: tuple[float, float] | None,
) -> Array:  # fmt: skip
    shape = _shape(operand, sizes, rng)
    domain = op.domain.get(operand.name)
    if operand.kind == "bool":
        return np.asarray(rng.random(shape) < 0.7)
    if operand.kind == "int":
        assert isinstance(domain, Index), f"{op.name}: give the operand {operand.name} a domain Index"
        choices = [*range(sizes[domain.axis]), *domain.also]
        return np.asarray(rng.choice(choices, shape) if choices else np.zeros(shape), np.int64)
    return reals(domain if isinstance(domain, Interval) else Interval(), shape, rng, fill, decades)


def _scaled(op: Op, name: str, value: Any, rng: np.random.Generator, decades: tuple[float, float] | None) -> Any:
    """What a record's own draw gave, in another magnitude where its domain has neither ends nor kinks."""
    domain = op.domain.get(name, Interval())
    free = isinstance(domain, Interval) and not np.isfinite([domain.low, domain.high]).any() and not domain.kinks
    if decades is None or not free:
        return value
    if isinstance(value, tuple | list):
        return tuple(_scaled(op, name, item, rng, decades) for item in value)
    real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return np.asarray(value * magnitude_of(rng, value.shape, decades)) if real else value
