"""TrainConfig: every setting of a run, checked on construction, with hints for misspelt names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minilora.errors import ConfigError
from minilora.optim import SCHEDULES


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Fields are named as in PEFT and Hugging Face, flags as the fields.

    steps           optimiser steps; or
    epochs          passes over the data (3 where neither is given)
    batch_size      examples in one forward pass
    accumulate      forward passes in one step; the same step as one batch of all their examples
    max_length      tokens; longer examples are cut
    lr              largest learning rate
    schedule        "cosine", "linear" or "constant" after the warm-up
    warmup          steps over which lr rises; below 1: a share of the run
    weight_decay    of AdamW, decoupled
    max_grad_norm   gradients are scaled to this joint norm where theirs is larger; inf: never
    seed            of the order of examples and of the adapter's start
    eval_every      steps between held-out losses (always: before the first step and after the last)
    save_every      steps between saves (always: after the last)
    r               rank of the adapter
    lora_alpha      its scale times r (2 r where it is not given)
    target_modules  "all-linear", a regular expression, or module names
    lora_dropout    share of an adapter's inputs dropped while training, [0, 1)
    use_rslora      scale by 1 / sqrt(r) in place of 1 / r
    gradient_checkpointing  compute each layer again in backward: less memory, a third more time, the same adapter

    Raises ConfigError that names every setting out of range.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    max_length: int = 512
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None
    save_every: int | None = None
    r: int = 8
    lora_alpha: float | None = None
    target_modules: str | tuple[str, ...] = "all-linear"
    lora_dropout: float = 0.0
    use_rslora: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        wrong = [
            f"{name} is {getattr(self, name)!r}, wanted {wanted}"
            for name, (wanted, holds) in _RULES.items()
            if not holds(getattr(self, name))
        ]
        if self.steps is not None and self.epochs is not None:
            wrong.append(f"steps is {self.steps!r} and epochs is {self.epochs!r}, wanted one of the two")
        if wrong:
            raise ConfigError("settings: " + "; ".join(wrong))

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], *, where: str = "settings") -> TrainConfig:
        """Make a TrainConfig of named values, such as a parsed YAML file.

        Numbers that YAML 1.1 takes for text (``1e-3``, which it wants as ``1.0e-3``) are understood.

        Raises ConfigError that names each unknown setting, with the nearest name that exists.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        refuse_unknown(settings, names, where=where)
        values = {name: _number(value) if name in _FLOATS else value for name, value in settings.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).removeprefix('settings: ')}") from None

    def resolved(self, steps_per_epoch: int) -> TrainConfig:
        """Return the settings with everything that depends on the data or another setting filled in.

        Raises ConfigError where the warm-up is longer than the run.
        """
        steps = self.steps if self.steps is not None else (self.epochs or 3) * steps_per_epoch
        warmup = math.ceil(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if warmup > steps:
            raise ConfigError(
                f"settings: warmup is {warmup} steps, but the run has {steps}; lower warmup, or give a share "
                "of the run below 1"
            )
        alpha = 2 * self.r if self.lora_alpha is None else self.lora_alpha
        return dataclasses.replace(self, steps=steps, epochs=None, warmup=warmup, lora_alpha=alpha)


def refuse_unknown(found: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Raise ConfigError for names that do not exist, with the nearest ones that do."""
    known = list(known)
    unknown = []
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(ALIASES.get(str(name), str(name)), known, n=1)
            unknown.append(f"{name!r} (did you mean {near[0]!r}?)" if near else f"{name!r}")
    if unknown:
        raise ConfigError(f"{where}: no such setting: {', '.join(unknown)}\n  settings are {', '.join(known)}")


# What other tools call the same things.
ALIASES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "iters": "steps",
    "gradient_accumulation_steps": "accumulate",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "clip": "max_grad_norm",
    "val_data": "eval_data",
    "output_dir": "out",
}


def _whole(low: int, *, optional: bool = False) -> tuple[str, Callable[[Any], bool]]:
    def holds(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return f"a whole number >= {low}" + (" or nothing" if optional else ""), holds


def _real(wanted: str, test: Callable[[float], bool], *, optional: bool = False) -> tuple[str, Callable[[Any], bool]]:
    def holds(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int | float) and not isinstance(value, bool) and test(value)

    return wanted, holds


def _targets(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list | tuple) and bool(names) and all(isinstance(n, str) and n for n in names)


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "steps": _whole(1, optional=True),
    "epochs": _whole(1, optional=True),
    "batch_size": _whole(1),
    "accumulate": _whole(1),
    "max_length": _whole(2),
    "lr": _real("a finite number > 0", lambda x: x > 0 and math.isfinite(x)),
    "schedule": (f"one of {', '.join(SCHEDULES)}", lambda value: value in SCHEDULES),
    "warmup": _real(
        "steps, or a share of the run in [0, 1)",
        lambda x: 0 <= x < 1 or (x >= 1 and math.isfinite(x) and x == int(x)),
    ),
    "weight_decay": _real("a finite number >= 0", lambda x: x >= 0 and math.isfinite(x)),
    "max_grad_norm": _real("a number > 0, inf to never clip", lambda x: x > 0),
    "seed": _whole(0),
    "eval_every": _whole(1, optional=True),
    "save_every": _whole(1, optional=True),
    "r": _whole(1),
    "lora_alpha": _real(
        "a finite number other than 0, or nothing", lambda x: x != 0 and math.isfinite(x), optional=True
    ),
    "target_modules": ("all-linear, a regular expression or a list of module names", _targets),
    "lora_dropout": _real("a share in [0, 1)", lambda x: 0 <= x < 1),
    "use_rslora": ("true or false", lambda value: isinstance(value, bool)),
    "gradient_checkpointing": ("true or false", lambda value: isinstance(value, bool)),
}
_FLOATS = {"lr", "warmup", "weight_decay", "max_grad_norm", "lora_alpha", "lora_dropout"}


def _number(value: Any) -> Any:
    """The number that ``value`` spells, where it is one; else the value, for the rule to complain about."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value
