"""Optimisers, learning-rate schedules and gradient clipping, on ``.data`` and ``.grad`` of many Tensors."""

from __future__ import annotations

from minilora.optim.adamw import AdamW
from minilora.optim.clip import clip_grad_norm
from minilora.optim.schedule import SCHEDULES, learning_rate

__all__ = ["SCHEDULES", "AdamW", "clip_grad_norm", "learning_rate"]
