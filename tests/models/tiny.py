"""Make tiny random Llamas and write them as Hugging Face folders and as GGUF files, without the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from formats.gguf_builder import build_gguf
from formats.safetensors_builder import safetensors_bytes

Weights = dict[str, np.ndarray]  # by path, in the file's layout (out, in), or (width,)

GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A config.json. Every size differs, so that no two axes can be confused: 4 heads of 6 are wider than 20."""
    return {
        "model_type": "llama", "hidden_act": "silu", "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": [2, 3],
    } | changes  # fmt: skip


def tiny_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Random weights, each a multiple of 1/128 below 2: exact in float32, bfloat16 and float16 alike."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, around: int = 0) -> np.ndarray:
        return ((around + rng.integers(-90, 91, shape)) / 128).astype(np.float32)

    hidden, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, k = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    weights = {"model.embed_tokens": draw(vocabulary, hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": draw(hidden, around=128), "self_attn.q_proj": draw(q, hidden),
            "self_attn.k_proj": draw(k, hidden), "self_attn.v_proj": draw(k, hidden),
            "self_attn.o_proj": draw(hidden, q), "post_attention_layernorm": draw(hidden, around=128),
            "mlp.gate_proj": draw(wide, hidden), "mlp.up_proj": draw(wide, hidden),
            "mlp.down_proj": draw(hidden, wide),
        }  # fmt: skip
        weights |= {f"model.layers.{index}.{name}": w for name, w in layer.items()}
    weights["model.norm"] = draw(hidden, around=128)
    if not config["tie_word_embeddings"]:
        weights["lm_head"] = draw(vocabulary, hidden)
    return weights


def as_safetensors(tensors: Weights, dtype: str = "F32") -> bytes:
    """A safetensors file of ``tensors``, whose names are given in full."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        if dtype == "BF16":
            raw = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = array.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return safetensors_bytes(text + b" " * (-len(text) % 8), data)


def write_folder(
    folder: Path, config: dict[str, Any], weights: Weights, *, dtype: str = "F32", shards: int = 1
) -> Path:
    """Write config.json and one safetensors file, or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{path}.weight": array for path, array in weights.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(as_safetensors(tensors, dtype))
        return folder
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        (folder / file).write_bytes(as_safetensors(part, dtype))
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def gguf_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata that says of a GGUF file what config.json says of a folder."""
    return {
        "general.architecture": "llama", "general.name": "tiny",
        "llama.block_count": config["num_hidden_layers"], "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"], "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3,
    }  # fmt: skip


def gguf_name(path: str) -> str:
    """model.layers.3.mlp.up_proj -> blk.3.ffn_up.weight"""
    if path in GGUF_NAMES:
        return f"{GGUF_NAMES[path]}.weight"
    index, name = path.removeprefix("model.layers.").split(".", 1)
    return f"blk.{index}.{GGUF_NAMES[name]}.weight"


def gguf_tensors(config: dict[str, Any], weights: Weights) -> Weights:
    """Weights by their GGUF names, rows of q and k in GGUF's order (the two halves of each head interleaved)."""
    tensors = {}
    for path, array in weights.items():
        if path.endswith(("q_proj", "k_proj")):
            out, width = array.shape
            array = array.reshape(-1, 2, config["head_dim"] // 2, width).swapaxes(1, 2).reshape(out, width)
        tensors[gguf_name(path)] = array
    return tensors


def write_gguf(path: Path, config: dict[str, Any], weights: Weights, metadata: dict[str, Any] | None = None) -> Path:
    """Write a GGUF file of float32 tensors, with further metadata."""
    path.write_bytes(build_gguf(gguf_metadata(config) | (metadata or {}), gguf_tensors(config, weights)))
    return path
