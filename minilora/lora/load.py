"""Load an adapter as proof: everything in the file is used, fits and has an effect, or nothing is changed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import AdapterError
from minilora.formats.mapped import printable
from minilora.formats.peft import CONFIG_NAME, PeftAdapter, read_peft, tensor_name
from minilora.lora.attach import attach, check_new_name, low_rank
from minilora.lora.config import LoraConfig
from minilora.lora.peft_config import from_peft
from minilora.lora.receipt import (
    LayerReceipt,
    Receipt,
    Stamp,
    change_norm,
    read_stamp,
    weight_identity,
    weight_norm,
)
from minilora.lora.save import NOTE, STAMP
from minilora.lora.targets import describe, find_targets
from minilora.nn import Linear, Module

_ACCEPTED = (np.dtype(np.float32), np.dtype(np.float16))  # bfloat16 arrives as float32
_LARGEST = float(np.finfo(np.float32).max)
_MOST_ROWS = 12  # lines of a table of complaints
_OTHERS = {
    "lora_magnitude_vector": "DoRA is not supported yet",
    "lora_embedding": "adapters of embeddings are not supported yet",
    "base_layer.bias": "trained biases are not supported yet",
    "lora_A.weight": "only adapters of Linear layers, with two axes, are supported",
    "lora_B.weight": "only adapters of Linear layers, with two axes, are supported",
}


def load_adapter(
    model: Module,
    path: str | os.PathLike[str],
    name: str = "default",
    trainable: bool = False,
    *,
    verify: bool = True,
) -> Receipt:
    """Attach the adapter in the PEFT folder ``path`` and return what it holds and does.

    trainable  go on training it; an adapter without effect is then no error
    verify     compare what minilora noted in the file when saving: the scale of each layer, and the hash of each
               base weight. A file of another tool has no such notes

    The first adapter of a model becomes the active one. Raises a MiniloraError for anything that does not fit:
    a damaged file, settings that are not supported, missing, extra, misshapen or non-finite tensors, no effect,
    another base model. The model is then as it was.
    """
    check_new_name(model, name)
    file = read_peft(path)
    where = str(file.folder / CONFIG_NAME)
    config = from_peft(file.config, where)
    try:
        targets = find_targets(model, config)
    except AdapterError as error:
        raise AdapterError(f"{where}: {error}\nNothing was loaded.") from None
    _check_tensors(model, file, config, targets)
    stamp = read_stamp(file.metadata[STAMP], str(file.tensors_path)) if STAMP in file.metadata else None
    base = _compare_base(model, file, config, targets, stamp) if verify else "not compared"

    made, layers = {}, []
    for at, layer in targets.items():
        dtype = layer.weight.dtype
        a, b = (np.ascontiguousarray(file.factors[at][part], dtype) for part in "AB")
        made[at] = low_rank(layer, config, at, a, b, trainable=trainable)
        change = abs(config.scale(at)) * change_norm(a, b)
        layers.append(LayerReceipt(at, a.shape[1], config.scale(at), change, weight_norm(layer)))
    receipt = Receipt(
        name=name,
        source=str(file.folder),
        model=describe(model),
        used=tuple(tensor_name(at, part) for at in targets for part in "AB"),
        missing=(),
        unused=tuple(_base_copies(file, targets)),
        layers=tuple(layers),
        base=base,
        metadata={key[len(NOTE) :]: text for key, text in file.metadata.items() if key.startswith(NOTE)},
    )
    _check_effect(file, receipt, trainable)
    attach(model, name, config, made)
    return receipt


@dataclass(frozen=True)
class _Misfit:
    tensor: str
    found: str
    wanted: str


def _check_tensors(model: Module, file: PeftAdapter, config: LoraConfig, targets: Mapping[str, Linear]) -> None:
    """Raise AdapterError with one line for each tensor that is missing, extra, misshapen or not finite."""
    misfits = []
    for at, layer in targets.items():
        misfits += _misfits(at, file.factors.get(at, {}), config, layer)
    modules = dict(model.named_modules())
    for at, parts in file.factors.items():
        if at not in targets:
            reason = _extra(at, modules)
            misfits += [
                _Misfit(tensor_name(at, part), f"file {_in_file(array)}", reason) for part, array in parts.items()
            ]
    copies = _base_copies(file, targets)
    for tensor, array in file.others.items():
        if tensor in copies:
            continue
        reason = next((text for key, text in _OTHERS.items() if key in tensor), "no tensor of a LoRA adapter")
        misfits.append(_Misfit(tensor, f"file {array.shape}", reason))
    if not misfits:
        return
    total = sum(map(len, file.factors.values())) + len(file.others)
    shown = misfits[:_MOST_ROWS]
    names = [_plain(misfit.tensor) for misfit in shown]
    left, middle = max(map(len, names)), max(len(misfit.found) for misfit in shown)
    rows = [
        f"  {name:<{left}}   {misfit.found:<{middle}}   {misfit.wanted}"
        for name, misfit in zip(names, shown, strict=True)
    ]
    if len(misfits) > len(shown):
        rows.append(f"  ... and {len(misfits) - len(shown)} more")
    raise AdapterError(
        f"{file.tensors_path} does not fit {describe(model)} ({len(misfits)} tensors; the file has {total})\n"
        + "\n".join(rows)
        + f"\nNothing was loaded.{_guess(file, config, targets)}"
    )


def _misfits(at: str, parts: Mapping[str, NDArray[Any]], config: LoraConfig, layer: Linear) -> list[_Misfit]:
    """What is wrong with the factors of one targeted layer."""
    (width_in, width_out), rank = layer.weight.shape, config.rank(at)
    wanted = {"A": (width_in, rank), "B": (rank, width_out)}
    swapped = all(part in parts and parts[part].shape == wanted[other] for part, other in ("AB", "BA"))
    found = []
    for part, shape in wanted.items():
        tensor, array = tensor_name(at, part), parts.get(part)
        need = f"model needs {shape[::-1]}"
        if array is None:
            found.append(_Misfit(tensor, "missing", need))
        elif array.dtype not in _ACCEPTED:
            found.append(_Misfit(tensor, f"file dtype {array.dtype}", "wanted F32, F16 or BF16"))
        elif array.shape != shape:
            note = "; lora_A and lora_B are swapped" if swapped else ""
            found.append(_Misfit(tensor, f"file {_in_file(array)}", need + note))
        elif not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            found.append(_Misfit(tensor, f"{count} of {array.size} are NaN or infinite", "wanted finite numbers"))
    if not found and abs(config.scale(at)) * change_norm(parts["A"], parts["B"]) > _LARGEST:
        found.append(_Misfit(tensor_name(at, "B"), "scale · A · B overflows float32", "wanted finite numbers"))
    return found


def _base_copies(file: PeftAdapter, targets: Mapping[str, Linear]) -> list[str]:
    """Names of copies of base weights: PEFT adds one for an adapted output head. They are not needed."""
    wanted = {f"base_model.model.{at}.base_layer.weight": layer.weight.shape[::-1] for at, layer in targets.items()}
    return [tensor for tensor, array in file.others.items() if wanted.get(tensor) == array.shape]


def _in_file(array: NDArray[Any]) -> tuple[int, ...]:
    return array.shape[::-1]


def _plain(name: str) -> str:
    """A tensor's name as it is where it can be printed, else quoted."""
    return name if name.isprintable() and len(name) <= 200 else printable(name)


def _extra(at: str, modules: Mapping[str, Module]) -> str:
    """Why the model has no use for tensors of the module at ``at``."""
    if isinstance(modules.get(at), Linear):
        return "adapter_config.json does not target this module"
    if at in modules:
        return f"model has a {type(modules[at]).__name__} there, wanted a Linear"
    parts = at.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal() and ".".join(parts[: index + 1]) not in modules:
            prefix = ".".join(parts[:index]) + "."
            below = {path[len(prefix) :].split(".")[0] for path in modules if path.startswith(prefix)}
            numbers = sorted(int(number) for number in below if number.isdecimal())
            if numbers:
                return f"model has {parts[index - 1]} {numbers[0]}..{numbers[-1]}"
    return "model has no such module"


def _guess(file: PeftAdapter, config: LoraConfig, targets: Mapping[str, Linear]) -> str:
    """A sentence on what the shapes tell, if they all tell the same."""
    ranks, widths = set(), set()
    for at, layer in targets.items():
        a = file.factors.get(at, {}).get("A")
        if a is None:
            return ""
        ranks.add((a.shape[1], config.rank(at)))
        widths.add((a.shape[0], layer.weight.shape[0]))
    wrong_ranks = {pair for pair in ranks if pair[0] != pair[1]}
    wrong_widths = {pair for pair in widths if pair[0] != pair[1]}
    if len(wrong_ranks) == 1 and not wrong_widths:
        (found, stated) = wrong_ranks.pop()
        return f"  The file's rank is {found}, but {CONFIG_NAME} says {stated}."
    if wrong_widths and not wrong_ranks:
        found, needed = min(wrong_widths)
        return f"  The file looks made for a model with width {found} where this one has {needed}."
    return ""


def _compare_base(
    model: Module, file: PeftAdapter, config: LoraConfig, targets: Mapping[str, Linear], stamp: Stamp | None
) -> str:
    """Compare scales and base weights with those noted in the file; returns the finding in words."""
    if stamp is None:
        return "not recorded in the file"
    where = file.tensors_path
    for at in targets:
        noted = stamp.layers.get(at)
        if noted is None or not math.isclose(noted[0], config.scale(at), rel_tol=1e-9):
            was = f"scale {noted[0]:.6g}" if noted else "not adapted"
            raise AdapterError(
                f"{where}: {at} was {was} when this was saved, but {CONFIG_NAME} now gives scale "
                f"{config.scale(at):.6g}\n"
                f"  {CONFIG_NAME} was changed (r, lora_alpha, use_rslora or a pattern): restore it, or pass "
                "verify=False to load it as it stands\nNothing was loaded."
            )
    differ, elsewhere = [], set()
    for at, layer in targets.items():
        _, storage, digest = stamp.layers[at]
        live = weight_identity(layer)
        if live[0] != storage:
            elsewhere.add((storage, live[0]))
        elif live[1] != digest:
            differ.append(at)
    if differ:
        raise AdapterError(
            f"{where}: trained on other base weights: of {printable(stamp.model)}, which differ from those of "
            f"{describe(model)} in {len(differ)} of {len(targets)} adapted layers, first in {differ[0]}\n"
            "  load the model it was trained on, or pass verify=False to use it all the same\nNothing was loaded."
        )
    if elsewhere:
        was, now = min(elsewhere)
        finding = f"trained on weights stored as {printable(was)}, used on {now}: hashes cannot be compared"
        warnings.warn(f"{file.folder}: {finding}", UserWarning, stacklevel=3)
        return finding
    return "the ones it was trained on (SHA-256)"


def _check_effect(file: PeftAdapter, receipt: Receipt, trainable: bool) -> None:
    if not trainable and not receipt.effective:
        raise AdapterError(
            f"{file.tensors_path}: this adapter does nothing: A · B is zero in all {len(receipt.layers)} layers\n"
            "  it was saved before it was trained; pass trainable=True to train it\nNothing was loaded."
        )
