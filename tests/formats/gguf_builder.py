"""Make GGUF files byte by byte, good and bad, without the code under test.

`build_gguf` makes a whole valid file; `string`, `pair`, `tensor_info` and `gguf_bytes` are its pieces, which take
any lie.  `random_blocks` fills a tensor of any storage with blocks whose values are finite.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# ggml's number of each storage, elements a block, bytes a block.
TYPES = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "bf16": (30, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "q2_k": (10, 256, 84),
    "iq4_nl": (20, 32, 18),
    "i32": (26, 1, 4),
    "f64": (28, 1, 8),
}
# Byte offsets of the float16 scales in a block.
SCALES = {
    "f16": (0,),
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}
# Numbers and struct codes of the metadata's value types.
KINDS = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
STRING, ARRAY = 8, 9


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    """A string of the format, which may lie about its length in bytes."""
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def value(content: Any, kind: str | None = None) -> tuple[int, bytes]:
    """Type number and bytes of a metadata value; ``kind`` (a key of KINDS) is that of a number or of elements."""
    if isinstance(content, str):
        return STRING, string(content)
    if isinstance(content, (list, tuple)):
        if content and isinstance(content[0], str):
            return ARRAY, u32(STRING) + u64(len(content)) + b"".join(string(text) for text in content)
        kind = kind or _kind_of(content[0] if content else 0)
        number, code = KINDS[kind]
        return ARRAY, u32(number) + u64(len(content)) + b"".join(struct.pack(code, item) for item in content)
    number, code = KINDS[kind or _kind_of(content)]
    return number, struct.pack(code, content)


def _kind_of(content: Any) -> str:
    if isinstance(content, bool):
        return "bool"
    if isinstance(content, float):
        return "f32"
    return "i32" if content < 0 else "u32" if content < 2**32 else "u64"


def pair(key: str | bytes, content: Any, kind: str | None = None) -> bytes:
    """A metadata pair; ``content`` may also be (type number, bytes) to say anything."""
    number, raw = content if isinstance(content, tuple) and isinstance(content[-1], bytes) else value(content, kind)
    return string(key) + u32(number) + raw


def tensor_info(name: str | bytes, extents: Sequence[int], kind: str | int, offset: int) -> bytes:
    """An entry of the directory; ``extents`` in the file's order, fastest axis first."""
    number = TYPES[kind][0] if isinstance(kind, str) else kind
    return string(name) + u32(len(extents)) + b"".join(map(u64, extents)) + u32(number) + u64(offset)


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A file from its pieces, which may lie about anything; padded before the data where there is data."""
    head = magic + u32(version) + u64(len(infos) if tensor_count is None else tensor_count)
    head += u64(len(pairs) if pair_count is None else pair_count) + b"".join(pairs) + b"".join(infos)
    return head + (b"\0" * (-len(head) % alignment) + data if data else b"")


def build_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], *, version: int = 3, alignment: int | None = None
) -> bytes:
    """A valid file.

    metadata   key -> str, bool, int, float, list of one of these, or (kind, content) to choose a number's kind
    tensors    name -> float array (stored as f32), or (storage, shape in NumPy's order, bytes)
    alignment  bytes; written to the metadata if given
    """
    pairs = [
        pair(key, content[1], content[0]) if isinstance(content, tuple) else pair(key, content)
        for key, content in metadata.items()
    ]
    if alignment is not None:
        pairs.append(pair("general.alignment", alignment, "u32"))
    step = alignment or 32
    infos, data = [], b""
    for name, tensor in tensors.items():
        if not isinstance(tensor, tuple):
            array = np.asarray(tensor, "<f4")
            tensor = "f32", array.shape, array.tobytes()
        storage, shape, raw = tensor
        infos.append(tensor_info(name, tuple(shape)[::-1], storage, len(data)))
        data += raw + b"\0" * (-len(raw) % step)
    return gguf_bytes(pairs, infos, data, version=version, alignment=step)


def random_blocks(storage: str, shape: Sequence[int], rng: np.random.Generator, *, scale: float = 0.01) -> bytes:
    """Bytes of a tensor (shape in NumPy's order) of random blocks; its scales are near ``scale``, so all is finite."""
    _, block, nbytes = TYPES[storage]
    count = int(np.prod(shape))
    if storage == "f32":
        return (scale * rng.standard_normal(count)).astype("<f4").tobytes()
    if storage == "bf16":
        return ((scale * rng.standard_normal(count)).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if storage == "f16":
        return (scale * rng.standard_normal(count)).astype("<f2").tobytes()
    raw = rng.integers(0, 256, (count // block, nbytes), dtype=np.uint8)
    for offset in SCALES.get(storage, ()):
        halves = (scale * rng.uniform(0.5, 2.0, len(raw))).astype("<f2")
        raw[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw.tobytes()
