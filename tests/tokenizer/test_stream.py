"""Streamed text joins to the text of all ids, and holds whole characters only."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.tokenizer import Tokenizer, load_tokenizer
from minilora.tokenizer.from_gguf import tokenizer_from_metadata


def byte_level(folder: Path, tiny: dict[str, Any]) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(tiny))
    return load_tokenizer(folder)


def sentencepiece(folder: Path, tiny: dict[str, Any]) -> Tokenizer:
    with gzip.open(Path(__file__).parent / "data" / "sentencepiece.json.gz", "rt", encoding="utf-8") as file:
        oracle = json.load(file)
    metadata = {f"tokenizer.ggml.{key}": oracle[key] for key in ("tokens", "scores", "token_type")}
    return tokenizer_from_metadata(metadata | {"tokenizer.ggml.model": "llama"}, "m.gguf")


def word_piece(folder: Path, tiny: dict[str, Any]) -> Tokenizer:
    words = ["[UNK]", "a", "##b", "##é", ".", "x", "'", "n't", "##s", ","]
    model = {"type": "WordPiece", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]",
             "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}  # fmt: skip
    content = {"model": model, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=[byte_level, sentencepiece, word_piece], ids=lambda make: make.__name__)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_base: dict[str, Any]
) -> Tokenizer:
    make: Callable[..., Tokenizer] = request.param
    return make(tmp_path_factory.mktemp("stream"), tiny_base)


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = False) -> list[str]:
    stream = tokenizer.stream(skip_special)
    return [*map(stream.push, ids), stream.finish()]


@given(data=st.data(), skip_special=st.booleans())
def test_streamed_text_joins_to_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject, skip_special: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    assert "".join(streamed(tokenizer, ids, skip_special)) == tokenizer.decode(ids, skip_special)


@given(text=st.text(max_size=20))
def test_text_streams_as_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    texts = streamed(tokenizer, ids)
    assert "".join(texts) == tokenizer.decode(ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in texts)


def test_a_character_comes_with_its_last_byte(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tokenizer = byte_level(tmp_path, tiny)
    ids = tokenizer.encode("a€b")
    assert streamed(tokenizer, ids) == ["a", "", "", "€", "b", ""]
    assert streamed(tokenizer, ids[:3]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_do_not_interrupt_a_character_when_skipped(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tokenizer = byte_level(tmp_path, tiny)
    first, second = tokenizer.encode("é")
    assert streamed(tokenizer, [first, 3, second, 3], skip_special=True) == ["", "", "é", "", ""]


@pytest.mark.model
def test_a_long_answer_streams_in_linear_time(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("Grüße aus 東京 🎉, 12 mal. ") * 300
    texts = streamed(smollm2, ids)
    assert "".join(texts) == smollm2.decode(ids)
    assert max(map(len, texts)) < 10
