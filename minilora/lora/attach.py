"""Attach adapters to a model's linear layers, choose which one is active, and take them off again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minilora.autograd import Tensor, tensor
from minilora.errors import AdapterError, ConfigError
from minilora.formats.mapped import printable
from minilora.lora.config import LoraConfig
from minilora.lora.targets import describe, find_targets, linear_layers
from minilora.nn import AdapterChoice, Linear, LowRank, Module


class Adapters(AdapterChoice):
    """The adapters of one model: the choice that its layers share, and the settings of each by name."""

    __slots__ = ("configs",)

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[str, LoraConfig] = {}


def add_adapter(model: Module, config: LoraConfig, name: str = "default", seed: int = 0) -> None:
    """Attach a new, trainable adapter to every layer that ``config`` targets.

    seed  with a module's path, decides where its A starts: adding a target never changes another's start

    B starts at zero, so the model computes the very same as before. The first adapter becomes the active one.
    The model's own weights are not touched. Raises AdapterError where targets match nothing or ``name`` is
    taken, ConfigError for a bad argument; the model is then as it was.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"add_adapter: seed is {seed!r}, wanted a whole number")
    check_new_name(model, name)
    attach(
        model,
        name,
        config,
        {path: start(layer, config, path, seed) for path, layer in find_targets(model, config).items()},
    )


def start(layer: Linear, config: LoraConfig, path: str, seed: int) -> LowRank:
    """Draw the start of one layer's adapter from (seed, path) alone.

    A (in, r) is uniform in ±1 / sqrt(in), which is Kaiming's with a = sqrt(5) (He et al. 2015,
    arXiv:1502.01852), or normal with standard deviation 1 / r; B (r, out) is zero.
    """
    rank, (width_in, width_out) = config.rank(path), layer.weight.shape
    rng = generator(seed, path)
    dtype = layer.weight.dtype
    if config.init_lora_weights == "gaussian":
        a = rng.standard_normal((width_in, rank)) / rank
    else:
        a = _uniform(rng, width_in, (width_in, rank))
    b = np.zeros((rank, width_out)) if config.init_lora_weights else _uniform(rng, rank, (rank, width_out))
    return low_rank(layer, config, path, a.astype(dtype), b.astype(dtype), trainable=True, seed=seed)


def low_rank(
    layer: Linear, config: LoraConfig, path: str, a: Any, b: Any, *, trainable: bool, seed: int = 0
) -> LowRank:
    """Make the LowRank of one layer from its factors A (in, r) and B (r, out)."""
    made = LowRank(
        tensor(a, requires_grad=trainable),
        tensor(b, requires_grad=trainable),
        config.scale(path),
        config.lora_dropout,
        generator(seed, f"{path}\0dropout") if config.lora_dropout else None,
    )
    made.training = layer.training
    return made


def generator(seed: int, path: str) -> np.random.Generator:
    """Return the generator keyed by SHA-256 of (seed, path)."""
    key = hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def attach(model: Module, name: str, config: LoraConfig, made: Mapping[str, LowRank]) -> None:
    """Hang ready adapters on their layers, all or none, and make the first one active."""
    layers = {path: layer for path, layer in linear_layers(model).items() if path in made}
    choice = model.adapter_choice
    if not isinstance(choice, Adapters):
        choice = Adapters()
    for path, layer in layers.items():
        if layer.choice is not None and layer.choice is not choice:
            raise AdapterError(
                f"layer {path!r} of {describe(model)} carries adapters that were added to another module\n"
                "  add this one to that module too, or delete those first"
            )
    model.adapter_choice = choice
    for path, layer in layers.items():
        layer.adapters[name] = made[path]
        layer.choice = choice
    choice.configs[name] = config
    if choice.default is None:
        choice.default = name


def set_adapter(model: Module, name: str | None) -> None:
    """Make ``name`` the adapter of all later calls; None: no adapter.

    Raises AdapterError, with the names that exist, for one that does not.
    """
    if name is not None and not isinstance(name, str):
        raise ConfigError(
            f"set_adapter: got {printable(repr(name))}, wanted one name or None; several at once are not supported yet"
        )
    if name is None and model.adapter_choice is None:
        return
    adapters_of(model, name).default = name


@contextmanager
def adapters_disabled(model: Module) -> Iterator[None]:
    """Compute without any adapter inside this block, in this thread or task only."""
    if model.adapter_choice is None:
        yield
    else:
        with model.adapter_choice.during(None):
            yield


def adapter_parameters(model: Module, name: str | None = None) -> list[Tensor]:
    """Return what an optimiser should train: A and B of each layer in the model's order.

    name  the adapter; None: the active one

    Raises AdapterError where there is none, or it was loaded without trainable=True.
    """
    chosen = name if name is not None else active_adapter(model)
    if chosen is None:
        raise AdapterError(f"{describe(model)} has no active adapter to train\n  call add_adapter, or set_adapter")
    found = [factor for _, low in adapter_layers(model, chosen) for factor in (low.A, low.B)]
    if not any(factor.requires_grad for factor in found):
        raise AdapterError(f"adapter {chosen!r} of {describe(model)} is not trainable\n  load it with trainable=True")
    return [factor for factor in found if factor.requires_grad]


def delete_adapter(model: Module, name: str) -> None:
    """Take an adapter off; if it was active, none is active afterwards. Raises AdapterError if there is none."""
    choice = adapters_of(model, name)
    for layer in linear_layers(model).values():
        if layer.choice is choice:
            layer.adapters.pop(name, None)
            if not layer.adapters:
                layer.choice = None
    del choice.configs[name]
    if choice.default == name:
        choice.default = None


def active_adapter(model: Module) -> str | None:
    """Return the name that a call here and now would use; None where there is none, or one for each row of a batch."""
    name = None if model.adapter_choice is None else model.adapter_choice.current()
    return None if isinstance(name, tuple) else name


def adapter_layers(model: Module, name: str) -> list[tuple[str, LowRank]]:
    """Return (path of the Linear, its LowRank) for every layer that carries adapter ``name``."""
    adapters_of(model, name)
    layers = linear_layers(model).items()
    return [(path, layer.adapters[name]) for path, layer in layers if name in layer.adapters]


def adapters_of(model: Module, name: str | None = None) -> Adapters:
    """Return the model's Adapters. Raises AdapterError if there are none, or none of that name."""
    choice = model.adapter_choice
    names = list(choice.configs) if isinstance(choice, Adapters) else []
    if not isinstance(choice, Adapters) or (name is not None and name not in names):
        have = f"it has {', '.join(map(printable, names))}" if names else "it has none"
        raise AdapterError(
            f"{describe(model)} has no adapter {printable(str(name))}; {have}\n  call add_adapter or load_adapter first"
        )
    return choice


def check_new_name(model: Module, name: str) -> None:
    """Raise unless ``name`` may be given to a new adapter of this model."""
    if not isinstance(name, str) or not name or "." in name:
        raise ConfigError(f"adapter name is {name!r}, wanted text without dots")
    choice = model.adapter_choice
    if isinstance(choice, Adapters) and name in choice.configs:
        raise AdapterError(
            f"{describe(model)} already has an adapter {name!r}\n"
            "  pass another name, or call delete_adapter to drop the one it has"
        )


def _uniform(rng: np.random.Generator, fan_in: int, shape: tuple[int, int]) -> Any:
    bound = 1 / math.sqrt(max(fan_in, 1))
    return rng.uniform(-bound, bound, shape)
