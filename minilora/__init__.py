"""minilora: low-rank adaptation (LoRA) on a CPU, with NumPy as its only requirement."""

from __future__ import annotations

__version__ = "0.1.0"

from minilora import generate, nn, ops, optim
from minilora.autograd import Tensor, no_grad, tensor
from minilora.errors import AdapterError, ConfigError, FormatError, MiniloraError, ShapeError
from minilora.kernels import FrozenWeight
from minilora.models import load_model
from minilora.ops import lora_matmul

__all__ = [
    "AdapterError",
    "ConfigError",
    "FormatError",
    "FrozenWeight",
    "MiniloraError",
    "ShapeError",
    "Tensor",
    "generate",
    "load_model",
    "lora_matmul",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "tensor",
]
