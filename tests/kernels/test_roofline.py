"""The two limits that a benchmark measures against: multiply-adds in registers, and reading a buffer."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import kernels
from minilora.errors import ShapeError

pytestmark = pytest.mark.native


@pytest.mark.parametrize("size", [0, 1, 16384, 50_001])
def test_reading_adds_up_every_chunk(size):
    x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    sums = kernels.compiled().read(x, 2)
    chunks = [x[i : i + 16384] for i in range(0, size, 16384)]
    assert len(sums) == len(chunks)
    for found, chunk in zip(sums, chunks, strict=True):
        # At most as many roundings as additions, each of at most 2^-24 of the sum of absolute values.
        assert abs(found - chunk.sum(dtype=np.float64)) <= chunk.size * 2.0**-24 * np.abs(chunk).sum(dtype=np.float64)


def test_a_read_has_the_same_bits_for_any_number_of_threads():
    x = np.random.default_rng(0).standard_normal(2_000_003, dtype=np.float32)
    native = kernels.compiled()
    assert native.read(x, 1).tobytes() == native.read(x, 2).tobytes() == native.read(x, 3).tobytes()


def test_the_flops_of_a_peak_are_those_of_its_blocks():
    native = kernels.compiled()
    one = native.peak_fma(1, 1)
    assert one > 0
    assert native.peak_fma(10, 3) == 10 * one
    assert native.peak_fma(0, 1) == 0


def test_sums_of_another_size_are_refused():
    native = kernels.compiled()
    with pytest.raises(ShapeError, match=r"read: sums is \(2,\), need \(1,\)"):
        native._kernels.read(np.empty(2, np.float32), np.ones(5, np.float32), 1)
