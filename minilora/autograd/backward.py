"""The tape and the walk back over it.

A Node is one recorded call. It refers to the nodes of its inputs, never to Tensors, so an
intermediate array lives only while user code or some rule's ``saved`` holds it. backward() visits
every node after all its consumers, and lets go of what a node saved as soon as it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd.writes import Stamp, assert_unwritten
from minilora.errors import MiniloraError, ShapeError

VJP = Callable[..., tuple[Any, ...]]  # (grad, saved, need, **params) -> the gradient for each input, or None
Hook = Callable[[NDArray[Any]], Any]  # gradient -> None, or the gradient to go on with
Outputs = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]  # the shape and dtype of each


@dataclass(slots=True, eq=False)
class Leaf:
    """The slot in which the gradient of one trained array accumulates."""

    outputs: Outputs
    grad: NDArray[Any] | None = None
    hooks: list[tuple[int, Hook]] = field(default_factory=list)
    edges: tuple[Edge | None, ...] = ()  # the walk ends here

    def add(self, grad: NDArray[Any]) -> None:
        """Add ``grad``; the slot owns its array, which no rule or other leaf shares."""
        self.grad = np.array(grad, self.outputs[0][1]) if self.grad is None else self.grad + grad


@dataclass(slots=True, eq=False)
class Node:
    """One recorded call: how to pull gradients of its outputs back to its inputs."""

    name: str
    vjp: VJP | None
    params: Mapping[str, Any]
    edges: tuple[Edge | None, ...]
    saved: Any
    stamp: Stamp
    outputs: Outputs
    many: bool  # the forward returned a tuple, perhaps of one, so the vjp takes one
    hooks: list[tuple[int, Hook]] = field(default_factory=list)

    def pull(self, grads: Sequence[NDArray[Any] | None]) -> tuple[NDArray[Any] | None, ...]:
        """Return the gradient for each input, None where none is needed."""
        assert self.vjp is not None
        assert_unwritten(self.name, (self.saved, self.params), self.stamp)
        full = tuple(
            np.zeros(shape, dtype) if g is None else g for g, (shape, dtype) in zip(grads, self.outputs, strict=True)
        )
        need = tuple(edge is not None for edge in self.edges)
        parts = self.vjp(full if self.many else full[0], self.saved, need, **self.params)
        if len(parts) != len(need):
            raise MiniloraError(f"{self.name}: the vjp returned {len(parts)} gradients for {len(need)} operands")
        return parts

    def release(self) -> None:
        self.vjp, self.saved, self.params, self.edges = None, None, {}, ()


Edge = tuple[Node | Leaf, int]  # a leaf, or one output of a node


def backward(root: Edge, gradient: NDArray[Any]) -> None:
    """Add d(sum(gradient · output)) / d(leaf) to every leaf that the output depends on. Consumes the tape."""
    start, index = root
    grads: dict[Node | Leaf, list[NDArray[Any] | None]] = {start: [None] * len(start.outputs)}
    grads[start][index] = gradient
    order = _inputs_first(start)
    while order:
        node = order.pop()
        received = grads.pop(node, None)
        if received is not None:  # None: every consumer said that no gradient flows here
            _apply_hooks(node, received)
        if isinstance(node, Leaf):
            if received is not None and received[0] is not None:
                node.add(received[0])
            continue
        if received is not None:
            for edge, part in zip(node.edges, node.pull(received), strict=True):
                if edge is None or part is None:
                    continue
                source, slot = edge
                slots = grads.setdefault(source, [None] * len(source.outputs))
                seen = slots[slot]
                slots[slot] = part if seen is None else seen + part
        node.release()


def _inputs_first(root: Node | Leaf) -> list[Node | Leaf]:
    """Every node and leaf below ``root``, each after all nodes it was computed from."""
    order: list[Node | Leaf] = []
    seen: set[Node | Leaf] = set()
    stack: list[tuple[Node | Leaf, bool]] = [(root, False)]
    while stack:  # a list, not recursion: graphs are thousands of nodes deep
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            if isinstance(node, Node) and node.vjp is None:
                raise MiniloraError(
                    f"backward: the tape was consumed already (at {node.name})\n"
                    "  run the forward pass again, or add the losses and call backward once"
                )
            seen.add(node)
            stack.append((node, True))
            stack.extend((edge[0], False) for edge in node.edges if edge is not None)
    return order


def _apply_hooks(node: Node | Leaf, grads: list[NDArray[Any] | None]) -> None:
    """Show each hook the gradient that has arrived at its output, and go on with what it returns."""
    for slot, hook in tuple(node.hooks):
        grad, (shape, dtype) = grads[slot], node.outputs[slot]
        if grad is None:
            continue
        shown = grad.view()
        shown.flags.writeable = False  # a rule may hand the same array to several inputs
        changed = hook(shown)
        if changed is not None:
            grads[slot] = np.asarray(changed, dtype)
            if np.shape(changed) != shape:
                raise ShapeError(f"hook: it returned a gradient of shape {np.shape(changed)}, expected {shape}")


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
