"""Blocks of every storage decode to the values that an element-by-element reading of the layout gives."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest

from minilora.errors import MiniloraError, ShapeError
from minilora.formats import quant
from minilora.formats.quant import STORAGES, dequantize

f32 = np.float32


def half(block, offset):
    return f32(np.frombuffer(bytes(block[offset : offset + 2]), "<f2")[0])


def signed(byte):
    return byte - 256 if byte > 127 else byte


def nibble(block, offset, i):
    """Of 16 bytes, element i of 32: the low halves come first."""
    return block[offset + i % 16] >> (4 if i >= 16 else 0) & 15


def fifth(block, offset, i):
    return (int.from_bytes(bytes(block[offset : offset + 4]), "little") >> i & 1) << 4


def scale_and_min(block, j):
    """The 6-bit pair of sub-block j of a q4_k or q5_k block."""
    packed = block[4:16]
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4


def k_quant(block, i, q):
    scale, least = scale_and_min(block, i // 32)
    return half(block, 0) * f32(scale) * f32(q) - half(block, 2) * f32(least)


def q4_k_bits(block, offset, i):
    """64 elements share 32 bytes: the first 32 in the low halves, the next 32 in the high ones."""
    return block[offset + i // 64 * 32 + i % 32] >> (4 if i % 64 >= 32 else 0) & 15


def q6_k(block, i):
    part, row, column = i // 128, i // 32 % 4, i % 32
    low = block[64 * part + 32 * (row % 2) + column] >> (4 if row >= 2 else 0) & 15
    high = block[128 + 32 * part + column] >> (2 * row) & 3
    return half(block, 208) * f32(signed(block[192 + i // 16])) * f32((low | high << 4) - 32)


# element i of a block, given as a list of ints
READINGS = {
    "f32": lambda b, i: np.frombuffer(bytes(b), "<f4")[0],
    "f16": lambda b, i: half(b, 0),
    "bf16": lambda b, i: np.frombuffer(bytes([0, 0, *b]), "<f4")[0],
    "q8_0": lambda b, i: half(b, 0) * f32(signed(b[2 + i])),
    "q4_0": lambda b, i: half(b, 0) * f32(nibble(b, 2, i) - 8),
    "q4_1": lambda b, i: half(b, 0) * f32(nibble(b, 4, i)) + half(b, 2),
    "q5_0": lambda b, i: half(b, 0) * f32((nibble(b, 6, i) | fifth(b, 2, i)) - 16),
    "q5_1": lambda b, i: half(b, 0) * f32(nibble(b, 8, i) | fifth(b, 4, i)) + half(b, 2),
    "q4_k": lambda b, i: k_quant(b, i, q4_k_bits(b, 16, i)),
    "q5_k": lambda b, i: k_quant(b, i, q4_k_bits(b, 48, i) | (b[16 + i % 32] >> (i // 32) & 1) << 4),
    "q6_k": q6_k,
}


def random_bytes(rows, blocks, storage, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * STORAGES[storage].nbytes), dtype=np.uint8)


def test_every_storage_has_a_reading():
    assert READINGS.keys() == STORAGES.keys()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the reading; ours gives none
def test_every_element_is_read_as_the_layout_says(storage):
    layout = STORAGES[storage]
    raw = random_bytes(4, 3 if layout.block > 1 else 200, storage)
    got = dequantize(raw, storage)
    want = np.empty_like(got)
    for row, data in enumerate(raw.reshape(4, -1, layout.nbytes).tolist()):
        for column in range(got.shape[1]):
            want[row, column] = READINGS[storage](data[column // layout.block], column % layout.block)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)  # NaN equals NaN here
    assert np.isfinite(got).mean() > 0.5


@pytest.mark.parametrize("storage", STORAGES)
def test_one_block_at_a_time_gives_the_same_bits(storage, monkeypatch):
    raw = random_bytes(3, 7, storage)
    whole = dequantize(raw, storage)
    monkeypatch.setattr(quant, "_PIECE", STORAGES[storage].block)
    assert dequantize(raw, storage).tobytes() == whole.tobytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_more_than_a_piece_is_cut_and_joined(storage):
    layout = STORAGES[storage]
    blocks = quant._PIECE // layout.block + 3
    raw = random_bytes(1, blocks, storage)
    whole = dequantize(raw, storage)
    assert whole.shape == (1, blocks * layout.block)
    assert whole[:, -4 * layout.block :].tobytes() == dequantize(raw[:, -4 * layout.nbytes :], storage).tobytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_any_memory_layout_is_read_and_left_alone(storage):
    raw = random_bytes(6, 2, storage)
    want = dequantize(raw, storage)
    raw.flags.writeable = False
    shifted = np.frombuffer(b"x" + raw.tobytes(), np.uint8, offset=1).reshape(raw.shape)
    for same in (raw, np.asfortranarray(raw), np.repeat(raw, 2, axis=1)[:, ::2], raw[::-1].copy()[::-1], shifted):
        before = same.tobytes()
        assert dequantize(same, storage).tobytes() == want.tobytes()
        assert same.tobytes() == before


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("rows", "blocks"), [(0, 0), (0, 2), (3, 0), (1, 1)])
def test_empty_and_single_shapes(storage, rows, blocks):
    raw = random_bytes(rows, blocks, storage)
    assert dequantize(raw, storage).shape == (rows, blocks * STORAGES[storage].block)


@pytest.mark.parametrize("storage", [name for name in STORAGES if name.startswith("q")])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_of_nan_or_infinity_passes_without_a_warning(storage, scale):
    raw = random_bytes(1, 1, storage)
    at = 208 if storage == "q6_k" else 0
    raw[0, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = dequantize(raw, storage)
    assert not np.isfinite(got).all()


@pytest.mark.parametrize("storage", ["q4_1", "q5_1", "q6_k"])
def test_temporaries_stay_small(storage):
    layout = STORAGES[storage]
    raw = random_bytes(8192, 2304 // layout.block, storage)
    tracemalloc.start()
    result = dequantize(raw, storage)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.nbytes == 4 * 8192 * 2304
    assert peak - result.nbytes < 4 << 20


def test_bad_arguments_are_named():
    with pytest.raises(MiniloraError, match="unknown storage 'q2_k'; expected one of f32, f16, bf16, q8_0"):
        dequantize(np.zeros((1, 84), np.uint8), "q2_k")
    with pytest.raises(ShapeError, match=r"blocks are uint8 \(2, 19\); .* a multiple of 18 bytes a row for q4_0"):
        dequantize(np.zeros((2, 19), np.uint8), "q4_0")
    with pytest.raises(ShapeError, match=r"blocks are uint8 \(18,\); expected uint8 \(rows, bytes\)"):
        dequantize(np.zeros(18, np.uint8), "q4_0")
    with pytest.raises(ShapeError, match=r"blocks are float32 \(1, 18\)"):
        dequantize(np.zeros((1, 18), np.float32), "q4_0")
