"""Regular expressions out of files, matched in linear time: Python's syntax without what needs backtracking.

A string in ``target_modules`` is a pattern that a stranger wrote; ``re`` may need exponential time for it.
Here it is compiled to a nondeterministic automaton, all of whose states are followed at once (Thompson 1968,
CACM 11(6); Cox 2007, "Regular Expression Matching Can Be Simple And Fast"), so that the time is at most
states x characters. Only whole matches are asked for, hence greedy and lazy repeats mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minilora.errors import ConfigError

MAX_LENGTH = 2_000  # characters of one pattern
MAX_STATES = 5_000  # states of one pattern, counted repeats written out
MAX_LIVE = 10_000  # states that one set of patterns may follow at the same time
MAX_DEPTH = 50  # groups inside groups
MAX_TOTAL = 100_000  # states of a set of patterns
MAX_REMEMBERED = 500_000  # states in remembered transitions, some 50 bytes each

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
class _One:
    """One character; ``source`` is a fragment that matches a single character, left to ``re``."""

    source: str
    size = 1


@dataclass(frozen=True)
class _Assert:
    """A place between characters: '^', '$', 'b' (edge of a word), 'Z' (very end)."""

    place: str
    size = 1


@dataclass(frozen=True)
class _Sequence:
    items: tuple[_Node, ...]
    size: int


@dataclass(frozen=True)
class _Choice:
    items: tuple[_Node, ...]
    size: int


@dataclass(frozen=True)
class _Repeat:
    item: _Node
    least: int
    most: int | None
    size: int


_Node = _One | _Assert | _Sequence | _Choice | _Repeat


class _Parser:
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

    def parse(self) -> _Node:
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

    def choice(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise self.refuse(f"nests more than {MAX_DEPTH} groups")
        branches = [self.sequence(depth)]
        while self.peek("|"):
            self.at += 1
            branches.append(self.sequence(depth))
        if len(branches) == 1:
            return branches[0]
        return _Choice(tuple(branches), self.bounded(1 + sum(b.size for b in branches)))

    def sequence(self, depth: int) -> _Node:
        items: list[_Node] = []
        size = 1
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            items.append(self.repeated(depth))
            size = self.bounded(size + items[-1].size)
        return _Sequence(tuple(items), size)

    def repeated(self, depth: int) -> _Node:
        start = self.at
        item = self.atom(depth)
        counts = self.counts()
        if counts is None:
            return item
        if isinstance(item, _Assert):
            raise self.refuse("repeats an anchor", start)
        least, most = counts
        if self.peek("?"):
            self.at += 1  # lazy: the same whole matches
        elif self.peek("+"):
            raise self.refuse("uses a possessive repeat, which is refused")
        if self.at < len(self.source) and (self.source[self.at] in "*+?" or self.counts() is not None):
            raise self.refuse("repeats a repeat")
        copies = least + 1 if most is None else most
        return _Repeat(item, least, most, self.bounded(1 + copies * (item.size + 1)))

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

    def atom(self, depth: int) -> _Node:
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
            return _Assert(here)
        if here == "{" and self.counts() is not None:
            raise self.refuse("repeats nothing")
        self.at += 1
        return _One("." if here == "." else re.escape(here))

    def group(self, depth: int) -> _Node:
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
        return _Sequence((inner,), inner.size + 1)

    def escape(self) -> _Node:
        letter = self.source[self.at + 1 : self.at + 2]
        if not letter:
            raise self.refuse("ends in a lone backslash")
        if letter.isascii() and letter.isdigit():
            raise self.refuse("uses a back-reference or an octal escape, which is refused")
        if letter in "AbZ":
            self.at += 2
            return _Assert({"A": "^"}.get(letter, letter))
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

    def checked(self, source: str) -> _One:
        try:
            re.compile(source)
        except (re.error, OverflowError) as error:
            raise self.refuse(f"has a part that is not valid: {error}") from None
        return _One(source)


# The automaton: state i either consumes a character (takes[i]), or moves freely to each of moves[i], which
# an entry of places[i] allows only at that place of the text.
class Patterns:
    """Several patterns tried at once; ``first(text)`` says which is the first that matches all of ``text``.

    The transitions between sets of states are remembered, so that texts with a common structure cost one
    dictionary look-up a character.
    """

    def __init__(self, sources: Sequence[str], where: str, *, as_suffix: bool = False) -> None:
        """Compile ``sources``; ``as_suffix`` makes each ``(.*\\.)?(source)$``, PEFT's rule for pattern keys.

        Raises ConfigError, beginning with ``where``, for syntax that is refused or patterns too large.
        """
        self._where = where
        self._takes: list[int | None] = []
        self._moves: list[list[int]] = []
        self._places: dict[int, str] = {}
        self._accepts: dict[int, int] = {}
        self._fragments: list[Callable[[str], object]] = []
        self._fragment_ids: dict[str, int] = {}
        self._start = self._state()
        head = self._start
        if as_suffix:
            head = self._state()
            loop = self._state()
            any_character = self._state(takes=".", moves=[loop])
            dot = self._state(takes=r"\.", moves=[head])
            self._moves[loop] = [any_character, dot]
            self._moves[self._start] = [loop, head]
        for index, source in enumerate(sources):
            end = self._state()
            self._accepts[end] = index
            if as_suffix:
                newline = self._state(takes="\n", moves=[end])  # ``re.match`` leaves it over, as $ allows
                end = self._state(moves=[end, newline])
                self._places[end] = "$"
            tree = _Parser(source, where).parse()
            if len(self._takes) + tree.size > MAX_TOTAL:
                raise ConfigError(
                    f"{where}: {len(sources)} regular expressions need more than {MAX_TOTAL} states\n"
                    "  use fewer or simpler patterns"
                )
            self._moves[head].append(self._build(tree, end))
        self._known: dict[tuple[frozenset[int], str, str, bool], frozenset[int]] = {}
        self._remembered = 0
        self._fits: dict[tuple[int, str], bool] = {}

    def first(self, text: str) -> int | None:
        """Index of the first pattern that matches the whole of ``text``, or None."""
        live, before = frozenset((self._start,)), "start"
        for i, character in enumerate(text):
            final = character == "\n" and i == len(text) - 1
            key = (live, before, character, final)
            after = self._known.get(key)
            if after is None:
                after = self._step(live, before, character, final)
                self._remembered += len(after) + 1
                if self._remembered > MAX_REMEMBERED:
                    self._known, self._remembered = {}, 0
                self._known[key] = after
            if not after:
                return None
            live, before = after, "word" if _is_word(character) else "other"
        reached = self._closure(live, before, "", True)
        return min((self._accepts[s] for s in reached if s in self._accepts), default=None)

    def _step(self, live: frozenset[int], before: str, character: str, final: bool) -> frozenset[int]:
        after = set()
        for state in self._closure(live, before, character, final):
            takes = self._takes[state]
            if takes is not None and self._fit(takes, character):
                after.update(self._moves[state])
        return frozenset(after)

    def _fit(self, fragment: int, character: str) -> bool:
        known = self._fits.get((fragment, character))
        if known is None:
            known = self._fragments[fragment](character) is not None
            if len(self._fits) >= MAX_REMEMBERED:
                self._fits = {}
            self._fits[fragment, character] = known
        return known

    def _closure(self, live: Iterable[int], before: str, following: str, final: bool) -> set[int]:
        """Every state reachable without taking a character; ``final``: at most a last newline follows."""
        reached = set(live)
        stack = list(reached)
        while stack:
            state = stack.pop()
            if self._takes[state] is not None:
                continue
            place = self._places.get(state)
            if place is not None and not _holds(place, before, following, final):
                continue
            for target in self._moves[state]:
                if target not in reached:
                    reached.add(target)
                    stack.append(target)
            if len(reached) > MAX_LIVE:
                raise ConfigError(
                    f"{self._where}: the regular expressions need more than {MAX_LIVE} states at the same"
                    " time\n  use fewer or simpler patterns"
                )
        return reached

    def _state(self, takes: str | None = None, moves: list[int] | None = None) -> int:
        fragment = None
        if takes is not None:
            fragment = self._fragment_ids.setdefault(takes, len(self._fragments))
            if fragment == len(self._fragments):
                self._fragments.append(re.compile(takes).fullmatch)
        self._takes.append(fragment)
        self._moves.append([] if moves is None else moves)
        return len(self._takes) - 1

    def _build(self, node: _Node, then: int) -> int:
        """Add the states of ``node``, leading to ``then``; returns where it is entered."""
        if isinstance(node, _One):
            return self._state(takes=node.source, moves=[then])
        if isinstance(node, _Assert):
            state = self._state(moves=[then])
            self._places[state] = node.place
            return state
        if isinstance(node, _Sequence):
            for item in reversed(node.items):
                then = self._build(item, then)
            return then
        if isinstance(node, _Choice):
            return self._state(moves=[self._build(item, then) for item in node.items])
        if node.most is None:
            loop = self._state()
            self._moves[loop] = [self._build(node.item, loop), then]
            entry, needed = loop, node.least
        else:
            entry, needed = then, node.least
            for _ in range(node.most - node.least):
                entry = self._state(moves=[self._build(node.item, entry), then])
        for _ in range(needed):
            entry = self._build(node.item, entry)
        return entry


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _holds(place: str, before: str, following: str, final: bool) -> bool:
    """Whether an anchor holds between ``before`` (start, word or other) and the character ``following``."""
    if place == "^":
        return before == "start"
    if place == "$":
        return final
    if place == "Z":
        return following == ""
    return (before == "word") != (following != "" and _is_word(following))
