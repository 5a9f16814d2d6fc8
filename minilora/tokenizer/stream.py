"""Text out of a stream of token ids: a character is handed on once all of its bytes have come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minilora.tokenizer.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class DecodeStream:
    """Decode ids one at a time. All texts returned by push, and then finish, join to ``decode`` of all ids.

    >>> stream = tokenizer.stream()
    >>> text = "".join(map(stream.push, ids)) + stream.finish()
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._context: list[int] = []  # ids already handed on: a token's text may depend on the one before
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; "" while a character is still open."""
        if self._skip_special and token_id in self._tokenizer.special_tokens.values():
            return ""
        self._pending.append(token_id)
        text = self._tokenizer.decode([*self._context, *self._pending])
        # A replacement character at the end may be an unfinished character, and a run of byte tokens
        # is judged as a whole, so neither is settled yet.
        if text.endswith("\N{REPLACEMENT CHARACTER}") or self._is_byte(token_id):
            return ""
        return self._hand_on(text)

    def finish(self) -> str:
        """Return what is left: bytes that never became a character, as replacement characters."""
        return self._hand_on(self._tokenizer.decode([*self._context, *self._pending]))

    def _hand_on(self, text: str) -> str:
        new = text[len(self._tokenizer.decode(self._context)) :]
        if self._pending:
            self._context, self._pending = self._pending, []
        return new

    def _is_byte(self, token_id: int) -> bool:
        return _BYTE_TOKEN.fullmatch(self._tokenizer.token(token_id)) is not None
