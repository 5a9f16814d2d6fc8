"""Whatever stands in config.json or in GGUF metadata: a model comes out of it, or a MiniloraError, and soon."""

from __future__ import annotations

import json
import random
import time
import warnings

import numpy as np
import pytest
from formats.gguf_builder import build_gguf
from models.tiny import gguf_metadata, gguf_tensors, tiny_config, tiny_weights, write_folder

from minilora import MiniloraError
from minilora.models import load_model

STRANGE = [
    None, True, False, 0, 1, -1, 2, 3, 5, 7, 64, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"),
    float("inf"), "", "a", "llama", "linear", "llama3", "\x00", "\u202e", [], [1], [[]], {}, {"a": 1},
    {"rope_type": "llama3"}, {"rope_type": "linear", "factor": 1e-300}, {"rope_type": []}, {"type": "linear"},
    {"rope_type": "llama3", "factor": 1e300, "original_max_position_embeddings": 1e-300},
]  # fmt: skip
IDS = np.array([[1, 2, 3]])


def outcome(path) -> bool:
    """Whether a model came out; anything but a MiniloraError, or a warning, fails the test."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            model, refusal = load_model(path), ""
        except MiniloraError as error:
            model, refusal = None, str(error)
    assert time.perf_counter() - started < 5
    if model is None:
        assert refusal.startswith(str(path))
        assert len(refusal) < 3000
        return False
    assert np.isfinite(model(IDS).data).all()
    return True


def mutated(mapping, rng):
    """One to three values replaced, dropped, swapped or put inside another."""
    mapping = dict(mapping)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = rng.choice(list(mapping))
        choice = rng.random()
        if choice < 0.15:
            del mapping[key]
        elif choice < 0.3:
            mapping[key] = mapping[rng.choice(list(mapping))]
        elif choice < 0.4:
            mapping[key] = [mapping[key]]
        else:
            mapping[key] = rng.choice(STRANGE)
    return mapping


@pytest.mark.parametrize("seed", range(4))
def test_mutated_settings_of_a_folder(tmp_path, seed):
    rng = random.Random(seed)
    config = tiny_config()
    whole = config | {"rope_scaling": None, "rope_parameters": None, "sliding_window": None, "use_cache": True}
    whole |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32", "attention_dropout": 0.0}
    folder = write_folder(tmp_path / "tiny", config, tiny_weights(config))
    results = []
    for _ in range(150):
        (folder / "config.json").write_text(json.dumps(mutated(whole, rng)))
        results.append(outcome(folder))
    assert 0 < sum(results) < 150  # both happen


@pytest.mark.parametrize("seed", range(2))
def test_mutated_bytes_of_config_and_index(tmp_path, seed):
    rng = random.Random(seed)
    config = tiny_config()
    folder = write_folder(tmp_path / "tiny", config, tiny_weights(config), shards=2)
    for name in ("config.json", "model.safetensors.index.json"):
        raw = (folder / name).read_bytes()
        results = []
        for _ in range(120):
            damaged = bytearray(raw)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(damaged))
                damaged[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
            (folder / name).write_bytes(damaged)
            results.append(outcome(folder))
        assert not all(results)
        (folder / name).write_bytes(raw)
    assert outcome(folder)


def holdable(value) -> bool:
    """Whether the builder can write it as GGUF metadata."""
    if isinstance(value, list):
        return all(type(item) is int and 0 <= item < 2**32 for item in value)
    return isinstance(value, str | float) or (isinstance(value, int) and -(2**31) <= value < 2**64)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_metadata_of_a_gguf_file(tmp_path, seed):
    rng = random.Random(seed)
    config = tiny_config()
    tensors, path = gguf_tensors(config, tiny_weights(config)), tmp_path / "tiny.gguf"
    whole = gguf_metadata(config) | {"llama.rope.dimension_count": 6, "llama.rope.scaling.type": "none"}
    results = []
    for _ in range(100):
        changed = mutated(whole, rng)
        metadata = {k: ("f64", v) if isinstance(v, float) else v for k, v in changed.items() if holdable(v)}
        path.write_bytes(build_gguf(metadata, tensors))
        results.append(outcome(path))
    assert 0 < sum(results) < 100


@pytest.mark.parametrize("seed", range(2))
def test_mutated_bytes_of_a_gguf_header(tmp_path, seed):
    rng = random.Random(seed)
    config = tiny_config(num_hidden_layers=1)
    tensors = gguf_tensors(config, tiny_weights(config))
    raw = build_gguf(gguf_metadata(config), tensors)
    header = len(raw) - sum(-(-array.nbytes // 32) * 32 for array in tensors.values())
    path, results = tmp_path / "tiny.gguf", []
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(header)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        path.write_bytes(damaged)
        results.append(outcome(path))
    assert not all(results)
