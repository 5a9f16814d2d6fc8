"""AdamW and gradient clipping against torch, bit for bit in intent and to rounding in numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minilora.autograd import tensor
from minilora.optim import AdamW, clip_grad_norm

SHAPES = [(8, 3), (5,), (1, 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.6)])
def test_thirty_clipped_steps_agree_with_torch(dtype, weight_decay, betas):
    rng = np.random.default_rng(7)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [tensor(w.copy(), requires_grad=True) for w in start]
    theirs = [torch.tensor(w, requires_grad=True) for w in start]
    settings = {"lr": 0.02, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
    mine, other = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    eps = float(np.finfo(dtype).eps)
    for step in range(1, 31):
        lr = 0.02 / step
        mine.lr = other.param_groups[0]["lr"] = lr
        for i, shape in enumerate(SHAPES):
            skipped = i == 1 and step % 3 == 0  # torch skips a parameter without gradient, count included
            grad = (10.0 ** rng.integers(-3, 2) * rng.standard_normal(shape)).astype(dtype)
            ours[i].grad = None if skipped else grad.copy()
            theirs[i].grad = None if skipped else torch.tensor(grad)
        norm = clip_grad_norm(ours, 1.0)
        other_norm = float(torch.nn.utils.clip_grad_norm_(theirs, 1.0))
        assert norm == pytest.approx(other_norm, rel=16 * eps)
        mine.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        # 30 steps, each rounding the weight and an update of size <= lr: 30 * 4 roundings of numbers below 4.
        assert np.abs(a.data - b.detach().numpy()).max() <= 30 * 4 * 4 * eps


def test_the_saved_state_holds_what_torchs_does():
    ours = [tensor(np.ones((2, 2), np.float32), requires_grad=True)]
    ours[0].grad = np.full((2, 2), 0.5, np.float32)
    theirs = [torch.ones(2, 2, requires_grad=True)]
    theirs[0].grad = torch.full((2, 2), 0.5)
    mine, other = AdamW(ours), torch.optim.AdamW(theirs)
    mine.step()
    other.step()
    got, want = mine.state_dict()["state"][0], other.state_dict()["state"][0]
    assert set(got) == set(want)
    assert got["step"] == float(want["step"])
    for name in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(got[name], want[name].numpy(), rtol=1e-6)
