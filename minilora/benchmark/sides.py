"""The sides of a comparison: processes that take turns, each with its own threads, libraries and memory.

Two thread pools in one process wait for each other, and a peak of memory belongs to a process; so each side is one.
This file is also the main program of such a process and needs the standard library alone, since a rival's process
shall not hold minilora. It loads a subject, a Python file with functions that make tasks:

    def ours(d):              called by side.make("ours", d=576)
        ...
        return {"step": step}     tasks by name, which side.call runs, and side.time again and again

Requests and answers are JSON, one object a line, over the pipes of the process.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # where `import minilora` finds this package
MOST_RUNS = 1000  # of one task in one turn
PAUSE = 0.2  # seconds between turns: for so long the threads of the last side may still spin, waiting for work


class Missing(RuntimeError):
    """A side needs a package that is not installed, or something that this version cannot do yet."""


class SideError(RuntimeError):
    """A side failed; the message is the one of its own error."""


class Side:
    """A process that computes one side's tasks.

    subject      the Python file whose functions make the tasks
    python       the interpreter that runs it
    imports      folders that it imports from, before its own packages
    environment  variables set for it, beside those of this process
    """

    def __init__(
        self,
        subject: str | os.PathLike[str],
        *,
        python: str = sys.executable,
        imports: Sequence[str | os.PathLike[str]] = (ROOT,),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        command = ["env", *settings, python, __file__, str(subject), *map(str, imports)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_memory = 0  # bytes that this process has held at most, as of its last answer; 0: unknown

    def make(self, maker: str, **settings: Any) -> None:
        """Call the subject's function ``maker`` and take its tasks in place of those before.

        Raises Missing where a package is not installed, SideError where it fails.
        """
        self._ask({"do": "make", "name": maker, "settings": settings})

    def call(self, task: str, **settings: Any) -> Any:
        """Run a task once and return what it returns, which is something that JSON can say."""
        return self._ask({"do": "call", "name": task, "settings": settings})

    def time(self, task: str, *, seconds: float = 0.0, best: bool = False) -> float:
        """Run a task again and again for so long, at least once; return the median of its seconds, or the least."""
        return float(self._ask({"do": "time", "name": task, "seconds": seconds, "best": best}))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"the process of {request['name']} ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        self.peak_memory = answer["peak_memory"]
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise SideError(f"{request['name']}: {answer['error']}")
        return answer["value"]


@dataclass(frozen=True)
class Duel:
    """Times of two sides, round by round: seconds, in the order in which they were measured."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians, ours and theirs."""
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours in each round, sorted: above 1 ours is faster."""
        return sorted(their / our for our, their in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def take_turns(
    sides: Sequence[Side], task: str, *, rounds: int, seconds: float = 0.0, warm: bool = True, best: bool = False
) -> list[tuple[float, ...]]:
    """Time a task of every side, each in turn, so that a machine that slows down slows all; return seconds by side.

    Every other round goes backwards, so that no side always comes right after the same other one.

    seconds  how long a turn lasts; at least one run
    warm     run every side's task once before
    best     of a turn's runs the fastest, not the median: for a machine that others use too
    """
    if warm:
        for side in sides:
            side.time(task)
    times: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            time.sleep(PAUSE)
            times[index].append(sides[index].time(task, seconds=seconds, best=best))
    return [tuple(column) for column in times]


# --- The process of a side -------------------------------------------------------


def main() -> None:
    """Answer requests until there are no more."""
    subject, *imports = sys.argv[1:]
    sys.path[:1] = imports  # in place of this file's folder
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    spec = importlib.util.spec_from_file_location(Path(subject).stem, subject)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks: dict[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "make":
                tasks.clear()
                gc.collect()
                tasks.update(getattr(module, request["name"])(**request["settings"]))
                answer["value"] = None
            elif request["do"] == "call":
                answer["value"] = tasks[request["name"]](**request["settings"])
            else:
                times = timed(tasks[request["name"]], request["seconds"])
                answer["value"] = min(times) if request["best"] else statistics.median(times)
        except (ModuleNotFoundError, NotImplementedError) as error:
            answer["missing"] = str(error)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps({**answer, "peak_memory": peak_memory()}) + "\n")
        answers.flush()


def timed(task: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each run of a task, one or as many as take ``seconds`` together."""
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < MOST_RUNS):
        began = time.perf_counter()
        task()
        times.append(time.perf_counter() - began)
    return times


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held at a time; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
