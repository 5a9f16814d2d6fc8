"""What stands around the engine: functional gradients, recomputation, and looking at a graph and its calls."""

from minilora.graph.checkpoint import checkpoint
from minilora.graph.draw import draw
from minilora.graph.functional import grad, value_and_grad
from minilora.graph.trace import Row, Trace, trace

__all__ = ["Row", "Trace", "checkpoint", "draw", "grad", "trace", "value_and_grad"]
