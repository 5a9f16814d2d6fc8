"""The syntax of the regular expressions that are matched in linear time: Python's, without what needs backtracking."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minilora.errors import ConfigError

MAX_LENGTH = 2_000  # characters of one pattern
MAX_STATES = 5_000  # states of one pattern, counted repeats written out
MAX_DEPTH = 50  # groups inside groups

_ESCAPED_LENGTH = {"x": 2, "u": 4, "U": 8}
_ONE_CHARACTER = frozenset("dDsSwWnrtfva") | _ESCAPED_LENGTH.keys()
_GROUPS_REFUSED = (
    ("(?=", "look-ahead"),
    ("(?!", "negative look-ahead"),
    ("(?<=", "look-behind"),
    ("(?<!", "negative look-behind"),
    ("(?P=", "a back-reference"),
    ("(?(", "a conditional"),
    ("(?>", "an atomic group"),
    ("(?#", "a comment"),
)


# The syntax tree. ``size`` bounds the number of automaton states that a node becomes.
@dataclass(frozen=True)
class One:
    """One character; ``source`` is a fragment that matches a single character, left to ``re``."""

    source: str
    size = 1


@dataclass(frozen=True)
class Assert:
    """A place between characters: '^', '$', 'b' (edge of a word), 'Z' (very end)."""

    place: str
    size = 1


@dataclass(frozen=True)
class Concat:
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True)
class Choice:
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True)
class Repeat:
    item: Node
    least: int
    most: int | None
    size: int


Node = One | Assert | Concat | Choice | Repeat


class Parser:
    """Recursive descent over one pattern; the depth is bounded by ``MAX_DEPTH``."""

    def __init__(self, source: str, where: str) -> None:
        self.source, self.where, self.at = source, where, 0

    def refuse(self, what: str, at: int | None = None) -> ConfigError:
        shown = self.source if len(self.source) <= 80 else self.source[:77] + "..."
        place = self.at if at is None else at
        return ConfigError(
            f"{self.where}: the regular expression {shown!r} {what} (at character {place})\n"
            "  patterns are matched in linear time; available are literals, ., classes, groups, |,"
            " * + ? {m,n}, ^ $ \\b"
        )

    def parse(self) -> Node:
        if len(self.source) > MAX_LENGTH:
            raise self.refuse(f"has {len(self.source)} characters; at most {MAX_LENGTH} are allowed", 0)
        tree = self.choice(0)
        if self.at < len(self.source):
            raise self.refuse("closes a group that was not opened")
        return tree

    def peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def bounded(self, size: int) -> int:
        if size > MAX_STATES:
            raise self.refuse(f"needs {size} states, repeats written out; at most {MAX_STATES} are allowed")
        return size

    def choice(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.refuse(f"nests more than {MAX_DEPTH} groups")
        branches = [self.sequence(depth)]
        while self.peek("|"):
            self.at += 1
            branches.append(self.sequence(depth))
        if len(branches) == 1:
            return branches[0]
        return Choice(tuple(branches), self.bounded(1 + sum(b.size for b in branches)))

    def sequence(self, depth: int) -> Node:
        items: list[Node] = []
        size = 1
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            items.append(self.repeated(depth))
            size = self.bounded(size + items[-1].size)
        return Concat(tuple(items), size)

    def repeated(self, depth: int) -> Node:
        start = self.at
        item = self.atom(depth)
        counts = self.counts()
        if counts is None:
            return item
        if isinstance(item, Assert):
            raise self.refuse("repeats an anchor", start)
        least, most = counts
        if self.peek("?"):
            self.at += 1  # lazy: the same whole matches
        elif self.peek("+"):
            raise self.refuse("uses a possessive repeat, which is refused")
        if self.at < len(self.source) and (self.source[self.at] in "*+?" or self.counts() is not None):
            raise self.refuse("repeats a repeat")
        copies = least + 1 if most is None else most
        return Repeat(item, least, most, self.bounded(1 + copies * (item.size + 1)))

    def counts(self) -> tuple[int, int | None] | None:
        """Read a repeat's bounds if one stands here; a brace that is no count is a literal, as in ``re``."""
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        here = self.source[self.at : self.at + 1]
        if here in simple:
            self.at += 1
            return simple[here]
        braces = re.compile(r"\{(?:([0-9]+)|([0-9]*),([0-9]*))\}").match(self.source, self.at)
        if braces is None:
            return None
        exact, low, high = braces.groups()
        if max(len(part or "") for part in (exact, low, high)) > 9:
            raise self.refuse("counts a repeat with more than 9 digits")
        least = int(exact or low or 0)
        most = int(exact) if exact else int(high) if high else None
        if most is not None and most < least:
            raise self.refuse(f"repeats at least {least} but at most {most} times")
        self.at = braces.end()
        return least, most

    def atom(self, depth: int) -> Node:
        here = self.source[self.at]
        if here == "(":
            return self.group(depth)
        if here == "[":
            return self.checked(self.character_class())
        if here == "\\":
            return self.escape()
        if here in "*+?":
            raise self.refuse("repeats nothing")
        if here in "^$":
            self.at += 1
            return Assert(here)
        if here == "{" and self.counts() is not None:
            raise self.refuse("repeats nothing")
        self.at += 1
        return One("." if here == "." else re.escape(here))

    def group(self, depth: int) -> Node:
        start = self.at
        for opening, name in _GROUPS_REFUSED:
            if self.peek(opening):
                raise self.refuse(f"uses {name}, which is refused")
        named = re.compile(r"\(\?P<[A-Za-z_][A-Za-z0-9_]*>").match(self.source, self.at)
        if named:
            self.at = named.end()
        elif self.peek("(?:"):
            self.at += 3
        elif self.peek("(?"):
            raise self.refuse("uses inline flags or an unknown kind of group, which is refused")
        else:
            self.at += 1
        inner = self.choice(depth + 1)
        if not self.peek(")"):
            raise self.refuse("opens a group that is never closed", start)
        self.at += 1
        # Wrapped, so that a repeat after the group never sees a bare anchor: (^)* is legal, ^* is not.
        return Concat((inner,), inner.size + 1)

    def escape(self) -> Node:
        letter = self.source[self.at + 1 : self.at + 2]
        if not letter:
            raise self.refuse("ends in a lone backslash")
        if letter.isascii() and letter.isdigit():
            raise self.refuse("uses a back-reference or an octal escape, which is refused")
        if letter in "AbZ":
            self.at += 2
            return Assert({"A": "^"}.get(letter, letter))
        if letter.isascii() and letter.isalpha() and letter not in _ONE_CHARACTER:
            raise self.refuse(f"uses the escape \\{letter}, which is not available")
        length = 2 + _ESCAPED_LENGTH.get(letter, 0)
        source = self.source[self.at : self.at + length]
        node = self.checked(source if letter.isascii() and letter.isalpha() else re.escape(letter))
        self.at += length
        return node

    def character_class(self) -> str:
        """Take one [class], escaping what ``re`` reserves for set operations so that it stays a literal."""
        start = self.at
        self.at += 1
        parts = ["["]
        if self.peek("^"):
            parts.append("^")
            self.at += 1
        first = True
        while first or not self.peek("]"):
            here = self.source[self.at : self.at + 1]
            if not here:
                raise self.refuse("opens a class that is never closed", start)
            if self.peek("--"):
                raise self.refuse("has -- inside a class; write \\-")
            if here == "\\":
                here = self.source[self.at : self.at + 2]
                parts.append(here)
            else:
                parts.append("\\" + here if here in "[]&~|" else here)
            self.at += len(here)
            first = False
        self.at += 1
        return "".join(parts) + "]"

    def checked(self, source: str) -> One:
        try:
            re.compile(source)
        except (re.error, OverflowError) as error:
            raise self.refuse(f"has a part that is not valid: {error}") from None
        return One(source)
