"""SmolLM2's tokenizer, built from the GGUF file, gives llama.cpp's ids for 2,000 strings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.tokenizer import LostTextWarning, Tokenizer

pytestmark = pytest.mark.model

LOST = "\x04\x06\x13\x14\x16\x1d"  # the characters among the 21 bytes without a token; the rest is never in UTF-8


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    with gzip.open(Path(__file__).parent / "data" / "smollm2_tokens.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_there_are_2000_cases(cases: list[dict]) -> None:
    assert len(cases) == 2000
    assert sum(case["ids"] != case["ids_plain"] for case in cases) > 50


def test_ids_with_special_tokens_are_those_of_llama_cpp(smollm2: Tokenizer, cases: list[dict]) -> None:
    assert [case["text"] for case in cases if smollm2.encode(case["text"]) != case["ids"]] == []


def test_ids_of_literal_text_are_those_of_llama_cpp(smollm2: Tokenizer, cases: list[dict]) -> None:
    wrong = [c["text"] for c in cases if smollm2.encode(c["text"], parse_special=False) != c["ids_plain"]]
    assert wrong == []


def test_every_case_decodes_to_its_text(smollm2: Tokenizer, cases: list[dict]) -> None:
    wrong = [c["text"] for c in cases for key in ("ids", "ids_plain") if smollm2.decode(c[key]) != c["text"]]
    assert wrong == []


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LOST, max_codepoint=0x3FFFF)))
def test_literal_text_comes_back(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text, parse_special=False)
    assert smollm2.decode(ids) == text
    assert not set(ids) & set(smollm2.special_tokens.values())


def test_a_character_without_tokens_draws_a_warning_that_names_it(smollm2: Tokenizer) -> None:
    with pytest.warns(LostTextWarning, match=r"no token for byte 0x13 \('\\x13', character 2 of the text\)"):
        assert smollm2.decode(smollm2.encode("é \x13!")) == "é !"
    with pytest.warns(LostTextWarning, match=r"byte 0xf1 \('\\U00040000', character 1 "):
        smollm2.encode("a\U00040000")


def test_the_metadata_is_read(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.eos_token_id == 2
    assert smollm2.eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert smollm2.bos_token_id == 1
    assert smollm2.pad_token_id == 2
    assert len(smollm2.special_tokens) == 17
    assert smollm2.encode("hello")[0] != 1, "the file asks for no first token"


def test_special_tokens_can_be_left_out_of_the_text(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("<|im_start|>user\nhi<|im_end|>")
    assert smollm2.decode(ids) == "<|im_start|>user\nhi<|im_end|>"
    assert smollm2.decode(ids, skip_special=True) == "user\nhi"
