"""Tokenizers from GGUF metadata: SentencePiece's kind against sentencepiece's ids, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from minilora.errors import ConfigError, FormatError
from minilora.tokenizer import load_tokenizer
from minilora.tokenizer.from_gguf import tokenizer_from_metadata
from minilora.tokenizer.vocabulary import byte_alphabet

PREFIX = "tokenizer.ggml."


@pytest.fixture(scope="module")
def sentencepiece() -> dict[str, Any]:
    with gzip.open(Path(__file__).parent / "data" / "sentencepiece.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def llama_metadata(oracle: dict[str, Any], **changes: Any) -> dict[str, Any]:
    fields = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    fields |= {key: oracle[key] for key in ("tokens", "scores", "token_type")} | changes
    return {PREFIX + key: value for key, value in fields.items() if value is not None}


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    tokens = ["<s>", "</s>", "<tool>", *byte_alphabet().values(), "he", "ll", "123"]
    fields = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "merges": ["h e", "l l", "1 2"], "bos_token_id": 0, "eos_token_id": 1,
    } | changes  # fmt: skip
    if "merges" not in changes:
        fields["merges"] = fields["merges"][:2]
    return {PREFIX + key: value for key, value in fields.items() if value is not None}


def test_llama_ids_are_those_of_sentencepiece(sentencepiece: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(llama_metadata(sentencepiece), "m.gguf")
    assert len(sentencepiece["texts"]) > 550
    for text, ids in zip(sentencepiece["texts"], sentencepiece["ids"], strict=True):
        assert tokenizer.encode(text, parse_special=False, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_llama_begins_with_bos_unless_the_file_says_otherwise(sentencepiece: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(llama_metadata(sentencepiece), "m.gguf")
    assert tokenizer.encode("a") == [1, *tokenizer.encode("a", add_special=False)]
    silent = tokenizer_from_metadata(llama_metadata(sentencepiece, add_bos_token=False), "m.gguf")
    assert silent.encode("a") == tokenizer.encode("a", add_special=False)


def test_llama_without_space_prefix_adds_none(sentencepiece: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(llama_metadata(sentencepiece, add_space_prefix=False), "m.gguf")
    ids = tokenizer.encode("a b", add_special=False)
    assert tokenizer.token(ids[0]) == "a"
    assert tokenizer.decode(ids) == "a b"


def test_llama_recognises_special_text_only_when_asked(sentencepiece: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(llama_metadata(sentencepiece), "m.gguf")
    assert 2 in tokenizer.encode("a</s>")
    assert 2 not in tokenizer.encode("a</s>", parse_special=False)


def test_end_tokens_are_those_named_and_those_known_by_their_text() -> None:
    tokens = [*byte_alphabet().values(), "</s>", "<|eot_id|>", "<|im_end|>", "<|end|>", "he"]
    types = [1] * 256 + [3, 3, 3, 1, 1]
    tokenizer = tokenizer_from_metadata(
        bpe_metadata(tokens=tokens, token_type=types, merges=["h e"], bos_token_id=None, eos_token_id=258,
                     eot_token_id=256), "m.gguf",
    )  # fmt: skip
    assert tokenizer.eos_token_ids == (258, 256, 257), "<|end|> is an ordinary token here"


def test_first_and_last_tokens_are_added_as_the_file_asks() -> None:
    tokenizer = tokenizer_from_metadata(bpe_metadata(add_bos_token=True, add_eos_token=True), "m.gguf")
    inner = tokenizer.encode("he", add_special=False)
    assert tokenizer.encode("he") == [0, *inner, 1]
    assert tokenizer_from_metadata(bpe_metadata(), "m.gguf").encode("he") == inner


def test_user_defined_tokens_are_text_even_when_taken_literally() -> None:
    tokenizer = tokenizer_from_metadata(bpe_metadata(), "m.gguf")
    assert tokenizer.encode("<tool>", parse_special=False) == [2]
    assert tokenizer.encode("<s>", parse_special=False) != [0]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["it", "'s", " 1234", "  ", " x", "!!", "\n"]),
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", "  ", " x", "!!", "\n"]),
        ("llama-bpe", ["it", "'s", " ", "123", "4", "  ", " x", "!!\n"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", "  ", " x", "!!\n"]),
    ],
)
def test_words_are_split_as_the_model_was_trained(pre: str, words: list[str]) -> None:
    # Hand-derived from the patterns in llama.cpp's llama-vocab.cpp.
    rust = tokenizer_from_metadata(bpe_metadata(pre=pre), "m.gguf")._rust
    text = "it's 1234   x!!\n"
    assert [text[a:b] for _, (a, b) in rust.pre_tokenizer.pre_tokenize_str(text)] == words


REFUSED = {
    "no tokenizer": ({"model": None}, "no tokenizer.ggml.model, so the file carries no tokenizer"),
    "unigram": ({"model": "t5"}, "tokenizer.ggml.model is 't5'; known are 'gpt2' (byte-level BPE) and 'llama'"),
    "model is a number": ({"model": 3}, "tokenizer.ggml.model is int, expected str"),
    "unknown words": ({"pre": "viking"}, "tokenizer.ggml.pre is 'viking', a way to split text that is not known"),
    "no tokens": ({"tokens": None}, "no tokenizer.ggml.tokens"),
    "empty tokens": ({"tokens": []}, "no tokenizer.ggml.tokens"),
    "tokens of numbers": ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be an array of strings"),
    "token twice": ({"tokens": ["a", "b", "a"], "token_type": None}, "tokenizer.ggml.tokens holds 'a' twice"),
    "huge token": ({"tokens": ["a" * 5000], "token_type": None}, "holds one of 5000 characters; the limit is 4096"),
    "too few types": ({"token_type": [1]}, "tokenizer.ggml.token_type has 1 entries for 262 tokens"),
    "no merges": ({"merges": None}, "no tokenizer.ggml.merges, which its kind of tokenizer needs"),
    "merge of one": ({"merges": ["he"]}, "tokenizer.ggml.merges[0] is 'he', expected two tokens and a space"),
    "merge of strangers": ({"merges": ["xx yy"]}, "tokenizer.ggml.merges: the tokenizers library refused it"),
    "bos outside": ({"bos_token_id": 9999}, "tokenizer.ggml.bos_token_id is 9999, outside the 262 tokens"),
    "eos is text": ({"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id is str, expected int"),
    "no scores": ({"model": "llama"}, "tokenizer.ggml.scores must hold a finite number for each token"),
    "NaN score": ({"model": "llama", "scores": [float("nan")] * 262}, "must hold a finite number for each token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_metadata_is_refused_by_file_and_key(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(FormatError, match=rf"^m\.gguf: .*{re.escape(message)}"):
        tokenizer_from_metadata(bpe_metadata(**changes), "m.gguf")


def test_a_template_beyond_any_size_is_refused() -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template has 300000 characters; the limit is 262144"):
        tokenizer_from_metadata(bpe_metadata() | {"tokenizer.chat_template": "x" * 300_000}, "m.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.gguf': no such file or folder"):
        load_tokenizer(tmp_path / "none.gguf")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(FormatError, match=r"x\.gguf"):
        load_tokenizer(tmp_path / "x.gguf")
