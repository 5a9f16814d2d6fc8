"""Some steps of training on the real model follow those of torch and PEFT from the same start."""

from __future__ import annotations

import numpy as np
import torch

from minilora.lora import LoraConfig, adapter_parameters, add_adapter, save_adapter
from minilora.optim import AdamW, clip_grad_norm

RATE = 1e-3


def test_losses_of_the_same_batches_stay_together(ours, peft_of, prompts, tools, tmp_path):
    add_adapter(ours, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), seed=11)
    save_adapter(ours, tmp_path)
    peft = peft_of(tmp_path, is_trainable=True)
    pairs = [tools.padded(prompts[:2]), tools.padded(prompts[2:4])]
    batches = [*pairs, *pairs]

    mine = AdamW(adapter_parameters(ours), lr=RATE, weight_decay=0.1)
    parameters = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    other = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.1)
    losses, norms = [], []
    for ids, mask in batches:
        labels = np.where(mask == 1, ids, -100)
        mine.zero_grad()
        found = ours.loss(ids, labels, attention_mask=mask)
        found.backward()
        norm = clip_grad_norm(adapter_parameters(ours), 1.0)
        mine.step()

        other.zero_grad()
        wanted = peft(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
        wanted.backward()
        other_norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        other.step()
        losses.append((found.item(), float(wanted.detach())))
        norms.append((norm, other_norm))
    losses, norms = np.array(losses), np.array(norms)
    print(f"\nlosses\n{losses}\nnorms of the gradients\n{norms}")
    assert (losses[2:] < losses[:2] - 0.2).all()  # the second time round, both have learned
    # AdamW's first steps move every number by about the rate whatever the size of its gradient g, so only numbers
    # whose g is itself within rounding of zero (gradients agree to 1e-3 of their norm, see test_gradients) may
    # move apart. They are 1e-3 of all, and each changes the loss by 2 RATE g, 1e-3 of what the others do: a
    # millionth of a step's effect. What is left is rounding in float32: logits that agree to 1e-5 of the largest,
    # about 30, and torch's sum over a vocabulary of 49,152 words, which a loss in float64 shows to be 6e-6 off.
    assert np.abs(losses[:, 0] - losses[:, 1]).max() <= 1e-4
    np.testing.assert_allclose(norms[:, 0], norms[:, 1], rtol=1e-3)
