"""A tiny Llama with random weights and a tokenizer of single bytes, as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from minilora.formats.safetensors import write_safetensors

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def write_model(folder: Path) -> None:
    """Write config.json and model.safetensors."""
    vocabulary, hidden, wide = SIZES["vocab_size"], SIZES["hidden_size"], SIZES["intermediate_size"]
    rng = np.random.default_rng(0)

    def matrix(out, into):
        return (rng.standard_normal((out, into)) / np.sqrt(into)).astype(np.float32)

    ones = np.ones(hidden, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones}
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    for layer in range(SIZES["num_hidden_layers"]):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = matrix(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = ones
    write_safetensors(folder / "model.safetensors", tensors)
    config = {"model_type": "llama", **SIZES, "tie_word_embeddings": True, "eos_token_id": 258, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, in which every byte is a token, and tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bytes_as_text = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(bytes_as_text)}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    rust.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_tiny_llama(folder: Path) -> Path:
    """Write the whole folder and return it."""
    write_model(folder)
    write_tokenizer(folder)
    return folder
