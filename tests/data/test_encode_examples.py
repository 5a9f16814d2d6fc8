"""Token ids and labels of examples: what counts, what is cut, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import IGNORED, Record, encode_examples
from minilora.errors import ConfigError, FormatError

END, START, NEWLINE = 256, 257, ord("\n")


class ByteTokenizer:
    """A token a byte. The template is ChatML's: a start token, the role, the content, an end token, a newline."""

    eos_token_id: int | None = END
    eos_token_ids = (END,)

    first: tuple[int, ...] = ()  # what it puts before a text

    def encode(self, text: str, parse_special: bool = True, *, add_special: bool = True) -> list[int]:
        assert not parse_special, "the strings of a data file are literal"
        return [*(self.first if add_special else ()), *text.encode()]

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> Any:
        assert tokenize
        ids: list[int] = []
        for m in messages:
            ids += [START, *m["role"].encode(), NEWLINE, *m["content"].encode(), END, NEWLINE]
        return ids + [START, *b"assistant\n"] * add_generation_prompt


TOKENIZER = ByteTokenizer()


def text(value: str, line: int = 1) -> Record:
    return Record("text", {"text": value}, f"d.jsonl:{line}")


def pair(prompt: str, completion: str, line: int = 1) -> Record:
    return Record("completion", {"prompt": prompt, "completion": completion}, f"d.jsonl:{line}")


def chat(*turns: tuple[str, str]) -> Record:
    return Record("messages", {"messages": [{"role": r, "content": c} for r, c in turns]}, "d.jsonl:1")


def counted(record: Record, tokenizer: ByteTokenizer = TOKENIZER) -> list[int]:
    """The ids that count, after checking that every label is its token or IGNORED."""
    (example,) = encode_examples([record], tokenizer).examples
    at = example.labels != IGNORED
    assert np.array_equal(example.labels[at], example.input_ids[at])
    return example.input_ids[at].tolist()


@given(st.text(min_size=1))
def test_all_of_a_text_counts_and_its_end_token(value: str) -> None:
    value = value.encode(errors="replace").decode()
    assert counted(text(value)) == [*value.encode(), END]


@given(st.text(), st.text(min_size=1))
def test_only_the_completion_and_its_end_token_count_after_the_prompt_as_inference_sees_it(
    prompt: str, completion: str
) -> None:
    prompt, completion = (s.encode(errors="replace").decode() for s in (prompt, completion))
    (example,) = encode_examples([pair(prompt, completion)], TOKENIZER).examples
    begin = len(prompt.encode())
    assert example.input_ids[:begin].tolist() == TOKENIZER.encode(prompt, parse_special=False)
    assert example.input_ids[begin:].tolist() == [*completion.encode(), END]
    assert np.all(example.labels[:begin] == IGNORED)
    assert np.array_equal(example.labels[begin:], example.input_ids[begin:])


def test_a_tokenizer_that_would_join_prompt_and_completion_is_not_given_the_chance() -> None:
    class Joining(ByteTokenizer):
        """Has one token for "ab", as a BPE vocabulary may."""

        def encode(self, text: str, parse_special: bool = True, *, add_special: bool = True) -> list[int]:
            return [300 if part == "ab" else ord(part) for part in text.replace("ab", "|ab|").split("|") if part]

    assert Joining().encode("ab", parse_special=False) == [300]
    (example,) = encode_examples([pair("a", "b")], Joining()).examples
    assert example.input_ids.tolist() == [ord("a"), ord("b"), END]


def test_every_turn_of_the_assistant_counts_up_to_its_end_token_and_nothing_else() -> None:
    record = chat(("system", "be"), ("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "ciao"))
    assert counted(record) == [*b"yo", END, *b"ciao", END]


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("ab\n", min_size=1)), max_size=6))
def test_the_tokens_counted_in_a_conversation_are_what_the_assistant_said(
    turns: list[tuple[str, str]],
) -> None:
    turns = [*turns, ("assistant", "x")]
    assert counted(chat(*turns)) == [i for role, c in turns if role == "assistant" for i in [*c.encode(), END]]


class RewritingTokenizer(ByteTokenizer):
    """Drops what the assistant said before the last turn, as templates do that strip earlier reasoning."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        kept = [
            {**m, "content": ""} if m["role"] == "assistant" and i < len(messages) - 1 else m
            for i, m in enumerate(messages)
        ]
        return super().apply_chat_template(kept, **options)


class EndlessTokenizer(ByteTokenizer):
    """Ends no turn."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        return [i for i in super().apply_chat_template(messages, **options) if i != END]


class RefusingTokenizer(ByteTokenizer):
    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> Any:
        raise FormatError("chat template: roles must alternate")


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (
            RewritingTokenizer(),
            "d.jsonl:1: the chat template renders message 1 differently when it is answered",
        ),
        (EndlessTokenizer(), "d.jsonl:1: the chat template ends message 1 without an end token"),
        (
            RefusingTokenizer(),
            "d.jsonl:1: chat template: roles must alternate; mend or remove these examples",
        ),
    ],
)
def test_a_template_whose_answers_cannot_be_told_apart_is_refused(tokenizer: ByteTokenizer, words: str) -> None:
    with pytest.raises(FormatError) as error:
        encode_examples([chat(("assistant", "a"), ("user", "b"), ("assistant", "c"))], tokenizer)
    assert str(error.value).startswith(words)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    class Endless(ByteTokenizer):
        eos_token_id = None

    with pytest.raises(FormatError, match="the tokenizer names no end token"):
        encode_examples([text("a")], Endless())


def test_long_examples_are_cut_and_counted() -> None:
    data = encode_examples([text("abcdefgh"), text("ab", 2), pair("ab", "cdefg", 3)], TOKENIZER, max_length=5)
    assert [len(e) for e in data.examples] == [5, 3, 5]
    assert (data.cut, data.longest, data.dropped, len(data)) == (2, 9, (), 3)
    assert data.warnings() == [
        "2 of 3 examples are longer than the limit and are cut to 5 tokens (the longest has 9); "
        "raise the maximum length to keep them whole"
    ]


def test_data_that_fits_says_nothing() -> None:
    assert encode_examples([text("abc")], TOKENIZER, max_length=4).warnings() == []
    assert encode_examples([text("abc" * 999)], TOKENIZER).warnings() == []


def test_an_example_whose_completion_is_cut_away_is_left_out_and_named() -> None:
    records = [pair("abcdef", "x", n) for n in range(1, 8)] + [pair("a", "b", 8)]
    data = encode_examples(records, TOKENIZER, max_length=6)
    assert [e.source for e in data.examples] == ["d.jsonl:8"]
    assert data.dropped == tuple(f"d.jsonl:{n}" for n in range(1, 8))
    assert data.warnings()[1] == (
        "7 of 8 examples are left out, because cutting left no completion token: "
        "d.jsonl:1, d.jsonl:2, d.jsonl:3, d.jsonl:4, d.jsonl:5 and 2 more"
    )


def test_a_limit_that_leaves_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        encode_examples([pair("abcdef", "x"), pair("abcdefg", "x", 2)], TOKENIZER, max_length=6)
    assert str(error.value) == (
        "d.jsonl:1: no completion token is left within 6 tokens, and so in all 2 examples (the longest has 9); "
        "raise the maximum length or shorten the prompts"
    )
    with pytest.raises(ConfigError, match="max_length is 1; an example needs at least 2 tokens"):
        encode_examples([text("abc")], TOKENIZER, max_length=1)
    with pytest.raises(ConfigError, match="there are no records to encode"):
        encode_examples([], TOKENIZER)


def test_a_first_token_does_not_count_since_nothing_predicts_it() -> None:
    class Mute(ByteTokenizer):
        """Has no token for anything, so that only the end token is left."""

        def encode(self, text: str, parse_special: bool = True, *, add_special: bool = True) -> list[int]:
            return []

    with pytest.raises(FormatError, match=r"^d.jsonl:1: no completion token to learn from; mend or remove"):
        encode_examples([text("a")], Mute())


def test_a_tokenizer_that_begins_texts_with_a_token_does_so_once():
    class Beginning(ByteTokenizer):
        first = (START,)

    (example,) = encode_examples([pair("ab", "c")], Beginning()).examples
    assert example.input_ids.tolist() == [START, *b"abc", END]
    assert example.labels.tolist() == [IGNORED] * 3 + [ord("c"), END]
