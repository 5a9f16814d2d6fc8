"""A tiny model of frozen linear layers under the paths of a real one."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.kernels import FrozenWeight
from minilora.nn import Embedding, Linear, Module, RMSNorm

HIDDEN, KEYS, INNER, VOCABULARY = 6, 4, 10, 9


class Attention(Module):
    def __init__(self, rng):
        self.q_proj, self.v_proj = frozen(rng, HIDDEN, HIDDEN), frozen(rng, HIDDEN, KEYS)


class Mlp(Module):
    def __init__(self, rng):
        self.up_proj, self.down_proj = frozen(rng, HIDDEN, INNER), frozen(rng, INNER, HIDDEN)


class Layer(Module):
    def __init__(self, rng):
        self.input_layernorm = RMSNorm(np.ones(HIDDEN, np.float32), 1e-6)
        self.self_attn, self.mlp = Attention(rng), Mlp(rng)

    def __call__(self, x):
        x = self.self_attn.q_proj(self.input_layernorm(x))
        return self.mlp.down_proj(self.mlp.up_proj(x))


class Decoder(Module):
    def __init__(self, rng, layers):
        self.embed_tokens = Embedding(frozen(rng, VOCABULARY, HIDDEN).weight)
        self.layers = [Layer(rng) for _ in range(layers)]


class Tiny(Module):
    output_head = "lm_head"

    def __init__(self, seed=0, layers=3):
        rng = np.random.default_rng(seed)
        self.model = Decoder(rng, layers)
        self.lm_head = frozen(rng, HIDDEN, VOCABULARY)

    def __call__(self, x):
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(x)


def frozen(rng, width_in, width_out):
    return Linear.from_weight(FrozenWeight(rng.standard_normal((width_out, width_in)).astype(np.float32).T))


@pytest.fixture(scope="session")
def tiny():
    """Make a tiny model; the same seed gives the same weights."""
    return Tiny


@pytest.fixture
def x():
    return np.random.default_rng(7).standard_normal((5, HIDDEN)).astype(np.float32)
