"""Which regular expressions of a tokenizer.json are handed to the library's backtracking engine (Oniguruma)."""

from __future__ import annotations

import re
from typing import Any

from minilora.errors import FormatError

MAX_REGEX = 4096  # characters
MAX_UNBOUNDED = 2  # in one alternative
MAX_CHOICES = 8  # places in one alternative where the engine may have to come back, the unbounded included

_TOKEN = re.compile(
    r"""(?P<refused>\\[1-9kgGKXR] | \(\?(?:P | <[^=!] | [(~'&R@\#{C0-9+] | [a-z]*-?[a-z]*x) | \(\*)
      | (?P<escape>\\(?:[pP]\{\^?[A-Za-z_\ ]+\} | x\{[0-9A-Fa-f]+\} | [\s\S]) | \\)
      | (?P<repeat>[*+?][?+]? | \{[0-9]*,?[0-9]*\}\??)
      | (?P<flags>\(\?[ims-]+\))
      | (?P<open>\((?:\?(?:[:=!>] | <[=!] | [ims-]+:))?)
      | (?P<any>[\s\S])""",
    re.VERBOSE,
)


def check_regex(pattern: Any, where: str) -> None:
    """Refuse a regular expression that could run for ever on some text.

    Repeated may be a character, a class or an escape; a group only with ``?``. One alternative may hold two
    repeats without bound and eight choices in all, so that one match costs some thousand times the square of
    the text's length at worst. The patterns of GPT-2, Llama 3, Qwen, DeepSeek and GPT-4o are of this form.
    References back, calls and named groups are refused. Raises FormatError.
    """
    if not isinstance(pattern, str) or not pattern or len(pattern) > MAX_REGEX:
        raise FormatError(f"{where}: Regex must be text of 1 to {MAX_REGEX} characters")
    reason = _objection(pattern)
    if reason:
        raise FormatError(
            f"{where}: Regex {pattern[:120]!r} {reason}, so it could run for ever on some text; not allowed here"
        )


def _objection(pattern: str) -> str | None:
    # For each open group: counts (unbounded, choices) where it began, now, and the highest of its alternatives.
    groups = [_Group((0, 0))]
    after, place = "", 0  # what a repeat would apply to
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        assert token is not None  # the last branch takes anything
        text, kind, place = token[0], str(token.lastgroup), token.end()
        group = groups[-1]
        if kind == "refused":
            return f"holds {text!r}"
        if kind == "repeat":
            if after in ("repeat", "close") and not (after == "close" and text[0] == "?"):
                return "repeats what is itself a group or repeated"
            group.count(unbounded=_is_long(text))
        elif kind == "open":
            groups.append(_Group(group.now))
        elif text == "|":
            group.alternative()
        elif text == ")" and len(groups) > 1:
            groups.pop()
            kind, groups[-1].now = "close", group.close()
        elif text == "[":
            place = _class_end(pattern, place)
            if place < 0:
                return "holds a class without end"
        if groups[-1].now[0] > MAX_UNBOUNDED or groups[-1].now[1] > MAX_CHOICES:
            return "has too many repeats and choices in a row"
        after = kind
    return None


class _Group:
    def __init__(self, start: tuple[int, int]) -> None:
        self._start = self.now = self._most = start
        self._choice = False

    def count(self, unbounded: bool) -> None:
        self.now = (self.now[0] + unbounded, self.now[1] + 1)

    def alternative(self) -> None:
        self._most = (max(self._most[0], self.now[0]), max(self._most[1], self.now[1]))
        self.now, self._choice = self._start, True

    def close(self) -> tuple[int, int]:
        most = (max(self._most[0], self.now[0]), max(self._most[1], self.now[1]))
        return (most[0], most[1] + self._choice)


def _is_long(repeat: str) -> bool:
    if repeat[0] != "{":
        return repeat[0] in "*+"
    numbers = [int(digits[:4]) for digits in re.findall(r"[0-9]+", repeat)]
    return repeat.rstrip("?").endswith(",}") or max(numbers, default=0) > 4


def _class_end(pattern: str, place: int) -> int:
    """Return the place after the bracket that closes a character class (classes nest), -1 if none does."""
    depth, first = 1, True
    while place < len(pattern):
        char = pattern[place]
        place += 2 if char == "\\" else 1
        if char == "[":
            depth, first = depth + 1, True
        elif char == "]" and not first:
            depth -= 1
            if depth == 0:
                return place
        elif not (char == "^" and first):
            first = False
    return -1
