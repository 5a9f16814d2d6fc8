"""minilora: low-rank adaptation (LoRA) on a CPU, with NumPy as its only requirement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from minilora import generate, nn, ops, optim, training
from minilora.autograd import Tensor, no_grad, tensor
from minilora.errors import AdapterError, ConfigError, FormatError, MiniloraError, ShapeError
from minilora.graph import checkpoint, draw, grad, trace, value_and_grad
from minilora.kernels import FrozenWeight, get_include, set_num_threads
from minilora.lora import (
    LoraConfig,
    adapter_parameters,
    adapters_disabled,
    add_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
)
from minilora.models import load_model
from minilora.ops import lora_matmul
from minilora.tokenizer import load_tokenizer
from minilora.training import TrainConfig, train

if TYPE_CHECKING:
    from minilora import testing

__all__ = [
    "AdapterError",
    "ConfigError",
    "FormatError",
    "FrozenWeight",
    "LoraConfig",
    "MiniloraError",
    "ShapeError",
    "Tensor",
    "TrainConfig",
    "adapter_parameters",
    "adapters_disabled",
    "add_adapter",
    "checkpoint",
    "draw",
    "generate",
    "get_include",
    "grad",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "lora_matmul",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save_adapter",
    "set_adapter",
    "set_num_threads",
    "tensor",
    "testing",
    "trace",
    "train",
    "training",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """Import minilora.testing when it is first asked for: training needs none of it."""
    if name == "testing":
        import minilora.testing

        return minilora.testing
    raise AttributeError(f"module 'minilora' has no attribute {name!r}")
