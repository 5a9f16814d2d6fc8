"""Our ids against transformers', for SmolLM2 by way of a Hugging Face folder and for other words and models."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import regex
import transformers

from minilora.models import find_model
from minilora.tokenizer import Tokenizer, load_tokenizer
from minilora.tokenizer.from_gguf import tokenizer_from_metadata
from minilora.tokenizer.vocabulary import byte_alphabet

DATA = Path(__file__).parents[1] / "tokenizer" / "data"


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    with gzip.open(DATA / "smollm2_tokens.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(find_model("smollm2-135m"))


@pytest.fixture(scope="module")
def folder(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by transformers, around the tokenizer that we built from the GGUF file."""
    path = tmp_path_factory.mktemp("smollm2")
    ours._rust.save(str(path / "built.json"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "built.json"), chat_template=ours.chat_template, **ours.template_variables
    )
    theirs.save_pretrained(path)
    (path / "built.json").unlink()
    return path


def test_a_folder_of_transformers_gives_the_same_ids_to_both(folder: Path, cases: list[dict[str, Any]]) -> None:
    theirs, read = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for case in cases:
        text = case["text"]
        assert read.encode(text) == theirs.encode(text) == case["ids"], text
        literal = theirs.encode(text, split_special_tokens=True)
        assert read.encode(text, parse_special=False) == literal == case["ids_plain"], text
        assert read.decode(case["ids"]) == theirs.decode(case["ids"]) == text
        assert read.decode(case["ids"], skip_special=True) == theirs.decode(case["ids"], skip_special_tokens=True)


def test_a_folder_names_the_same_tokens_as_the_gguf_file(folder: Path, ours: Tokenizer) -> None:
    read = load_tokenizer(folder)
    for name in ("eos_token_ids", "bos_token_id", "pad_token_id", "vocab_size", "special_tokens", "chat_template"):
        assert getattr(read, name) == getattr(ours, name), name


def test_the_tokenizer_that_transformers_makes_of_the_gguf_reads_as_it_does(
    tmp_path: Path, cases: list[dict[str, Any]]
) -> None:
    # It leaves out the splitting of digits, so its ids differ from llama.cpp's; ours follow the file they read.
    gguf = find_model("smollm2-135m")
    theirs = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    theirs.save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    wrong = [case["text"] for case in cases if read.encode(case["text"]) != theirs.encode(case["text"])]
    assert wrong == []
    no_numbers = [case for case in cases if not regex.search(r"\p{N}", case["text"])]
    assert len(no_numbers) > 500
    assert [case["text"] for case in no_numbers if theirs.encode(case["text"]) != case["ids"]] == []


# The patterns as llama.cpp has them (llama-vocab.cpp), run by another engine.
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
WORDS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST],
    "qwen2": [_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST],
}


def split(text: str, patterns: list[str]) -> list[str]:
    """As llama.cpp's unicode_regex_split: each pattern cuts the pieces of the one before; gaps are pieces too."""
    pieces = [text]
    for pattern in patterns:
        cut = []
        for piece in pieces:
            place = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[place : match.start()], match[0]]
                place = match.end()
            cut.append(piece[place:])
        pieces = [piece for piece in cut if piece]
    return pieces


@pytest.mark.parametrize("pre", WORDS)
def test_words_are_those_of_another_regex_engine(pre: str, cases: list[dict[str, Any]]) -> None:
    tokens = [*byte_alphabet().values(), "he"]
    metadata = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": ["h e"]}
    tokenizer = tokenizer_from_metadata({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, "m.gguf")
    spelled = byte_alphabet()
    for text in (case["text"] for case in cases):
        if any(unicodedata.category(char) == "Cn" for char in text):
            continue  # what a character of a later Unicode is, the engines do not agree on
        words = [word for word, _ in tokenizer._rust.pre_tokenizer.pre_tokenize_str(text)]
        assert words == ["".join(spelled[b] for b in w.encode()) for w in split(text, WORDS[pre])], text
