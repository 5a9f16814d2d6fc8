"""Make safetensors files byte by byte, good and bad, without the code under test."""

from __future__ import annotations

import json
from typing import Any


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """One entry of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of a header (anything JSON can hold, text, or raw bytes) and the tensors' bytes.

    length  what the file claims its header takes, if not the truth
    """
    if isinstance(header, str):
        header = header.encode("utf-8")
    if not isinstance(header, bytes):
        header = json.dumps(header).encode("utf-8")
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def small_file() -> bytes:
    """A valid file with every kind of thing in it: metadata, several dtypes, rank 0, a size of 0, spaces."""
    header = {
        "__metadata__": {"format": "pt", "naïve": "☃"},
        "weight": entry("F32", (2, 3), (0, 24)),
        "scalar": entry("F64", (), (24, 32)),
        "empty": entry("I64", (0, 5), (32, 32)),
        "half": entry("BF16", (3,), (32, 38)),
        "mask": entry("BOOL", (2,), (38, 40)),
    }
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return safetensors_bytes(text, bytes(range(64, 102)) + b"\x01\x00")
