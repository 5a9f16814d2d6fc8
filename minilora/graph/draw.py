"""draw: the graph that backward() would walk, as text for Graphviz or as an SVG picture.

The tape knows the name of every call, its parameters, and the shapes of its outputs; of operands that
require no gradient it keeps no trace. The operator's record names those, and where its signature
leaves only one shape for them, that is shown too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora.autograd import REGISTRY, Op, Tensor
from minilora.autograd.backward import Edge, Leaf, Node
from minilora.errors import ConfigError, MiniloraError, ShapeError
from minilora.graph.svg import svg
from minilora.signature import Operand, Signature

LONGEST = 40  # characters of a line in a box


@dataclass(frozen=True)
class Box:
    """What is drawn for a call, a trained array or the frozen operands of a call."""

    kind: str  # "call" | "trained" | "frozen" | "result"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Arrow:
    """From box to box, by number; ``operand`` is what the first one is to the second."""

    start: int
    end: int
    operand: str
    frozen: bool = False


def draw(loss: Tensor, format: str = "dot", *, names: Mapping[str, Tensor] | None = None) -> str:
    """Return the graph of what ``loss`` was computed from, as text.

    loss    a Tensor whose backward() was not called yet
    format  "dot" for Graphviz, or "svg" for a picture that browsers show, at its best with up to about a hundred calls
    names   what to call trained arrays, such as dict(model.named_parameters()); others go by their operand's name

    Trained arrays are green, and what requires no gradient is grey and dashed: frozen weights, constants and numbers,
    under their operand's names; one with a question mark may be absent.
    MiniloraError where nothing requires a gradient or the tape was consumed; ConfigError for any other format.
    """
    if format not in ("dot", "svg"):
        raise ConfigError(
            f"draw: format is {format!r}, expected 'dot' or 'svg'\n  Graphviz makes others: dot -Tpdf graph.dot"
        )
    if loss.edge is None:
        raise MiniloraError(
            "draw: nothing here requires a gradient, so there is no graph\n"
            "  make the trained arrays with tensor(data, requires_grad=True), outside no_grad()"
        )
    called = {t.edge[0]: name for name, t in (names or {}).items() if t.edge is not None}
    boxes, arrows = _collected(loss.edge, called)
    return svg(boxes, arrows) if format == "svg" else _dot(boxes, arrows)


def _collected(root: Edge, names: Mapping[Node | Leaf, str]) -> tuple[list[Box], list[Arrow]]:
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    number: dict[Node | Leaf, int] = {}
    for node in _inputs_first(root[0]):
        if isinstance(node, Leaf):
            continue  # drawn with its first call, which may have to name it
        operands, coming = _operands(node), []
        for (source, slot), operand in ((e, o) for e, o in zip(node.edges, operands, strict=True) if e is not None):
            if source not in number:
                number[source] = len(boxes)
                boxes.append(Box("trained", _lines([names.get(source, operand.name), *_shapes(source)])))
            many = len(source.outputs) > 1
            coming.append((number[source], f"{operand.name} = output {slot}" if many else operand.name, False))
        frozen = _frozen(node, operands)
        if frozen:
            coming.append((len(boxes), "", True))
            boxes.append(Box("frozen", _lines(frozen)))
        number[node] = len(boxes)
        arrows.extend(Arrow(start, number[node], operand, is_frozen) for start, operand, is_frozen in coming)
        kind = "result" if node is root[0] else "call"
        title = f"{node.name} → {names[node]}" if node in names else node.name
        boxes.append(Box(kind, _lines([title, *_settings(node), *_shapes(node)])))
    if isinstance(root[0], Leaf):
        boxes.append(Box("trained", _lines([names.get(root[0], "trained"), *_shapes(root[0])])))
    return boxes, arrows


def _inputs_first(root: Node | Leaf) -> list[Node | Leaf]:
    """Every node and leaf below ``root``, each after those it was computed from."""
    order: list[Node | Leaf] = []
    seen: set[Node | Leaf] = set()
    stack: list[tuple[Node | Leaf, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            if isinstance(node, Node) and node.vjp is None:
                raise MiniloraError(f"draw: the tape was consumed already (at {node.name})\n  draw before backward()")
            seen.add(node)
            stack.append((node, True))
            stack.extend((edge[0], False) for edge in reversed(node.edges) if edge is not None)
    return order


def _operands(node: Node) -> list[Operand]:
    """The operand that each edge of ``node`` stands for, by its record or, where there is none, by its place."""
    record = REGISTRY.get(node.name)
    if record is None:
        return [Operand(f"input {i}" if len(node.edges) > 1 else "input", ("?",)) for i in range(len(node.edges))]
    return list(record.signature.expand(len(node.edges)))


def _frozen(node: Node, operands: Iterable[Operand]) -> list[str]:
    """A line for each operand that requires no gradient, and the shape that its signature demands."""
    pairs = list(zip(node.edges, operands, strict=True))
    sizes = _sizes(node, [(o, edge[0].outputs[edge[1]]) for edge, o in pairs if edge is not None])
    lines = []
    for operand in (o for edge, o in pairs if edge is None):
        name = f"{operand.name}?" if operand.optional else operand.name
        known = operand.axes not in (("?",), ("...",)) and all(a.isdigit() or a in sizes for a in operand.axes)
        shape: list[int] = []
        for axis in operand.axes if known else ():
            shape.extend(sizes[axis] if axis == "*" else [int(axis) if axis.isdigit() else sizes[axis]])
        lines.append(f"{name} {_shape(shape)}" if known else name)
    return lines


def _sizes(node: Node, inputs: list[tuple[Operand, tuple[tuple[int, ...], np.dtype[Any]]]]) -> dict[str, Any]:
    """The size of every axis that inputs with an edge and outputs have between them."""
    record = REGISTRY.get(node.name)
    if record is None or len(record.signature.outputs) != len(node.outputs):
        return {}
    known = [*inputs, *zip(record.signature.outputs, node.outputs, strict=True)]
    arrays = [np.broadcast_to(np.zeros((), dtype), shape) for _, (shape, dtype) in known]
    once = tuple(dataclasses.replace(operand, variadic=False) for operand, _ in known)
    try:
        return Signature(once, ()).check(node.name, arrays)
    except ShapeError:  # an operator whose output is not what its signature says
        return {}


def _settings(node: Node) -> list[str]:
    """The parameters that differ from their defaults, on one line."""
    record = REGISTRY.get(node.name)
    given = [(name, value) for name, value in node.params.items() if not _is_default(record, name, value)]
    return [", ".join(f"{name}={_short(value)}" for name, value in given)] if given else []


def _is_default(record: Op | None, name: str, value: Any) -> bool:
    argument = record.__signature__.parameters.get(name) if record is not None else None
    return argument is not None and type(value) is type(argument.default) and bool(value == argument.default)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {_shape(value.shape)}"
    if isinstance(value, tuple | list):
        text = ", ".join(map(_short, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    return repr(value)


def _shapes(node: Node | Leaf) -> list[str]:
    return [f"{dtype} {_shape(shape)}" for shape, dtype in dict.fromkeys(node.outputs)]


def _shape(shape: Iterable[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    """Printable lines of bounded length; of a long one the end says more, as in layers.0.q_proj.A."""
    printable = ("".join(c if c.isprintable() else "�" for c in text) for text in texts)
    first, last = LONGEST // 3, LONGEST - LONGEST // 3 - 1
    return tuple(text if len(text) <= LONGEST else f"{text[:first]}…{text[-last:]}" for text in printable)


_STYLES = {
    "call": "",
    "result": ", penwidth=2",
    "trained": ', style="rounded,filled", fillcolor="#d9f2dd", color="#2f7d3b"',
    "frozen": ', style="dashed", color="#8a8a8a", fontcolor="#5f5f5f"',
}


def _dot(boxes: Iterable[Box], arrows: Iterable[Arrow]) -> str:
    lines = ["digraph minilora {", '  node [shape=box, fontname="monospace", fontsize=11];']
    lines.append('  edge [fontname="monospace", fontsize=9];')
    for i, box in enumerate(boxes):
        label = "\\n".join(_quoted(line) for line in box.lines)
        lines.append(f'  n{i} [label="{label}"{_STYLES[box.kind]}];')
    for arrow in arrows:
        style = 'style="dashed", color="#8a8a8a"' if arrow.frozen else f'label="{_quoted(arrow.operand)}"'
        lines.append(f"  n{arrow.start} -> n{arrow.end} [{style}];")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
