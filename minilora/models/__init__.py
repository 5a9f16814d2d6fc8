"""Models: one family a file, readable beside its paper; load.py reads them."""

from minilora.formats.packaged import find_model
from minilora.models.config import LlamaConfig
from minilora.models.llama import Llama
from minilora.models.load import load_model

__all__ = ["Llama", "LlamaConfig", "find_model", "load_model"]
