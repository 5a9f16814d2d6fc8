"""Read and write PEFT's adapter folder: adapter_config.json and adapter_model.safetensors, as plain data.

Facts are of PEFT 0.21. What the settings mean is the business of ``minilora.lora``; here the files are checked
as files, and arrays turned between their layout, A (r, in) and B (out, r), and ours, A (in, r) and B (r, out).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import FormatError, MiniloraError
from minilora.formats.atomic import write_atomically
from minilora.formats.mapped import printable, read_file
from minilora.formats.safetensors import read_safetensors, write_safetensors

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
MAX_CONFIG = 4 << 20  # bytes of adapter_config.json

_PREFIX = "base_model.model."
_SUFFIXES = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter folder holds.

    folder    as given
    config    adapter_config.json, as parsed
    factors   module path -> {"A": (in, r), "B": (r, out)}, either perhaps absent, in the file's dtype
              (bfloat16 as float32), C-contiguous copies
    others    tensors under any other name, as they lie in the file
    metadata  of the safetensors file
    """

    folder: Path
    config: dict[str, Any]
    factors: dict[str, dict[str, NDArray[Any]]]
    others: dict[str, NDArray[Any]]
    metadata: dict[str, str]

    @property
    def tensors_path(self) -> Path:
        return self.folder / TENSORS_NAME


def tensor_name(path: str, part: str) -> str:
    """Return PEFT's name for factor ``part``, "A" or "B", of the module at ``path``."""
    return f"{_PREFIX}{path}{_SUFFIXES[part]}"


def read_peft(folder: str | os.PathLike[str]) -> PeftAdapter:
    """Read an adapter folder that PEFT or minilora wrote; both files are read whole, nothing else is opened.

    Raises MiniloraError where a file cannot be opened, FormatError where one is damaged or another format.
    """
    folder = Path(folder)
    _check_folder(folder)
    config = _read_config(folder / CONFIG_NAME)
    arrays, metadata = read_safetensors(folder / TENSORS_NAME)
    factors: dict[str, dict[str, NDArray[Any]]] = {}
    others = {}
    for name, array in arrays.items():
        part = next((part for part, suffix in _SUFFIXES.items() if name.endswith(suffix)), None)
        if part is None or not name.startswith(_PREFIX) or array.ndim != 2:
            others[name] = array
        else:
            path = name[len(_PREFIX) : -len(_SUFFIXES[part])]
            factors.setdefault(path, {})[part] = np.array(array.T, order="C")
    return PeftAdapter(folder, config, factors, others, metadata)


def write_peft(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    factors: Mapping[str, Mapping[str, NDArray[Any]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter folder; the same arguments give the same bytes.

    config    fields of adapter_config.json. Keys and lists are sorted, but not inside rank_pattern and
              alpha_pattern, where the first key that matches wins
    factors   module path -> {"A": (in, r), "B": (r, out)}, written as float32
    metadata  more keys for the safetensors file, beside PEFT's "format": "pt"

    Each file appears whole or not at all. Raises MiniloraError when the disk refuses.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniloraError(
            f"{folder}: cannot make this folder: {error.strerror or error}; choose another path"
        ) from error
    tensors = {
        tensor_name(path, part): np.asarray(array, np.float32).T
        for path, parts in factors.items()
        for part, array in parts.items()
    }
    write_safetensors(folder / TENSORS_NAME, tensors, {**(metadata or {}), "format": "pt"})
    ordered = {name: sorted(value) if isinstance(value, list) else value for name, value in sorted(config.items())}
    text = json.dumps(ordered, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / CONFIG_NAME, [text.encode("utf-8")])


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object strictly: UTF-8, no key twice, no NaN or Infinity, bounded depth and digits.

    Raises FormatError that begins with ``where``.
    """
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{where}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}; the file is damaged"
        ) from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply; an adapter's settings are a few levels deep") from None
    except ValueError as error:  # of the hooks below, or an integer of thousands of digits
        raise FormatError(f"{where}: {error}; the file is damaged") from None
    if not isinstance(parsed, dict):
        raise FormatError(f"{where}: holds a JSON {type(parsed).__name__}, expected an object of settings")
    return parsed


def _read_config(path: Path) -> dict[str, Any]:
    return parse_json(read_file(path, limit=MAX_CONFIG), str(path))


def _check_folder(folder: Path) -> None:
    wanted = f"expected a folder that holds {CONFIG_NAME} and {TENSORS_NAME}"
    if "\0" in str(folder):
        raise MiniloraError(f"{printable(str(folder))}: not a usable path; {wanted}")
    try:
        exists, is_folder = folder.exists(), folder.is_dir()
        names = set(os.listdir(folder)) if is_folder else set()
    except OSError as error:
        raise MiniloraError(f"{folder}: cannot read: {error.strerror or error}; {wanted}") from error
    if not exists:
        raise MiniloraError(f"{folder}: no such folder; {wanted}")
    if not is_folder:
        raise FormatError(f"{folder}: this is a file; {wanted}: give the folder's name")
    if TENSORS_NAME not in names and "adapter_model.bin" in names:
        raise FormatError(
            f"{folder}: holds adapter_model.bin, which is a pickle and could run any code: minilora never opens one\n"
            f"  where you trust it, load it with PEFT and call save_pretrained(): that writes {TENSORS_NAME}"
        )
    missing = [name for name in (CONFIG_NAME, TENSORS_NAME) if name not in names]
    if missing:
        found = ", ".join(printable(name) for name in sorted(names)[:8]) or "nothing"
        raise FormatError(f"{folder}: no {' and no '.join(missing)} here (found {found}); {wanted}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"has the key {printable(key)} twice")
        unique[key] = value
    return unique


def _no_constant(text: str) -> None:
    raise ValueError(f"holds {text}, which is not JSON")
