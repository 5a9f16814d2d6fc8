"""Receipts: what loading an adapter did, and what a saved adapter notes about the weights it was trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import FormatError
from minilora.formats.mapped import printable
from minilora.formats.peft import parse_json
from minilora.kernels import FrozenWeight
from minilora.nn import Linear, LowRank

_VERSION = 1


@dataclass(frozen=True)
class LayerReceipt:
    """What an adapter does to one layer.

    change  Frobenius norm of scale · A · B
    weight  Frobenius norm of W
    """

    path: str
    rank: int
    scale: float
    change: float
    weight: float

    @property
    def relative(self) -> float:
        """Size of the change in units of W: |ΔW| / |W|."""
        if self.weight:
            return self.change / self.weight
        return math.inf if self.change else 0.0


@dataclass(frozen=True)
class Receipt:
    """What load_adapter found in a file and what it does to the model; str() is a table.

    used       names of tensors that were loaded
    missing    names that the model or the settings ask for and the file lacks
    unused     names that the file holds and nothing asks for, such as a copy of a base weight
    layers     one LayerReceipt for each adapted layer
    effective  whether the adapter changes anything
    base       how the model's weights compare with those it was trained on
    metadata   what was noted in the file when it was saved
    """

    name: str
    source: str
    model: str
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    layers: tuple[LayerReceipt, ...]
    base: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def effective(self) -> bool:
        return any(layer.change > 0 for layer in self.layers)

    def __str__(self) -> str:
        effect = "changes the model" if self.effective else "has no effect"
        width = max((len(layer.path) for layer in self.layers), default=5)
        lines = [
            f"adapter {self.name!r} from {self.source} on {self.model}: {effect}",
            f"tensors: {len(self.used)} used, {len(self.missing)} missing, {len(self.unused)} unused",
            f"base weights: {self.base}",
            f"{'layer':<{width}}  {'r':>4}  {'scale':>8}  {'|dW|':>10}  {'|dW|/|W|':>10}",
        ]
        lines += [
            f"{layer.path:<{width}}  {layer.rank:>4}  {layer.scale:>8.4g}  {layer.change:>10.4g}  "
            f"{layer.relative:>10.3e}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def change_norm(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the Frobenius norm of A @ B from the (r, r) Gram matrices: A · B itself may be large."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return math.sqrt(max(float(np.sum((a.T @ a) * (b @ b.T))), 0.0))


def weight_norm(layer: Linear) -> float:
    """Return the Frobenius norm of a layer's W."""
    weight = layer.weight
    flat = (weight.dequantize().T if isinstance(weight, FrozenWeight) else weight.data).reshape(-1)
    # In pieces of a million, summed in double: one float32 sum over 10^8 squares would lose digits.
    pieces = (flat[i : i + (1 << 20)] for i in range(0, flat.size, 1 << 20))
    return math.sqrt(math.fsum(float(np.dot(piece, piece)) for piece in pieces))


def weight_identity(layer: Linear) -> tuple[str, str]:
    """Return (storage, SHA-256) of a layer's W, read from live memory.

    Over the bytes in file layout, (out, in), so that it does not depend on how the matrix lies in memory.
    """
    weight = layer.weight
    if isinstance(weight, FrozenWeight) and weight.storage not in ("f32", "f64"):
        return weight.storage, weight.sha256()
    matrix = weight.dequantize() if isinstance(weight, FrozenWeight) else weight.data
    stored = np.ascontiguousarray(matrix.T, matrix.dtype.newbyteorder("<"))
    return f"f{8 * matrix.dtype.itemsize}", hashlib.sha256(stored.data).hexdigest()


def write_stamp(model: str, layers: Mapping[str, tuple[Linear, LowRank]]) -> str:
    """Return what a saved adapter notes of its base: each adapted layer's scale, storage and hash, as JSON."""
    noted = {}
    for path, (layer, low) in layers.items():
        storage, digest = weight_identity(layer)
        noted[path] = {"scale": low.scale, "storage": storage, "sha256": digest}
    return json.dumps({"version": _VERSION, "model": model, "layers": noted}, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Stamp:
    """What a file notes: the model's name, and path -> (scale, storage, SHA-256 of W)."""

    model: str
    layers: dict[str, tuple[float, str, str]]


def read_stamp(text: str, where: str) -> Stamp:
    """Parse what ``write_stamp`` wrote. Raises FormatError, beginning with ``where``, for anything else."""
    where = f"{where}: metadata 'minilora.receipt'"
    data = parse_json(text.encode("utf-8", "surrogatepass"), where)
    if data.get("version") != _VERSION:
        raise FormatError(
            f"{where}: version is {printable(str(data.get('version')))}, expected {_VERSION}; update minilora"
        )
    model, layers = data.get("model"), data.get("layers")
    if not isinstance(model, str) or not isinstance(layers, dict):
        raise FormatError(f"{where}: no model and layers; the file is damaged")
    noted = {}
    for path, entry in layers.items():
        values = [entry.get(key) for key in ("scale", "storage", "sha256")] if isinstance(entry, dict) else []
        match values:
            case [float() | int() as scale, str() as storage, str() as digest] if not isinstance(scale, bool):
                noted[path] = (scale, storage, digest)
            case _:
                raise FormatError(f"{where}: entry {printable(path)} is not complete; the file is damaged")
    return Stamp(model, noted)
