"""GGUF's block storages and their decoding to float32, in NumPy.

A block holds a fixed number of consecutive elements of a row: small integers and the scales they share.
Layouts: https://github.com/ggml-org/ggml, docs/gguf.md and the comments at each block type; every scale is a
little-endian float16.  Each formula below is evaluated in float32 in the order written, which gives the
same bits as the reference implementation of the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minilora.errors import MiniloraError, ShapeError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Storage:
    """How a row is cut: ``block`` elements of it lie in ``nbytes`` bytes."""

    block: int
    nbytes: int


STORAGES: dict[str, Storage] = {
    "f32": Storage(1, 4),
    "f16": Storage(1, 2),
    "bf16": Storage(1, 2),
    "q8_0": Storage(32, 34),
    "q4_0": Storage(32, 18),
    "q4_1": Storage(32, 20),
    "q5_0": Storage(32, 22),
    "q5_1": Storage(32, 24),
    "q4_k": Storage(256, 144),
    "q5_k": Storage(256, 176),
    "q6_k": Storage(256, 210),
}

# Elements decoded at a time, so that temporaries stay small (2 MiB at most) and in the cache.  From 2**16 to
# 2**20 the speed is the same; 2**14 and whole tensors are slower by a fifth.
_PIECE = 1 << 18


def dequantize(blocks: Bytes, storage: str) -> Floats:
    """Decode rows of stored bytes to float32, a new array.

    blocks   (rows, bytes per row) uint8, any memory layout; each row is whole blocks
    storage  a key of STORAGES

    Returns (rows, columns) float32.  A NaN or infinite scale gives NaN or infinite elements, no warning.
    Raises MiniloraError for an unknown storage, ShapeError where rows are not whole blocks.
    """
    layout = STORAGES.get(storage)
    if layout is None:
        raise MiniloraError(f"dequantize: unknown storage {storage!r}; expected one of {', '.join(STORAGES)}")
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] % layout.nbytes:
        raise ShapeError(
            f"dequantize: blocks are {blocks.dtype} {blocks.shape}; "
            f"expected uint8 (rows, bytes), with a multiple of {layout.nbytes} bytes a row for {storage}"
        )
    rows, columns = blocks.shape[0], blocks.shape[1] // layout.nbytes * layout.block
    flat = np.ascontiguousarray(blocks).reshape(-1, layout.nbytes)
    out = np.empty((flat.shape[0], layout.block), np.float32)
    decode, step = _DECODERS[storage], _PIECE // layout.block
    with np.errstate(all="ignore"):
        for first in range(0, flat.shape[0], step):
            decode(flat[first : first + step], out[first : first + step])
    return out.reshape(rows, columns)


# --- Each decoder reads (n, nbytes) bytes and fills (n, block) floats. ---


def _f32(raw: Bytes, out: Floats) -> None:
    out[...] = raw.view("<f4")


def _f16(raw: Bytes, out: Floats) -> None:
    out[...] = raw.view("<f2")


def _bf16(raw: Bytes, out: Floats) -> None:
    # bfloat16 is the upper half of a float32.
    np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q8_0(raw: Bytes, out: Floats) -> None:
    """d (f16), 32 q (int8):  d q."""
    out[...] = raw[:, 2:].view(np.int8)
    out *= _half(raw, 0)


def _q4_0(raw: Bytes, out: Floats) -> None:
    """d (f16), 32 q (4 bits):  d (q - 8)."""
    q = _nibbles(raw[:, 2:]).view(np.int8)
    q -= 8
    out[...] = q
    out *= _half(raw, 0)


def _q4_1(raw: Bytes, out: Floats) -> None:
    """d, m (f16), 32 q (4 bits):  d q + m."""
    out[...] = _nibbles(raw[:, 4:])
    out *= _half(raw, 0)
    out += _half(raw, 2)


def _q5_0(raw: Bytes, out: Floats) -> None:
    """d (f16), 32 fifth bits, 32 q (4 bits):  d (q - 16), q with its fifth bit."""
    q = _fifth_bits(raw[:, 2:6])
    q |= _nibbles(raw[:, 6:])
    signed = q.view(np.int8)
    signed -= 16
    out[...] = signed
    out *= _half(raw, 0)


def _q5_1(raw: Bytes, out: Floats) -> None:
    """d, m (f16), 32 fifth bits, 32 q (4 bits):  d q + m, q with its fifth bit."""
    q = _fifth_bits(raw[:, 4:8])
    q |= _nibbles(raw[:, 8:])
    out[...] = q
    out *= _half(raw, 0)
    out += _half(raw, 2)


def _q4_k(raw: Bytes, out: Floats) -> None:
    """d, dmin (f16), 8 pairs (s, m) of 6 bits, 8 x 32 q (4 bits):  (d s) q - (dmin m)."""
    scale, shift = _scales_k(raw)
    # 32 bytes hold the low nibbles of one sub-block, then the high nibbles of the next.
    q = _nibbles(raw[:, 16:].reshape(-1, 32))
    _scale_and_shift(out, q.reshape(-1, 8, 32), scale, shift)


def _q5_k(raw: Bytes, out: Floats) -> None:
    """As q4_k, with a fifth bit: bit j of byte i belongs to element i of sub-block j."""
    scale, shift = _scales_k(raw)
    q = _nibbles(raw[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    high = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
    high &= 1
    high <<= 4
    q |= high
    _scale_and_shift(out, q, scale, shift)


def _q6_k(raw: Bytes, out: Floats) -> None:
    """256 q (4 low bits in 128 bytes, 2 high bits in 64), 16 s (int8), d (f16):  (d s) (q - 32)."""
    # 64 bytes of low nibbles and 32 of high pairs serve one half of the block: four rows of 32 elements.
    q = _nibbles(raw[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    high &= 3
    high <<= 4
    q |= high
    signed = q.view(np.int8)
    signed -= 32
    scale = _half(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
    np.multiply(signed.reshape(-1, 16, 16), scale[:, :, None], out=out.reshape(-1, 16, 16), dtype=np.float32)


def _half(raw: Bytes, offset: int) -> Floats:
    """Read the float16 at a byte offset of each block, as (n, 1) float32."""
    return np.ascontiguousarray(raw[:, offset : offset + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Spread (n, k) bytes to (n, 2k) values of 4 bits: all low halves, then all high halves."""
    n, k = packed.shape
    values = np.empty((n, 2, k), np.uint8)
    np.bitwise_and(packed, 15, out=values[:, 0])
    np.right_shift(packed, 4, out=values[:, 1])
    return values.reshape(n, 2 * k)


def _fifth_bits(packed: Bytes) -> Bytes:
    """Spread (n, 4) bytes to (n, 32) values 0 or 16, lowest bit first."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    bits <<= 4
    return bits


def _scales_k(raw: Bytes) -> tuple[Floats, Floats]:
    """Decode the head of a q4_k or q5_k block: d s and dmin m, each (n, 8, 1).

    Of the 12 bytes, the low 6 bits of bytes 0-3 and 4-7 are s and m of sub-blocks 0-3.  Those of
    sub-blocks 4-7 have their low 4 bits in bytes 8-11 (s in the low nibble, m in the high one) and
    their high 2 bits on top of bytes 0-3 and 4-7.
    """
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    s = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    m = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return (_half(raw, 0) * s)[:, :, None], (_half(raw, 2) * m)[:, :, None]


def _scale_and_shift(out: Floats, q: Bytes, scale: Floats, shift: Floats) -> None:
    part = out.reshape(-1, 8, 32)
    np.multiply(scale, q, out=part, dtype=np.float32)
    part -= shift


_DECODERS: dict[str, Callable[[Bytes, Any], None]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
