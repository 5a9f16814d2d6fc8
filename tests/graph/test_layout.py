"""Layouts, measured: no two boxes overlap, no arrow crosses a box, every arrow points down; small ones by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.graph.layout import ACROSS, DOWN, Layout, _crossings, _settle, layered

graphs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(st.floats(20, 300), st.floats(15, 70)), min_size=n, max_size=n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=n + n // 2).map(
            lambda pairs: [(a, b) for a, b in pairs if a < b]
        ),
    )
)


def edges(centre, size):
    """Left, right, top and bottom of a box."""
    return centre[0] - size[0] / 2, centre[0] + size[0] / 2, centre[1] - size[1] / 2, centre[1] + size[1] / 2


def on_arrow(points):
    """Points along an arrow: of the lines down, and of each bend a cubic curve as svg draws it."""
    for i, ((x, y), (to_x, to_y)) in enumerate(itertools.pairwise(points)):
        for k in range(11):
            t = k / 10
            side = 3 * t**2 - 2 * t**3 if i % 2 else t  # controls at the same x as the ends
            yield x + side * (to_x - x), y + (1.5 * (t - t**2) + t**3 if i % 2 else t) * (to_y - y)


@given(graphs)
def test_boxes_are_apart_inside_the_picture_and_crossed_by_no_arrow(graph):
    sizes, arrows = graph
    layout = layered(sizes, arrows)
    boxes = [edges(centre, size) for centre, size in zip(layout.boxes, sizes, strict=True)]
    small = 1e-6 * (1 + layout.size[0])
    for left, right, top, bottom in boxes:
        assert -small <= left <= right <= layout.size[0] + small
        assert -small <= top <= bottom <= layout.size[1] + small
    for one, other in itertools.combinations(boxes, 2):
        beside = one[1] + ACROSS <= other[0] + small or other[1] + ACROSS <= one[0] + small
        assert beside or one[3] + DOWN <= other[2] + small or other[3] + DOWN <= one[2] + small
    for (start, end), points in zip(arrows, layout.arrows, strict=True):
        assert len(points) % 2 == 0
        assert points[0][1] == pytest.approx(boxes[start][3])
        assert points[-1][1] == pytest.approx(boxes[end][2])
        assert boxes[start][0] <= points[0][0] <= boxes[start][1]
        assert boxes[end][0] <= points[-1][0] <= boxes[end][1]
        heights = [y for _, y in points]
        assert all(y <= to_y + small for y, to_y in itertools.pairwise(heights))
        for (x, _), (to_x, _) in itertools.islice(itertools.pairwise(points), 0, None, 2):
            assert x == to_x
        for x, y in on_arrow(points):
            inside = [
                i for i, (left, right, top, bottom) in enumerate(boxes)
                if left + small < x < right - small and top + small < y < bottom - small
            ]  # fmt: skip
            assert not inside


def test_a_chain_is_one_column_of_boxes_at_equal_distances():
    layout = layered([(50, 20)] * 4, [(0, 1), (1, 2), (2, 3)])
    assert [x for x, _ in layout.boxes] == [25] * 4
    assert [y for _, y in layout.boxes] == [10 + i * (20 + DOWN) for i in range(4)]
    assert layout.size == (50, 4 * 20 + 3 * DOWN)


def test_a_box_to_which_none_points_stands_just_above_its_first_consumer():
    layout = layered([(50, 20)] * 5, [(0, 1), (1, 2), (2, 4), (3, 4)])
    heights = [y for _, y in layout.boxes]
    assert heights[3] == heights[2]


def test_arrows_that_would_cross_are_uncrossed_by_another_order():
    layout = layered([(40, 20)] * 4, [(0, 3), (1, 2)])
    (x0, _), (x1, _), (x2, _), (x3, _) = layout.boxes
    assert (x0 < x1) == (x3 < x2)


def test_crossings_are_counted_as_pairs_of_lines():
    below = [[3, 4], [3], [4], [], []]
    assert _crossings([[0, 1, 2], [3, 4]], below) == 1  # 0–4 with 1–3
    assert _crossings([[2, 1, 0], [3, 4]], below) == 2  # 2–4 with 1–3 and 0–3


def test_a_parent_stands_over_the_middle_of_its_children():
    layout = layered([(40, 20)] * 4, [(0, 1), (0, 2), (0, 3)])
    xs = [x for x, _ in layout.boxes]
    assert xs[0] == pytest.approx(sorted(xs[1:])[1])


def test_slots_settle_where_the_weighted_squares_of_their_moves_are_least():
    x = [0.0] * 3
    _settle([0, 1, 2], [0.0, 0.0, 500.0], [1.0, 3.0, 1.0], [10.0, 10.0, 10.0], x)
    apart = 10 + ACROSS
    assert x[1] - x[0] == pytest.approx(apart)  # minimum of a² + 3 (a + apart)²
    assert x[0] == pytest.approx(-3 * apart / 4)
    assert x[2] == 500


def test_nothing_at_all_is_an_empty_picture():
    assert layered([], []) == Layout((), (), (0.0, 0.0))
