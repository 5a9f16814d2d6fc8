"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math

from minilora.errors import ConfigError

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step: int, *, lr: float, steps: int, warmup: int = 0, schedule: str = "cosine") -> float:
    """Return the learning rate of one step: a linear warm-up to ``lr``, then the schedule.

    step      1 .. steps, as reports count them
    lr        the largest rate; reached at step ``warmup`` (at once without warm-up)
    steps     length of the run
    warmup    steps of warm-up, 0 .. steps
    schedule  "cosine" (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts) and "linear"
              fall towards 0, which would be the rate of step ``steps + 1``: no step is wasted;
              "constant" stays

    Raises ConfigError for an unknown schedule or a step outside the run.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"learning_rate: schedule is {schedule!r}, wanted one of {', '.join(SCHEDULES)}")
    if not (1 <= step <= steps and 0 <= warmup <= steps):
        raise ConfigError(
            f"learning_rate: step {step} with warmup {warmup} of {steps} steps; wanted 1 <= step <= steps "
            "and 0 <= warmup <= steps"
        )
    if step < warmup:
        return lr * (step / warmup)
    if schedule == "constant":
        return lr
    top = max(warmup, 1)
    done = (step - top) / (steps + 1 - top)
    return lr * (1.0 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else lr * (1.0 - done)
