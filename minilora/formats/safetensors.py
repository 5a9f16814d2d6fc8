"""Read and write safetensors files: strict, memory-mapped, NumPy only."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minilora.errors import FormatError, MiniloraError
from minilora.formats.atomic import write_atomically
from minilora.formats.mapped import map_file, printable, read_file

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_DIMS = 64  # NumPy's limit

# Every dtype of the format, narrowest first: name -> (bits an element, NumPy's little-endian equal).
# Files are sorted by this order, widest first.  bfloat16 is stored as its bits.
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "|b1"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, "|u1"),
    "I8": (8, "|i1"),
    "F8_E5M2": (8, None),
    "F8_E4M3": (8, None),
    "F8_E8M0": (8, None),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "I16": (16, "<i2"),
    "U16": (16, "<u2"),
    "F16": (16, "<f2"),
    "BF16": (16, "<u2"),
    "I32": (32, "<i4"),
    "U32": (32, "<u4"),
    "F32": (32, "<f4"),
    "C64": (64, "<c8"),
    "F64": (64, "<f8"),
    "I64": (64, "<i8"),
    "U64": (64, "<u8"),
}
_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_NAME_OF = {np.dtype(code): name for name, (_, code) in DTYPES.items() if code and name != "BF16"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header; the tensor's bytes are ``begin`` to ``end`` of the file."""

    dtype: str  # the format's name, such as "F32" or "BF16"
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """Named arrays in a safetensors file that is mapped (or was read whole) and checked.

    path        as given
    metadata    str -> str, the header's ``__metadata__``
    tensors     name -> TensorInfo, in the order of their bytes
    """

    def __init__(self, path: str | os.PathLike[str], data: mmap.mmap | bytes) -> None:
        self.path = os.fspath(path)
        self.metadata, self.tensors = _parse(self.path, data)
        self._data = data

    def stored(self, name: str) -> npt.NDArray[Any]:
        """View a tensor as it lies in the file: read-only, perhaps unaligned, bfloat16 as uint16.

        Raises FormatError for an unknown name and for a dtype that NumPy does not have.
        """
        info = self._info(name)
        bits, code = DTYPES[info.dtype]
        if code is None:
            raise FormatError(
                f"{self.path}: tensor {printable(name)} has dtype {info.dtype}, which minilora cannot compute with; "
                f"expected one of {', '.join(sorted(set(_NAME_OF.values()) | {'BF16'}))}; convert the file first"
            )
        count = (info.end - info.begin) * 8 // bits
        # An empty tensor at the very end of the file has no byte that frombuffer could point to.
        flat = np.frombuffer(self._data, code, count, info.begin) if count else np.empty(0, code)
        return flat.reshape(info.shape)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor to compute with: aligned, native, read-only if a view; bfloat16 as float32."""
        view = self.stored(name)
        dtype = self.tensors[name].dtype
        if dtype == "BF16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        if dtype == "BOOL":  # a byte of 2 is true, but NumPy must not see it as a bool
            return view.view(np.uint8) != 0
        return np.require(view, view.dtype.newbyteorder("="), "A")

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(
                f"{self.path}: no tensor {printable(name)}; the file holds {len(self.tensors)}: "
                f"{_listing(self.tensors)}"
            ) from None


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Map a safetensors file and check every rule of the format.

    Specification: https://github.com/huggingface/safetensors, the section "Format".  Stricter than the
    official reader in three points: no duplicate keys, no unknown fields, spaces as the only padding.

    Raises MiniloraError when the file cannot be opened, FormatError when it breaks a rule.
    """
    return SafetensorsFile(path, map_file(path))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read a small file whole: owned, writable arrays by name (bfloat16 as float32), and the metadata.

    Nothing stays open, so the file may be rewritten or truncated afterwards.  Raises as
    :func:`open_safetensors` does.
    """
    file = SafetensorsFile(path, read_file(path))
    arrays = {}
    for name in file.tensors:
        array = file.array(name)
        arrays[name] = array if array.flags.owndata and array.flags.writeable else array.copy()
    return arrays, file.metadata


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays of any memory layout and byte order; the same input gives the same bytes.

    Tensors are sorted as the format asks (widest dtype first, then by name), metadata by key.  The file
    appears whole or not at all, see :func:`minilora.formats.atomic.write_atomically`.

    Raises MiniloraError for a dtype the format lacks, a bad name, and when the disk refuses.
    """
    entries: list[tuple[str, str, npt.NDArray[Any]]] = []
    for name, value in tensors.items():
        array = np.asarray(value)
        dtype = _NAME_OF.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise MiniloraError(
                f"{path}: tensor {printable(str(name))} has dtype {array.dtype}, which safetensors cannot hold; "
                f"convert it first, for example with .astype(np.float32)"
            )
        if name == "__metadata__":
            raise MiniloraError(f"{path}: a tensor may not be named '__metadata__'; rename it")
        _check_text(path, name, "a tensor's name")
        if array.ndim > MAX_DIMS:
            raise MiniloraError(f"{path}: tensor {printable(name)} has {array.ndim} axes, at most {MAX_DIMS} fit")
        entries.append((dtype, name, array))
    entries.sort(key=lambda entry: (-_RANK[entry[0]], entry[1]))

    header: dict[str, Any] = {}
    if metadata:
        for key, text in metadata.items():
            _check_text(path, key, "a key of the metadata")
            _check_text(path, text, f"metadata {printable(key)}")
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for dtype, name, array in entries:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise MiniloraError(f"{path}: names and metadata take {len(raw)} bytes, the format allows {MAX_HEADER}")
    write_atomically(path, _chunks(raw, entries))


def _chunks(header: bytes, entries: list[tuple[str, str, npt.NDArray[Any]]]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for dtype, _, array in entries:  # one contiguous copy at a time, and none where it already is one
        yield np.asarray(array, DTYPES[dtype][1], order="C").reshape(-1).view(np.uint8).data


def _check_text(path: str | os.PathLike[str], text: object, what: str) -> None:
    if not isinstance(text, str) or _SURROGATE.search(text):
        raise MiniloraError(f"{path}: {what} is {text!r:.80}; expected text that UTF-8 can hold")


def _listing(names: Mapping[str, object]) -> str:
    shown = ", ".join(printable(name) for name in list(names)[:5])
    return shown + (", ..." if len(names) > 5 else "")


# --- The header.  Each check is a rule of the format; together they leave one reading of every byte. ---


def _parse(path: str, data: mmap.mmap | bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    size = len(data)
    if size < 8:
        raise FormatError(f"{path}: {size} bytes, expected at least 8; this is no safetensors file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise FormatError(
            f"{path}: header length is {length} bytes, expected at most {MAX_HEADER}; this is no safetensors file"
        )
    start = 8 + length
    if start > size:
        raise FormatError(
            f"{path}: header length is {length} bytes, but only {size - 8} follow; the file is cut short or damaged"
        )
    header = _load_json(path, data[8:start])

    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is {_show(metadata)}, expected an object of strings")
    for text in (*metadata, *metadata.values(), *header):
        if _SURROGATE.search(text):
            raise FormatError(f"{path}: {printable(text)} holds half a surrogate pair, expected valid Unicode")

    tensors = {name: _entry(path, name, entry, start) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    expected = start
    for name, info in tensors.items():
        if info.begin != expected:
            fault = "overlaps the one before it" if info.begin < expected else "leaves a hole before it"
            raise FormatError(
                f"{path}: tensor {printable(name)} begins at {info.begin - start} and {fault}, "
                f"expected {expected - start}"
            )
        expected = info.end
    if expected != size:
        fault = "the file is cut short" if expected > size else "the rest belongs to no tensor"
        raise FormatError(
            f"{path}: tensors end at byte {expected}, but the file has {size}: {fault}; fetch or save it again"
        )
    return metadata, tensors


def _load_json(path: str, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise FormatError(
            f"{path}: header begins with {printable(raw[:1])}, expected '{{'; this is no safetensors file"
        )
    if not raw.rstrip(b" ").endswith(b"}"):
        raise FormatError(
            f"{path}: header ends with {printable(raw[-8:])}, expected '}}' and nothing after it but spaces"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: header is not UTF-8 at byte {8 + error.start}; the file is damaged") from None
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_no_constant)
    except RecursionError:
        raise FormatError(f"{path}: header is nested too deeply, expected two levels; the file is damaged") from None
    except json.JSONDecodeError as error:
        where = f"character {error.pos} of the header"
        raise FormatError(f"{path}: header is not JSON: {error.msg} at {where}; the file is damaged") from None
    except ValueError as error:  # of the hooks below
        raise FormatError(f"{path}: header {error}; the file is damaged") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: header is {_show(header)}, expected a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"has the key {printable(twice)} twice, expected it once")
    return unique


def _integer(text: str) -> int | float:
    # "-0" and numbers over 64 bits are no unsigned integers; as floats they fail the checks of the entry,
    # which can name the tensor.  (And int() of a million digits takes seconds.)
    return float(text) if text == "-0" or len(text) > 20 else int(text)


def _no_constant(text: str) -> None:
    raise ValueError(f"is not JSON: it holds {text}")


def _entry(path: str, name: str, entry: Any, start: int) -> TensorInfo:
    where = f"{path}: tensor {printable(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: entry is {_show(entry)}, expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: dtype is {_show(dtype)}, expected one of {', '.join(DTYPES)}")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise FormatError(f"{where}: shape is {_show(shape)}, expected at most {MAX_DIMS} integers of 0 or more")
    if not _sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets is {_show(offsets)}, expected two integers of 0 or more")
    bits = DTYPES[dtype][0]
    # NumPy counts the bytes of an empty array as if its zeros were ones: the same bound here.
    if math.prod(n for n in shape if n) * bits >= 2**66:
        raise FormatError(f"{where}: shape is {_show(shape)}, expected fewer than 2**63 bytes")
    begin, end = offsets
    want = math.prod(shape) * bits
    if (end - begin) * 8 != want:
        raise FormatError(
            f"{where}: data_offsets {_show(offsets)} hold {end - begin} bytes, "
            f"but {dtype} of shape {_show(shape)} takes {want / 8:.15g}"
        )
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**64 for n in value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
