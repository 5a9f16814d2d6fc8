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
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd.backward import VJP, Node
from minilora.autograd.tensor import Tensor, is_recording
from minilora.signature import Signature

REGISTRY: dict[str, Op] = {}


@dataclass(frozen=True)
class Interval:
    """The reals strictly between low and high, where the operator is defined and no float32 overflows, less its kinks.

    kinks     points at which the operator is continuous but has no derivative
    distinct  where two elements of the operand are equal, the operator has a kink as well
    """

    low: float = -math.inf
    high: float = math.inf
    kinks: tuple[float, ...] = ()
    distinct: bool = False


@dataclass(frozen=True)
class Index:
    """Integers 0 … size of ``axis`` − 1, and ``also`` some further values, such as an ignored label."""

    axis: str
    also: tuple[int, ...] = ()


Forward = Callable[..., tuple[Any, Any]]
Params = Mapping[str, Sequence[Any]]
Domain = Mapping[str, Interval | Index]
Draw = Callable[[np.random.Generator, Mapping[str, Any]], Mapping[str, Any]]
Flops = Callable[[Mapping[str, Any]], int]  # of the forward, from the sizes of the signature's axes


@dataclass
class Rule:
    """A way to compute an operator: forward(*operands, **params) -> (out, saved), and its vjp."""

    forward: Forward
    vjp: VJP | None = None


class Op:
    """A differentiable operator. Calling it records it, if any operand requires a gradient.

    ndarrays in give ndarrays out; with any Tensor among the operands the result is a Tensor.
    """

    def __init__(
        self,
        forward: Forward,
        signature: str,
        params: Params,
        domain: Domain,
        source: str,
        formula: str,
        saves: str,
        flops: Flops | None,
        draw: Draw | None,
    ) -> None:
        self.signature = Signature.parse(signature)
        self.params, self.domain, self.draw = dict(params), dict(domain), draw
        self.source, self.formula, self.saves, self.flops = source, formula, saves, flops
        self.reference = Rule(forward)
        self.kernel: Rule | None = None
        functools.update_wrapper(self, forward)
        self.name: str = forward.__name__
        arguments = inspect.signature(forward).parameters
        self._takes_need = "need" in arguments
        self.__signature__ = inspect.Signature([p for n, p in arguments.items() if n != "need"])
        # inspect's own bind costs more than a small operator; these two make a call's arguments without it.
        self._positional = tuple(n for n, p in arguments.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
        self._defaults = {n: p.default for n, p in arguments.items() if p.default is not p.empty}
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
        Beside an array, a NumPy number that broadcasts becomes a Python number: it may not widen float32.
        """
        last = len(self._positional) - 1
        if self._collects and len(args) > last and not isinstance(args[-1], list | tuple):
            args = (*args[:last], args[last:])
        values = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        twice = len(args) > len(self._positional) or any(name in kwargs for name in self._positional[: len(args)])
        if twice or values.keys() != self.__signature__.parameters.keys():
            self.__signature__.bind(*args, **kwargs)  # raises the TypeError that Python itself would
        given: list[Any] = []
        for operand in self.signature.inputs:
            value = values.pop(operand.name)
            given.extend(value if operand.variadic else (value,))
        if any(isinstance(v, np.number) for v in given) and any(isinstance(v, np.ndarray | Tensor) for v in given):
            pairs = zip(given, self.signature.expand(len(given)), strict=True)
            given = [v.item() if o.axes == ("...",) and isinstance(v, np.number) else v for v, o in pairs]
        return tuple(given), values

    def run(
        self, rule: Rule, arrays: Sequence[Any], params: Mapping[str, Any], need: tuple[bool, ...]
    ) -> tuple[Any, Any]:
        """Compute (out, saved) by ``rule`` from arrays, without recording anything."""
        rest = iter(arrays)
        spare = len(arrays) - len(self.signature.inputs) + 1
        operands = {
            o.name: tuple(itertools.islice(rest, spare)) if o.variadic else next(rest) for o in self.signature.inputs
        }
        extra = {"need": need} if self._takes_need else {}
        return rule.forward(**operands, **params, **extra)

    def choose(self, arrays: Sequence[Any]) -> Rule:
        """The kernel where there is one, it is switched on and every real operand is float32; else the reference."""
        if self.kernel is None or not kernels.use_native():
            return self.reference
        single = all(
            array is None or getattr(array, "dtype", None) == np.float32
            for operand, array in zip(self.signature.expand(len(arrays)), arrays, strict=True)
            if operand.differentiable
        )
        return self.kernel if single else self.reference

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operands, params = self.bind(args, kwargs)
        arrays = tuple(map(_plain, operands))
        self.signature.check(self.name, arrays)
        recording = is_recording()
        edges = tuple(o.edge if recording and isinstance(o, Tensor) else None for o in operands)
        need = tuple(edge is not None for edge in edges)
        rule = self.choose(arrays)
        out, saved = self.run(rule, arrays, params, need)
        outs: tuple[NDArray[Any], ...] = tuple(map(np.asarray, out if isinstance(out, tuple) else (out,)))
        if not any(isinstance(o, Tensor) for o in operands):
            return outs if isinstance(out, tuple) else outs[0]
        if any(need):
            if rule.vjp is None:
                raise ValueError(f"{self.name} has no vjp: give it one with @{self.name}.defvjp")
            node = Node(self.name, functools.partial(rule.vjp, **params), edges, saved, outs, isinstance(out, tuple))
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
    flops      sizes of the axes -> floating-point operations of the forward; None: one per element of the outputs
    draw       (generator, sizes) -> operands and parameters that a domain cannot describe
    """

    def register(forward: Forward) -> Op:
        record = Op(forward, signature, params or {}, domain or {}, source, formula, saves, flops, draw)
        if record.name in REGISTRY:
            raise ValueError(f"an operator named {record.name!r} is registered already")
        REGISTRY[record.name] = record
        return record

    return register
