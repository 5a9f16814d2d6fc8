"""What stands around the engine: functional gradients, recomputation, and looking at a graph and its calls."""

from minilora.graph.checkpoint import checkpoint
from minilora.graph.functional import grad, value_and_grad

__all__ = ["checkpoint", "grad", "value_and_grad"]
