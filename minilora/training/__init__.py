"""The training loop: settings in, events out, and nothing printed. ``train`` runs it to the end."""

from __future__ import annotations

from minilora.training.config import TrainConfig
from minilora.training.events import Evaluated, Event, Saved, Started, Step, Stopped
from minilora.training.loop import accumulate_gradients, evaluate, steps
from minilora.training.result import TrainResult, lora_config, train

__all__ = [
    "Evaluated",
    "Event",
    "Saved",
    "Started",
    "Step",
    "Stopped",
    "TrainConfig",
    "TrainResult",
    "accumulate_gradients",
    "evaluate",
    "lora_config",
    "steps",
    "train",
]
