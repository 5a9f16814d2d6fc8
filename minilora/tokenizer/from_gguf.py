"""A tokenizer from a GGUF file's own metadata (keys ``tokenizer.ggml.*`` of the GGUF specification)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from minilora.errors import FormatError
from minilora.formats.gguf import open_gguf
from minilora.tokenizer.library import import_tokenizers, library_errors
from minilora.tokenizer.tokenizer import Tokenizer
from minilora.tokenizer.vocabulary import MAX_TEMPLATE, end_of_turn, lost_bytes

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # token types of llama.h

# llama.cpp's names for what splits a text before BPE (llama-vocab.cpp), by the rule they stand for.
_GPT2 = ("gpt-2", "phi-2", "jina-en", "jina-es", "jina-de", "jina-v2-code", "roberta-bpe", "olmo", "mpt")
_DIGITS_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes. Raises FormatError, naming the file and the key."""
    return tokenizer_from_metadata(open_gguf(path).metadata, os.fspath(path))


def tokenizer_from_metadata(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """Build it from the metadata (key → value); ``name`` is the file's, for messages."""
    fields = _Fields(metadata, name)
    kind = fields.get("model", str)
    if kind is None:
        raise FormatError(f"{name}: no tokenizer.ggml.model, so the file carries no tokenizer")
    if kind != "gpt2":
        raise FormatError(
            f"{name}: tokenizer.ggml.model is {kind!r}; built from GGUF is only 'gpt2', byte-level BPE\n"
            "  use the model's folder, with its tokenizer.json"
        )
    tokens = fields.strings("tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise FormatError(f"{name}: tokenizer.ggml.tokens holds {twice!r} twice; tokens must be unique")
    types = fields.get("token_type", list) or [1] * len(tokens)
    if len(types) != len(tokens):
        raise FormatError(f"{name}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    pre = fields.get("pre", str) or "gpt-2"
    rust = _byte_level_bpe(vocabulary, _merges(fields), pre, name)
    with library_errors(name):
        rust.add_special_tokens(_added(tokens, types, (_UNKNOWN, _CONTROL), special=True))
        rust.add_tokens(_added(tokens, types, (_USER_DEFINED,), special=False))
    return _finish(rust, fields, tokens, types, pre)


def _finish(rust: Any, fields: _Fields, tokens: list[str], types: list[Any], pre: str) -> Tokenizer:
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
        add_bos = pre in _LLAMA3  # as llama.cpp decides for files that do not say
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
        lost_bytes=lost_bytes(rust.get_vocab(with_added_tokens=False).keys()),
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
            raise FormatError(f"{self.name}: no tokenizer.ggml.{key}; 'gpt2' tokenizers need tokens and merges")
        if not all(isinstance(value, str) for value in values):
            raise FormatError(f"{self.name}: tokenizer.ggml.{key} must be an array of strings")
        return list(values)

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


def _byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], pre: str, name: str) -> Any:
    library = import_tokenizers()
    split = library.pre_tokenizers
    normalizer = None
    if pre in _GPT2:
        rule = split.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre in _DIGITS_GPT2:
        rule = split.Sequence(
            [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    elif pre in _LLAMA3 or pre in _QWEN2:
        words = _WORDS.replace("NUMBER", r"\p{N}{1,3}" if pre in _LLAMA3 else r"\p{N}")
        rule = split.Sequence(
            [
                split.Split(library.Regex(words), "isolated"),
                split.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        normalizer = library.normalizers.NFC() if pre in _QWEN2 else None
    else:
        known = ", ".join((*_GPT2, *_DIGITS_GPT2, *_LLAMA3, *_QWEN2))
        raise FormatError(
            f"{name}: tokenizer.ggml.pre is {pre!r}, a way to split text that is not known here\n"
            f"  known: {known}\n  use the model's folder, with its tokenizer.json"
        )
    with library_errors(f"{name}: tokenizer.ggml.merges"):
        rust = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3))
    rust.pre_tokenizer = rule
    if normalizer is not None:
        rust.normalizer = normalizer
    rust.decoder = library.decoders.ByteLevel()
    return rust


def _added(tokens: list[str], types: list[Any], kinds: tuple[int, ...], special: bool) -> list[Any]:
    added = import_tokenizers().AddedToken
    return [
        added(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in kinds and token
    ]
