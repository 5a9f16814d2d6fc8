"""Our decoding of blocks against the gguf package's, bit for bit, NaN and infinite scales included.

MINILORA_BLOCKS sets the number of random blocks a type (100,000; the aim is 1,000,000 on request).
"""

from __future__ import annotations

import os

import gguf
import numpy as np
import pytest

from minilora.formats.quant import STORAGES, dequantize

BLOCKS = int(os.environ.get("MINILORA_BLOCKS", "100000"))
PIECE = 20_000
SCALES = {"q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2),
          "q6_k": (208,)}  # fmt: skip


def official(raw, storage):
    kind = gguf.GGMLQuantizationType[storage.upper()]
    if storage in ("f32", "f16"):
        raw = raw.view({"f32": np.float32, "f16": np.float16}[storage])
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, kind).astype(np.float32, copy=False)


@pytest.mark.parametrize("storage", STORAGES)
def test_random_blocks_decode_to_the_same_bits(storage):
    layout = STORAGES[storage]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[storage.upper()]] == (layout.block, layout.nbytes)
    rng = np.random.default_rng(11)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8, 65504], np.float16)
    seen = 0
    for first in range(0, BLOCKS, PIECE):
        count = min(PIECE, BLOCKS - first)
        raw = rng.integers(0, 256, (count, layout.nbytes), dtype=np.uint8)
        for offset in SCALES.get(storage, ()):  # random bits seldom give these
            rows = np.flatnonzero(rng.random(count) < 0.2)
            raw[rows, offset : offset + 2] = rng.choice(odd, len(rows)).view(np.uint8).reshape(-1, 2)
        got, want = dequantize(raw, storage), official(raw, storage)
        assert got.dtype == want.dtype == np.float32
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
        seen += got.size
    assert seen == BLOCKS * layout.block
