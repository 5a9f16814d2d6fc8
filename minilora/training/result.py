"""``ml.train``: run the loop to its end and return what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilora.data import Dataset, Example
from minilora.lora import LoraConfig, active_adapter, add_adapter
from minilora.training.config import TrainConfig
from minilora.training.events import Evaluated, Saved, Step
from minilora.training.loop import steps


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run did.

    steps        optimiser steps made
    losses       training loss of each step, taken before it; nats a token
    eval_losses  (steps made, held-out loss) in order, the first before any training; empty without
                 held-out examples
    tokens       counted tokens of all steps together
    seconds      in steps: saves and held-out losses not counted
    path         folder with the adapter, or None
    """

    steps: int
    losses: tuple[float, ...]
    eval_losses: tuple[tuple[int, float], ...]
    tokens: int
    seconds: float
    path: Path | None


def train(
    model: Any,
    data: Dataset | Sequence[Example],
    config: TrainConfig | None = None,
    *,
    eval_data: Dataset | Sequence[Example] = (),
    out: str | Path | None = None,
) -> TrainResult:
    """Train an adapter of ``model`` on ``data`` and return the result; ``training.steps`` shows it at work.

    A model with an active adapter goes on with it; one without gets one by ``config``'s r, lora_alpha,
    target_modules, lora_dropout and use_rslora. The other arguments and the errors are those of
    ``training.steps``.

    Ctrl-C ends in KeyboardInterrupt, with the adapter of the last whole step in ``model`` and in ``out``.
    """
    config = config or TrainConfig()
    if active_adapter(model) is None:
        add_adapter(model, lora_config(config), seed=config.seed)
    done: list[Step] = []
    held_out: list[tuple[int, float]] = []
    path = None
    for event in steps(model, data, config, eval_data=eval_data, out=out):
        if isinstance(event, Step):
            done.append(event)
        elif isinstance(event, Evaluated):
            held_out.append((event.step, event.loss))
        elif isinstance(event, Saved):
            path = Path(event.path)
    return TrainResult(
        steps=len(done),
        losses=tuple(step.loss for step in done),
        eval_losses=tuple(held_out),
        tokens=sum(step.tokens for step in done),
        seconds=sum(step.seconds for step in done),
        path=path,
    )


def lora_config(config: TrainConfig) -> LoraConfig:
    """Return the adapter's settings among those of a run."""
    return LoraConfig(
        r=config.r,
        lora_alpha=2 * config.r if config.lora_alpha is None else config.lora_alpha,
        target_modules=config.target_modules,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
    )
