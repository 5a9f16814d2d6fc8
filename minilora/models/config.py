"""What a Llama is made of: read from a Hugging Face config.json or from GGUF metadata, and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.errors import FormatError

_LARGEST = 1 << 24  # of any count in a configuration: far above every model, far below trouble
_SHOWN = 80  # characters of a value that an error message repeats


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-family decoder, in Hugging Face's names.

    rope_scaling  None, or a mapping with "rope_type" "linear" or "llama3" and its factors
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    name: str = "llama"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str) -> LlamaConfig:
        """Read the object in a config.json; ``where`` names the file in errors.

        FormatError for another architecture, and for a setting that changes the mathematics and is not supported.
        """
        fields = _Fields(config, where)
        kind = config.get("model_type")
        if kind not in ("llama", "mistral"):
            raise FormatError(
                f"{where}: model_type is {_show(kind)}, expected 'llama' or 'mistral'; "
                "models of other families are not supported"
            )
        heads = fields.count("num_attention_heads")
        hidden = fields.count("hidden_size")
        place = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        rope = config.get(place) or {}
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            raise FormatError(f"{where}: {place} is {_show(rope)}, expected an object of one kind for all layers")
        for holder, key, wanted in (
            (config, "hidden_act", "silu"), (config, "attention_bias", False), (config, "mlp_bias", False),
            (config, "sliding_window", None), (config, "quantization_config", None),
            (config, "partial_rotary_factor", 1.0), (rope, "partial_rotary_factor", 1.0),
        ):  # fmt: skip
            if holder.get(key, wanted) != wanted:
                raise FormatError(f"{where}: {key} is {_show(holder[key])}; only {wanted!r} is supported")
        tied = config.get("tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise FormatError(f"{where}: tie_word_embeddings is {_show(tied)}, expected true or false")
        eos = config.get("eos_token_id")
        ends = eos if isinstance(eos, list) else [eos]
        return cls(
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.count("intermediate_size"),
            num_hidden_layers=fields.count("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=fields.count("num_key_value_heads", heads),
            head_dim=fields.count("head_dim", hidden // heads),
            max_position_embeddings=fields.count("max_position_embeddings", 2048),
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope_theta=_Fields(rope, where).positive("rope_theta", fields.positive("rope_theta", 10000.0)),
            rope_scaling=rope if rope.get("rope_type", rope.get("type", "default")) != "default" else None,
            tie_word_embeddings=tied,
            bos_token_id=fields.token("bos_token_id", config.get("bos_token_id")),
            eos_token_ids=_present(fields.token("eos_token_id", end) for end in ends),
            name=str(config.get("_name_or_path") or kind)[:_SHOWN],
        ).checked(where)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], vocab_size: int, tied: bool, where: str) -> LlamaConfig:
        """Read a GGUF file's metadata; the vocabulary's size and the tied head are seen from its tensors."""
        fields = _Fields(metadata, where)
        kind = metadata.get("general.architecture")
        if kind != "llama":
            raise FormatError(
                f"{where}: general.architecture is {_show(kind)}, expected 'llama'; "
                "models of other families are not supported"
            )
        experts = metadata.get("llama.expert_count")
        if experts:
            raise FormatError(f"{where}: llama.expert_count is {_show(experts)}; experts are not supported")
        if metadata.get("llama.attention.causal", True) is not True:
            raise FormatError(
                f"{where}: llama.attention.causal is {_show(metadata['llama.attention.causal'])}; "
                "only causal attention is supported"
            )
        # As llama.cpp reads them: a factor alone means linear scaling, and older files name it otherwise.
        scaling = metadata.get("llama.rope.scaling.type", "linear")
        factor = fields.positive("llama.rope.scaling.factor", fields.positive("llama.rope.scale_linear", 1.0))
        heads = fields.count("llama.attention.head_count")
        hidden = fields.count("llama.embedding_length")
        width = fields.count("llama.attention.key_length", hidden // heads)
        for key, wanted in (("llama.rope.dimension_count", "the whole head"),
                            ("llama.attention.value_length", "the same as key_length")):  # fmt: skip
            if fields.count(key, width) != width:
                raise FormatError(f"{where}: {key} is {metadata[key]}, expected {wanted}, {width}")
        tokens = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot")}
        ids = {name: fields.token(key, metadata.get(key)) for name, key in tokens.items()}
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=fields.count("llama.feed_forward_length"),
            num_hidden_layers=fields.count("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=fields.count("llama.attention.head_count_kv", heads),
            head_dim=width,
            max_position_embeddings=fields.count("llama.context_length", 2048),
            rms_norm_eps=fields.positive("llama.attention.layer_norm_rms_epsilon", 1e-6),
            rope_theta=fields.positive("llama.rope.freq_base", 10000.0),
            rope_scaling=None
            if scaling == "none" or (scaling == "linear" and factor == 1)
            else {"rope_type": scaling, "factor": factor},
            tie_word_embeddings=tied,
            bos_token_id=ids["bos"],
            eos_token_ids=_present((ids["eos"], ids["eot"])),
            name=str(metadata.get("general.name") or "llama")[:_SHOWN],
        ).checked(where)  # fmt: skip

    def checked(self, where: str) -> LlamaConfig:
        """Return self; FormatError where sizes contradict each other."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise FormatError(
                f"{where}: {self.num_attention_heads} attention heads do not divide among "
                f"{self.num_key_value_heads} key-value heads"
            )
        if self.head_dim % 2:
            raise FormatError(f"{where}: head_dim is {self.head_dim}, expected an even number for rotary embedding")
        self.rotary_frequencies(where)
        return self

    def rotary_frequencies(self, where: str = "config") -> NDArray[np.float64]:
        """Radians per position of each pair of components, (head_dim / 2,).

        "llama3" scaling as published with Llama 3.1: long wavelengths are divided by ``factor``,
        short ones kept, and those between interpolated.
        """
        base = self.rope_theta ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        if self.rope_scaling is None:
            return base
        scaling = _Fields(self.rope_scaling, where)
        kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type"))
        factor = scaling.positive("factor", 1.0)
        if kind == "linear":
            return base / factor
        if kind != "llama3":
            raise FormatError(f"{where}: rope scaling {_show(kind)} is not supported, only 'linear' and 'llama3' are")
        low, high = scaling.positive("low_freq_factor", 1.0), scaling.positive("high_freq_factor", 4.0)
        if high <= low:
            raise FormatError(f"{where}: high_freq_factor {high} must be above low_freq_factor {low}")
        turns = scaling.positive("original_max_position_embeddings", 8192.0) * base / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return base * (keep + (1 - keep) / factor)


class _Fields:
    """Values of a mapping from outside, checked one by one."""

    def __init__(self, mapping: Mapping[str, Any], where: str) -> None:
        self.mapping, self.where = mapping, where

    def count(self, key: str, default: int | None = None) -> int:
        value = self.mapping.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise FormatError(f"{self.where}: {key} is {_show(value)}, expected a whole number from 1 to {_LARGEST}")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self.mapping.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            raise FormatError(f"{self.where}: {key} is {_show(value)}, expected a positive number")
        return float(value)

    def token(self, key: str, value: Any) -> int | None:
        if value is not None and (type(value) is not int or not 0 <= value <= _LARGEST):
            raise FormatError(f"{self.where}: {key} is {_show(value)}, expected a token id of 0 or more")
        return value


def _present(ids: Iterable[int | None]) -> tuple[int, ...]:
    """The ids that are there, each once."""
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def _show(value: Any) -> str:
    """A stranger's value for a message: escaped, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
