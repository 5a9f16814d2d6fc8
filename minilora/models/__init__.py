"""Models: one family a file, readable beside its paper; load.py finds and reads them."""

from minilora.models.config import LlamaConfig
from minilora.models.llama import Llama
from minilora.models.load import find_model, load_model

__all__ = ["Llama", "LlamaConfig", "find_model", "load_model"]
