"""What a training run reports: one small record for each thing that happened."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from minilora.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Started:
    """The run is about to begin; nothing has been trained yet.

    config     every setting, resolved
    examples   number of training examples
    trainable  number of trained elements
    """

    config: TrainConfig
    examples: int
    trainable: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimiser step was made.

    step       1 .. config.steps
    loss       mean over the step's counted tokens, before the step; nats
    lr         learning rate used
    grad_norm  joint norm of the gradients before clipping
    tokens     counted tokens: those whose prediction is in the loss
    seconds    wall time of the step
    processed  all tokens that went through the model, padding not counted
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    processed: int


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The held-out loss after ``step`` steps: mean over all counted tokens; nats."""

    step: int
    loss: float
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Saved:
    """The adapter of ``step`` steps is on disk, whole."""

    step: int
    path: str


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The run is over after ``step`` steps.

    reason  "finished", or what the caller's ``should_stop`` answered
    """

    step: int
    reason: str


Event: TypeAlias = Started | Step | Evaluated | Saved | Stopped
