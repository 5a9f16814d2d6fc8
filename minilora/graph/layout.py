"""A drawing of a directed graph in layers, after Sugiyama et al. 1981: every arrow points down.

Boxes get layers by their longest path from above. An arrow over several layers passes each in a slot
of its own, a box without width to speak of. Slots are ordered within their layer by the means of
their neighbours, for fewer crossings, and then moved as close to these means as their widths allow.
Arrows are vertical within a layer and bend only between two, so none crosses a box.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

ACROSS, DOWN = 18.0, 40.0  # free space between the boxes of a layer, and between layers
LANE = 6.0  # width of the slot of an arrow
SWEEPS = 12
STIFF = 8.0  # how much more an arrow's slot wants to be straight than a box

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Where everything is; y points down.

    boxes   the centre of each
    arrows  the points of each, from the lower edge of its first box to the upper edge of its second; pairs of them,
            the 2nd and 3rd, 4th and 5th, …, are joined by a bend and the others by a vertical line
    size    width and height of the whole
    """

    boxes: tuple[Point, ...]
    arrows: tuple[tuple[Point, ...], ...]
    size: Point


def layered(sizes: Sequence[Point], arrows: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of ``sizes`` (width, height), joined by ``arrows`` from a box to a later one."""
    layer = _layers(len(sizes), arrows)
    widths, paths = [width for width, _ in sizes], []
    for start, end in arrows:
        lanes = range(len(widths), len(widths) + layer[end] - layer[start] - 1)
        widths.extend(LANE for _ in lanes)
        layer.extend(range(layer[start] + 1, layer[end]))
        paths.append([start, *lanes, end])
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for path in paths:
        for one, other in itertools.pairwise(path):
            below[one].append(other)
            above[other].append(one)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for slot in range(len(widths)):
        rows[layer[slot]].append(slot)
    rows = _ordered(rows, above, below)
    x = _spread(rows, above, below, widths, len(sizes))
    return _placed(rows, x, sizes, paths)


def _layers(count: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box: below all that point to it; a box to which none points, just above its first."""
    layer, below = [0] * count, [count] * count
    for start, end in sorted(arrows, key=lambda arrow: arrow[1]):
        layer[end] = max(layer[end], layer[start] + 1)
    pointed_at = {end for _, end in arrows}
    for start, end in arrows:
        below[start] = min(below[start], layer[end])
    return [at if box in pointed_at or below[box] == count else below[box] - 1 for box, at in enumerate(layer)]


def _ordered(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """Sweep down and up, sorting every row by the mean place of its neighbours; keep what crosses least."""
    best, least = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        if not least:
            break
        downwards = sweep % 2 == 0
        near = above if downwards else below
        for i in range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1):
            place = {slot: at for at, slot in enumerate(rows[i - 1 if downwards else i + 1])}
            at_now = {slot: float(at) for at, slot in enumerate(rows[i])}
            mean = {slot: _mean([place[n] for n in near[slot]], at_now[slot]) for slot in rows[i]}
            rows[i].sort(key=mean.__getitem__)
        crossings = _crossings(rows, below)
        if crossings < least:
            best, least = [list(row) for row in rows], crossings
    return best


def _crossings(rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How many pairs of lines between neighbouring rows cross."""
    total = 0
    for row, under in itertools.pairwise(rows):
        place = {slot: at for at, slot in enumerate(under)}
        ends = [place[n] for slot in row for n in sorted(below[slot], key=place.__getitem__)]
        seen: list[int] = []
        for end in ends:
            total += len(seen) - bisect.bisect_right(seen, end)
            bisect.insort(seen, end)
    return total


def _spread(
    rows: Sequence[Sequence[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]],
    widths: Sequence[float], boxes: int,
) -> list[float]:  # fmt: skip
    """The x of every slot: near the mean of its neighbours, in its row's order and clear of the next."""
    x = [0.0] * len(widths)
    for row in rows:
        _settle(row, [0.0] * len(row), [1.0] * len(row), widths, x)
    for sweep in range(2 * SWEEPS):
        downwards = sweep % 2 == 0
        near = above if downwards else below
        for row in rows if downwards else rows[::-1]:
            wanted = [_mean([x[n] for n in near[slot]], x[slot]) for slot in row]
            weights = [(STIFF if slot >= boxes else 1.0) * len(near[slot]) or 0.1 for slot in row]
            _settle(row, wanted, weights, widths, x)
    return x


def _settle(
    row: Sequence[int], wanted: Sequence[float], weights: Sequence[float], widths: Sequence[float], x: list[float]
) -> None:
    """Set x to minimise Σ weight · (x - wanted)², keeping the order and the space between: isotonic regression."""
    offsets = [0.0]
    blocks: list[tuple[float, float, int]] = []  # mean, weight and count of slots that touch
    for one, other in itertools.pairwise(row):
        offsets.append(offsets[-1] + (widths[one] + widths[other]) / 2 + ACROSS)
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, total, count = want - offset, weight, 1
        while blocks and blocks[-1][0] >= mean:
            other_mean, other_total, other_count = blocks.pop()
            mean = (mean * total + other_mean * other_total) / (total + other_total)
            total, count = total + other_total, count + other_count
        blocks.append((mean, total, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for slot, mean, offset in zip(row, means, offsets, strict=True):
        x[slot] = mean + offset


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _placed(
    rows: Sequence[Sequence[int]], x: Sequence[float], sizes: Sequence[Point], paths: Sequence[Sequence[int]]
) -> Layout:
    half = [width / 2 for width, _ in sizes] + [LANE / 2] * (len(x) - len(sizes))
    left = min((at - h for at, h in zip(x, half, strict=True)), default=0.0)
    right = max((at + h for at, h in zip(x, half, strict=True)), default=0.0)
    spans, at = [], 0.0
    for row in rows:
        height = max((sizes[slot][1] for slot in row if slot < len(sizes)), default=0.0)
        spans.append((at, at + height))
        at += height + DOWN
    span = {slot: spans[i] for i, row in enumerate(rows) for slot in row}
    centres = tuple((x[box] - left, sum(span[box]) / 2) for box in range(len(sizes)))
    leave, arrive = _ports(paths, x, sizes, first=True), _ports(paths, x, sizes, first=False)
    arrows = []
    for i, path in enumerate(paths):
        start, *lanes, end = path
        points = [(leave[i] - left, centres[start][1] + sizes[start][1] / 2), (leave[i] - left, span[start][1])]
        for lane in lanes:
            points += [(x[lane] - left, y) for y in span[lane]]
        points += [(arrive[i] - left, span[end][0]), (arrive[i] - left, centres[end][1] - sizes[end][1] / 2)]
        arrows.append(tuple(points))
    return Layout(centres, tuple(arrows), (right - left, max(at - DOWN, 0.0)))


def _ports(paths: Sequence[Sequence[int]], x: Sequence[float], sizes: Sequence[Point], first: bool) -> list[float]:
    """Where on its first or last box each arrow is fixed: side by side, in the order of where they go."""
    fixed: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
        fixed.setdefault(path[0 if first else -1], []).append(i)
    ports = [0.0] * len(paths)
    for box, those in fixed.items():
        those.sort(key=lambda i: x[paths[i][1 if first else -2]])
        step = min(LANE * 3, sizes[box][0] / (len(those) + 1))
        for k, i in enumerate(those):
            ports[i] = x[box] + (k - (len(those) - 1) / 2) * step
    return ports
