"""Which regular expressions of a tokenizer.json are handed to the library's backtracking engine (Oniguruma)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minilora.errors import FormatError

MAX_REGEX = 4096  # characters
MAX_UNBOUNDED = 2  # in one alternative
MAX_CHOICES = 6  # places in one alternative where the engine may have to come back, the unbounded included
MAX_DEPTH = 8  # of groups

_TOKEN = re.compile(
    r"""(?P<refused>\\[1-9kgGKXR] | \(\?(?:P | <[^=!] | [(~'&R@\#{C0-9+] | [a-z]*-?[a-z]*x) | \(\*)
      | (?P<escape>\\(?:[pP]\{\^?[A-Za-z_\ ]+\} | x\{[0-9A-Fa-f]+\} | [\s\S]) | \\)
      | (?P<repeat>[*+?][?+]? | \{[0-9]*,?[0-9]*\}\??)
      | (?P<flags>\(\?[ims-]+\))
      | (?P<open>\((?:\?(?:[:=!>] | <[=!] | [ims-]+:))?)
      | (?P<any>[\s\S])""",
    re.VERBOSE,
)


@dataclass
class _Item:
    """A character, class or group (then with its alternatives), and how it is repeated."""

    group: list[list[_Item]] | None = None
    nullable: bool = False
    unbounded: bool = False
    choice: bool = False


class _ObjectionError(Exception):
    pass


def check_regex(pattern: Any, where: str) -> None:
    """Refuse a regular expression that could run for ever on some text.

    Repeated may be a character, a class or an escape; a group only with ``?``. One alternative may hold two
    repeats without bound, if nothing that could fail follows the second, and six choices in all: then a
    match from one place takes time linear in the text, and all of them together its square at worst. The
    patterns of GPT-2, Llama 3, Qwen, DeepSeek and GPT-4o are of this form. References back, calls and named
    groups are refused. Raises FormatError.
    """
    if not isinstance(pattern, str) or not pattern or len(pattern) > MAX_REGEX:
        raise FormatError(f"{where}: Regex must be text of 1 to {MAX_REGEX} characters")
    try:
        for alternative in _parse(pattern):
            _weigh(alternative, 0, 0, strict=True)
    except _ObjectionError as objection:
        raise FormatError(
            f"{where}: Regex {pattern[:120]!r} {objection}, so it could run for ever on some text; not allowed here"
        ) from None


def _weigh(alternative: list[_Item], unbounded: int, choices: int, strict: bool) -> tuple[int, int]:
    """Return the counts at the end of an alternative that begins with such counts.

    strict  that it fails would make the engine come back to the repeats before it
    """
    for item in alternative:
        if strict and unbounded == MAX_UNBOUNDED and not item.nullable:
            raise _ObjectionError("can fail after two unbounded repeats")
        if item.group is not None:
            inner = strict and not (item.nullable and unbounded == MAX_UNBOUNDED)
            weights = [_weigh(option, unbounded, choices, inner) for option in item.group]
            unbounded, choices = max(w[0] for w in weights), max(w[1] for w in weights)
            choices += len(item.group) > 1
        unbounded, choices = unbounded + item.unbounded, choices + item.choice
        if unbounded > MAX_UNBOUNDED or choices > MAX_CHOICES:
            raise _ObjectionError("has too many repeats and choices in a row")
    return unbounded, choices


def _parse(pattern: str) -> list[list[_Item]]:
    """Return the alternatives of a pattern; what the engine will refuse itself need not be noticed here."""
    groups: list[list[list[_Item]]] = [[[]]]  # the alternatives of each group that is open
    after, place = "", 0
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        assert token is not None  # the last branch takes anything
        text, kind, place = token[0], str(token.lastgroup), token.end()
        items = groups[-1][-1]
        if kind == "refused":
            raise _ObjectionError(f"holds {text!r}")
        if kind == "repeat":
            if after == "repeat" or (after == "close" and text[0] != "?"):
                raise _ObjectionError("repeats what is itself a group or repeated")
            if items:
                items[-1].nullable |= text[0] in "*?" or re.match(r"\{0*,", text) is not None
                items[-1].unbounded, items[-1].choice = _is_long(text), True
        elif kind == "open":
            groups.append([[]])
            if len(groups) > MAX_DEPTH:
                raise _ObjectionError(f"nests groups deeper than {MAX_DEPTH}")
        elif text == "|":
            groups[-1].append([])
        elif text == ")" and len(groups) > 1:
            kind, closed = "close", groups.pop()
            groups[-1][-1].append(_Item(group=closed))
        elif kind != "flags":
            items.append(_Item())
            if text == "[":
                place = _class_end(pattern, place)
        after = kind
    if len(groups) > 1:
        raise _ObjectionError("holds a group without end")
    return groups[0]


def _is_long(repeat: str) -> bool:
    if repeat[0] != "{":
        return repeat[0] in "*+"
    numbers = [int(digits[:4]) for digits in re.findall(r"[0-9]+", repeat)]
    return repeat.rstrip("?").endswith(",}") or max(numbers, default=0) > 4


def _class_end(pattern: str, place: int) -> int:
    """Return the place after the bracket that closes a character class; classes nest."""
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
    raise _ObjectionError("holds a class without end")
