"""The real model, once a session: as minilora reads it, as transformers reads it, and as a Hugging Face folder."""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may look for a network

import numpy as np
import pytest

PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a small village near the sea, there lived an old fisherman who",
    'Turn the request into JSON.\nRequest: set an alarm for 7:30 tomorrow\nJSON: {"action":',
)


def relative(found, wanted) -> float:
    """The largest difference over the largest wanted value."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def padded(rows, pad=0):
    """Rows of ids as a batch padded on the left: ids and mask (B, T)."""
    length = max(map(len, rows))
    ids = np.array([[pad] * (length - len(row)) + list(row) for row in rows])
    return ids, np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows])


@pytest.fixture(scope="session")
def tools():
    """The small functions above, for test files, which cannot import from here."""
    return SimpleNamespace(relative=relative, padded=padded)


@pytest.fixture(scope="session")
def model_path():
    from minilora.models import find_model

    return find_model("smollm2-135m")


@pytest.fixture(scope="session")
def prompts(model_path):
    """Five texts as lists of ids, of different lengths."""
    from minilora.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model_path)
    return [tokenizer.encode(text) for text in PROMPTS]


@pytest.fixture(scope="session")
def theirs(model_path):
    """transformers' model of the dequantised GGUF tensors, float32."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(
        str(model_path.parent), gguf_file=model_path.name, dtype=torch.float32
    )
    # A model that came out of a GGUF file cannot be saved, and its configuration still names the quantisation:
    # its weights go into a fresh one.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    fresh = type(loaded)(type(loaded.config)(**settings)).to(torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    return fresh.eval()


@pytest.fixture(scope="session")
def folder(theirs, tmp_path_factory):
    """The same weights as a Hugging Face folder, written by transformers."""
    path = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def loaded(model_path):
    from minilora.models import load_model

    return load_model(model_path)


@pytest.fixture
def ours(loaded):
    """minilora's model of the GGUF file; adapters that a test leaves on it are taken off."""
    from minilora.lora import delete_adapter

    before = loaded.frozen_sha256()
    yield loaded
    for name in list(loaded.adapter_choice.configs) if loaded.adapter_choice else ():
        delete_adapter(loaded, name)
    assert loaded.frozen_sha256() == before


@pytest.fixture
def peft_of(theirs):
    """Load an adapter folder onto transformers' model; the model is bare again after the test."""
    from peft import PeftModel

    wrapped = []

    def load(path, **options):
        wrapped.append(PeftModel.from_pretrained(theirs, str(path), **options))
        return wrapped[-1]

    yield load
    for model in wrapped:
        model.unload()
    theirs.requires_grad_(False).eval()


@pytest.fixture
def random_adapter(ours):
    """Adapt all linear layers of minilora's model, r = 8, from a B that is not zero: its standard deviation is 0.02."""
    from minilora.lora import LoraConfig, adapter_layers, add_adapter

    add_adapter(ours, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), seed=1)
    rng = np.random.default_rng(7)
    layers = adapter_layers(ours, "default")
    for _, low_rank in layers:
        low_rank.B.data[...] = 0.02 * rng.standard_normal(low_rank.B.shape)
    assert len(layers) == 30 * 7
    return layers


@pytest.fixture(scope="session")
def base_logits(theirs, prompts):
    """transformers' logits (T, V) of each prompt, without an adapter."""
    import torch

    with torch.no_grad():
        return [theirs(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
