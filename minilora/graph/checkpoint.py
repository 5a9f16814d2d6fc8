"""checkpoint: keep the inputs of a part of the forward pass, and compute the rest again when backward needs it.

The part is one node on the tape. Its edges lead to all that the part was computed from, whether it
came as an input or through a closure, so that gradients, hooks and the order of the walk are the
same as without it. When a gradient arrives, the function runs again in the context of its first run
(the same adapters, traces and settings) and with the same random draws; the new graph is cut from
the old one at those edges, and walked.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, is_recording
from minilora.autograd.backward import Edge, Node, backward
from minilora.autograd.writes import assert_unwritten, stamp
from minilora.errors import MiniloraError
from minilora.graph.subgraph import borders, cut, fresh_leaf, moment, nodes_since
from minilora.graph.watching import Op, Rule, Watch, watching
from minilora.ops.dropout import note_draw, noting_draws, replaying

Array = NDArray[Any]


class _Part(Node):
    """A node whose rule is told which outputs got no gradient, so that nothing is walked for those."""

    __slots__ = ()

    def pull(self, grads: Sequence[Array | None]) -> tuple[Array | None, ...]:
        assert self.vjp is not None
        assert_unwritten(self.name, self.saved, self.stamp)
        return self.vjp(grads)


def checkpoint(f: Callable[..., Any], *inputs: Any) -> Any:
    """Return f(*inputs), keeping for backward only the inputs; what else it needs is computed again then.

    f       computes a Tensor or a tuple of them. It runs once more in backward and must do the same there: draw random
            numbers only by ops.dropout, or from Generators among ``inputs``, and write to no Tensor in place
    inputs  Tensors or anything else; Tensors that f closes over, such as parameters, get their gradients too

    The result has the same bits as without checkpoint, and so have the gradients, up to the order in which the parts of
    a sum are added where a Tensor is used inside and outside. MiniloraError in backward where an array that f reads was
    written in place in the meantime, through a Tensor or an optimiser; inside check_writes() where f gives other
    numbers than before, for whatever reason.
    """
    if not is_recording():
        return f(*inputs)
    context, start = contextvars.copy_context(), moment()
    with noting_draws() as states:
        for generator in inputs:
            if isinstance(generator, np.random.Generator):
                note_draw(generator)
        result = f(*inputs)  # recorded, though the graph is dropped: it says what the part depends on
    outs = _outputs(result)
    nodes = nodes_since(start, [out.edge for out in outs])
    inside = set(nodes)
    direct = [out.edge for out in outs if out.edge is not None and out.edge[0] not in inside]
    edges = tuple(dict.fromkeys([*borders(nodes), *direct]))
    first = _described(outs)

    def again(grads: Sequence[Array | None]) -> tuple[Array | None, ...]:
        with replaying(states):
            outs = context.copy().run(_run_again, f, inputs, start, first)
        return _gradients(outs, grads, edges, start)

    saved = tuple(value.data if isinstance(value, Tensor) else value for value in inputs)
    shapes, many = tuple((out.shape, out.dtype) for out in outs), isinstance(result, tuple)
    node = _Part("checkpoint", again, {}, edges, saved, (start, stamp(saved)[1]), shapes, many)
    given = result if many else (result,)
    results = tuple(
        Tensor(out.data, edge=(node, i)) if out.edge is not None else given[i] for i, out in enumerate(outs)
    )
    return results if many else results[0]


def _outputs(result: Any) -> tuple[Tensor, ...]:
    outs = result if isinstance(result, tuple) else (result,)
    for out in outs:
        if not isinstance(out, Tensor | np.ndarray):
            among = "a tuple with " if isinstance(result, tuple) else ""
            raise MiniloraError(
                f"checkpoint: f returned {among}{type(out).__name__}, expected a Tensor or a tuple of them"
            )
    return tuple(out if isinstance(out, Tensor) else Tensor(out) for out in outs)


def _described(outs: Sequence[Tensor]) -> Any:
    """What two runs must agree in: which outputs there are, and inside check_writes() their checksums."""
    return [(out.shape, out.dtype, out.requires_grad) for out in outs], stamp([out.data for out in outs])[1]


def _run_again(f: Callable[..., Any], inputs: Sequence[Any], start: int, first: Any) -> tuple[Tensor, ...]:
    """Run f, refusing to read what was written in place since ``start``."""

    def unwritten(run: Watch) -> Watch:
        def watch(
            op: Op, rule: Rule, arrays: Sequence[Any], params: Mapping[str, Any], need: tuple[bool, ...]
        ) -> tuple[Rule, tuple[Any, Any]]:
            assert_unwritten("checkpoint", arrays, (start, None))
            return run(op, rule, arrays, params, need)

        return watch

    with watching(unwritten):
        outs = _outputs(f(*inputs))
    if _described(outs) != first:
        raise MiniloraError(
            "checkpoint: f gave something else when it was run again in backward\n"
            "  it must draw random numbers only by ops.dropout or from Generators among its inputs, and read nothing "
            "that changes"
        )
    return outs


def _gradients(
    outs: Sequence[Tensor], grads: Sequence[Array | None], edges: Sequence[Edge], start: int
) -> tuple[Array | None, ...]:
    """Pull ``grads`` of the outputs of the second run back to ``edges``, where the first run's graph ended."""
    roots, scalar = tuple(out.edge for out in outs), ((), np.dtype(np.float64))
    # A walk has one start: a node above all outputs.
    above = Node("checkpoint", lambda *_: tuple(grads), {}, roots, None, stamp(()), (scalar,), False)
    nodes = nodes_since(start, [(above, 0)])
    ends = {edge: fresh_leaf(edge) for edge in edges}
    if any(edge not in ends for edge in borders(nodes)):
        raise MiniloraError(
            "checkpoint: f used another trained tensor when it was run again in backward\n"
            "  it must compute the same from the same tensors each time"
        )
    cut(nodes, lambda edge: (ends[edge], 0))
    backward((above, 0), np.ones(()))
    return tuple(leaf.grad for leaf in ends.values())
