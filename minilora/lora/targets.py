"""Which linear layers of a model a LoraConfig means, by PEFT's rules, and what to say when it means none."""

from __future__ import annotations

import difflib
from collections import Counter

from minilora.errors import AdapterError
from minilora.formats.mapped import printable
from minilora.lora.config import LoraConfig
from minilora.lora.pattern import Patterns
from minilora.nn import Linear, LowRank, Module


def find_targets(model: Module, config: LoraConfig) -> dict[str, Linear]:
    """Return path -> layer for every Linear that ``config`` targets, in the model's order.

    Raises AdapterError where a name or pattern matches nothing, where the rest of the settings leaves nothing
    of what it matched, and where it matches a module that is no Linear: with the names that exist.
    """
    modules = _modules(model)
    if config.all_linear:
        head = getattr(model, "output_head", "lm_head")
        matched = [path for path, module in modules.items() if isinstance(module, Linear) and path != head]
    elif config.target_pattern is not None:
        matched = [path for path in modules if config.target_pattern.first(path) is not None]
    else:
        matched = _by_name(modules, config, describe(model))
    if not matched:
        raise AdapterError(
            f"target_modules {printable(str(config.target_modules))} matches no module of {describe(model)}\n"
            f"  {_existing(modules, config.target_modules)}"
        )
    kept = [path for path in matched if not _excluded(path, config) and _in_layers(path, config)]
    if not kept:
        raise AdapterError(
            f"target_modules matches {len(matched)} modules of {describe(model)}, but exclude_modules "
            f"{config.exclude_modules!r} and layers_to_transform {config.layers_to_transform!r} leave none\n"
            f"  the first that matched is {matched[0]!r}: change what leaves it out"
        )
    wrong = [path for path in kept if not isinstance(modules[path], Linear)]
    if wrong:
        kind = type(modules[wrong[0]]).__name__
        raise AdapterError(
            f"target_modules matches {wrong[0]!r} of {describe(model)}, which is no Linear but {kind}"
            f"{f', and {len(wrong) - 1} more like it' if len(wrong) > 1 else ''}; only Linear layers are supported\n"
            f"  make it narrower: {_existing(modules, None)}"
        )
    return {path: module for path in kept if isinstance(module := modules[path], Linear)}


def describe(model: Module) -> str:
    """Return the name of a model for messages: what its configuration calls it, or its class."""
    name = getattr(getattr(model, "config", None), "name", None)
    return name if isinstance(name, str) and name.isprintable() and name else type(model).__name__


def smallest_names(model: Module, paths: list[str]) -> list[str]:
    """Return names that, as target_modules, mean exactly ``paths``: last parts where they suffice."""
    wanted = set(paths)
    last = {path.rpartition(".")[2] for path in paths}
    meant = {path for path in _modules(model) if path.rpartition(".")[2] in last}
    return sorted(last if meant == wanted else wanted)


def linear_layers(model: Module) -> dict[str, Linear]:
    """Return path -> layer for every Linear, a shared one once."""
    return {path: module for path, module in _modules(model).items() if isinstance(module, Linear)}


def _modules(model: Module) -> dict[str, Module]:
    """Every module by path, a shared one at its first, without those that adapters brought."""
    first: dict[int, tuple[str, Module]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, LowRank):
            first.setdefault(id(module), (path, module))
    return dict(first.values())


def _endings(path: str) -> set[str]:
    """The names that mean ``path``: itself, and what follows each of its dots."""
    parts = path.split(".")
    return {".".join(parts[at:]) for at in range(len(parts))}


def _by_name(modules: dict[str, Module], config: LoraConfig, model: str) -> list[str]:
    """Paths that a list of names matches; each name must match something."""
    names = set(config.target_modules or ())
    matched = {path: hits for path in modules if (hits := names & _endings(path))}
    nothing = sorted(names.difference(*matched.values()))
    if nothing:
        raise AdapterError(
            f"target_modules {', '.join(map(printable, nothing[:8]))} matches no module of {model}\n"
            f"  {_existing(modules, nothing[0])}"
        )
    return list(matched)


def _excluded(path: str, config: LoraConfig) -> bool:
    if config.exclude_pattern is not None:
        return config.exclude_pattern.first(path) is not None
    return not _endings(path).isdisjoint(config.exclude_modules or ())


def _in_layers(path: str, config: LoraConfig) -> bool:
    """PEFT's rule: a path that is itself a target is not asked for its layer."""
    wanted = config.layers_to_transform
    if wanted is None or path in (config.target_modules or ()):
        return True
    index = layer_index(path, config.layer_lists)
    return index is not None and (index == wanted if isinstance(wanted, int) else index in wanted)


def layer_index(path: str, lists: Patterns | None) -> int | None:
    """Return the number that counts ``path``'s layer, or None.

    It is the first number after a module that the first of ``lists`` to match any matches, or without lists
    the first number that stands at least two modules below the root; it never is the last part of a path.
    """
    parts = path.split(".")
    if lists is None:
        numbers = (part for part in parts[2:-1] if part.isdecimal())
        return next((int(part) for part in numbers), None)
    counted = [at for at in range(1, len(parts) - 1) if parts[at].isdecimal()]
    matched = [(index, at) for at in counted if (index := lists.first(".".join(parts[:at]))) is not None]
    return int(parts[min(matched)[1]]) if matched else None


def _existing(modules: dict[str, Module], wanted: object) -> str:
    """Say which names exist, how often, and which is nearest to what was wanted."""
    linear = Counter(path.rpartition(".")[2] for path, module in modules.items() if isinstance(module, Linear) and path)
    if not linear:
        return "it has no Linear layer"
    names = ", ".join(f"{name} ({count})" for name, count in list(linear.items())[:20])
    text = f"its Linear layers are {names}{', ...' if len(linear) > 20 else ''}"
    near: list[str] = []
    if isinstance(wanted, str):
        near = difflib.get_close_matches(wanted[:200].rpartition(".")[2], linear, n=1)
    return f"{text}; did you mean {near[0]!r}?" if near else text
