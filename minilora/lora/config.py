"""LoraConfig: the settings of one adapter, named as in PEFT, and the rank and scale they give each module."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from minilora.errors import ConfigError
from minilora.lora.pattern import Patterns

ALL_LINEAR = "all-linear"
MAX_RANK = 1 << 20  # far above every matrix's full rank, far below trouble


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of one adapter. Names, defaults and meanings are those of PEFT's LoraConfig.

    r                    rank: columns of A, rows of B
    lora_alpha           the update is scaled by lora_alpha / r
    target_modules       names (equal, or ending in "." + name), a regular expression that matches a whole
                         path, or "all-linear": every Linear but the output head
    lora_dropout         share of an adapter's inputs dropped while training, [0, 1)
    use_rslora           scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732)
    init_lora_weights    True: A uniform in ±1 / sqrt(in), B zero; "gaussian": A normal with standard
                         deviation 1 / r, B zero; False: both random, so the start is no no-op
    rank_pattern         path or regular expression -> r of the modules it matches
    alpha_pattern        path or regular expression -> lora_alpha of the modules it matches
    exclude_modules      names or a regular expression, as target_modules: what not to adapt
    layers_to_transform  index or indices of the layers to adapt; needs target_modules as names
    layers_pattern       name or names of the list that the index counts, such as "layers"
    use_dora, modules_to_save, bias   only at PEFT's defaults: the rest is not supported yet

    Raises ConfigError that names every setting out of range.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | tuple[str, ...] | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    bias: str = "none"

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            self._set(name, _sorted_names(getattr(self, name)))
        if isinstance(self.layers_to_transform, list | tuple | set | frozenset | range):
            indices = tuple(self.layers_to_transform)
            self._set("layers_to_transform", tuple(sorted(set(indices))) if all(map(_whole, indices)) else indices)
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            self._set(name, dict(value or {}) if value is None or isinstance(value, Mapping) else value)
        wrong = [
            f"{name} is {_shown(getattr(self, name))}, wanted {wanted}{_nearest(getattr(self, name), choices)}"
            for name, (wanted, holds, choices) in _RULES.items()
            if not holds(getattr(self, name))
        ]
        wrong += self._contradictions()
        if wrong:
            raise ConfigError("LoraConfig: " + "\n  ".join(wrong))
        # Compiled now, so that a bad pattern is refused here.
        _ = self._ranks, self._alphas, self.target_pattern, self.exclude_pattern, self.layer_lists

    def _contradictions(self) -> list[str]:
        wrong = []
        if self.target_modules is None:
            wrong.append(
                f'target_modules is missing; name the modules to adapt, or "{ALL_LINEAR}" for every linear layer'
            )
        if isinstance(self.target_modules, str):
            wrong += [
                f"{name} needs target_modules as a list of names, not as the text {_shown(self.target_modules)}"
                for name in ("layers_to_transform", "layers_pattern")
                if getattr(self, name) is not None
            ]
        if self.layers_pattern is not None and self.layers_to_transform is None:
            wrong.append("layers_pattern means nothing without layers_to_transform; give the indices, or neither")
        return wrong

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def _ranks(self) -> Patterns:
        return Patterns(list(self.rank_pattern), "rank_pattern", as_suffix=True)

    @cached_property
    def _alphas(self) -> Patterns:
        return Patterns(list(self.alpha_pattern), "alpha_pattern", as_suffix=True)

    @cached_property
    def target_pattern(self) -> Patterns | None:
        """The regular expression of target_modules, if it is one."""
        text = self.target_modules
        return Patterns([text], "target_modules") if isinstance(text, str) and not self.all_linear else None

    @cached_property
    def exclude_pattern(self) -> Patterns | None:
        """The regular expression of exclude_modules, if it is one."""
        text = self.exclude_modules
        return Patterns([text], "exclude_modules") if isinstance(text, str) else None

    @cached_property
    def layer_lists(self) -> Patterns | None:
        """The names in layers_pattern, matching the path of the list that holds the layers."""
        names = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern or ()
        return Patterns(names, "layers_pattern", as_suffix=True) if names else None

    @property
    def all_linear(self) -> bool:
        """Whether target_modules is the word for every Linear but the output head."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def rank(self, path: str) -> int:
        """Return r of the module at ``path``: that of the first key of rank_pattern that matches, or r."""
        index = self._ranks.first(path)
        return self.r if index is None else list(self.rank_pattern.values())[index]

    def alpha(self, path: str) -> float:
        """Return lora_alpha of the module at ``path``, by alpha_pattern as ``rank`` by rank_pattern."""
        index = self._alphas.first(path)
        return self.lora_alpha if index is None else list(self.alpha_pattern.values())[index]

    def scale(self, path: str) -> float:
        """Return the factor on x · A · B at ``path``: alpha / r, or alpha / sqrt(r) with use_rslora."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)


def _sorted_names(value: Any) -> Any:
    """A list of names as a sorted tuple without repeats; anything else as it is, for the rules to judge."""
    if not isinstance(value, list | tuple | set | frozenset):
        return value
    names = tuple(value)
    return tuple(sorted(set(names))) if all(isinstance(name, str) for name in names) else names


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rank(value: Any) -> bool:
    return _whole(value) and 1 <= value <= MAX_RANK


def _alpha(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value != 0
    except OverflowError:  # an int too large for a float
        return False


def _names(value: Any) -> bool:
    if isinstance(value, str):
        return value != ""
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


def _indices(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(_whole(index) and index >= 0 for index in value)
    return _whole(value) and value >= 0


def _table(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(key, str) and key and holds(item) for key, item in value.items())
    )


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


_NAMES = "names, or one regular expression"
_INITS = ("gaussian", "True", "False")
_LATER = "(the rest is not supported yet)"

# Setting -> what is wanted, whether a value is that, and words it may be a misspelling of.
_RULES: dict[str, tuple[str, Callable[[Any], bool], tuple[str, ...]]] = {
    "r": (f"a whole number from 1 to {MAX_RANK}", _rank, ()),
    "lora_alpha": ("a finite number other than 0, which would turn the adapter off", _alpha, ()),
    "target_modules": (f'{_NAMES}, or "{ALL_LINEAR}"', _or_none(_names), ()),
    "lora_dropout": (
        "a number in [0, 1)",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
        (),
    ),
    "use_rslora": ("True or False", lambda value: isinstance(value, bool), ()),
    "use_dora": (f"False {_LATER}", lambda value: value is False, ()),
    "init_lora_weights": (
        f'True, False or "gaussian" {_LATER}',
        lambda value: isinstance(value, bool) or value == "gaussian",
        _INITS,
    ),
    "rank_pattern": (f"a mapping from paths or patterns to whole numbers, 1 to {MAX_RANK}", _table(_rank), ()),
    "alpha_pattern": ("a mapping from paths or patterns to finite numbers other than 0", _table(_alpha), ()),
    "exclude_modules": (_NAMES, _or_none(_names), ()),
    "layers_to_transform": ("an index >= 0, or several", _or_none(_indices), ()),
    "layers_pattern": ("a name, or several", _or_none(_names), ()),
    "modules_to_save": (f"None {_LATER}", lambda value: value is None, ()),
    "bias": (f'"none" {_LATER}', lambda value: value == "none", ("none",)),
}
SETTINGS = tuple(item.name for item in fields(LoraConfig))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(value: Any, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near and near[0] != value else ""
