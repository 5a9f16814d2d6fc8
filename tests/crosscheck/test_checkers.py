"""The same wrong gradients before several checkers: which of them notices? Prints the table of docs/checkers.md.

Every function is a plain one on NumPy arrays with a hand-written vector–Jacobian product. It is handed to each
checker in that checker's own form, with its default tolerances. MyGrad installs no checker of its own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from autograd.extend import defvjp, primitive
from autograd.test_util import check_grads

from minilora.testing import check_vjp

DRAWS = 4
MAGNITUDES = (1e-8, 1e-4, 1.0, 1e6)


def square(x):
    return x * x, lambda g: 2 * x * g


def weighted(x):
    w = np.linspace(0.5, 1.5, x.size).reshape(x.shape)
    return np.sum(w * x * np.abs(x)), lambda g: 2 * g * w * np.abs(x)


def normalised(x):
    rms = np.sqrt(np.mean(x * x))
    return x / rms, lambda g: (g - x * np.mean(g * x) / rms**2) / rms


def product(x):
    w = np.cos(np.arange(x.size * 3)).reshape(x.size, 3)
    return x @ w, lambda g: w @ g


FUNCTIONS = {"x²": square, "Σ w x|x|": weighted, "x / rms(x)": normalised, "x W": product}


def one_element(g):
    g = np.array(g)
    g.flat[g.size // 2] *= 1.01
    return g


FAULTS = {
    "factor 2": lambda g: 2 * g,
    "factor 1.01": lambda g: 1.01 * g,
    "factor 1 + 1e-4": lambda g: (1 + 1e-4) * g,
    "sign": np.negative,
    "zero": np.zeros_like,
    "one element of 60 by 1 %": one_element,
    "one NaN": lambda g: np.where(np.arange(g.size) == 3, np.nan, g),
}


def parts(function, fault):
    """f and its vjp with a fault (or none), as plain functions."""
    change = FAULTS.get(fault, lambda g: g)
    return (lambda x: function(x)[0]), (lambda g, x: change(function(x)[1](g)))


def ours(f, vjp, x):
    check_vjp(f, vjp, x)


def hips(f, vjp, x):
    wrapped = primitive(f)
    defvjp(wrapped, lambda ans, x: lambda g: vjp(g, x))
    check_grads(wrapped, modes=["rev"], order=1)(x)


def torchs(f, vjp, x):
    class Wrapped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.as_tensor(np.asarray(f(x.detach().numpy())))

        @staticmethod
        def backward(ctx, g):
            return torch.as_tensor(np.asarray(vjp(g.numpy(), ctx.saved_tensors[0].detach().numpy())))

    assert torch.autograd.gradcheck(Wrapped.apply, (torch.tensor(x, requires_grad=True),))


CHECKERS = {"minilora": ours, "HIPS autograd": hips, "torch": torchs}


def accepts(checker, f, vjp, x):
    try:
        checker(f, vjp, x)
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


@pytest.fixture(scope="module")
def table():
    """For each (fault, magnitude, checker): of all functions and draws, how many were accepted."""
    found = {}
    for fault in ("none", *FAULTS):
        for magnitude in MAGNITUDES:
            for name, checker in CHECKERS.items():
                accepted = 0
                for function in FUNCTIONS.values():
                    f, vjp = parts(function, fault)
                    for seed in range(DRAWS):
                        rng = np.random.default_rng(seed)
                        np.random.seed(seed)  # HIPS draws from the global generator
                        x = magnitude * rng.uniform(0.5, 1.5, 60) * rng.choice([-1, 1], 60)
                        accepted += accepts(checker, f, vjp, x)
                found[fault, magnitude, name] = accepted
    total = DRAWS * len(FUNCTIONS)
    print(f"\n\naccepted of {total} | " + " | ".join(f"|x| ≈ {m:g}" for m in MAGNITUDES))
    for fault in ("none", *FAULTS):
        for name in CHECKERS:
            cells = " | ".join(f"{found[fault, m, name]}" for m in MAGNITUDES)
            print(f"| {fault} | {name} | {cells} |")
    return found


def test_minilora_rejects_every_wrong_gradient_and_accepts_every_right_one(table):
    total = DRAWS * len(FUNCTIONS)
    for (fault, magnitude, name), accepted in table.items():
        if name == "minilora":
            assert accepted == (total if fault == "none" else 0), (fault, magnitude)


def test_the_rivals_find_what_is_plain_to_see_so_they_were_run_rightly(table):
    for name in ("HIPS autograd", "torch"):
        assert table["none", 1.0, name] > 0
        assert table["factor 2", 1.0, name] == 0
        assert table["sign", 1.0, name] == 0
