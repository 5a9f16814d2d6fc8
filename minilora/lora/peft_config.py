"""LoraConfig from and to PEFT's adapter_config.json: a word on every field that PEFT 0.21 writes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from minilora.errors import ConfigError
from minilora.formats.mapped import printable
from minilora.lora.config import SETTINGS, LoraConfig

# Fields that a file must state: their absence means damage, and PEFT would fill in a default in silence.
REQUIRED = ("lora_alpha", "peft_type", "r", "target_modules")

# Fields that say nothing about what an adapter computes.
HARMLESS = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    )
)

# Fields that matter only beside another one that is refused: accepted at PEFT's default alone.
AT_DEFAULT: Mapping[str, Any] = {"qalora_group_size": 16}

# Fields that change what is computed, or which tensors there are: accepted only when null, false or empty.
REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "arrow_config": "Arrow routing",
    "corda_config": "CorDA, which changes the base weights",
    "ensure_weight_tying": "tied adapters",
    "eva_config": "EVA",
    "fan_in_fan_out": "layers that store (in, out), such as GPT-2's Conv1D,",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "loftq_config": "LoftQ, which changes the base weights",
    "lora_bias": "a bias on lora_B",
    "lora_ga_config": "LoRA-GA, which changes the base weights",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "adapters of bare parameters, such as a mixture of experts',",
    "trainable_token_indices": "trained token embeddings",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}

_MOST_REASONS = 10  # lines of one complaint


def from_peft(settings: Mapping[str, Any], where: str) -> LoraConfig:
    """Make a LoraConfig of a parsed adapter_config.json.

    where  the file's name, for messages

    Raises ConfigError for a kind of adapter that is not LoRA, a missing or unknown field, and every feature
    that would change the result and is not supported: by name, never skipped.
    """
    kind = settings.get("peft_type")
    if kind is not None and kind != "LORA":
        raise ConfigError(f"{where}: peft_type is {_shown(kind)}; minilora reads 'LORA' adapters only")
    missing = [name for name in REQUIRED if settings.get(name) is None]
    if missing:
        raise ConfigError(
            f"{where}: {' and '.join(missing)} missing; a file must state "
            f"{', '.join(REQUIRED)}\n  the file is damaged, or no adapter's: write it again with the tool that made it"
        )
    wrong = [name for name, value in settings.items() if not _accepted(name, value)]
    if wrong:
        reasons = [_refusal(name, settings[name]) for name in wrong[:_MOST_REASONS]]
        reasons += [f"... and {len(wrong) - _MOST_REASONS} more"] if len(wrong) > _MOST_REASONS else []
        lines = "\n  ".join(reasons)
        raise ConfigError(f"{where}: {lines}\n  remove what is not needed and save the adapter again")
    known = {name: settings[name] for name in SETTINGS if name in settings}
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):  # PEFT: as good as absent
        if _empty(known.get(name)):
            known.pop(name, None)
    for name in ("use_dora", "use_rslora", "lora_dropout"):
        if known.get(name, 0) is None:
            known.pop(name)
    if _empty(known.get("modules_to_save")):
        known.pop("modules_to_save", None)
    try:
        return LoraConfig(**known)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('LoraConfig: ')}") from None


def to_peft(config: LoraConfig, target_modules: str | list[str], **facts: Any) -> dict[str, Any]:
    """Return what adapter_config.json says about an adapter.

    target_modules  what to state as such; "all-linear" is better written out, since its meaning is the model's
    facts           base_model_name_or_path, task_type: said for other tools, read by none of ours

    Only fields that every PEFT since 0.8 knows, and later ones where they are used: older versions
    refuse a file with a field they do not know.
    """
    later = {"exclude_modules": _json(config.exclude_modules)} if config.exclude_modules is not None else {}
    return {
        "alpha_pattern": dict(config.alpha_pattern),
        "base_model_name_or_path": facts.get("base_model_name_or_path"),
        "bias": config.bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": config.init_lora_weights,
        "layers_pattern": _json(config.layers_pattern),
        "layers_to_transform": _json(config.layers_to_transform),
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "target_modules": target_modules,
        "task_type": facts.get("task_type"),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        **later,
    }


def _accepted(name: str, value: Any) -> bool:
    if name in SETTINGS or name in HARMLESS or name == "peft_type" or _empty(value):
        return True
    return name in AT_DEFAULT and type(value) is type(AT_DEFAULT[name]) and value == AT_DEFAULT[name]


def _refusal(name: str, value: Any) -> str:
    """Why a field that is not accepted is refused."""
    if name in AT_DEFAULT:
        return f"{name} is {_shown(value)}; minilora accepts only PEFT's default, {AT_DEFAULT[name]!r}"
    if name in REFUSED:
        return f"{name} is {_shown(value)}: {REFUSED[name]} is not supported yet"
    near = difflib.get_close_matches(name[:100], (*SETTINGS, *HARMLESS, *AT_DEFAULT, *REFUSED), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{printable(name)} is {_shown(value)}: no field that minilora knows{hint}"


def _empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
