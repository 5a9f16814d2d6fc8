"""trace: how often every operator was called, how long it took, what it kept and how much it computed.

With MINILORA_TRACE=1 in the environment the thread that imports minilora, the main one as a rule, is
traced from then on, and the table is written to stderr when the process ends.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from minilora.autograd import registry
from minilora.autograd.writes import arrays_in, owner_of
from minilora.graph.watching import Op, Rule, Watch, watching
from minilora.signature import Signature


@dataclass(frozen=True)
class Row:
    """What the calls of one operator came to.

    name     of the operator
    calls    how many; ``kernel`` of them by the compiled kernel
    forward  seconds
    backward seconds in its vjp, which backward() called ``pulls`` times
    saved    bytes kept for backward; memory that several calls keep counts for the first, frozen weights and mapped
             files not at all
    flops    floating-point operations of the forward, by the operator's record
    """

    name: str
    calls: int = 0
    kernel: int = 0
    forward: float = 0.0
    pulls: int = 0
    backward: float = 0.0
    saved: int = 0
    flops: int = 0

    @property
    def time(self) -> float:
        """Seconds, forward and backward."""
        return self.forward + self.backward


class Trace:
    """The calls inside a ``with trace() as t`` block, and the vjps of these calls whenever backward() runs.

    rows   a Row for each operator, the one that took most time first
    total  a Row with the sums
    peak   the most bytes of kept memory that was alive at one time
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Any]] = {}
        self._kept: dict[int, weakref.ref[Any]] = {}  # id of an array that owns memory -> itself, while it lives
        self._alive = 0
        self.peak = 0

    @property
    def rows(self) -> tuple[Row, ...]:
        rows = (Row(name, **counts) for name, counts in self._counts.items())
        return tuple(sorted(rows, key=lambda row: (-row.time, row.name)))

    @property
    def total(self) -> Row:
        names = [name for name in Row.__dataclass_fields__ if name != "name"]
        return Row("total", **{name: sum(getattr(row, name) for row in self.rows) for name in names})

    def __str__(self) -> str:
        return _table(self.rows, self.total)

    def _around(self, run: Watch) -> Watch:
        def watch(
            op: Op, rule: Rule, arrays: Sequence[Any], params: Mapping[str, Any], need: tuple[bool, ...]
        ) -> tuple[Rule, tuple[Any, Any]]:
            start = perf_counter()
            rule, (out, saved) = run(op, rule, arrays, params, need)
            seconds = perf_counter() - start
            counts = self._counts.setdefault(op.name, dict.fromkeys(_COUNTED, 0))
            counts["calls"] += 1
            counts["kernel"] += op.kernel is not None and rule.forward is op.kernel.forward
            counts["forward"] += seconds
            counts["flops"] += _flops(op, arrays, params, out if isinstance(out, tuple) else (out,))
            if not any(need) or rule.vjp is None:
                return rule, (out, saved)
            counts["saved"] += self._keep(saved)
            return Rule(rule.forward, _timed(rule.vjp, counts)), (out, saved)

        return watch

    def _keep(self, saved: Any) -> int:
        """Note the memory of the arrays in ``saved``; return how many bytes of it are new."""
        new = 0
        for owner in map(owner_of, arrays_in(saved)):  # frozen weights are no arrays
            key = id(owner)
            if owner.flags.owndata and key not in self._kept:
                self._kept[key] = weakref.ref(owner, self._gone(key, owner.nbytes))
                new += owner.nbytes
        self._alive += new
        self.peak = max(self.peak, self._alive)
        return new

    def _gone(self, key: int, size: int) -> Any:
        this = weakref.ref(self)  # an array that outlives the trace need not keep it

        def gone(_: Any) -> None:
            trace = this()
            if trace is not None:
                del trace._kept[key]
                trace._alive -= size

        return gone


_COUNTED = [name for name in Row.__dataclass_fields__ if name != "name"]


@contextmanager
def trace() -> Iterator[Trace]:
    """Count and time every call of an operator inside this block, in this thread or task only.

    Gives a Trace, whose str() is a table. A block inside another counts for both. The vjp of a call is timed whenever
    backward() runs it, also after the block. What a checkpoint computes a second time is a call like any other.

        >>> import numpy as np, minilora as ml
        >>> with ml.trace() as t:
        ...     ml.ops.mul(np.ones(3), 2.0)
        array([2., 2., 2.])
        >>> t.rows[0].name, t.rows[0].calls, t.rows[0].flops
        ('mul', 1, 3)
    """
    made = Trace()
    with watching(made._around):
        yield made


def _timed(vjp: Any, counts: dict[str, Any]) -> Any:
    def timed(*args: Any, **params: Any) -> Any:
        start = perf_counter()
        parts = vjp(*args, **params)
        counts["backward"] += perf_counter() - start
        counts["pulls"] += 1
        return parts

    return timed


def _flops(op: Op, arrays: Sequence[Any], params: Mapping[str, Any], outs: Sequence[Any]) -> int:
    if op.flops is None:
        return sum(map(np.size, outs))
    given = op.signature.gather([None if array is None else np.shape(array) for array in arrays])
    shapes = {name: shape for name, shape in given.items() if shape is not None}
    sizes = op.signature.check(op.name, arrays)
    if len(outs) == len(op.signature.outputs):  # axes that only an output has
        sizes = {**Signature(op.signature.outputs, ()).check(op.name, tuple(map(np.asarray, outs))), **sizes}
    return int(op.flops({**params, **shapes, **sizes}))


_HEAD = ("operator", "calls", "kernel", "forward ms", "backward ms", "time %", "saved MB", "MFLOP", "GFLOP/s")


def _table(rows: Sequence[Row], total: Row) -> str:
    """Rows of text, numbers flush right; the rate is that of the forward."""
    lines = [_HEAD]
    for row in (*rows, total):
        share = 100 * row.time / total.time if total.time else 0.0
        rate = f"{row.flops / row.forward / 1e9:.1f}" if row.forward and row.flops else ""
        numbers = (f"{row.forward * 1e3:.3f}", f"{row.backward * 1e3:.3f}", f"{share:.1f}")
        kept = (f"{row.saved / 1e6:.3f}", f"{row.flops / 1e6:.3f}", rate)
        lines.append((row.name, str(row.calls), str(row.kernel), *numbers, *kept))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _trace_until_exit() -> None:
    made, thread = Trace(), threading.current_thread().name
    block = watching(made._around)
    block.__enter__()
    # ``block`` goes along because it would leave, were it collected.
    atexit.register(lambda _: sys.stderr.write(f"MINILORA_TRACE: calls of operators in {thread}\n{made}\n"), block)


if registry.TRACE:
    _trace_until_exit()
