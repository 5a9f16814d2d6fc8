"""Text generation for any model that is a call with a cache."""

from minilora.generate.cache import KVCache
from minilora.generate.sampling import Sampling
from minilora.generate.session import generate, stream

__all__ = ["KVCache", "Sampling", "generate", "stream"]
