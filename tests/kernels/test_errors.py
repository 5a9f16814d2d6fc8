"""Every kernel's error against float64 beside that of NumPy in float32, on operands of a transformer's sizes.

The bounds that are derived for each kernel are tested elsewhere, over many sizes; this is the look at all of them
together, and the table at the end of a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from formats.gguf_builder import random_blocks

from minilora.autograd import REGISTRY
from minilora.kernels import STORAGES, FrozenWeight

pytestmark = pytest.mark.native
EPS = 2.0**-24


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def weight(storage: str) -> FrozenWeight:
    """W (576, 384) in the lines of a file (384, 576)."""
    raw = random_blocks(storage, (384, 576), np.random.default_rng(1), scale=0.05)
    return FrozenWeight.from_blocks(np.frombuffer(raw, np.uint8).reshape(384, -1), storage)


X, IDS = normal(200, 576), np.random.default_rng(2).integers(0, 384, 200)
ANGLES = np.random.default_rng(3).uniform(-3, 3, (2, 100, 32))
PAIRS = tuple(normal(*shape, seed=i) for i, shape in enumerate([(576, 16), (16, 384), (576, 4), (4, 384)]))
HEADS = [normal(2, 150, heads, 64, seed=heads) for heads in (6, 2, 2)]
# name of the case, whose first word is the operator's -> operands in the signature's order, and parameters
CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    **{f"linear {storage}": ((X, weight(storage), None), {}) for storage in STORAGES},
    "lora_matmul": ((X, weight("f32"), *PAIRS[:2], normal(384)), {"scale": 2.0}),
    "lora_matmul one row": ((X[:1], weight("f32"), *PAIRS[:2], normal(384)), {"scale": 2.0}),
    "mixed_lora_matmul": ((X, weight("q4_1"), IDS % 3 - 1, None, *PAIRS), {"scales": (0.5, 2.0)}),
    "attention": ((*HEADS, None), {}),
    "attention window": ((*HEADS, None), {"window": 40}),
    "rms_norm": ((X, normal(576)), {"eps": 1e-5}),
    "layer_norm": ((X, normal(576), normal(576, seed=1)), {"eps": 1e-5}),
    "silu": ((4 * X,), {}),
    "swiglu": ((4 * X, normal(200, 576, seed=4)), {}),
    "gelu": ((4 * X,), {"approximate": "none"}),
    "gelu tanh": ((4 * X,), {"approximate": "tanh"}),
    "rotary": ((normal(2, 100, 9, 64), np.cos(ANGLES, dtype=np.float32), np.sin(ANGLES, dtype=np.float32)), {}),
    "embedding": ((IDS, normal(384, 576)), {}),
    "cross_entropy": ((4 * normal(200, 1000), IDS, None), {}),
    "linear_cross_entropy": ((X, weight("q8_0"), IDS), {}),
}


def double(value: Any) -> Any:
    value = value.dequantize() if isinstance(value, FrozenWeight) else value
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def needed(op: Any, operands: Any) -> tuple[bool, ...]:
    """The gradients that training asks for: those of the arrays, but not of a frozen weight or of angles."""
    return tuple(
        isinstance(o, np.ndarray) and o.dtype.kind == "f" and not (op.name == "rotary" and i > 0)
        for i, o in enumerate(operands)
    )


def results(op: Any, rule: Any, operands: Any, params: dict[str, Any], need: tuple[bool, ...]) -> dict[str, np.ndarray]:
    """The output and the gradients that are needed, by a rule; the output's gradient is random."""
    settings = {**{n: p.default for n, p in op.__signature__.parameters.items() if n not in names(op)}, **params}
    out, saved = op.run(rule, operands, settings, need)
    grad = normal(*np.shape(out), seed=9) if np.ndim(out) else np.ones((), np.float32)
    grads = rule.vjp(grad.astype(out.dtype), saved, need, **settings)
    given = op.signature.expand(len(operands))
    found = {f"grad of {o.name} {i}": g for i, (o, g, n) in enumerate(zip(given, grads, need, strict=True)) if n}
    return {"out": np.asarray(out), **found}


def names(op: Any) -> set[str]:
    return {operand.name for operand in op.signature.inputs}


def test_every_operator_with_a_kernel_is_here():
    assert {case.split()[0] for case in CASES} == {name for name, op in REGISTRY.items() if op.kernel is not None}


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_is_as_exact_as_numpy_up_to_a_factor_of_four(case, record_property):
    op, (operands, params) = REGISTRY[case.split()[0]], CASES[case]
    need = needed(op, operands)
    exact = results(op, op.reference, tuple(map(double, operands)), params, need)
    numpy = results(op, op.reference, operands, params, need)
    ours = results(op, op.kernel, operands, params, need)
    assert op.choose(operands) is op.kernel
    assert ours.keys() == numpy.keys() == exact.keys()
    worst = (0.0, 0.0)
    for what, want in exact.items():
        size = np.abs(want).max()
        mine, theirs = (float(np.abs(found[what] - want).max() / size) for found in (ours, numpy))
        assert mine <= 4 * theirs + EPS, f"{what}: off by {mine:.1e} of the largest element, NumPy by {theirs:.1e}"
        worst = max(worst, (mine, theirs))
    record_property("errors", (case, *worst))
