"""Byte-pair encoders of the two kinds that GGUF files hold, built in the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minilora.errors import FormatError
from minilora.tokenizer.library import import_tokenizers, library_errors

# llama.cpp's names for what splits a text before BPE (llama-vocab.cpp), by the rule they stand for.
GPT2 = ("gpt-2", "phi-2", "jina-en", "jina-es", "jina-de", "jina-v2-code", "roberta-bpe", "olmo", "mpt")
DIGITS_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
QWEN2 = ("qwen2", "deepseek-r1-qwen")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level_bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], pre: str, where: str) -> Any:
    """Build GPT-2's kind: every byte is spelled by a character, words are split by the rule named ``pre``.

    vocabulary  token → id        merges  pairs of tokens, the earlier the sooner
    Raises FormatError, beginning with ``where``, for a rule that is not known and for unknown tokens.
    """
    library = import_tokenizers()
    rules, normalizer = _words(library, pre), None
    if rules is None:
        raise FormatError(
            f"{where}: tokenizer.ggml.pre is {pre!r}, a way to split text that is not known here\n"
            f"  known: {', '.join((*GPT2, *DIGITS_GPT2, *LLAMA3, *QWEN2))}\n"
            "  use the model's folder, with its tokenizer.json"
        )
    if pre in QWEN2:
        normalizer = library.normalizers.NFC()  # as in its tokenizer.json
    with library_errors(f"{where}: tokenizer.ggml.merges"):
        model = library.models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=pre in LLAMA3)
    rust = library.Tokenizer(model)
    rust.pre_tokenizer = library.pre_tokenizers.Sequence(rules)
    rust.decoder = library.decoders.ByteLevel()
    if normalizer is not None:
        rust.normalizer = normalizer
    return rust


def _words(library: Any, pre: str) -> list[Any] | None:
    split = library.pre_tokenizers
    if pre in GPT2:
        return [split.ByteLevel(add_prefix_space=False, use_regex=True)]
    if pre in DIGITS_GPT2:
        return [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
    if pre in LLAMA3 or pre in QWEN2:
        words = _WORDS.replace("NUMBER", r"\p{N}{1,3}" if pre in LLAMA3 else r"\p{N}")
        return [
            split.Split(library.Regex(words), "isolated"),
            split.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    return None


def sentencepiece_bpe(
    vocabulary: Mapping[str, int],
    scores: Sequence[float],
    normal: frozenset[str],
    unknown: str | None,
    add_space_prefix: bool,
    where: str,
) -> Any:
    """Build SentencePiece's kind (Llama 2): no words, spaces spelled "▁", strange characters as byte tokens.

    vocabulary  token → id              scores   by id: of all neighbours, the best-scored pair is merged first
    normal      tokens that merging may make (no control, byte or user-defined ones)
    unknown     token for what has no byte token either

    SentencePiece keeps no merges; any pair that makes a token is one, in the order of the tokens' scores.
    """
    library = import_tokenizers()
    ranked = sorted(normal, key=lambda token: -scores[vocabulary[token]])
    merges = [
        (token[:i], token[i:])
        for token in ranked
        for i in range(1, len(token))
        if token[:i] in normal and token[i:] in normal
    ]
    with library_errors(f"{where}: tokenizer.ggml.tokens"):
        model = library.models.BPE(
            vocab=dict(vocabulary), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    rust = library.Tokenizer(model)
    spaces = [library.normalizers.Replace(" ", "▁")]
    decoders = [library.decoders.Replace("▁", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    if add_space_prefix:
        spaces.insert(0, library.normalizers.Prepend("▁"))
        decoders.append(library.decoders.Strip(" ", 1, 0))
    rust.normalizer = library.normalizers.Sequence(spaces)
    rust.decoder = library.decoders.Sequence(decoders)
    return rust
