"""The tokenizer: text to ids and back, thin over the `tokenizers` library, with chat templates."""

from __future__ import annotations

import operator
import re
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minilora.errors import ConfigError
from minilora.tokenizer import chat
from minilora.tokenizer.library import library_errors
from minilora.tokenizer.stream import DecodeStream


class LostTextWarning(UserWarning):
    """A text holds bytes for which the vocabulary has no token; they are left out of the ids."""


class Tokenizer:
    """Text to token ids and back. Made by load_tokenizer.

    name             the file it came from
    eos_token_id     end of a turn, as the file names it; None where it names none
    eos_token_ids    all ids that end a turn, eos_token_id first
    bos_token_id, pad_token_id    None where the file names none
    vocab_size       largest id + 1
    special_tokens   text → id of the tokens that control the model; text of a message is never one
    chat_template    jinja source, or None
    """

    def __init__(
        self,
        rust: Any,
        name: str,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
        chat_template: str | None = None,
        template_variables: Mapping[str, str] | None = None,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        lost_bytes: bytes = b"",
    ) -> None:
        self.name = name
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self.pad_token_id = pad_token_id
        self.chat_template = chat_template
        self.template_variables = dict(template_variables or {})
        self._rust = rust
        self._lock = threading.Lock()  # parsing special tokens or not is a switch of the shared object
        self._prefix, self._suffix = list(prefix), list(suffix)
        vocabulary = rust.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        added = rust.get_added_tokens_decoder()
        self.special_tokens = {token.content: i for i, token in added.items() if token.special and token.content}
        self._tokens = {i: token for token, i in vocabulary.items()}
        unknown = getattr(rust.model, "unk_token", None)  # what any strange word may become
        self.never_literal = {i for token, i in self.special_tokens.items() if token != unknown}
        self._lost = re.compile(b"[" + re.escape(lost_bytes) + b"]") if lost_bytes else None

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, eos_token_ids={self.eos_token_ids})"

    def encode(self, text: str, parse_special: bool = True, *, add_special: bool = True) -> list[int]:
        """Return the token ids of ``text``.

        parse_special  True: text such as "<|im_end|>" becomes its special token. False: it is taken
                       literally, as text from strangers must be
        add_special    put the tokens around it that the file asks for (for many models a first token,
                       for SmolLM2 none); False for text that continues another

        Warns with LostTextWarning where bytes have no token: they would not come back from decode.
        Raises ConfigError for text that is not Unicode (lone surrogates), or that this vocabulary cannot
        take literally.
        """
        ids = list(self.encoding(text, parse_special, add_special).ids)
        return [*self._prefix, *ids, *self._suffix] if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become replacement characters.

        skip_special  leave special tokens out

        Raises ConfigError for an id outside [0, vocab_size).
        """
        numbers = []
        for i in ids:
            try:
                number = operator.index(i)
            except TypeError:
                raise ConfigError(f"decode: ids must be integers, found {i!r}") from None
            if not 0 <= number < self.vocab_size:
                raise ConfigError(
                    f"decode: id {number} is outside the vocabulary of {self.name}, 0..{self.vocab_size - 1}"
                )
            numbers.append(number)
        with library_errors(f"{self.name}: decode"):
            return str(self._rust.decode(numbers, skip_special_tokens=skip_special))

    def stream(self, skip_special: bool = False) -> DecodeStream:
        """Return a decoder that takes ids one by one and gives text as soon as it is complete."""
        return DecodeStream(self, skip_special)

    def token(self, token_id: int) -> str:
        """Return the vocabulary's own spelling of an id, "" where it has none."""
        return self._tokens.get(token_id, "")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> Any:
        """Render messages as the model was trained to read them: text, or ids with ``tokenize``.

        messages               [{"role": "user", "content": "..."}, ...]
        add_generation_prompt  end with the opening of the assistant's turn

        With ``tokenize``, special tokens come from the template alone: "<|im_end|>" within a message is
        taken literally. Raises ConfigError where there is no template, where it refuses the messages, or
        where it changes message text in a way that hides which text is whose.
        """
        if tokenize:
            return chat.encode_chat(self, messages, add_generation_prompt)
        return chat.render_chat(self, messages, add_generation_prompt)

    def encoding(self, text: str, parse_special: bool, add_special: bool = False) -> Any:
        """Return the library's Encoding (ids, offsets in characters)."""
        if not isinstance(text, str):
            raise ConfigError(f"encode: text must be a string, found {type(text).__name__}")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"encode: character {error.start} is a lone surrogate ({text[error.start]!r}), which is no "
                "text\n  read the file as UTF-8 with errors='replace'"
            ) from None
        if self._lost and (match := self._lost.search(data)):
            place = len(data[: match.start()].decode(errors="ignore"))
            warnings.warn(
                f"{self.name} has no token for byte 0x{match[0][0]:02x} ({text[place]!r}, character {place} of "
                "the text): it is left out of the ids",
                LostTextWarning,
                stacklevel=3,
            )
        with self._lock, library_errors(f"{self.name}: encode"):
            self._rust.encode_special_tokens = not parse_special
            encoding = self._rust.encode(text, add_special_tokens=add_special)
        if not parse_special:
            self._refuse_special(encoding)
        return encoding

    def _refuse_special(self, encoding: Any) -> None:
        """Raise if literal text became a special token all the same: some vocabularies hold it as a word."""
        for i, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            if not added and i in self.never_literal:
                raise ConfigError(
                    f"encode: {self.name} has no literal spelling of {self.token(i)!r}, only the special token "
                    f"{i}\n  take it out of the text, or encode with parse_special=True"
                )
