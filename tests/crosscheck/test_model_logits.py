"""SmolLM2's logits and greedy continuations are transformers', from a GGUF file and from folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minilora import no_grad
from minilora.models import load_model

AGREES = 1e-4  # largest difference over largest logit; float32 alone leaves about 3e-6


def compare(model, prompts, wanted, tools, what):
    with no_grad():
        differences = [
            tools.relative(model(np.array([ids])).data[0], logits) for ids, logits in zip(prompts, wanted, strict=True)
        ]
    print(f"\n{what}: largest relative difference {max(differences):.2e} on {len(prompts)} prompts")
    assert max(differences) <= AGREES


def test_logits_of_the_gguf_file_are_those_of_its_dequantised_weights(ours, prompts, base_logits, tools):
    assert len({len(ids) for ids in prompts}) == len(prompts) == 5
    compare(ours, prompts, base_logits, tools, "GGUF")


def test_logits_of_a_folder_written_by_transformers_agree(folder, prompts, base_logits, tools):
    model = load_model(folder)
    assert model.config.tie_word_embeddings
    assert model.config.eos_token_ids
    compare(model, prompts, base_logits, tools, "folder, float32")


def test_the_folder_and_the_gguf_file_are_the_same_model(ours, folder):
    """Also the settings: the same weights, bit for bit, and the same rotation."""
    model = load_model(folder)
    for (path, mine), (other, weight) in zip(ours.frozen_weights(), model.frozen_weights(), strict=True):
        assert path == other
        np.testing.assert_array_equal(mine.dequantize(), weight.dequantize())
    np.testing.assert_array_equal(ours.config.rotary_frequencies(), model.config.rotary_frequencies())
    # GGUF stores epsilon as float32.
    assert model.config.rms_norm_eps == pytest.approx(ours.config.rms_norm_eps, rel=1e-6)


def test_logits_of_a_sharded_bfloat16_folder_agree(theirs, prompts, tools, tmp_path):
    half = type(theirs)(theirs.config).to(torch.bfloat16)
    half.load_state_dict(theirs.state_dict())
    half.tie_weights()
    half.save_pretrained(tmp_path, max_shard_size="40MB")
    del half
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    reading = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        wanted = [reading(torch.tensor([ids])).logits[0].numpy() for ids in prompts[:2]]
    del reading
    compare(load_model(tmp_path), prompts[:2], wanted, tools, "folder, bfloat16 shards")


def test_a_left_padded_batch_agrees_at_every_token_that_counts(ours, theirs, prompts, tools):
    ids, mask = tools.padded(prompts)
    with torch.no_grad():
        positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
        wanted = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=positions).logits.numpy()
    with no_grad():
        found = ours(ids, attention_mask=mask).data
    counted = mask == 1
    difference = tools.relative(found[counted], wanted[counted])
    print(f"\npadded batch: {difference:.2e}")
    assert difference <= AGREES


def test_greedy_continuations_are_the_same_ids(ours, theirs, prompts, tools):
    ids, mask = tools.padded(prompts)
    with torch.no_grad():
        wanted = theirs.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=20, do_sample=False,
            pad_token_id=ours.config.eos_token_ids[0], eos_token_id=list(ours.config.eos_token_ids),
        ).numpy()  # fmt: skip
    found = ours.generate(ids, attention_mask=mask, max_new_tokens=20)
    np.testing.assert_array_equal(found, wanted)
    for row, prompt in list(enumerate(prompts))[:2]:  # and alone, without padding
        alone = ours.generate(np.array([prompt]), max_new_tokens=12)[0, len(prompt) :]
        np.testing.assert_array_equal(alone, wanted[row, ids.shape[1] :][: len(alone)])
