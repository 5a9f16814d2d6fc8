"""A language model of one hidden layer that keeps the loop's contract, and examples for it."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import ops
from minilora.autograd import Tensor
from minilora.data import Example
from minilora.kernels import FrozenWeight
from minilora.lora import LoraConfig, add_adapter
from minilora.nn import Embedding, Linear, Module

VOCABULARY, WIDTH = 13, 8


class Bigram(Module):
    """Predicts a token from the one before it. float64, so that laws hold to 1e-12."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def frozen(*shape):
            return FrozenWeight(rng.standard_normal(shape) / np.sqrt(shape[0]))

        self.embed = Embedding(frozen(VOCABULARY, WIDTH))
        self.hidden = Linear.from_weight(frozen(WIDTH, WIDTH))
        self.head = Linear.from_weight(frozen(WIDTH, VOCABULARY))

    def loss(self, input_ids, labels, attention_mask=None, reduction="mean"):
        logits = self.head(ops.silu(self.hidden(self.embed(np.asarray(input_ids)[:, :-1]))))
        loss = ops.cross_entropy(logits, np.asarray(labels)[:, 1:], reduction=reduction)
        return loss if isinstance(loss, Tensor) else Tensor(loss)

    def count_labels(self, labels):
        return int((np.asarray(labels)[:, 1:] != -100).sum())


def adapted(seed: int = 0, **settings) -> Bigram:
    """A Bigram with a fresh adapter on both layers."""
    model = Bigram()
    add_adapter(model, LoraConfig(r=3, target_modules=["hidden", "head"], **settings), seed=seed)
    return model


def example(rng: np.random.Generator, length: int, prompt: int) -> Example:
    """``prompt`` tokens that are not counted, then the number that follows each number."""
    ids = (int(rng.integers(VOCABULARY)) + 3 * np.arange(length)) % VOCABULARY
    return made(ids, prompt)


def made(ids, prompt: int = 1) -> Example:
    """An Example of these ids, of which the first ``prompt`` are not counted."""
    ids = np.asarray(ids, np.int32)
    return Example(ids, np.where(np.arange(len(ids)) < prompt, -100, ids), "data.jsonl:1")


@pytest.fixture(scope="session")
def make_example():
    return made


@pytest.fixture
def examples():
    rng = np.random.default_rng(5)
    return [example(rng, int(rng.integers(3, 9)), int(rng.integers(1, 3))) for _ in range(12)]


@pytest.fixture(scope="session")
def make_model():
    return adapted
