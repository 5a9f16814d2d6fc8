"""The packaged SmolLM2-135M: found by name, read as its file says, and speaking."""

from __future__ import annotations

import numpy as np
import pytest

from minilora import no_grad
from minilora.models import find_model, load_model
from minilora.tokenizer import load_tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2-135m")


def test_its_configuration_is_that_of_the_published_model(model):
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.rope_theta, config.max_position_embeddings) == (49152, 1e5, 8192)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)  # <|im_end|>
    assert sum(np.prod(weight.shape) for _, weight in model.frozen_weights()) == pytest.approx(134.5e6, rel=1e-3)


def test_it_knows_the_capital_of_france(model):
    tokenizer = load_tokenizer(find_model("smollm2-135m"))
    ids = tokenizer.encode("The capital of France is")
    with no_grad():
        best = model(np.array([ids])).data[0, -1].argmax()
    assert tokenizer.decode([int(best)]) == " Paris"


def test_its_weights_are_spared_by_a_call(model):
    before = model.frozen_sha256()
    with no_grad():
        model(np.array([[1, 2, 3]]))
    assert model.frozen_sha256() == before
