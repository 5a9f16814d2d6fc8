"""Load a tiny model and turn all its frozen weights into float64, where laws hold to 1e-12."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minilora.kernels import FrozenWeight
from minilora.models import Llama, load_model
from minilora.nn import Embedding, Linear, RMSNorm


def load_double(path: Path) -> Llama:
    """Load the model of a folder or file in float64."""
    model = load_model(path)
    for _, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            module.weight = FrozenWeight(module.weight.dequantize().astype(np.float64, order="K"))
        elif isinstance(module, RMSNorm):
            module.weight = module.weight.astype(np.float64)
    return model
