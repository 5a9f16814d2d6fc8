"""Tokenizers to test with: SmolLM2's own, and a tiny byte-level one written as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minilora.tokenizer import Tokenizer, load_tokenizer
from minilora.tokenizer.vocabulary import byte_alphabet

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    from minilora.models import find_model

    return load_tokenizer(find_model("smollm2-135m"))


def tiny_json() -> dict[str, Any]:
    """A tokenizer.json: every byte, a few merges, four special tokens."""
    vocabulary = [*SPECIAL, *byte_alphabet().values(), "he", "ll", "hell", "hello", "Ġw", "<|"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
            "merges": ["h e", "l l", "he ll", "hell o", "Ġ w", "< |"],
        },
    }  # fmt: skip


@pytest.fixture
def tiny() -> dict[str, Any]:
    return tiny_json()


@pytest.fixture(scope="session")
def tiny_base() -> dict[str, Any]:
    """The same for tests that draw many examples; not to be changed."""
    return tiny_json()


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder: tokenizer.json (the tiny one by default) and other files."""

    def write(tokenizer: Any = None, /, **files: Any) -> Path:
        content = {"tokenizer.json": tiny_json() if tokenizer is None else tokenizer}
        content |= {name.replace("__", "."): value for name, value in files.items()}
        for name, value in content.items():
            text = value if isinstance(value, str) else json.dumps(value)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def chat_tokenizer(write_folder: Callable[..., Path]) -> Callable[[str], Tokenizer]:
    """Return a function that makes the tiny tokenizer with a given chat template."""
    return lambda template: load_tokenizer(
        write_folder(tokenizer_config__json={"chat_template": template, "bos_token": "<s>", "eos_token": "<|im_end|>"})
    )
