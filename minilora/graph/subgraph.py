"""A part of the tape: the calls recorded since a moment, and the edges that lead out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from minilora.autograd.backward import Edge, Leaf, Node
from minilora.autograd.writes import stamp


def moment() -> int:
    """A time of the clock that every recorded call is stamped with."""
    return stamp(())[0]


def nodes_since(time: int, roots: Iterable[Edge | None]) -> list[Node]:
    """The calls recorded after ``time`` below ``roots``; what they were computed from is not looked through."""
    found: dict[Node, None] = {}
    stack = [edge for edge in roots if edge is not None]
    while stack:
        node = stack.pop()[0]
        if isinstance(node, Node) and node.stamp[0] > time and node not in found:
            found[node] = None
            stack.extend(edge for edge in node.edges if edge is not None)
    return list(found)


def borders(nodes: Iterable[Node]) -> list[Edge]:
    """Every edge from one of ``nodes`` to something that is none of them: trained arrays and older calls."""
    inside = set(nodes)
    leading_out = (edge for node in inside for edge in node.edges if edge is not None and edge[0] not in inside)
    return list(dict.fromkeys(leading_out))


def cut(nodes: Iterable[Node], end: Callable[[Edge], Edge | None]) -> None:
    """Let every edge that leads out of ``nodes`` lead to ``end(edge)`` instead; None: no gradient is wanted there."""
    inside = set(nodes)
    for node in inside:
        node.edges = tuple(edge if edge is None or edge[0] in inside else end(edge) for edge in node.edges)


def fresh_leaf(edge: Edge) -> Leaf:
    """A slot for the gradient that would flow along ``edge``."""
    source, slot = edge
    return Leaf((source.outputs[slot],))
