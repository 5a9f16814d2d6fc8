"""Parse and check what stands before the tensors of a GGUF file: metadata and the tensors' directory."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from minilora.errors import FormatError
from minilora.formats.mapped import printable
from minilora.formats.quant import STORAGES, Storage

# Bounds on what a file may claim, above what real models hold: the largest vocabularies have some 780,000 strings
# (tokens and merges) in 15 MB.  Under each of them opening takes less than a second and less memory than
# 3 x file + 64 MB, the mapped pages included: a Python string may take four times its bytes in the file, and five
# while it is decoded.
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 15
MAX_STRINGS = 900_000  # in all arrays together
MAX_NUMBERS = 1_000_000  # in all arrays together
MAX_TEXT = 8 << 20  # bytes of a string
MAX_METADATA = 24 << 20  # bytes
MAX_ALIGNMENT = 1 << 16  # bytes
MAX_DIMS = 4
MAX_NAME = 63  # bytes of a tensor's name
MAX_KEY = 65535  # bytes

_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise

# fmt: off
# Value types of the metadata: number -> NumPy's little-endian equal.
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALARS = {
    0: "|u1", 1: "|i1", 2: "<u2", 3: "<i2", _UINT32: "<u4", 5: "<i4", 6: "<f4", _BOOL: "|u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}

# Tensor types of ggml, by number.  The second table can be listed, not decoded.
_DECODED = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 12: "q4_k", 13: "q5_k", 14: "q6_k",
    30: "bf16",
}
_LISTED = {
    10: ("q2_k", Storage(256, 84)), 11: ("q3_k", Storage(256, 110)), 16: ("iq2_xxs", Storage(256, 66)),
    17: ("iq2_xs", Storage(256, 74)), 18: ("iq3_xxs", Storage(256, 98)), 19: ("iq1_s", Storage(256, 50)),
    20: ("iq4_nl", Storage(32, 18)), 21: ("iq3_s", Storage(256, 110)), 22: ("iq2_s", Storage(256, 82)),
    23: ("iq4_xs", Storage(256, 136)), 24: ("i8", Storage(1, 1)), 25: ("i16", Storage(1, 2)),
    26: ("i32", Storage(1, 4)), 27: ("i64", Storage(1, 8)), 28: ("f64", Storage(1, 8)),
    29: ("iq1_m", Storage(256, 56)), 34: ("tq1_0", Storage(256, 54)), 35: ("tq2_0", Storage(256, 66)),
    39: ("mxfp4", Storage(32, 17)), 40: ("nvfp4", Storage(64, 36)), 41: ("q1_0", Storage(128, 18)),
}
# fmt: on
_TYPES = {number: (name, STORAGES[name]) for number, name in _DECODED.items()} | _LISTED

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of the directory; its bytes are ``begin`` to ``begin + nbytes`` of the file.

    shape    NumPy's order, slowest axis first: the file's own order reversed
    storage  "f32", "q4_1", ...; a name outside ``quant.STORAGES`` can be listed but not decoded
    """

    name: str
    storage: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class Header:
    """What stands before the tensors, read in one pass and checked.

    version    2 or 3
    alignment  bytes
    metadata   key -> int, float, bool, str, or a list of one of these
    tensors    name -> GGUFTensor, in the order of their bytes

    Raises FormatError; the message names the byte, the field, what was found and what was expected.
    """

    def __init__(self, path: str, data: mmap.mmap | bytes) -> None:
        self._path, self._size = path, len(data)
        self._data = memoryview(data)  # its slices are no copies
        self._at = 0  # the byte to be read next
        self._strings = self._numbers = 0  # elements of arrays so far
        self.version = self._read_version()
        tensor_count = self._count("tensor count", MAX_TENSORS, 24)
        key_count = self._count("metadata count", MAX_KEYS, 14)
        self.metadata: dict[str, Any] = {}
        self._end = min(self._size, self._at + MAX_METADATA)
        for index in range(key_count):
            self._read_pair(index)
        self._end = self._size
        self.alignment = self._read_alignment()
        self.tensors: dict[str, GGUFTensor] = {}
        self._read_directory(tensor_count)

    # --- pieces of the file ---

    def _read_version(self) -> int:
        magic = bytes(self._data[:4])
        if magic != b"GGUF":
            self._fail(f"it begins with {printable(magic)}, expected 'GGUF'", "this is no GGUF file")
        self._end = self._size
        self._at = 4
        version = self._u32("version")
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0
            self._fail(
                f"version is {version}, expected 2 or 3",
                "big-endian files are not supported: convert it" if swapped else "convert it with a newer tool",
            )
        return version

    def _read_pair(self, index: int) -> None:
        at = self._at
        key = self._string(f"key {index}", MAX_KEY)
        if not key:
            self._fail(f"key {index} is empty, expected a name", at=at)
        if key in self.metadata:
            self._fail(f"key {printable(key)} comes twice, expected it once", at=at)
        kind = self._u32(f"type of {printable(key)}")
        if key == "general.alignment" and kind != _UINT32:
            self._fail(f"general.alignment has value type {kind}, expected {_UINT32} (uint32)", at=self._at - 4)
        self.metadata[key] = self._array(key) if kind == _ARRAY else self._value(key, kind)

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string(f"value of {printable(key)}", MAX_TEXT)
        if kind not in _SCALARS:
            self._fail(f"{printable(key)} has value type {kind}, expected one of 0 to 12", at=self._at - 4)
        return self._list(key, kind, 1)[0]

    def _array(self, key: str) -> list[Any]:
        kind = self._u32(f"element type of {printable(key)}")
        count = self._u64(f"length of {printable(key)}")
        if kind == _STRING:
            self._strings += count
            if self._strings > MAX_STRINGS:
                self._fail(
                    f"{printable(key)} brings the metadata to {self._strings} strings, expected at most {MAX_STRINGS}",
                    at=self._at - 8,
                )
            return self._string_list(key, count)
        if kind not in _SCALARS:
            nested = "an array of arrays, expected numbers or strings" if kind == _ARRAY else None
            self._fail(
                f"{printable(key)} is {nested or f'an array of type {kind}, expected one of 0 to 12'}", at=self._at - 12
            )
        self._numbers += count
        if self._numbers > MAX_NUMBERS:
            self._fail(
                f"{printable(key)} brings the metadata to {self._numbers} numbers in arrays, "
                f"expected at most {MAX_NUMBERS}",
                at=self._at - 8,
            )
        return self._list(key, kind, count)

    def _list(self, key: str, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        raw = self._take(count * dtype.itemsize, f"value of {printable(key)}")
        values = np.frombuffer(raw, dtype)
        if kind != _BOOL:
            return values.tolist()
        if values.size and values.max() > 1:
            self._fail(f"{printable(key)} holds the boolean {values.max()}, expected 0 or 1")
        return values.astype(bool).tolist()

    def _string_list(self, key: str, count: int) -> list[str]:
        # The hot loop: a vocabulary has 100,000 strings and more.
        data, at, end, read = self._data, self._at, self._end, _U64.unpack_from
        strings: list[str] = []
        if count * 8 > end - at:
            self._short(count * 8, f"value of {printable(key)}")
        last = end - 8
        for index in range(count):
            if at > last:
                self._at = at
                self._short(8, f"length of {printable(key)}[{index}]")
            start = at + 8
            at = start + read(data, at)[0]
            if at > end:
                self._at = start
                self._short(at - start, f"{printable(key)}[{index}]")
            if at - start > MAX_TEXT:
                self._fail(f"{printable(key)}[{index}] has {at - start} bytes, expected at most {MAX_TEXT}", at=start)
            try:
                strings.append(str(data[start:at], "utf-8"))
            except UnicodeDecodeError:
                self._fail(f"{printable(key)}[{index}] is {_text(data[start:at])}, expected UTF-8", at=start)
        self._at = at
        return strings

    def _read_alignment(self) -> int:
        alignment = int(self.metadata.get("general.alignment", _ALIGNMENT))
        if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT}")
        return alignment

    def _read_directory(self, count: int) -> None:
        entries: dict[str, tuple[int, GGUFTensor]] = {}  # with the byte each entry begins at
        for index in range(count):
            at = self._at
            entry = self._read_entry(index)
            if entry.name in entries:
                self._fail(f"tensor {printable(entry.name)} comes twice, expected it once", at=at)
            entries[entry.name] = at, entry
        start = _padded(self._at, self.alignment)
        expected = 0  # tensors lie one after the other, each padded to the alignment
        for name, (at, entry) in entries.items():
            where, offset = f"tensor {printable(name)}", entry.begin
            if offset != expected:
                fault = (
                    "is not a multiple of the alignment"
                    if offset % self.alignment
                    else "overlaps another tensor"
                    if offset < expected
                    else "leaves a hole"
                )
                self._fail(f"{where} has offset {offset}, which {fault}, expected {expected}", at=at)
            if start + offset + entry.nbytes > self._size:
                self._fail(
                    f"{where} ends at byte {start + offset + entry.nbytes}, but the file has {self._size}",
                    "the file is cut short: fetch it again",
                    at=at,
                )
            self.tensors[name] = replace(entry, begin=start + offset)
            expected = _padded(offset + entry.nbytes, self.alignment)

    def _read_entry(self, index: int) -> GGUFTensor:
        """Read one entry of the directory; its ``begin`` is still an offset into the data."""
        at = self._at
        name = self._string(f"name of tensor {index}", MAX_NAME)
        where = f"tensor {printable(name)}"
        dims = self._u32(f"number of axes of {where}")
        if not 1 <= dims <= MAX_DIMS:
            self._fail(f"{where} has {dims} axes, expected 1 to {MAX_DIMS}", at=self._at - 4)
        extents = tuple(self._u64(f"axis {axis} of {where}") for axis in range(dims))
        if 0 in extents or math.prod(extents) >= 2**60:
            self._fail(f"{where} has extents {extents}, expected 1 or more each and fewer than 2**60 elements", at=at)
        kind = self._u32(f"type of {where}")
        if kind not in _TYPES:
            known = ", ".join(f"{number} ({name})" for number, name in _DECODED.items())
            self._fail(
                f"{where} has type {kind}, expected one of {known}",
                "convert the model to one of these",
                at=self._at - 4,
            )
        storage, layout = _TYPES[kind]
        if extents[0] % layout.block:
            self._fail(
                f"{where} has rows of {extents[0]} elements, expected a multiple of {layout.block} for {storage}", at=at
            )
        nbytes = math.prod(extents) // layout.block * layout.nbytes
        return GGUFTensor(name, storage, extents[::-1], self._u64(f"offset of {where}"), nbytes)

    # --- primitives: nothing is read, and nothing allocated, before it is known to be there ---

    def _take(self, nbytes: int, what: str) -> memoryview:
        if nbytes > self._end - self._at:
            self._short(nbytes, what)
        begin, self._at = self._at, self._at + nbytes
        return self._data[begin : self._at]

    def _u32(self, what: str) -> int:
        return int(_U32.unpack(self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack(self._take(8, what))[0])

    def _count(self, what: str, most: int, smallest: int) -> int:
        """Read a count of things that take at least ``smallest`` bytes each."""
        count = self._u64(what)
        left = self._size - self._at
        if count > most or count * smallest > left:
            self._fail(f"{what} is {count}, expected at most {min(most, left // smallest)}", at=self._at - 8)
        return count

    def _string(self, what: str, most: int) -> str:
        length = self._u64(f"length of {what}")
        if length > most:
            self._fail(f"{what} has {length} bytes, expected at most {most}", at=self._at - 8)
        raw = self._take(length, what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} is {_text(raw)}, expected UTF-8", at=self._at - length)

    def _short(self, wanted: int, what: str) -> NoReturn:
        if self._end < self._size:
            self._fail(f"{what} brings the metadata over {MAX_METADATA} bytes")
        self._fail(
            f"{what} takes {wanted} bytes, but {self._size - self._at} are left", "the file is cut short or damaged"
        )

    def _fail(
        self, found: str, advice: str = "the file is damaged: fetch or convert it again", at: int | None = None
    ) -> NoReturn:
        raise FormatError(f"{self._path}: at byte {self._at if at is None else at}: {found}; {advice}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _text(raw: memoryview) -> str:
    return printable(bytes(raw[:400]))
