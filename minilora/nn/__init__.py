"""Layers: an operator with the arrays it needs, and adapters where a layer can carry one."""

from minilora.nn.adapters import AdapterChoice
from minilora.nn.embedding import Embedding
from minilora.nn.linear import Linear, LowRank
from minilora.nn.module import Module
from minilora.nn.norm import GroupNorm, LayerNorm, RMSNorm

__all__ = ["AdapterChoice", "Embedding", "GroupNorm", "LayerNorm", "Linear", "LowRank", "Module", "RMSNorm"]
