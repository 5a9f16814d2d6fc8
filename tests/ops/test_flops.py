"""The operations that a trace counts, against counts written out for one small call of each operator."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import REGISTRY
from minilora.graph import trace


def a(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ids(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


ROWS = a(3, 5, 7)  # 15 rows of 7
# operator: (arguments, settings, operations)
COUNTS = {
    "matmul": ((a(2, 1, 3, 5), a(4, 5, 7)), {}, 2 * 2 * 4 * 3 * 5 * 7),
    "einsum": (("bij,jk->ik", a(2, 3, 5), a(5, 7)), {}, 2 * 2 * 3 * 5 * 7),
    "linear": ((ROWS, a(7, 4)), {}, 2 * 15 * 7 * 4),
    "lora_matmul": ((ROWS, a(7, 4), a(7, 2), a(2, 4)), {}, 2 * 15 * 7 * 4 + 2 * 15 * 7 * 2 + 2 * 15 * 2 * 4),
    "mixed_lora_matmul": ((ROWS, a(7, 4), ids(3, 5), None, (a(7, 2), a(2, 4))), {"scales": (1.0,)}, 2 * 15 * 7 * 4),
    "conv1d": ((a(2, 4, 9), a(6, 2, 3)), {"groups": 2}, 2 * 2 * 6 * 7 * 2 * 3),
    "conv2d": ((a(2, 4, 9, 8), a(6, 2, 3, 5)), {"groups": 2}, 2 * 2 * 6 * 7 * 4 * 2 * 3 * 5),
    "attention": ((a(2, 3, 4, 5), a(2, 7, 2, 5), a(2, 7, 2, 5)), {}, 2 * (2 * 2 * 4 * 3 * 7 * 5)),  # q·k, then p·v
    "rotary": ((a(2, 3, 4, 6), a(2, 3, 3), a(2, 3, 3)), {}, 2 * 3 * 4 * 3 * 6),  # 4 products, 2 sums a pair
    "softmax": ((ROWS,), {}, 4 * 15 * 7),  # less the largest, exponential, sum, quotient
    "log_softmax": ((ROWS,), {}, 4 * 15 * 7),
    "logsumexp": ((ROWS,), {}, 3 * 15 * 7),
    "cross_entropy": ((ROWS, ids(3, 5)), {}, 4 * 15 * 7),
    "linear_cross_entropy": ((ROWS, a(7, 4), ids(3, 5)), {}, 2 * 15 * 7 * 4 + 4 * 15 * 4),
    "mse_loss": ((ROWS, ROWS), {}, 3 * 15 * 7),  # difference, square, sum
    "huber_loss": ((ROWS, ROWS), {}, 5 * 15 * 7),
    "binary_cross_entropy_with_logits": ((ROWS, ROWS), {}, 10 * 15 * 7),
    "kl_div": ((ROWS, ROWS), {}, 4 * 15 * 7),
    "cosine_similarity": ((ROWS, ROWS), {}, 8 * 15 * 7),
    "info_nce": ((a(3, 5), a(3, 5)), {}, 2 * 3 * 3 * 5 + 4 * 3 * 3 + 8 * 3 * 5),
    "rms_norm": ((ROWS, a(7)), {}, 4 * 15 * 7),
    "layer_norm": ((ROWS, a(7), a(7)), {}, 8 * 15 * 7),
    "group_norm": ((a(3, 4, 7),), {"num_groups": 2}, 8 * 3 * 4 * 7),
    "sum": ((ROWS,), {}, 15 * 7),
    "mean": ((ROWS,), {}, 15 * 7),
    "max": ((ROWS,), {}, 15 * 7),
    "min": ((ROWS,), {}, 15 * 7),
    "prod": ((ROWS,), {}, 15 * 7),
    "var": ((ROWS,), {}, 4 * 15 * 7),
    "std": ((ROWS,), {}, 4 * 15 * 7),
    "norm": ((ROWS,), {}, 2 * 15 * 7),
    "avg_pool1d": ((a(2, 3, 8), 2), {}, 2 * 3 * 8),
    "max_pool1d": ((a(2, 3, 8), 2), {}, 2 * 3 * 8),
    "avg_pool2d": ((a(2, 3, 8, 6), 2), {}, 2 * 3 * 8 * 6),
    "max_pool2d": ((a(2, 3, 8, 6), 2), {}, 2 * 3 * 8 * 6),
    "scatter_add": ((a(9), ids(4), a(4)), {}, 4),
}
# These move numbers and compute none.
MOVES = {
    "embedding", "reshape", "squeeze", "expand_dims", "transpose", "swapaxes", "flip", "broadcast_to", "pad", "roll",
    "repeat", "index", "take", "gather", "concat", "stack", "unstack", "split", "upsample_nearest",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_trace_counts_what_the_formula_takes(name):
    arguments, settings, count = COUNTS[name]
    with trace() as t:
        getattr(ops, name)(*arguments, **settings)
    assert {row.name: row.flops for row in t.rows} == {name: count}


@pytest.mark.parametrize("name", sorted(MOVES))
def test_an_operator_that_only_moves_counts_none(name):
    assert REGISTRY[name].flops({}) == 0


def test_every_operator_with_a_count_of_its_own_is_here():
    assert {name for name, op in REGISTRY.items() if op.flops is not None} == set(COUNTS) | MOVES


@pytest.mark.parametrize(
    ("x", "y", "count"),
    [((5,), (5,), 2 * 5), ((3, 5), (5,), 2 * 3 * 5), ((5,), (2, 5, 7), 2 * 2 * 5 * 7), ((0, 5), (5, 7), 0)],
)
def test_a_product_with_one_row_or_column_counts_that(x, y, count):
    with trace() as t:
        ops.matmul(a(*x), a(*y))
    assert t.rows[0].flops == count
