"""The tape and the walk back over it.

A Node is one recorded call. It refers to the nodes of its inputs, never to Tensors, so an
intermediate array lives only while user code or some rule's ``saved`` holds it. backward() visits
every node after all its consumers, and lets go of what a node saved as soon as it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import MiniloraError, ShapeError

VJP = Callable[..., tuple[Any, ...]]  # (grad, saved, need) -> the gradient for each input, or None


class Leaf:
    """The slot in which the gradient of one trained array accumulates."""

    __slots__ = ("dtype", "grad", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.grad: NDArray[Any] | None = None

    def add(self, grad: NDArray[Any]) -> None:
        """Add ``grad``; the slot owns its array, which no rule or other leaf shares."""
        self.grad = np.array(grad, self.dtype) if self.grad is None else self.grad + grad


class Node:
    """One recorded call: how to pull gradients of its outputs back to its inputs."""

    __slots__ = ("edges", "many", "name", "outputs", "saved", "vjp")

    def __init__(
        self, name: str, vjp: VJP, edges: Sequence[Edge | None], saved: Any, outs: Sequence[NDArray[Any]], many: bool
    ) -> None:
        self.name = name
        self.vjp: VJP | None = vjp
        self.edges = tuple(edges)
        self.saved = saved
        self.outputs = tuple((o.shape, o.dtype) for o in outs)
        self.many = many  # the forward returned a tuple, perhaps of one, so the vjp takes one

    def pull(self, grads: Sequence[NDArray[Any] | None]) -> tuple[NDArray[Any] | None, ...]:
        """Return the gradient for each input, None where none is needed, and release what was saved."""
        assert self.vjp is not None
        full = tuple(
            np.zeros(shape, dtype) if g is None else g for g, (shape, dtype) in zip(grads, self.outputs, strict=True)
        )
        need = tuple(edge is not None for edge in self.edges)
        parts = self.vjp(full if self.many else full[0], self.saved, need)
        if len(parts) != len(need):
            raise MiniloraError(f"{self.name}: the vjp returned {len(parts)} gradients for {len(need)} operands")
        return parts

    def release(self) -> None:
        self.vjp, self.saved, self.edges = None, None, ()


Edge = tuple[Node | Leaf, int]  # a leaf, or one output of a node


def backward(root: Edge, gradient: NDArray[Any]) -> None:
    """Add d(sum(gradient · output)) / d(leaf) to every leaf that the output depends on. Consumes the tape."""
    start, index = root
    if isinstance(start, Leaf):
        start.add(gradient)
        return
    grads: dict[Node, list[NDArray[Any] | None]] = {start: [None] * len(start.outputs)}
    grads[start][index] = gradient
    order = _inputs_first(start)
    while order:
        node = order.pop()
        received = grads.pop(node, None)
        if received is not None:  # None: every consumer said that no gradient flows here
            for edge, part in zip(node.edges, node.pull(received), strict=True):
                if edge is None or part is None:
                    continue
                source, slot = edge
                if isinstance(source, Leaf):
                    source.add(part)
                    continue
                slots = grads.setdefault(source, [None] * len(source.outputs))
                seen = slots[slot]
                slots[slot] = part if seen is None else seen + part
        node.release()


def _inputs_first(root: Node) -> list[Node]:
    """Every node below ``root``, each after all nodes it was computed from."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:  # a list, not recursion: graphs are thousands of nodes deep
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            if node.vjp is None:
                raise MiniloraError(
                    f"backward: the tape was consumed already (at {node.name})\n"
                    "  run the forward pass again, or add the losses and call backward once"
                )
            seen.add(node)
            stack.append((node, True))
            stack.extend((e[0], False) for e in node.edges if e is not None and isinstance(e[0], Node))
    return order


def seed(shape: tuple[int, ...], dtype: np.dtype[Any], gradient: Any) -> NDArray[Any]:
    """The gradient that backward starts from: given, or one for a single element."""
    if gradient is None:
        if np.prod(shape, dtype=int) != 1:
            raise ShapeError(
                f"backward: the tensor has shape {shape}, expected one element\n"
                "  reduce it first, for example with sum(), or pass gradient="
            )
        return np.ones(shape, dtype)
    given = np.asarray(gradient, dtype)
    if given.shape != shape:
        raise ShapeError(f"backward: gradient has shape {given.shape}, but the tensor has {shape}")
    return given
