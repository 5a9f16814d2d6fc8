"""Chat templates: messages to text, and to ids in which message text can never be a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minilora.errors import ConfigError
from minilora.tokenizer.render import mark_tables
from minilora.tokenizer.worker import render

if TYPE_CHECKING:
    from minilora.tokenizer.tokenizer import Tokenizer

_PRIVATE = range(0xF0000, 0x10FFFE)  # supplementary private use, planes 15 and 16
_MAX_DEPTH = 32  # of lists and objects within a message


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """Return the text of the chat, as transformers renders it."""
    template, variables = _request(tokenizer, messages, add_generation_prompt)
    return render(template, variables, None, tokenizer.name)[0]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[int]:
    """Return the ids of the chat; special tokens are those that the template itself wrote.

    The chat is rendered twice. In the second text every character of a message that could belong to a
    special token is replaced by a private code point, so what still reads as a special token is the
    template's. Both texts must agree but for that, or nothing is returned.
    """
    template, variables = _request(tokenizer, messages, add_generation_prompt)
    chars = _alphabet(tokenizer.special_tokens)
    base = _unused_private(len(chars), [template, json.dumps(variables, ensure_ascii=False), *tokenizer.special_tokens])
    text, marked = render(template, variables, {"chars": chars, "base": base}, tokenizer.name)
    if marked.translate(mark_tables(chars, base)[1]) != text:
        raise ConfigError(
            f"{tokenizer.name}: the chat template transforms message text, so its special tokens cannot be told "
            "from those typed in a message\n  render the text, check it, and encode it yourself"
        )
    pattern = _special_pattern(tokenizer.special_tokens)
    trusted = [match.span() for match in pattern.finditer(marked)]
    everything = [match.span() for match in pattern.finditer(text)]
    encoding = tokenizer.encoding(text, parse_special=True)
    seen = list(_special_in(tokenizer, encoding, text))
    if seen == [text[a:b] for a, b in trusted] and trusted == everything:
        return list(encoding.ids)
    # A message holds special text: encode the stretches between the template's own special tokens literally.
    # That way of cutting must be exact for this tokenizer, which the plain encoding can tell.
    if _encode_stretches(tokenizer, text, everything) != list(encoding.ids):
        raise ConfigError(
            f"{tokenizer.name}: a message holds the text of a special token, which this tokenizer cannot take "
            "literally within a chat\n  take it out of the message"
        )
    return _encode_stretches(tokenizer, text, trusted)


def _request(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> tuple[str, dict[str, Any]]:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name} has no chat template: this model was not trained on messages\n"
            "  use text or prompt and completion instead"
        )
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages must be a list of objects, found {type(messages).__name__}")
    if not messages:
        raise ConfigError("messages is empty: a chat needs at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigError(
                f'messages[{i}] must be an object such as {{"role": "user", "content": "..."}}, '
                f"found {type(message).__name__}"
            )
    variables = {
        **tokenizer.template_variables,
        "messages": [_plain(message, f"messages[{i}]") for i, message in enumerate(messages)],
        "tools": None,
        "documents": None,
        "add_generation_prompt": bool(add_generation_prompt),
    }
    return tokenizer.chat_template, variables


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy JSON values of a message; a template gets no other object into its hands."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{where}: nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: keys must be strings")
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ConfigError(f"{where}: expected text, a number, a list or an object, found {type(value).__name__}")


def _alphabet(special: Mapping[str, int]) -> str:
    """Characters to mark: those of special tokens in any case, and what JSON escapes. White space, which a
    template may trim, stays: no special token is made of it alone."""
    chars = set("".join(special)) | set('"\\')
    cased = {form for char in chars for form in (char.lower(), char.upper()) if len(form) == 1}
    return "".join(sorted(char for char in chars | cased if not char.isspace()))


def _unused_private(count: int, texts: Sequence[str]) -> int:
    """Return where a run of ``count`` private code points begins that no text uses."""
    used = {ord(char) for text in texts for char in text if ord(char) >= _PRIVATE.start}
    for base in range(_PRIVATE.start, _PRIVATE.stop - count, count):
        if used.isdisjoint(range(base, base + count)):
            return base
    raise ConfigError("the messages use every private code point of Unicode\n  remove characters over U+F0000")


def _special_pattern(special: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _special_in(tokenizer: Tokenizer, encoding: Any, text: str) -> Iterator[str]:
    """The special tokens that the library saw, as they stand in the text (an unknown word is none)."""
    names = {i: token for token, i in tokenizer.special_tokens.items()}
    for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if i in names and (i in tokenizer.never_literal or text[begin:end].strip() == names[i]):
            yield names[i]


def _encode_stretches(tokenizer: Tokenizer, text: str, special: Sequence[tuple[int, int]]) -> list[int]:
    """Encode with special tokens at the given spans, and everything between them literally."""
    ids, place = [], 0
    for begin, end in [*special, (len(text), len(text))]:
        if begin > place:
            ids += tokenizer.encoding(text[place:begin], parse_special=False).ids
        if end > begin:
            ids.append(tokenizer.special_tokens[text[begin:end]])
        place = end
    return ids
