"""The operations that records count, against counts written out for one small call each."""

from __future__ import annotations

import pytest

from minilora import ops  # noqa: F401  (fills the registry)
from minilora.autograd import REGISTRY

BATCH = {"*": (3, 5)}  # 15 rows
COUNTS = {
    "linear": ({**BATCH, "K": 7, "N": 4}, 2 * 15 * 7 * 4),
    "lora_matmul": ({**BATCH, "K": 7, "N": 4, "R": 2}, 2 * 15 * 7 * 4 + 2 * 15 * 7 * 2 + 2 * 15 * 2 * 4),
    "embedding": ({**BATCH, "V": 9, "D": 4}, 0),
    "softmax": ({**BATCH, "D": 6}, 4 * 15 * 6),  # less the largest, exponential, sum, quotient
    "log_softmax": ({**BATCH, "D": 6}, 4 * 15 * 6),
    "cross_entropy": ({**BATCH, "V": 6}, 4 * 15 * 6),
    "mse_loss": (BATCH, 3 * 15),  # difference, square, sum
    "huber_loss": (BATCH, 5 * 15),
    "binary_cross_entropy_with_logits": ({**BATCH, "C": 2}, 10 * 15 * 2),
    "kl_div": (BATCH, 4 * 15),
    "logsumexp": ({**BATCH, "x": (3, 5)}, 3 * 15),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_record_counts_what_its_formula_takes(name):
    sizes, count = COUNTS[name]
    assert REGISTRY[name].flops(sizes) == count
