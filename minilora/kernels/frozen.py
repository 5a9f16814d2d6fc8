"""FrozenWeight: a weight that is never trained, kept in the memory layout and storage of its file."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilora.errors import ShapeError
from minilora.formats.quant import STORAGES, dequantize

_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}


class FrozenWeight:
    """A read-only matrix W (in, out) with ``x @ W`` and ``grad @ W.T``, but no gradient of its own.

    A frozen weight needs no gradient buffer and no optimiser state, so it can stay in the bytes of
    its file. ``FrozenWeight(array)`` views a floating-point array of axes (in, out); pass ``stored.T``
    for a file that holds (out, in). ``FrozenWeight.from_blocks`` takes GGUF blocks.

    shape    (in, out)
    storage  "f32", "f64", "f16", "bf16", "q8_0", "q4_0", "q4_1", …: how an element is stored
    """

    __slots__ = ("_stored", "by_rows", "shape", "storage")
    __array_ufunc__ = None  # makes `ndarray @ W` call W.__rmatmul__

    def __init__(self, array: ArrayLike) -> None:
        matrix = np.asarray(array)
        if matrix.ndim != 2:
            raise ShapeError(f"FrozenWeight: the array has shape {matrix.shape}, expected two axes (in, out)")
        names = {dtype: name for name, dtype in _FLOATS.items()}
        if matrix.dtype not in names:
            raise ShapeError(
                f"FrozenWeight: the array has dtype {matrix.dtype}, expected float32 or float64\n"
                f"  convert it, or use FrozenWeight.from_blocks for stored bytes"
            )
        by_rows = not (matrix.flags.f_contiguous and not matrix.flags.c_contiguous)
        self._set(np.ascontiguousarray(matrix if by_rows else matrix.T), by_rows, names[matrix.dtype], matrix.shape)

    @classmethod
    def from_blocks(cls, blocks: NDArray[np.uint8], storage: str, *, transposed: bool = True) -> FrozenWeight:
        """Take a matrix in the stored bytes of a file, without decoding it.

        blocks      (rows, bytes per row) uint8, each row whole blocks of ``storage``
        transposed  True if the file's rows run over the outputs: (out, in), the usual layout of a
                    linear layer; False for (in, out), as in an embedding table
        """
        if storage not in STORAGES:
            raise ShapeError(f"FrozenWeight: unknown storage {storage!r}, expected one of {', '.join(STORAGES)}")
        layout = STORAGES[storage]
        if blocks.ndim != 2 or blocks.dtype != np.uint8 or blocks.shape[1] % layout.nbytes:
            raise ShapeError(
                f"FrozenWeight: {storage} blocks are {blocks.dtype} {blocks.shape}, expected uint8 (rows, bytes) "
                f"with a multiple of {layout.nbytes} bytes a row"
            )
        rows, cols = blocks.shape[0], blocks.shape[1] // layout.nbytes * layout.block
        self = cls.__new__(cls)
        stored = np.ascontiguousarray(blocks)
        if storage in _FLOATS:
            stored = stored.view(_FLOATS[storage])
        self._set(stored, not transposed, storage, (cols, rows) if transposed else (rows, cols))
        return self

    def _set(self, stored: NDArray[Any], by_rows: bool, storage: str, shape: tuple[int, ...]) -> None:
        # The kernel reads floats where they lie, the rest at any address.
        self._stored = (np.require(stored, requirements="A") if storage == "f32" else stored).view()
        self._stored.flags.writeable = False
        self.by_rows = by_rows  # the stored rows run over the first axis of `shape`
        self.storage = storage
        self.shape = (int(shape[0]), int(shape[1]))

    @property
    def T(self) -> FrozenWeight:
        """The transpose (out, in), over the same memory."""
        other = FrozenWeight.__new__(FrozenWeight)
        other._set(self._stored, not self.by_rows, self.storage, self.shape[::-1])
        return other

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that ``dequantize`` gives."""
        return _FLOATS["f64"] if self.storage == "f64" else _FLOATS["f32"]

    @property
    def nbytes(self) -> int:
        """Bytes that the stored form occupies."""
        return self._stored.nbytes

    @property
    def memory(self) -> tuple[int, int]:
        """Address and length of the stored bytes: equal for a weight and its transpose, which share them."""
        return self._stored.ctypes.data, self._stored.nbytes

    @property
    def lines(self) -> NDArray[np.uint8]:
        """The stored bytes, (in, bytes) where ``by_rows`` and (out, bytes) otherwise: what a kernel reads."""
        return self._stored.view(np.uint8)

    def _decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        return stored if stored.dtype in _FLOATS.values() else dequantize(stored, self.storage)

    def dequantize(self) -> NDArray[Any]:
        """Return W (in, out) in floating point; a read-only view where it is stored so."""
        matrix = self._decode(self._stored)
        return matrix if self.by_rows else matrix.T

    def rows(self, ids: ArrayLike) -> NDArray[Any]:
        """Return W[ids], shape (*ids.shape, out); decodes only those rows where rows are stored whole.

        ids  integers in [0, in); ShapeError for others
        """
        index = np.asarray(ids, None if np.size(ids) else np.intp)  # [] alone would be float64
        if index.dtype.kind not in "iu":
            raise ShapeError(
                f"FrozenWeight.rows: ids has dtype {index.dtype}, expected integers\n"
                "  convert them; for a mask pass np.flatnonzero(mask)"
            )
        if index.size and (index.min() < 0 or index.max() >= self.shape[0]):
            bad = index[(index < 0) | (index >= self.shape[0])].flat[0]
            raise ShapeError(
                f"FrozenWeight.rows: ids holds {bad}, expected 0 to {self.shape[0] - 1}, as W has shape {self.shape}\n"
                "  count rows from the start, and check that the ids were made for this table"
            )
        if not self.by_rows:
            return self.dequantize()[index]
        rows = self._decode(np.ascontiguousarray(self._stored[index.reshape(-1)]))
        return rows.reshape(*index.shape, self.shape[1])

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the stored bytes in file layout, read from live memory."""
        return hashlib.sha256(np.ascontiguousarray(self._stored).data).hexdigest()

    def __rmatmul__(self, x: NDArray[Any]) -> NDArray[Any]:
        return x @ self.dequantize()

    def __repr__(self) -> str:
        return f"FrozenWeight{self.shape}, {self.storage}"
