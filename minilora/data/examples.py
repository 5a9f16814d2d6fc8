"""Turn records into token ids and labels: what the model reads, and which of it counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minilora.data.records import Kind, Record, complaint
from minilora.errors import ConfigError, FormatError, MiniloraError

IGNORED = -100  # the label of a token that does not count, as in torch and transformers


class TokenizerLike(Protocol):
    """The part of a tokenizer that this module uses."""

    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> Sequence[int]: ...
    def encode(self, text: str, parse_special: bool = True, *, add_special: bool = True) -> list[int]: ...
    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> Any: ...


@dataclass(frozen=True, eq=False)
class Example:
    """One example as the model sees it.

    input_ids  (T,) int32
    labels     (T,) int32, aligned with input_ids (the model shifts them); IGNORED where not counted
    source     "file:line"
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    source: str

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def label_count(self) -> int:
        """Tokens that count in the loss. The first never does: nothing before it predicts it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


@dataclass(frozen=True)
class Dataset:
    """Examples ready for batches, and what was done to make them fit.

    kind        what the file holds
    max_length  tokens, or None for no limit
    cut         how many examples were longer than max_length and lost their end
    longest     tokens of the longest example before cutting
    dropped     sources of the examples that cutting left without a token to learn from; not in ``examples``
    """

    examples: tuple[Example, ...]
    kind: Kind
    max_length: int | None
    cut: int
    longest: int
    dropped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def warnings(self) -> list[str]:
        """Say in sentences what a user should know before training."""
        said = []
        total = len(self.examples) + len(self.dropped)
        if self.cut:
            said.append(
                f"{self.cut} of {total} examples are longer than the limit and are cut to {self.max_length} tokens "
                f"(the longest has {self.longest}); raise the maximum length to keep them whole"
            )
        if self.dropped:
            more = f" and {len(self.dropped) - 5} more" if len(self.dropped) > 5 else ""
            said.append(
                f"{len(self.dropped)} of {total} examples are left out, because cutting left no completion token: "
                f"{', '.join(self.dropped[:5])}{more}"
            )
        return said


def encode_examples(records: Sequence[Record], tokenizer: TokenizerLike, *, max_length: int | None = None) -> Dataset:
    """Encode records and mark the tokens to learn: all of a text, a completion, the assistant's turns.

    The end token counts too, so that the model learns to stop. Strings are taken literally;
    only ``messages`` go through the chat template.

    Raises ConfigError for a limit under 2 tokens or one that leaves nothing to learn from,
    FormatError for a record that the chat template cannot render.
    """
    if max_length is not None and max_length < 2:
        raise ConfigError(f"max_length is {max_length}; an example needs at least 2 tokens, one to predict the next")
    if not records:
        raise ConfigError("there are no records to encode; give at least one example")
    examples: list[Example] = []
    dropped: list[str] = []
    problems: list[str] = []
    cut = longest = 0
    for record in records:
        try:
            ids, counted = _ENCODERS[record.kind](record.fields, tokenizer)
        except MiniloraError as error:
            problems.append(f"{record.source}: {error}")
            continue
        longest = max(longest, len(ids))
        cut += max_length is not None and len(ids) > max_length
        input_ids = np.array(ids[:max_length], dtype=np.int32)
        labels = np.where(counted[:max_length], input_ids, np.int32(IGNORED))
        example = Example(input_ids, labels, record.source)
        if example.label_count:
            examples.append(example)
        elif max_length is not None and len(ids) > max_length:
            dropped.append(record.source)
        else:
            problems.append(f"{record.source}: no completion token to learn from")
    if problems:
        path = records[0].source.rpartition(":")[0]
        raise FormatError(complaint(path, problems, "mend or remove these examples"))
    if not examples:
        raise ConfigError(
            f"{dropped[0]}: no completion token is left within {max_length} tokens, and so in all {len(dropped)} "
            f"examples (the longest has {longest}); raise the maximum length or shorten the prompts"
        )
    return Dataset(tuple(examples), records[0].kind, max_length, cut, longest, tuple(dropped))


def _encode_text(fields: dict[str, Any], tokenizer: TokenizerLike) -> tuple[list[int], list[bool]]:
    ids = [*tokenizer.encode(fields["text"], parse_special=False), _end_token(tokenizer)]
    return ids, [True] * len(ids)


def _encode_completion(fields: dict[str, Any], tokenizer: TokenizerLike) -> tuple[list[int], list[bool]]:
    # Encoded apart, never joined: when the model answers it sees the prompt encoded alone, and a token
    # that spans the boundary would be one it was never asked for.
    prompt = tokenizer.encode(fields["prompt"], parse_special=False)
    # A tokenizer that begins every text with a token must not do so in the middle of one.
    completion = tokenizer.encode(fields["completion"], parse_special=False, add_special=False)
    completion = [*completion, _end_token(tokenizer)]
    return prompt + completion, [False] * len(prompt) + [True] * len(completion)


def _encode_messages(fields: dict[str, Any], tokenizer: TokenizerLike) -> tuple[list[int], list[bool]]:
    """Find each turn of the assistant by rendering the conversation up to it and up to its end.

    What stands between the two is what the model will have to say; each rendering must begin the
    next, or the model would be trained on text that it never sees when it answers.
    """
    messages: list[dict[str, str]] = fields["messages"]
    ids: list[int] = list(tokenizer.apply_chat_template(messages, tokenize=True))
    counted = [False] * len(ids)
    ends = set(tokenizer.eos_token_ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = list(tokenizer.apply_chat_template(messages[:turn], tokenize=True, add_generation_prompt=True))
        answered = list(tokenizer.apply_chat_template(messages[: turn + 1], tokenize=True))
        if ids[: len(answered)] != answered or answered[: len(asked)] != asked:
            raise FormatError(
                f"the chat template renders message {turn + 1} differently when it is answered than when it is "
                "trained on, so its tokens cannot be told apart; write this data as prompt and completion"
            )
        last = max((i for i in range(len(asked), len(answered)) if answered[i] in ends), default=None)
        if last is None:
            raise FormatError(
                f"the chat template ends message {turn + 1} without an end token, so the model would never learn "
                "to stop; write this data as prompt and completion"
            )
        counted[len(asked) : last + 1] = [True] * (last + 1 - len(asked))
    return ids, counted


def _end_token(tokenizer: TokenizerLike) -> int:
    if tokenizer.eos_token_id is None:
        raise FormatError("the tokenizer names no end token (eos_token_id), so the model could not learn to stop")
    return tokenizer.eos_token_id


_ENCODERS = {"text": _encode_text, "completion": _encode_completion, "messages": _encode_messages}
