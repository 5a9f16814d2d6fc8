"""Gradients of a whole Llama's A and B are finite differences of its loss; its weights get none and stay the same."""

from __future__ import annotations

import ctypes
import tracemalloc

import numpy as np
import pytest
from models.double import load_double
from models.tiny import tiny_config, tiny_weights, write_folder, write_gguf

from minilora.lora import LoraConfig, adapter_layers, adapter_parameters, add_adapter
from minilora.models import load_model
from minilora.optim import AdamW

IDS = np.array([[0, 0, 9, 4, 30, 9, 2], [11, 7, 5, 3, 2, 1, 0]])
MASK = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
LABELS = np.array([[-100, -100, -100, -100, 30, 9, 2], [11, -100, 5, 3, -100, 1, 0]])
TARGETS = r".*(_proj|lm_head)"  # every linear layer and the output head


def adapted(model, **settings):
    """Give the model an adapter whose B is not zero."""
    add_adapter(model, LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": TARGETS} | settings))
    rng = np.random.default_rng(1)
    for _, low_rank in adapter_layers(model, "default"):
        low_rank.B.data[...] = 0.1 * rng.standard_normal(low_rank.B.shape)
    return model


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gradients_of_every_a_and_b_are_finite_differences(tmp_path, tied, reduction):
    config = tiny_config(tie_word_embeddings=tied)
    model = adapted(load_double(write_folder(tmp_path, config, tiny_weights(config))))

    def loss():
        return model.loss(IDS, LABELS, attention_mask=MASK, reduction=reduction)

    loss().backward()
    rng = np.random.default_rng(2)
    parameters = dict(model.named_parameters())
    assert len(parameters) == 2 * (7 * 2 + 1)
    for path, tensor in parameters.items():
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.dtype == np.float64
        direction, start = rng.standard_normal(tensor.shape), tensor.data.copy()

        def slope(step, tensor=tensor, start=start, direction=direction):
            values = []
            for sign in (1, -1):
                tensor.data[...] = start + sign * step * direction
                values.append(loss().item())
            tensor.data[...] = start
            return (values[0] - values[1]) / (2 * step)

        wide, fine = slope(2e-4), slope(1e-4)
        wanted, found = (4 * fine - wide) / 3, float((tensor.grad * direction).sum())
        # Richardson's estimate is wrong by far less than the two differ; a loss near 10 rounds by 2e-15 / step.
        allowed = abs(fine - wide) + 1e-10 + 1e-9 * np.abs(tensor.grad * direction).sum()
        assert abs(found - wanted) <= allowed, path
        assert allowed <= 1e-5 * np.abs(tensor.grad * direction).sum(), path


def test_gradients_of_parts_of_a_batch_add_up(tmp_path):
    config = tiny_config()
    model = adapted(load_double(write_folder(tmp_path, config, tiny_weights(config))))
    model.loss(IDS, LABELS, MASK, reduction="sum").backward()
    whole = {path: tensor.grad for path, tensor in model.named_parameters()}
    for _, tensor in model.named_parameters():
        tensor.grad = None
    for row in (0, 1):
        model.loss(IDS[row : row + 1], LABELS[row : row + 1], MASK[row : row + 1], reduction="sum").backward()
    for path, tensor in model.named_parameters():
        np.testing.assert_allclose(tensor.grad, whole[path], rtol=1e-10, atol=1e-13, err_msg=path)


def test_padding_gives_no_gradient(tmp_path):
    config = tiny_config()
    model = adapted(load_double(write_folder(tmp_path, config, tiny_weights(config))))
    grads = []
    for filler in (0, 33):
        for _, tensor in model.named_parameters():
            tensor.grad = None
        model.loss(np.where(MASK == 0, filler, IDS), LABELS, MASK).backward()
        grads.append([tensor.grad for _, tensor in model.named_parameters()])
    for first, second in zip(*grads, strict=True):
        np.testing.assert_array_equal(first, second)


def test_float32_gradients_agree_with_float64(tmp_path):
    config = tiny_config()
    path = write_folder(tmp_path, config, tiny_weights(config))
    grads = []
    for model in (adapted(load_model(path)), adapted(load_double(path))):
        model.loss(IDS, LABELS, MASK).backward()
        grads.append({path: tensor.grad for path, tensor in model.named_parameters()})
    for name, wanted in grads[1].items():
        assert grads[0][name].dtype == np.float32
        # Forward and back through 14 products of at most 37 terms, each rounding by 37 eps at most.
        bound = 2 * 14 * 37 * 2.0**-24 * np.linalg.norm(wanted)
        assert np.linalg.norm(grads[0][name] - wanted) <= bound, name


def test_only_a_and_b_are_trained(tmp_path):
    config = tiny_config(num_hidden_layers=1)
    model = adapted(load_model(write_folder(tmp_path, config, tiny_weights(config))), target_modules=["q_proj"])
    before = model.frozen_sha256()
    assert [path.rsplit(".", 1)[-1] for path, _ in model.named_parameters()] == ["A", "B"]
    assert len(adapter_parameters(model)) == 2
    model.loss(IDS, LABELS, MASK).backward()
    for _, weight in model.named_frozen():
        assert not hasattr(weight, "grad")
    assert model.frozen_sha256() == before


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_bit_and_keeps_less(tmp_path, dropout):
    config = tiny_config(num_hidden_layers=8, hidden_size=64, intermediate_size=256)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config["vocab_size"], (4, 64))
    seen, kept = [], []
    for checkpointing in (False, True):
        model = load_model(write_folder(tmp_path / f"{checkpointing}", config, tiny_weights(config)))
        add_adapter(model, LoraConfig(r=3, lora_dropout=dropout, target_modules="all-linear"), seed=0)
        for _, tensor in model.named_parameters():
            tensor.data[...] = 0.1 * np.random.default_rng(1).standard_normal(tensor.shape)
        model.gradient_checkpointing = checkpointing
        model.train()
        tracemalloc.start()
        loss = model.loss(ids, ids)
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        loss.backward()
        seen.append([loss.data.tobytes(), *(tensor.grad.tobytes() for _, tensor in model.named_parameters())])
    assert seen[0] == seen[1]
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_training_steps_lower_the_loss_and_leave_the_weights_as_they_were(tmp_path, kind):
    config = tiny_config()
    weights = tiny_weights(config)
    write = {"folder": write_folder, "gguf": write_gguf}[kind]
    model = load_model(write(tmp_path / "tiny", config, weights))
    before, logits = model.frozen_sha256(), model(IDS, MASK).data
    add_adapter(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    assert model.frozen_sha256() == before  # adapters are no part of it
    np.testing.assert_array_equal(model(IDS, MASK).data, logits)  # B = 0
    optimizer, losses = AdamW(adapter_parameters(model), lr=0.02), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(IDS, LABELS, MASK)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert model.frozen_sha256() == before
    assert model.frozen_sha256() == load_model(tmp_path / "tiny").frozen_sha256()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_write_to_any_frozen_weight_changes_the_hash(tmp_path, tied):
    config = tiny_config(num_hidden_layers=1, tie_word_embeddings=tied)
    # Decoded: what is mapped from a file cannot be written by a stray pointer at all.
    model = load_model(write_folder(tmp_path, config, tiny_weights(config), dtype="F16"), dequantize=True)
    before = model.frozen_sha256()
    paths = [path for path, _ in model.named_frozen()]
    # Three vectors and nine matrices; a tied head is the table seen again, and counted once.
    assert len(paths) == len(set(paths)) == 12 - tied
    seen = {before}
    for path, weight in model.named_frozen():
        array = weight if isinstance(weight, np.ndarray) else weight.dequantize()
        assert not array.flags.writeable, path
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        # One bit, past what NumPy protects: what a stray pointer would do.
        assert array.flags.forc, path
        cell = ctypes.c_uint8.from_address(array.ctypes.data + array.nbytes - 1)
        cell.value ^= 1
        changed = model.frozen_sha256()
        assert changed != before, path
        seen.add(changed)
        cell.value ^= 1
        assert model.frozen_sha256() == before, path
    assert len(seen) == 1 + len(paths)


def test_the_hash_tells_paths_apart(tmp_path):
    config = tiny_config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    weights = tiny_weights(config)
    swapped = weights | {
        "model.layers.0.self_attn.k_proj": weights["model.layers.0.self_attn.v_proj"],
        "model.layers.0.self_attn.v_proj": weights["model.layers.0.self_attn.k_proj"],
    }
    hashes = {
        load_model(write_folder(tmp_path / name, config, w)).frozen_sha256()
        for name, w in (("plain", weights), ("swapped", swapped))
    }
    assert len(hashes) == 2
