"""Small random models of every kind that minilora claims, written by transformers and read by minilora."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from minilora import FormatError
from minilora.models import load_model

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 256, "rope_theta": 900.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "untied": (LlamaConfig, LlamaForCausalLM, {}),
    "tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "one key head, other eps": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1, "rms_norm_eps": 0.1}),
    "linear rope scaling": (
        LlamaConfig, LlamaForCausalLM, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3 rope scaling": (LlamaConfig, LlamaForCausalLM, {"rope_scaling": LLAMA3}),
    "mistral without a window": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}  # fmt: skip


def build(kind):
    make_config, make_model, own = KINDS[kind]
    torch.manual_seed(0)
    model = make_model(make_config(**SIZES | own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # transformers starts with gains of 1 and very small matrices
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("shard", ["1GB", "12KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_agree(kind, shard, tmp_path, tools):
    model = build(kind)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "12KB")
    ids = np.random.default_rng(1).integers(0, 61, (2, 100))
    with torch.no_grad():
        wanted = model(torch.tensor(ids)).logits.numpy()
    found = load_model(tmp_path)(ids).data
    # 3 layers of 7 products of at most 40 terms, each rounding by at most 40 eps of its own terms.
    assert tools.relative(found, wanted) <= 3 * 7 * 40 * 2.0**-24


REFUSED = {
    "attention bias": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}, "attention_bias is True"),
    "mlp bias": (LlamaConfig, LlamaForCausalLM, {"mlp_bias": True}, "mlp_bias is True"),
    "gelu": (LlamaConfig, LlamaForCausalLM, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "yarn": (
        LlamaConfig, LlamaForCausalLM, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
    "dynamic": (
        LlamaConfig, LlamaForCausalLM, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
    "sliding window": (MistralConfig, MistralForCausalLM, {"sliding_window": 32}, "sliding_window is 32"),
}  # fmt: skip


@pytest.mark.parametrize(("make_config", "make_model", "own", "text"), REFUSED.values(), ids=REFUSED)
def test_a_setting_that_would_change_the_logits_is_refused_by_name(make_config, make_model, own, text, tmp_path):
    make_model(make_config(**SIZES | own)).save_pretrained(tmp_path)
    with pytest.raises(FormatError) as error:
        load_model(tmp_path)
    assert text in str(error.value)
    assert "config.json" in str(error.value)
