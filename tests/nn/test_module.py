"""Module: paths, what is trained and what is frozen, and the hash that proves it was not written."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.autograd import tensor
from minilora.kernels import FrozenWeight
from minilora.nn import AdapterChoice, Embedding, Linear, LowRank, Module, RMSNorm


class Block(Module):
    def __init__(self, seed):
        g = np.random.default_rng(seed)
        self.array = g.standard_normal((3, 2)).astype(np.float32)
        self.proj = Linear.from_weight(FrozenWeight(self.array.T), np.zeros(3, np.float32))
        del self.array
        self.norm = RMSNorm(np.ones(2, np.float32), 1e-6)


class Model(Module):
    def __init__(self):
        self.embed = Embedding(FrozenWeight(np.ones((4, 2), np.float32)))
        self.layers = [Block(0), Block(1)]
        self.head = Linear.from_weight(tensor(np.ones((3, 1)), requires_grad=True))
        self.heads = {"left": Linear(1, 1, bias=False)}
        self.name = "m"


@pytest.fixture
def model():
    return Model()


def attach(model):
    choice = AdapterChoice("default")
    low_rank = LowRank(*(tensor(np.ones(s), requires_grad=True) for s in ((2, 1), (1, 3))), 1.0, 0.5)
    model.layers[1].proj.adapters["default"], model.layers[1].proj.choice = low_rank, choice
    return low_rank


def test_paths_join_attributes_list_positions_and_keys(model):
    attach(model)
    assert [path for path, _ in model.named_modules()] == [
        "", "embed", "layers.0", "layers.0.proj", "layers.0.norm", "layers.1", "layers.1.proj",
        "layers.1.proj.adapters.default", "layers.1.norm", "head", "heads.left",
    ]  # fmt: skip


def test_parameters_are_the_tensors_that_require_a_gradient(model):
    attach(model)
    model.layers[0].extra = tensor(np.ones(2))
    assert [path for path, _ in model.named_parameters()] == [
        "layers.1.proj.adapters.default.A", "layers.1.proj.adapters.default.B", "head.weight", "heads.left.weight",
    ]  # fmt: skip


def test_a_parameter_that_two_layers_share_is_named_once(model):
    model.heads["left"].weight = model.head.weight
    assert [path for path, _ in model.named_parameters()] == ["head.weight"]


def test_frozen_are_matrices_and_plain_arrays(model):
    assert [path for path, _ in model.named_frozen()] == [
        "embed.weight", "layers.0.proj.weight", "layers.0.proj.bias", "layers.0.norm.weight",
        "layers.1.proj.weight", "layers.1.proj.bias", "layers.1.norm.weight",
    ]  # fmt: skip
    assert [path for path, _ in model.frozen_weights()] == [
        "embed.weight", "layers.0.proj.weight", "layers.1.proj.weight",
    ]  # fmt: skip


def test_train_and_eval_reach_every_module_and_return_the_model(model):
    low_rank = attach(model)
    assert model.training
    assert model.eval() is model
    assert not low_rank.training
    assert model.train() is model
    assert low_rank.training


def test_a_module_that_does_not_say_how_it_is_called_says_so(model):
    with pytest.raises(NotImplementedError, match="Model does not say how it is called"):
        model(1)


def writable(array):
    """The memory of a read-only view, as a stray pointer would write it."""
    base = array
    while base.base is not None:
        base = base.base
    return base


@pytest.mark.parametrize("path", ["embed.weight", "layers.0.proj.weight", "layers.1.proj.bias", "layers.1.norm.weight"])
def test_the_frozen_hash_changes_with_any_element_of_any_weight(model, path):
    before = model.frozen_sha256()
    assert model.frozen_sha256() == before
    value = dict(model.named_frozen())[path]
    memory = writable(value.dequantize() if isinstance(value, FrozenWeight) else value)
    old = memory.flat[memory.size - 1]
    memory.flat[memory.size - 1] = np.nextafter(old, np.float32(np.inf))
    assert model.frozen_sha256() != before
    memory.flat[memory.size - 1] = old
    assert model.frozen_sha256() == before


def test_the_frozen_hash_knows_which_weight_is_where(model):
    before = model.frozen_sha256()
    model.layers.reverse()
    assert model.frozen_sha256() != before


def test_the_frozen_hash_does_not_depend_on_what_is_trained(model):
    before = model.frozen_sha256()
    attach(model)
    model.head.weight.data[...] = 5
    assert model.frozen_sha256() == before


def test_embedding_and_norm_are_their_operators():
    table = np.arange(6.0).reshape(3, 2)
    ids = np.array([[2, 0]])
    np.testing.assert_array_equal(Embedding(FrozenWeight(table))(ids), table[ids])
    np.testing.assert_allclose(
        RMSNorm(np.array([1.0, 2.0]), 0.0)(np.array([3.0, 4.0])), np.array([3, 8]) / np.sqrt(12.5), rtol=1e-15
    )
