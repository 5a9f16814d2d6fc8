"""The graph as an SVG picture: boxes with text, and arrows that bend between the layers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol
from xml.sax.saxutils import escape

from minilora.graph.layout import Point, layered

CHARACTER, LINE = 6.63, 14.0  # width and height of a character, at 11 pixels in a font of 0.6 em
INSIDE = 8.0  # between a box and its text
MARGIN = 12.0
LEGEND = (("trained", "trained"), ("frozen", "frozen or constant"), ("call", "computed"))
STYLE = """
  text { font: 11px monospace; fill: #1c1c1c; text-anchor: middle; white-space: pre }
  rect { fill: #ffffff; stroke: #4a4a4a }
  path { fill: none; stroke: #4a4a4a; marker-end: url(#head) }
  .title { font-weight: bold }
  .result rect { stroke-width: 2.5 }
  .trained rect { fill: #d9f2dd; stroke: #2f7d3b; rx: 8px }
  .frozen rect { fill: #f4f4f4; stroke: #8a8a8a; stroke-dasharray: 4 3 }
  .frozen text { fill: #5f5f5f; font-weight: normal }
  path.frozen { stroke: #8a8a8a; stroke-dasharray: 4 3 }
"""


class _Box(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def lines(self) -> tuple[str, ...]: ...


class _Arrow(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def operand(self) -> str: ...
    @property
    def frozen(self) -> bool: ...


def svg(boxes: Sequence[_Box], arrows: Sequence[_Arrow]) -> str:
    """Write boxes and arrows; an arrow's operand shows where the pointer rests on it."""
    sizes = [_size(box.lines) for box in boxes]
    layout = layered(sizes, [(arrow.start, arrow.end) for arrow in arrows])
    legend, legend_width = _legend()
    top = MARGIN + LINE + 2 * INSIDE
    width, height = max(layout.size[0], legend_width) + 2 * MARGIN, layout.size[1] + top + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<polygon points="0,1 8,4 0,7" fill="#4a4a4a"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" style="stroke: none"/>',
        *legend,
        f'<g transform="translate({MARGIN + max(0.0, (legend_width - layout.size[0]) / 2):.1f} {top + MARGIN:.1f})">',
    ]
    for arrow, points in zip(arrows, layout.arrows, strict=True):
        kind = ' class="frozen"' if arrow.frozen else ""
        title = f"<title>{escape(arrow.operand)}</title>" if arrow.operand else ""
        parts.append(f'<path{kind} d="{_path(points)}">{title}</path>')
    for box, centre, size in zip(boxes, layout.boxes, sizes, strict=True):
        parts.append(_drawn(box.kind, box.lines, centre, size))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _size(lines: Sequence[str]) -> Point:
    widest = max((sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in lines), default=0)
    return widest * CHARACTER + 2 * INSIDE, len(lines) * LINE + INSIDE


def _drawn(kind: str, lines: Sequence[str], centre: Point, size: Point) -> str:
    left, top = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    rect = f'<rect x="{left:.1f}" y="{top:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"/>'
    texts = []
    for i, line in enumerate(lines):
        y, title = top + INSIDE / 2 + (i + 0.78) * LINE, ' class="title"' if i == 0 else ""
        texts.append(f'<text{title} x="{centre[0]:.1f}" y="{y:.1f}">{escape(line)}</text>')
    return f'<g class="{kind}">{rect}{"".join(texts)}</g>'


def _path(points: Sequence[Point]) -> str:
    """Straight lines down, and between layers a curve that starts and ends straight down."""
    (x, y), *rest = [(round(x, 1), round(y, 1)) for x, y in points]
    parts = [f"M{x:.1f},{y:.1f}"]
    for i, (to_x, to_y) in enumerate(rest):
        if (to_x, to_y) == (x, y):
            continue  # a line of no length has no direction for its head
        if i % 2 and to_x != x:
            middle = (y + to_y) / 2
            parts.append(f"C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}")
        else:
            parts.append(f"L{to_x:.1f},{to_y:.1f}")
        x, y = to_x, to_y
    return " ".join(parts)


def _legend() -> tuple[list[str], float]:
    parts, left = [], MARGIN
    for kind, text in LEGEND:
        size = _size([text])
        parts.append(_drawn(kind, [text], (left + size[0] / 2, MARGIN + size[1] / 2), size))
        left += size[0] + INSIDE
    return parts, left - INSIDE - MARGIN
