"""What an operator's operands are: their axes, parsed from one line and checked at every call, and their domains.

    "x[*, K], W:weight[K, N], bias?[N] -> y[*, N]"

An axis is a letter that must agree wherever it stands, a number, ``*`` (any leading axes, the same
for every operand that has it), ``...`` (any shape that broadcasts with the others, or a Python number)
or ``?`` (any shape). ``name?`` may be None; ``*name`` stands for any number of operands; ``name:kind``
is "real" (the default: differentiable), "weight" (real, and may be a FrozenWeight), "int" or "bool".
Several outputs are separated by commas.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora.errors import ShapeError

_OPERAND = re.compile(r"(\*?)([A-Za-z_]\w*)(\??)(?::(real|weight|int|bool))?\[([^\]]*)\]")
_REMEMBERED = 4096  # calls of an operator by shapes and dtypes, so that they are checked once
_KINDS = {"real": "f", "weight": "f", "int": "iu", "bool": "b"}


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


Params = Mapping[str, Sequence[Any]]
Domain = Mapping[str, Interval | Index]
Draw = Callable[[np.random.Generator, Mapping[str, Any]], Mapping[str, Any]]
Flops = Callable[[Mapping[str, Any]], int]  # of the forward, from axis sizes, operand shapes and parameters by name


@dataclass(frozen=True)
class Operand:
    """One operand or output: its name, its axes and what may stand there."""

    name: str
    axes: tuple[str, ...]
    kind: str = "real"
    optional: bool = False
    variadic: bool = False

    @property
    def differentiable(self) -> bool:
        return self.kind in ("real", "weight")

    def __str__(self) -> str:
        kind = "" if self.kind == "real" else f":{self.kind}"
        return f"{'*' * self.variadic}{self.name}{'?' * self.optional}{kind}[{', '.join(self.axes)}]"


@dataclass(frozen=True)
class Signature:
    """The operands and outputs of an operator."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read a signature such as ``"x[*, D], weight[D] -> y[*, D]"``."""
        left, arrow, right = text.partition("->")
        if not arrow:
            raise ValueError(f"signature {text!r} has no '->'")
        return cls(_operands(left), _operands(right))

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(o.name for o in self.inputs)

    @functools.cached_property
    def _variadic(self) -> bool:
        return any(o.variadic for o in self.inputs)

    @functools.cached_property
    def _fitting(self) -> dict[Any, bool]:
        return {}

    @functools.cached_property
    def _discrete(self) -> bool:
        return not all(o.differentiable for o in self.inputs)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"

    def expand(self, count: int) -> Iterator[Operand]:
        """The operand that each of ``count`` arguments stands for: a variadic one repeats."""
        spare = count - len(self.inputs) + 1
        for operand in self.inputs:
            yield from (operand,) * (spare if operand.variadic else 1)

    def spread(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """Take the operands of a call out of its values by name, one after the other: a variadic one is a sequence."""
        if not self._variadic:
            return tuple([values.pop(name) for name in self._names])
        return tuple(v for o in self.inputs for v in (values.pop(o.name) if o.variadic else (values.pop(o.name),)))

    def gather(self, given: Sequence[Any]) -> dict[str, Any]:
        """The inverse of ``spread``."""
        if not self._variadic:
            return dict(zip(self._names, given, strict=True))
        rest, spare = iter(given), len(given) - len(self.inputs) + 1
        return {o.name: tuple(itertools.islice(rest, spare)) if o.variadic else next(rest) for o in self.inputs}

    def take_numbers(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """Read the numbers among a call's operands, as NumPy would.

        A NumPy number that broadcasts becomes a Python number, which widens no float32 array; a Python int or bool
        where integers or booleans are expected becomes an array without axes.
        """
        if not (self._discrete or any(isinstance(v, np.number) for v in given)):
            return tuple(given)
        return tuple(_number(o, v) for o, v in zip(self.expand(len(given)), given, strict=True))

    def all_single(self, arrays: Sequence[Any]) -> bool:
        """True if every real operand that is given is a float32 array."""
        return all(
            array is None or getattr(array, "dtype", None) == np.float32
            for operand, array in zip(self.expand(len(arrays)), arrays, strict=True)
            if operand.differentiable
        )

    def fit(self, op: str, arrays: Sequence[Any]) -> bool:
        """``check``, and then ``all_single``; of shapes and dtypes that were seen before, what was found then."""
        try:
            key = tuple([None if array is None else (array.shape, array.dtype) for array in arrays])
        except AttributeError:  # Python numbers, and whatever check may refuse
            self.check(op, arrays)
            return self.all_single(arrays)
        known = self._fitting.get(key)
        if known is None:
            self.check(op, arrays)
            known = self.all_single(arrays)
            if len(self._fitting) == _REMEMBERED:
                self._fitting.clear()
            self._fitting[key] = known
        return known

    def check(self, op: str, arrays: Sequence[Any]) -> dict[str, Any]:
        """Return the size of every axis, ``*`` and ``...`` as shapes; ShapeError where two disagree."""
        sizes: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for operand, array in zip(self.expand(len(arrays)), arrays, strict=True):
            if array is None:
                if not operand.optional:
                    raise ShapeError(f"{op}: {operand.name} is None, expected an array\n  signature: {self}")
                continue
            if operand.axes == ("...",) and isinstance(array, int | float):  # promotes weakly, as in NumPy
                array = np.float64(array)
            dtype = getattr(array, "dtype", np.dtype(object))
            if dtype.kind not in _KINDS[operand.kind] or (dtype.kind == "f" and dtype.itemsize not in (4, 8)):
                raise ShapeError(
                    f"{op}: {operand.name} has dtype {dtype}, expected {_wanted(operand.kind)}\n  signature: {self}"
                )
            self._match(op, operand, tuple(array.shape), sizes, owner)
        return sizes

    def _match(
        self, op: str, operand: Operand, shape: tuple[int, ...], sizes: dict[str, Any], owner: dict[str, str]
    ) -> None:
        axes = operand.axes
        if axes == ("?",):
            return
        if axes == ("...",):
            try:
                sizes["..."] = np.broadcast_shapes(sizes.get("...", ()), shape)
            except ValueError:
                raise ShapeError(
                    f"{op}: {operand.name} has shape {shape}, which does not broadcast with "
                    f"{sizes['...']} of {owner['...']}\n  signature: {self}"
                ) from None
            owner["..."] = f"{owner['...']} and {operand.name}" if "..." in owner else operand.name
            return
        named = axes[1:] if axes[:1] == ("*",) else axes
        if len(shape) < len(named) or (named is axes and len(shape) != len(axes)):
            raise ShapeError(
                f"{op}: {operand.name} has shape {shape}, expected [{', '.join(axes)}]\n  signature: {self}"
            )
        leading = len(shape) - len(named)
        found = [("*", shape[:leading])] if named is not axes else []
        for axis, size in [*found, *zip(named, shape[leading:], strict=True)]:
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if size != wanted:
                source = "the signature" if axis.isdigit() else owner[axis]
                raise ShapeError(
                    f"{op}: {operand.name} has {axis}={size}, but {source} has {axis}={wanted}\n  signature: {self}"
                )
            owner.setdefault(axis, operand.name)


def _operands(text: str) -> tuple[Operand, ...]:
    found = tuple(
        Operand(name, tuple(a.strip() for a in axes.split(",") if a.strip()), kind or "real", bool(maybe), bool(star))
        for star, name, maybe, kind, axes in _OPERAND.findall(text)
    )
    if not found or re.sub(r"[\s,]", "", _OPERAND.sub("", text)):
        raise ValueError(f"signature part {text!r} is not a list of name[axes]")
    return found


def _number(operand: Operand, value: Any) -> Any:
    if operand.differentiable:
        return value.item() if isinstance(value, np.number) and operand.axes == ("...",) else value
    return np.asarray(value) if isinstance(value, int) else value  # bool is an int


def _wanted(kind: str) -> str:
    return {"real": "float32 or float64", "weight": "float32 or float64", "int": "integers", "bool": "booleans"}[kind]
