"""Read GGUF files, versions 2 and 3: checked before anything is believed, memory-mapped, NumPy only."""

from __future__ import annotations

import math
import mmap
import os

import numpy as np
import numpy.typing as npt

from minilora.errors import FormatError
from minilora.formats.gguf_header import GGUFTensor, Header
from minilora.formats.mapped import map_file, printable
from minilora.formats.quant import STORAGES, dequantize

__all__ = ["GGUFFile", "GGUFTensor", "open_gguf"]


class GGUFFile:
    """Metadata and named tensors of a GGUF file that is mapped and checked.

    path       as given
    version    2 or 3
    alignment  bytes
    metadata   key -> int, float, bool, str, or a list of one of these
    tensors    name -> GGUFTensor, in the order of their bytes
    """

    def __init__(self, path: str | os.PathLike[str], data: mmap.mmap | bytes) -> None:
        self.path = os.fspath(path)
        self._data = data
        header = Header(self.path, data)
        self.version = header.version
        self.metadata = header.metadata
        self.alignment = header.alignment
        self.tensors = header.tensors

    def blocks(self, name: str) -> npt.NDArray[np.uint8]:
        """View a tensor's bytes, (rows, bytes per row), read-only; rows run over all axes but the last."""
        tensor = self._tensor(name)
        rows = math.prod(tensor.shape[:-1])
        return np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.begin).reshape(rows, -1)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """Decode a tensor to float32 of its shape; an f32 tensor is a read-only view of the file.

        Raises FormatError for an unknown name and for a storage that minilora cannot decode.
        """
        tensor = self._tensor(name)
        if tensor.storage not in STORAGES:
            raise FormatError(
                f"{self.path}: tensor {printable(name)} is stored as {tensor.storage}, which minilora cannot decode; "
                f"expected one of {', '.join(STORAGES)}; convert the model to one of these"
            )
        if tensor.storage == "f32":
            view = np.frombuffer(self._data, "<f4", tensor.nbytes // 4, tensor.begin).reshape(tensor.shape)
            return np.require(view, np.float32, "A")
        return dequantize(self.blocks(name), tensor.storage).reshape(tensor.shape)

    def _tensor(self, name: str) -> GGUFTensor:
        try:
            return self.tensors[name]
        except KeyError:
            shown = ", ".join(printable(known) for known in list(self.tensors)[:5])
            raise FormatError(
                f"{self.path}: no tensor {printable(name)}; the file holds {len(self.tensors)}: {shown}"
                f"{', ...' if len(self.tensors) > 5 else ''}"
            ) from None


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map a GGUF file and check its metadata and its directory of tensors.

    Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

    Raises MiniloraError when the file cannot be opened, FormatError when it breaks a rule; the message
    names the byte, the field and its value.
    """
    return GGUFFile(path, map_file(path))
