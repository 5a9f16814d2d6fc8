"""A tiny Llama with random weights and a tokenizer of single bytes, as a Hugging Face folder; data to train it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minilora.cli import main
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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_model(folder)
    write_tokenizer(folder)
    return folder


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """Ten prompts, each answered by one letter twice."""
    pairs = [{"prompt": f"{a}{b}>", "completion": a + a} for a in "abcde" for b in "xy"]
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", pairs)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory):
    chats = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": a + a}]} for a in "abcdef"]
    return write_lines(tmp_path_factory.mktemp("chat") / "chat.jsonl", chats)


@pytest.fixture
def minilora(capsys):
    """Run a command in this process: minilora("info", "--json") -> (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def spawn():
    """Start a command in a process of its own and return it, its pipes open."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def start(*words: object, command: list | None = None) -> subprocess.Popen:
        whole = [str(word) for word in (*(command or [sys.executable, "-m", "minilora"]), *words)]
        return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.fixture(scope="session")
def trained(model_folder, data_file, tmp_path_factory):
    """An adapter trained for a few steps on prompt and completion."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    code = main(["train", "--model", str(model_folder), "--data", str(data_file), "--out", str(out), "--steps", "3"])
    assert code == 0
    return out
