"""From the start of a process to its first training step, and to the end of that: a user's wait, imports included.

The step is that of step.py with a fresh adapter; files are read from the page cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from sides import Bench, Result, Row, verify

GOALS = {"to the end of the first step": 3.0, "to the first step": 10.0}


def rows(bench: Bench) -> Iterator[Row]:
    """Start each side's process three times; the first time only warms the page cache."""
    import smollm2

    model = str(smollm2.model_folder())
    ready: dict[str, list[float]] = {"minilora": [], "PEFT": []}
    done: dict[str, list[float]] = {"minilora": [], "PEFT": []}
    losses: dict[str, float] = {}
    lacks = ""
    for number in range(1 if bench.short else 3):
        for name, maker in (("minilora", "ours"), ("PEFT", "peft")):
            rival = name == "PEFT"
            began = time.perf_counter()
            side = bench.enter(name, "step", rival=rival)
            if side.make(maker, model=model, **({"threads": bench.threads} if rival else {})):
                until_ready = time.perf_counter() - began
                losses[name] = side.side.call("step")
                if number or bench.short:
                    ready[name].append(until_ready)
                    done[name].append(time.perf_counter() - began)
            lacks = lacks or side.lacks
            bench.close()
    verify("first step", losses, 1e-4)
    for (what, goal), times in zip(GOALS.items(), (done, ready), strict=True):
        result = Result({name: column for name, column in times.items() if column}, bench.best)
        row = Row(f"process start {what}", ours=f"{result.seconds('minilora'):.2f} s", theirs="PEFT", goal=goal)
        row.note = lacks
        if not lacks:
            figures = result.ratio("minilora", "PEFT")
            row.theirs, row.figure = f"PEFT {result.seconds('PEFT'):.2f} s", figures["figure"]
            row.spread = figures["spread"]
        yield row
