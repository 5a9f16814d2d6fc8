"""Regular expressions out of files, matched in linear time: Python's syntax without what needs backtracking.

A string in ``target_modules`` is a pattern that a stranger wrote; ``re`` may need exponential time for it.
Here it is compiled to a nondeterministic automaton, all of whose states are followed at once (Thompson 1968,
CACM 11(6); Cox 2007, "Regular Expression Matching Can Be Simple And Fast"), so that the time is at most
states x characters. Only whole matches are asked for, hence greedy and lazy repeats mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from minilora.errors import ConfigError
from minilora.lora.pattern_syntax import Assert, Choice, Concat, Node, One, Parser

MAX_TOTAL = 100_000  # states of a set of patterns
MAX_LIVE = 10_000  # states that a set of patterns may follow at the same time
MAX_REMEMBERED = 500_000  # states in remembered transitions, some 50 bytes each


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
            tree = Parser(source, where).parse()
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

    def _build(self, node: Node, then: int) -> int:
        """Add the states of ``node``, leading to ``then``; returns where it is entered."""
        if isinstance(node, One):
            return self._state(takes=node.source, moves=[then])
        if isinstance(node, Assert):
            state = self._state(moves=[then])
            self._places[state] = node.place
            return state
        if isinstance(node, Concat):
            for item in reversed(node.items):
                then = self._build(item, then)
            return then
        if isinstance(node, Choice):
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
