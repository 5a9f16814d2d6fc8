"""A batch whose rows use adapters of their own, beside each row alone with its adapter."""

from __future__ import annotations

import numpy as np
import pytest
from models.tiny import tiny_config, tiny_weights, write_folder

import minilora as ml
from minilora.errors import AdapterError, ConfigError, ShapeError
from minilora.lora import LoraConfig, add_adapter, set_adapter
from minilora.models import load_model

IDS = np.array([[0, 0, 9, 4], [5, 7, 3, 1], [2, 2, 8, 30], [6, 1, 1, 3], [5, 7, 3, 1]])
MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
NAMES = ["a", "b", None, "a", "c"]


@pytest.fixture
def model(tmp_path):
    config = tiny_config()
    model = load_model(write_folder(tmp_path, config, tiny_weights(config)))
    rng = np.random.default_rng(0)
    # Of other ranks, scales and layers.
    for name, rank, targets in (
        ("a", 2, "all-linear"),
        ("b", 5, ["q_proj", "down_proj"]),
        ("c", 1, ["lm_head", "o_proj"]),
    ):
        add_adapter(model, LoraConfig(r=rank, lora_alpha=3, target_modules=targets), name=name)
    for _, tensor in model.named_parameters():
        tensor.data[...] = 0.3 * rng.standard_normal(tensor.shape)
    set_adapter(model, None)
    return model


def alone(model, row, **options):
    options |= {"adapters": NAMES[row]} if NAMES[row] else {}
    return model(IDS[row : row + 1], MASK[row : row + 1], **options).data[0]


@pytest.mark.parametrize("keep", [None, 1])
def test_each_row_is_what_it_is_alone(model, keep):
    found = model(IDS, MASK, adapters=NAMES, logits_to_keep=keep).data
    for row in range(len(IDS)):
        wanted = alone(model, row, logits_to_keep=keep)
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    base = model(IDS, MASK, logits_to_keep=keep).data
    assert [np.allclose(one, other) for one, other in zip(found, base, strict=True)] == [not name for name in NAMES]


def test_one_name_for_all_rows_is_a_call_with_that_adapter(model):
    assert model(IDS, MASK, adapters=["b"] * 5).data.tobytes() == model(IDS, MASK, adapters="b").data.tobytes()
    assert model(IDS, MASK, adapters=[None] * 5).data.tobytes() == model(IDS, MASK).data.tobytes()


def test_gradients_are_those_of_the_rows(model):
    weights = np.random.default_rng(1).standard_normal((len(IDS), 4, 1))

    def gradients(call):
        for _, tensor in model.named_parameters():
            tensor.grad = None
        call()
        return {path: tensor.grad for path, tensor in model.named_parameters() if tensor.grad is not None}

    def together():
        logits = model(IDS, MASK, adapters=NAMES)
        logits.backward((weights * np.ones(logits.shape)).astype(np.float32))

    def one_by_one():
        for row, name in enumerate(NAMES):
            if name:
                logits = model(IDS[row : row + 1], MASK[row : row + 1], adapters=name)
                logits.backward((weights[row : row + 1] * np.ones(logits.shape)).astype(np.float32))

    found, wanted = gradients(together), gradients(one_by_one)
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(
            found[path], wanted[path], rtol=0, atol=1e-4 * np.abs(wanted[path]).max(), err_msg=path
        )


def test_generation_continues_every_row_with_its_own_adapter(model):
    found = model.generate(IDS, MASK, max_new_tokens=8, adapters=NAMES, stop=[int(IDS[1, 0])])
    for row, name in enumerate(NAMES):
        own = {"adapters": name} if name else {}
        one = model.generate(IDS[row : row + 1], MASK[row : row + 1], max_new_tokens=8, stop=[int(IDS[1, 0])], **own)
        assert list(one[0]) == list(found[row, : one.shape[1]])


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ShapeError, match="adapters: 2 names for a batch of 5 rows"):
        model(IDS, MASK, adapters=["a", "b"])
    with pytest.raises(AdapterError, match="no adapter named 'x'"):
        model(IDS, MASK, adapters=["a", "b", "x", None, None])
    with pytest.raises(AdapterError, match="no adapter named 7"):
        model(IDS, MASK, adapters=["a", "b", 7, None, None])
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5), name="dropped")
    model.train()
    with pytest.raises(ConfigError, match="adapters with dropout train one at a time"):
        model(IDS, MASK, adapters=["a", "b", "dropped", None, None])
    model.eval()
    model(IDS, MASK, adapters=["a", "b", "dropped", None, None])


@pytest.mark.native
def test_many_rows_and_ranks_keep_their_bits_for_any_number_of_threads():
    rng = np.random.default_rng(2)
    m, k, n = 203, 405, 330
    x, W, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (n, k), (n,)))
    ranks = [1, 8, 0, 40, 16]
    factors = [rng.standard_normal(s, dtype=np.float32) for r in ranks for s in ((k, r), (r, n))]
    index = np.repeat(rng.integers(-1, 5, 29), 7)
    scales = (0.5, 2.0, 1.0, -1.0, 0.25)
    seen = set()
    for threads in (1, 2, 3):
        ml.set_num_threads(threads)
        try:
            seen.add(ml.ops.mixed_lora_matmul(x, W.T, index, bias, factors, scales).tobytes())
        finally:
            from minilora import kernels

            kernels._set_threads = None
    assert len(seen) == 1
    y = np.frombuffer(seen.pop(), np.float32).reshape(m, n)
    for i in range(-1, 5):
        mine = index == i
        want, size = x[mine].astype(float) @ W.T + bias, np.abs(x[mine]) @ np.abs(W.T).astype(float) + np.abs(bias)
        if i >= 0:
            A, B = factors[2 * i].astype(float), factors[2 * i + 1]
            want += scales[i] * (x[mine] @ A) @ B
            size += abs(scales[i]) * (np.abs(x[mine]) @ np.abs(A)) @ np.abs(B)
        assert np.all(np.abs(y[mine] - want) <= 2**-24 * (2 * k + 44) * size), i
