"""Every gradient of a LoRA step on the real model is the one that torch and PEFT compute."""

from __future__ import annotations

import numpy as np
import torch

from minilora.lora import save_adapter

AGREES = 1e-3  # norm of the difference over the norm, for each tensor


def batch(prompts, tools):
    """Three prompts as a batch padded on the left, with labels on the second half of each."""
    ids, mask = tools.padded(prompts[:3])
    labels = np.where(mask == 1, ids, -100)
    for row in range(len(ids)):
        labels[row, : ids.shape[1] - mask[row].sum() // 2] = -100
    return ids, mask, labels


def test_gradients_of_every_a_and_b_agree_with_torch_and_peft(ours, random_adapter, peft_of, prompts, tools, tmp_path):
    save_adapter(ours, tmp_path)
    peft = peft_of(tmp_path, is_trainable=True)
    ids, mask, labels = batch(prompts, tools)
    assert (mask == 0).any()
    assert ((labels == -100) & (mask == 1)).any()

    mine = ours.loss(ids, labels, attention_mask=mask)
    mine.backward()
    theirs = peft(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
    theirs.backward()
    loss = float(theirs.detach())
    assert abs(mine.item() - loss) <= 1e-5 * loss

    wanted = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad.numpy()
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    assert len(wanted) == 2 * len(random_adapter)
    errors = {}
    for path, low_rank in random_adapter:
        for part, tensor in (("A", low_rank.A), ("B", low_rank.B)):
            grad = wanted.pop(f"{path}.lora_{part}").T  # a file holds factors transposed
            assert tensor.grad.shape == grad.shape
            assert np.linalg.norm(grad) > 0
            errors[f"{path}.{part}"] = float(np.linalg.norm(tensor.grad - grad) / np.linalg.norm(grad))
    assert not wanted
    worst = max(errors, key=lambda name: errors[name])
    print(f"\nloss {mine.item():.6f}, torch {loss:.6f}; largest error of {len(errors)}: {errors[worst]:.2e}, {worst}")
    assert errors[worst] <= AGREES, worst
