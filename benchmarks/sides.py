"""What every subject of the table shares: sides in their processes, turns, and rows with a goal.

A subject is a file with functions that make a side's tasks, and ``rows(bench)``, which lets the sides compete. Both
run from the same file, the first in a process of a side: so this module and the top of every subject import nothing
but the standard library, and a rival's process holds nothing of minilora.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilora.benchmark import Roofline, Side

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEAR_ROOFLINE = 0.8


@dataclass
class Row:
    """A line of the table.

    ours, theirs  figures with their units; theirs with the rival's name
    figure        what the goal is about, such as a ratio; None: not measured here
    spread        smallest and largest figure of a round
    goal          what the figure shall be at least; or at most, where ``at_most``
    share         of the roofline at that shape, 0 to 1, where it counts
    note          what else there is to say
    """

    what: str
    ours: str = ""
    theirs: str = ""
    figure: float | None = None
    spread: tuple[float, float] | None = None
    goal: float | None = None
    at_most: bool = False
    unit: str = "×"
    share: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured here"
        if self.goal is None:
            return "no goal"
        if self.figure <= self.goal if self.at_most else self.figure >= self.goal:
            return "met"
        if self.share is not None and self.share >= NEAR_ROOFLINE:
            return f"{NEAR_ROOFLINE * 100:.0f} % of roofline"
        return "not met"

    def shown(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value * 100:.0f} %" if self.unit == "%" else f"{value:.2f}{self.unit}"

    def cells(self) -> list[str]:
        """What, ours, theirs, figure with its spread, goal, verdict, roofline."""
        figure = self.shown(self.figure)
        if self.spread is not None:
            figure += f" ({self.shown(self.spread[0])} to {self.shown(self.spread[1])})"
        goal = "–" if self.goal is None else f"{'≤' if self.at_most else '≥'} {self.shown(self.goal)}"
        share = "–" if self.share is None else f"{self.share * 100:.0f} %"
        verdict = f"{self.verdict}: {self.note}" if self.note and self.figure is None else self.verdict
        return [self.what, self.ours or "–", self.theirs or "–", figure, goal, share, verdict]

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass
class Contestant:
    """A side with its name; ``lacks`` says why it cannot take part."""

    name: str
    side: Side
    lacks: str = ""

    def make(self, maker: str, **settings: Any) -> bool:
        """Make the side's tasks; False, once and for all, where something is not installed."""
        from minilora.benchmark import Missing

        if not self.lacks:
            try:
                self.side.make(maker, **settings)
            except Missing as missing:
                self.lacks = str(missing)
        return not self.lacks

    @property
    def gigabytes(self) -> float:
        """The most memory that the process has held."""
        return self.side.peak_memory / 1e9


@dataclass
class Result:
    """Seconds of every contestant, round by round."""

    times: dict[str, Sequence[float]]
    best: bool = False

    def seconds(self, name: str) -> float:
        """The typical time: the median, or the least where the machine is not ours alone."""
        return min(self.times[name]) if self.best else statistics.median(self.times[name])

    def ratios(self, name: str, over: str | Sequence[str]) -> list[float]:
        """In each round the time of ``over``, or of the fastest of those, over that of ``name``; sorted."""
        rivals = [over] if isinstance(over, str) else list(over)
        fastest = [min(times) for times in zip(*(self.times[rival] for rival in rivals), strict=True)]
        return sorted(other / own for other, own in zip(fastest, self.times[name], strict=True))

    def ratio(self, name: str, over: str | Sequence[str]) -> dict[str, Any]:
        """A row's figure and spread."""
        ratios = self.ratios(name, over)
        rivals = [over] if isinstance(over, str) else list(over)
        typical = min(map(self.seconds, rivals)) / self.seconds(name) if self.best else statistics.median(ratios)
        return {"figure": typical, "spread": (ratios[0], ratios[-1])}


@dataclass
class Bench:
    """The settings of a run, and the processes that it has open.

    threads  of every side
    isa      instruction set that every side is held to; None: what each finds fastest
    ours     interpreter with minilora's requirements; rivals: with torch, transformers, PEFT, autograd, MyGrad
    short    one round of everything, to see whether it works
    best     fastest runs in place of medians, for a machine that others use too
    """

    threads: int = 2
    isa: str | None = None
    ours: str = sys.executable
    rivals: str = sys.executable
    short: bool = False
    best: bool = False
    _open: ExitStack = field(default_factory=ExitStack)
    _limits: Side | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        if self._limits is not None:
            self._limits.close()

    def close(self) -> None:
        """End the processes of all contestants."""
        self._open.close()

    def enter(self, name: str, subject: str, *, rival: bool = False, **environment: str) -> Contestant:
        """Start a contestant's process, with this subject's makers.

        rival        uses the rivals' interpreter and libraries with ``threads`` threads; minilora uses its kernels',
                     and one of NumPy's BLAS, whose threads would only stand in their way
        environment  variables beside these
        """
        from minilora.benchmark import Side
        from minilora.benchmark.machine import settings

        held = settings(self.threads, self.isa)
        if not rival:
            held["OPENBLAS_NUM_THREADS"] = "1"
        side = Side(
            HERE / f"{subject}.py" if not Path(subject).is_absolute() else subject,
            python=self.rivals if rival else self.ours,
            imports=(HERE, ROOT),
            environment={**held, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
        )
        return Contestant(name, self._open.enter_context(side))

    def turns(
        self, contestants: Sequence[Contestant], task: str, *, rounds: int, seconds: float = 0.0, warm: bool = True
    ) -> Result:
        """Let those that can take part run the task in turns; ``seconds`` a turn."""
        from minilora.benchmark import take_turns

        able = [one for one in contestants if not one.lacks]
        rounds, seconds = (1, min(seconds, 0.01)) if self.short else (rounds, seconds)
        sides = [one.side for one in able]
        times = take_turns(sides, task, rounds=rounds, seconds=seconds, warm=warm, best=self.best)
        return Result({one.name: column for one, column in zip(able, times, strict=True)}, self.best)

    @property
    def limits(self) -> Side:
        """The process that measures this machine."""
        from minilora.benchmark import Side, machine
        from minilora.benchmark.machine import settings

        if self._limits is None:
            held = settings(self.threads, self.isa)
            self._limits = Side(machine.__file__, python=self.ours, environment=held)
            self._limits.make("limits")
        return self._limits

    @cached_property
    def roofline(self) -> Roofline:
        from minilora.benchmark import Roofline

        return Roofline(self.limits, self.threads)

    def share(self, seconds: float, *, flops: float, nbytes: int) -> float:
        """Return the share of the roofline that so much work in so many seconds reaches, 0 to 1."""
        return self.roofline.least(flops, nbytes)[0] / seconds


class Disagreement(Exception):
    """Two sides computed different things, so that their times mean nothing."""


def verify(what: str, values: Mapping[str, Any], tolerance: float) -> None:
    """Raise Disagreement where the sides' numbers (or lists of them) differ by more than this share of the largest."""
    (first, expected), *others = ((name, list(_numbers(value))) for name, value in values.items())
    size = max(map(abs, expected))
    for name, found in others:
        worst = max(abs(a - b) for a, b in zip(expected, found, strict=True)) / size
        if not worst <= tolerance or not math.isfinite(size):
            raise Disagreement(f"{what}: {first} and {name} differ by {worst:.1e} of the largest, allowed {tolerance}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield float(value)


def milliseconds(seconds: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(seconds * 1e3))) if seconds > 0 else 0
    return f"{seconds * 1e3:.{min(digits, 3)}f} ms"
