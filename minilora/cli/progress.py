"""What a person sees of a training run: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from minilora.training.events import Evaluated, Event, Saved, Started, Step, Stopped

_LINES = 40  # plain step lines in a run, about


class Lines:
    """One line for each event, for log files, pipes and terminals without rich."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.total = 0
        self.spent = 0.0  # seconds in steps

    def say(self, text: str) -> None:
        """Print a line; one that nobody can read any more is no reason to lose what was trained."""
        with contextlib.suppress(BrokenPipeError):  # as in `minilora train | tee log`: Ctrl-C ends tee too
            print(text, file=self.out, flush=True)

    def show(self, event: Event) -> None:
        """Report one event of training.steps."""
        if isinstance(event, Started):
            self.total = event.config.steps or 0
        elif isinstance(event, Step):
            self.spent += event.seconds
            every = math.ceil(self.total / _LINES)
            if event.step % every == 0 or event.step in (1, self.total):
                left = self.spent / event.step * (self.total - event.step)
                self.say(f"step {event.step}/{self.total}  {figures(event)}  {clock(left)} left")
        elif isinstance(event, Evaluated):
            self.say(f"step {event.step}/{self.total}  held-out loss {event.loss:.4f}  ({event.tokens:,} tokens)")
        elif isinstance(event, Saved):
            self.say(f"step {event.step}/{self.total}  saved in {event.path}")
        elif isinstance(event, Stopped) and event.reason != "finished":
            self.say(f"stopped after step {event.step} by {event.reason}")


class Bar(Lines):
    """A moving bar with loss, tokens a second, memory and time left; other events print above it."""

    def __init__(self, out: TextIO, progress: Any) -> None:
        super().__init__(out)
        self._progress = progress
        self._task: Any = None

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            super().show(event)
            self._task = self._progress.add_task("training", total=self.total, figures="")
        elif isinstance(event, Step):
            self._progress.update(self._task, completed=event.step, figures=figures(event))
        else:
            super().show(event)


@contextlib.contextmanager
def progress(out: TextIO) -> Iterator[Lines]:
    """Show events on ``out``: a Bar where it is a terminal and rich is installed, else Lines."""
    if not out.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines(out)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield Lines(out)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=out)) as bar:
        yield Bar(out, bar)


def figures(event: Step) -> str:
    """Loss, learning rate, speed and memory of a step."""
    speed = event.processed / event.seconds if event.seconds > 0 else 0.0
    return f"loss {event.loss:.4f}  lr {event.lr:.2e}  {speed:,.0f} tokens/s  {memory()}"


def memory() -> str:
    """Peak memory of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
