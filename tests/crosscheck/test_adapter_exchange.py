"""Adapters of the real model pass from minilora to PEFT and back, and mean the same there.

The environment variable MINILORA_ADAPTER may name an adapter folder, such as the one that the demo wrote.
"""

from __future__ import annotations

import os

import numpy as np
import peft
import pytest
import torch

from minilora import no_grad
from minilora.lora import LoraConfig, adapter_parameters, add_adapter, load_adapter, save_adapter
from minilora.optim import AdamW

AGREES = 1e-4  # largest difference over largest logit
EFFECT = 100 * AGREES  # what the adapter has to change, at least


@pytest.fixture
def trained_adapter(ours, prompts, tools, tmp_path):
    """The folder of an adapter that minilora trained: the caller's, or a few steps on the prompts."""
    given = os.environ.get("MINILORA_ADAPTER")
    if given:
        load_adapter(ours, given)
        return given
    add_adapter(ours, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), seed=3)
    optimizer = AdamW(adapter_parameters(ours), lr=2e-3)
    ids, mask = tools.padded(prompts)
    labels = np.where(mask == 1, ids, -100)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ours.loss(ids, labels, attention_mask=mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_adapter(ours, tmp_path / "trained")
    return tmp_path / "trained"


def logits_of(model, prompts):
    """Logits of each prompt by either model."""
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
    with no_grad():
        return [model(np.array([ids])).data[0] for ids in prompts]


def largest(found, wanted, tools):
    return max(tools.relative(f, w) for f, w in zip(found, wanted, strict=True))


def test_an_adapter_that_minilora_trained_gives_the_same_logits_in_peft(
    ours, trained_adapter, peft_of, prompts, base_logits, tools
):
    mine = logits_of(ours, prompts)
    theirs = logits_of(peft_of(trained_adapter), prompts)
    difference = largest(mine, theirs, tools)
    effects = [tools.relative(t, b) for t, b in zip(theirs, base_logits, strict=True)]
    print(f"\nfrom minilora: difference {difference:.2e}, effect {min(effects):.2e} to {max(effects):.2e}")
    assert difference <= AGREES
    assert min(effects) >= EFFECT


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 3}},
    ],
    ids=["all linear", "some, rank-stabilised, with a pattern"],
)
def test_an_adapter_that_peft_made_gives_the_same_logits_in_minilora(
    ours, theirs, prompts, base_logits, tools, tmp_path, settings
):
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **settings)).eval()
    try:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
        wanted = logits_of(wrapped, prompts)
    finally:
        wrapped.unload()
        theirs.requires_grad_(False)
    receipt = load_adapter(ours, tmp_path, name="from PEFT")
    assert receipt.effective
    assert not receipt.missing
    assert not receipt.unused
    difference = largest(logits_of(ours, prompts), wanted, tools)
    effect = min(tools.relative(w, b) for w, b in zip(wanted, base_logits, strict=True))
    print(f"\nfrom PEFT: difference {difference:.2e}, effect at least {effect:.2e}")
    assert difference <= AGREES
    assert effect >= EFFECT


def test_an_adapter_out_of_minilora_comes_back_as_it_was(ours, random_adapter, prompts, tmp_path):
    wanted = logits_of(ours, prompts[:1])[0]
    save_adapter(ours, tmp_path)
    load_adapter(ours, tmp_path, name="again")
    with no_grad():
        found = ours(np.array(prompts[:1]), adapters="again").data[0]
    np.testing.assert_array_equal(found, wanted)
