"""An operator is one record, and this is the record: signature, domain, source, forward, vjp, kernel.

    @op("x[*, D], weight[D] -> y[*, D]", domain={"x": Interval(-3, 3)}, source="paper, equation")
    def name(x, weight, *, eps=1e-6):           # NumPy in, (out, saved) out
        ...
    @name.defvjp
    def _(grad, saved, need, *, eps):           # one array or None per operand
        ...

The laws in minilora.testing, the table of operators and the kernels' checks all read these records.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd.backward import VJP, Node
from minilora.autograd.context import setting
from minilora.autograd.tensor import Tensor, is_recording
from minilora.autograd.writes import stamp
from minilora.signature import Domain, Draw, Flops, Params, Signature

_ARRAYS = (np.ndarray, Tensor)
REGISTRY: dict[str, Op] = {}
Forward = Callable[..., tuple[Any, Any]]


@dataclass
class Rule:
    """A way to compute an operator: forward(*operands, **params) -> (out, saved), and its vjp."""

    forward: Forward
    vjp: VJP | None = None


# What computes a call in place of Op.run, to measure it: (op, rule, arrays, params, need) -> (rule, (out, saved)).
Watch = Callable[["Op", Rule, Sequence[Any], Mapping[str, Any], tuple[bool, ...]], tuple[Rule, tuple[Any, Any]]]
_watch: ContextVar[Watch | None] = ContextVar("minilora_watch", default=None)
TRACE = os.environ.get("MINILORA_TRACE", "") not in ("", "0")


def watched_by(watch: Watch | None) -> AbstractContextManager[None]:
    """Let ``watch`` compute every call of an operator inside this block, in this thread or task only."""
    return setting(_watch, watch)


class Op:
    """A differentiable operator. Calling it records it, if any operand requires a gradient.

    ndarrays in give ndarrays out; with any Tensor among the operands the result is a Tensor.
    """

    params: Params
    domain: Domain
    source: str
    formula: str
    saves: str
    flops: Flops | None
    draw: Draw | None

    def __init__(self, forward: Forward, signature: str, **described: Any) -> None:
        self.__dict__.update(described)
        self.signature = Signature.parse(signature)
        self.kernel: Rule | None = None
        self.reference = Rule(forward)
        functools.update_wrapper(self, forward)
        self.name: str = forward.__name__
        arguments = inspect.signature(forward).parameters
        self._takes_need = "need" in arguments
        self.__signature__ = inspect.Signature([p for n, p in arguments.items() if n != "need"])
        # inspect's own bind costs more than a small operator; these two make a call's arguments without it.
        self._positional = tuple(n for n, p in arguments.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
        self._defaults = {n: p.default for n, p in arguments.items() if p.default is not p.empty}
        self._names = self.__signature__.parameters.keys()
        self._collects = self._positional[-1] in [o.name for o in self.signature.inputs if o.variadic]
        missing = [o.name for o in self.signature.inputs if o.name not in arguments]
        if missing:
            raise ValueError(f"{self.name}: the signature names {missing}, which the function does not take")

    def defvjp(self, vjp: VJP) -> VJP:
        """Give the reference's vector–Jacobian product: vjp(grad, saved, need, **params)."""
        self.reference.vjp = vjp
        return vjp

    def defkernel(self, forward: Forward) -> Callable[[VJP], VJP]:
        """Give a float32 forward by the compiled kernel; the result takes its vjp."""
        self.kernel = rule = Rule(forward)

        def give(vjp: VJP) -> VJP:
            rule.vjp = vjp
            return vjp

        return give

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split a call's arguments into operands, in the signature's order, and parameters.

        Where the last argument is operands of any number, they may be given one by one: f("ij,jk", a, b).
        Beside an array, numbers are read as NumPy would: none of them widens float32.
        """
        last = len(self._positional) - 1
        if self._collects and len(args) > last and not isinstance(args[-1], list | tuple):
            args = (*args[:last], args[last:])
        values = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        twice = len(args) > last + 1 or (kwargs and any(name in kwargs for name in self._positional[: len(args)]))
        if twice or values.keys() != self._names:
            self.__signature__.bind(*args, **kwargs)  # raises the TypeError that Python itself would
        given = self.signature.spread(values)
        if any(isinstance(v, _ARRAYS) for v in given):
            given = self.signature.take_numbers(given)
        return given, values

    def run(
        self, rule: Rule, arrays: Sequence[Any], params: Mapping[str, Any], need: tuple[bool, ...]
    ) -> tuple[Any, Any]:
        """Compute (out, saved) by ``rule`` from arrays, without recording anything."""
        extra = {"need": need} if self._takes_need else {}
        return rule.forward(**self.signature.gather(arrays), **params, **extra)

    def choose(self, arrays: Sequence[Any]) -> Rule:
        """The kernel if there is one in use and all real operands are float32; ShapeError where operands do not fit."""
        single = self.signature.fit(self.name, arrays)
        return self.kernel if single and self.kernel is not None and kernels.use_native() else self.reference

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operands, params = self.bind(args, kwargs)
        arrays = tuple([_plain(o) for o in operands])
        rule, recording = self.choose(arrays), is_recording()
        edges = tuple([o.edge if recording and isinstance(o, Tensor) else None for o in operands])
        need = tuple([edge is not None for edge in edges])
        watch = _watch.get()
        if watch is None:
            out, saved = self.run(rule, arrays, params, need)
        else:
            rule, (out, saved) = watch(self, rule, arrays, params, need)
        outs: tuple[NDArray[Any], ...] = tuple(map(np.asarray, out if isinstance(out, tuple) else (out,)))
        if not any(isinstance(o, Tensor) for o in operands):
            return outs if isinstance(out, tuple) else outs[0]
        if any(need):
            if rule.vjp is None:
                raise ValueError(f"{self.name} has no vjp: give it one with @{self.name}.defvjp")
            shapes = tuple((o.shape, o.dtype) for o in outs)
            kept = stamp((saved, params))
            node = Node(self.name, rule.vjp, params, edges, saved, kept, shapes, isinstance(out, tuple))
            tensors = tuple(Tensor(o, edge=(node, i)) for i, o in enumerate(outs))
        else:
            tensors = tuple(Tensor(o) for o in outs)
        return tensors if isinstance(out, tuple) else tensors[0]

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.signature}>"


def _plain(value: Any) -> Any:
    """What a rule computes with: the array of a Tensor or list; all else as it is."""
    return value.data if isinstance(value, Tensor) else np.asarray(value) if isinstance(value, list) else value


def op(
    signature: str,
    *,
    params: Params | None = None,
    domain: Domain | None = None,
    source: str,
    formula: str = "",
    saves: str = "",
    flops: Flops | None = None,
    draw: Draw | None = None,
) -> Callable[[Forward], Op]:
    """Make an operator out of a forward function, and register it under the function's name.

    signature  the axes of every operand; see minilora.signature
    params     for each parameter the values that tests may draw
    domain     for each operand an Interval or Index; a real operand without one may be any number
    source     paper and equation, or the textbook name of the rule
    formula    what it computes, on one line
    saves      what the forward keeps for the vjp, on one line; "" for nothing but shapes
    flops      sizes -> floating-point operations of the forward; None: one per element of the outputs. sizes[letter] is
               the size of an axis (`*` and `...`: a shape), sizes[operand] a shape (of operands of any number: shapes)
               where no axis has that name, sizes[parameter] its value
    draw       (generator, sizes) -> operands and parameters that a domain cannot describe
    """

    def register(forward: Forward) -> Op:
        described = {"source": source, "formula": formula, "saves": saves, "flops": flops, "draw": draw}
        record = Op(forward, signature, params=params or {}, domain=domain or {}, **described)
        if record.name in REGISTRY:
            raise ValueError(f"an operator named {record.name!r} is registered already")
        REGISTRY[record.name] = record
        return record

    return register
