"""A tokenizer from a GGUF file's own metadata (keys ``tokenizer.ggml.*`` of the GGUF specification)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from minilora.errors import FormatError
from minilora.formats.gguf import open_gguf
from minilora.tokenizer.bpe import LLAMA3, byte_level_bpe, sentencepiece_bpe
from minilora.tokenizer.library import import_tokenizers, library_errors
from minilora.tokenizer.tokenizer import Tokenizer
from minilora.tokenizer.vocabulary import MAX_TEMPLATE, MAX_TOKEN, end_of_turn, lost_bytes

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # token types of llama.h


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes. Raises FormatError, naming the file and the key."""
    return tokenizer_from_metadata(open_gguf(path).metadata, os.fspath(path))


def tokenizer_from_metadata(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """Build it from the metadata (key → value); ``name`` is the file's, for messages."""
    fields = _Fields(metadata, name)
    kind = fields.get("model", str)
    if kind is None:
        raise FormatError(f"{name}: no tokenizer.ggml.model, so the file carries no tokenizer")
    if kind not in ("gpt2", "llama"):
        raise FormatError(
            f"{name}: tokenizer.ggml.model is {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE)\n  use the model's folder, with its tokenizer.json"
        )
    tokens = fields.strings("tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise FormatError(f"{name}: tokenizer.ggml.tokens holds {twice[:80]!r} twice; tokens must be unique")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN:
        raise FormatError(f"{name}: tokenizer.ggml.tokens holds one of {longest} characters; the limit is {MAX_TOKEN}")
    types = fields.per_token("token_type", len(tokens)) or [_NORMAL] * len(tokens)
    if kind == "gpt2":
        rust = byte_level_bpe(vocabulary, _merges(fields), fields.get("pre", str) or "gpt-2", name)
        lost = lost_bytes(vocabulary)
    else:
        rust, lost = _sentencepiece(fields, vocabulary, types), b""
    with library_errors(name):
        rust.add_special_tokens(_added(tokens, types, (_UNKNOWN, _CONTROL), special=True))
        rust.add_tokens(_added(tokens, types, (_USER_DEFINED,), special=False))
    return _finish(rust, fields, tokens, types, lost)


def _sentencepiece(fields: _Fields, vocabulary: dict[str, int], types: list[Any]) -> Any:
    scores = fields.per_token("scores", len(vocabulary))
    if not scores or not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise FormatError(f"{fields.name}: tokenizer.ggml.scores must hold a finite number for each token")
    unknown = fields.token_id("unknown_token_id", len(vocabulary))
    tokens = list(vocabulary)
    prefix = fields.get("add_space_prefix", bool)
    return sentencepiece_bpe(
        vocabulary,
        scores,
        frozenset(token for token, i in vocabulary.items() if types[i] == _NORMAL),
        None if unknown is None else tokens[unknown],
        True if prefix is None else prefix,
        fields.name,
    )


def _finish(rust: Any, fields: _Fields, tokens: list[str], types: list[Any], lost: bytes) -> Tokenizer:
    ids = {role: fields.token_id(f"{role}_token_id", len(tokens)) for role in ("bos", "eos", "eot", "eom")}
    ids["unk"] = fields.token_id("unknown_token_id", len(tokens))
    ids["pad"] = fields.token_id("padding_token_id", len(tokens))
    control = {tokens[i]: i for i, kind in enumerate(types) if kind == _CONTROL}
    template = fields.get("chat_template", str, prefix="tokenizer.")
    if template is not None and len(template) > MAX_TEMPLATE:
        raise FormatError(
            f"{fields.name}: tokenizer.chat_template has {len(template)} characters; the limit is {MAX_TEMPLATE}"
        )
    add_bos = fields.get("add_bos_token", bool)
    if add_bos is None:
        # As llama.cpp decides for files that do not say.
        add_bos = fields.get("model", str) == "llama" or fields.get("pre", str) in LLAMA3
    return Tokenizer(
        rust,
        fields.name,
        bos_token_id=ids["bos"],
        eos_token_ids=end_of_turn([ids["eos"], ids["eot"], ids["eom"]], control),
        pad_token_id=ids["pad"],
        chat_template=template,
        template_variables={
            f"{role}_token": tokens[i] for role in ("bos", "eos", "unk", "pad") if (i := ids[role]) is not None
        },
        prefix=[ids["bos"]] if add_bos and ids["bos"] is not None else [],
        suffix=[ids["eos"]] if fields.get("add_eos_token", bool) and ids["eos"] is not None else [],
        lost_bytes=lost,
    )


class _Fields:
    """Typed access to ``tokenizer.ggml.*``: None where a key is absent, FormatError where it is of another type."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self._metadata, self.name = metadata, name

    def get(self, key: str, kind: type, prefix: str = "tokenizer.ggml.") -> Any:
        value = self._metadata.get(prefix + key)
        if value is not None and type(value) is not kind:
            raise FormatError(f"{self.name}: {prefix}{key} is {type(value).__name__}, expected {kind.__name__}")
        return value

    def strings(self, key: str) -> list[str]:
        values = self.get(key, list)
        if not values:
            raise FormatError(f"{self.name}: no tokenizer.ggml.{key}, which its kind of tokenizer needs")
        if not all(isinstance(value, str) for value in values):
            raise FormatError(f"{self.name}: tokenizer.ggml.{key} must be an array of strings")
        return list(values)

    def per_token(self, key: str, count: int) -> list[Any] | None:
        values: list[Any] | None = self.get(key, list)
        if values is not None and len(values) != count:
            raise FormatError(f"{self.name}: tokenizer.ggml.{key} has {len(values)} entries for {count} tokens")
        return values

    def token_id(self, key: str, count: int) -> int | None:
        value: int | None = self.get(key, int)
        if value is not None and not 0 <= value < count:
            raise FormatError(f"{self.name}: tokenizer.ggml.{key} is {value}, outside the {count} tokens")
        return value


def _merges(fields: _Fields) -> list[tuple[str, str]]:
    pairs = []
    for i, merge in enumerate(fields.strings("merges")):
        place = merge.find(" ", 1)
        left, right = merge[:place], merge[place + 1 :]
        if place < 1 or not right:
            raise FormatError(
                f"{fields.name}: tokenizer.ggml.merges[{i}] is {merge[:80]!r}, expected two tokens and a space"
            )
        pairs.append((left, right))
    return pairs


def _added(tokens: list[str], types: list[Any], kinds: tuple[int, ...], special: bool) -> list[Any]:
    added = import_tokenizers().AddedToken
    return [
        added(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in kinds and token
    ]
