"""Save an adapter as a PEFT folder: the same adapter gives the same bytes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

import numpy as np

from minilora.errors import AdapterError, ConfigError
from minilora.formats.peft import tensor_name, write_peft
from minilora.lora.attach import adapter_layers, adapters_of
from minilora.lora.peft_config import to_peft
from minilora.lora.receipt import write_stamp
from minilora.lora.targets import describe, linear_layers, smallest_names
from minilora.nn import Module

STAMP = "minilora.receipt"  # the key of the base's hashes in the metadata
NOTE = "minilora.note."  # what the keys of a caller's metadata begin with
_FORMATS = ("peft",)


def save_adapter(
    model: Module,
    path: str | os.PathLike[str],
    name: str = "default",
    format: str = "peft",
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write adapter ``name`` to the folder ``path``, for PEFT and for load_adapter.

    metadata  notes kept in the file; load_adapter gives them back in its receipt

    The file also notes the SHA-256 of every adapted base weight. Raises AdapterError for an adapter that does
    not exist or holds NaN or infinity (nothing is written then), ConfigError for a format that is not
    supported, MiniloraError where the disk refuses.
    """
    if format not in _FORMATS:
        near = difflib.get_close_matches(str(format).lower(), _FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"save_adapter: format is {format!r}, wanted 'peft' (others are not supported yet){hint}")
    config = adapters_of(model, name).configs[name]
    adapted = dict(adapter_layers(model, name))
    factors = {}
    with np.errstate(over="ignore"):
        for at, low in adapted.items():
            factors[at] = {"A": low.A.data.astype(np.float32), "B": low.B.data.astype(np.float32)}
    broken = [
        tensor_name(at, part)
        for at, parts in factors.items()
        for part, array in parts.items()
        if not np.isfinite(array).all()
    ]
    if broken:
        raise AdapterError(
            f"adapter {name!r} holds NaN or infinity in {len(broken)} of {2 * len(adapted)} tensors, "
            f"first in {broken[0]}\n  nothing was written; train it again from a good state, with a smaller lr"
        )
    targets = config.target_modules
    if config.all_linear:
        targets = tuple(smallest_names(model, list(adapted)))
    layers = linear_layers(model)
    write_peft(
        path,
        to_peft(
            config,
            targets if isinstance(targets, str) else list(targets or ()),
            task_type=getattr(model, "task_type", None),
        ),
        factors,
        {
            **{NOTE + key: text for key, text in (metadata or {}).items()},
            STAMP: write_stamp(describe(model), {at: (layers[at], low) for at, low in adapted.items()}),
        },
    )
