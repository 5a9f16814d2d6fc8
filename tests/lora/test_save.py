"""Saving writes the same bytes for the same adapter, and only an adapter that can be loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minilora.errors import AdapterError, ConfigError, MiniloraError
from minilora.formats.safetensors import open_safetensors
from minilora.lora import LoraConfig, adapter_layers, add_adapter, load_adapter, save_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapted(model, **settings):
    add_adapter(model, LoraConfig(**{"target_modules": "all-linear", "r": 2, **settings}))
    for index, (_, low) in enumerate(adapter_layers(model, "default")):
        low.B.data[...] = np.random.default_rng(index).standard_normal(low.B.shape)
    return model


def settings(folder):
    return json.loads((folder / "adapter_config.json").read_text("utf-8"))


def test_the_same_adapter_gives_the_same_bytes(tiny, tmp_path):
    save_adapter(adapted(tiny(), target_modules=["q_proj", "v_proj"]), tmp_path / "a", metadata={"x": "1", "a": "2"})
    save_adapter(adapted(tiny(), target_modules=["v_proj", "q_proj"]), tmp_path / "b", metadata={"a": "2", "x": "1"})
    load_adapter(model := tiny(), tmp_path / "a", "other", trainable=True)
    save_adapter(model, tmp_path / "c", "other", metadata={"x": "1", "a": "2"})
    for name in FILES:
        first = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == first
        assert (tmp_path / "c" / name).read_bytes() == first


def test_all_linear_is_written_out_as_the_names_it_meant(tiny, tmp_path):
    save_adapter(adapted(tiny()), tmp_path)
    assert settings(tmp_path)["target_modules"] == ["down_proj", "q_proj", "up_proj", "v_proj"]
    assert len(load_adapter(tiny(), tmp_path).layers) == 12


def test_all_linear_with_exclusions_is_written_out_as_paths(tiny, tmp_path):
    save_adapter(adapted(tiny(), exclude_modules=r".*layers\.0\..*"), tmp_path)
    assert len(settings(tmp_path)["target_modules"]) == 8
    assert len(load_adapter(tiny(), tmp_path).layers) == 8


def test_a_regular_expression_stays_one(tiny, tmp_path):
    save_adapter(adapted(tiny(), target_modules=r".*\.[01]\..*q_proj"), tmp_path)
    assert settings(tmp_path)["target_modules"] == r".*\.[01]\..*q_proj"
    assert len(load_adapter(tiny(), tmp_path).layers) == 2


def test_the_model_says_what_kind_of_task_it_is_for(tiny, tmp_path):
    class Causal(tiny):
        task_type = "CAUSAL_LM"

    save_adapter(adapted(Causal()), tmp_path)
    assert settings(tmp_path)["task_type"] == "CAUSAL_LM"


def test_the_file_notes_scale_and_hash_of_each_base_weight(tiny, tmp_path):
    save_adapter(adapted(tiny(), lora_alpha=3), tmp_path)
    metadata = open_safetensors(tmp_path / "adapter_model.safetensors").metadata
    assert metadata["format"] == "pt"
    noted = json.loads(metadata["minilora.receipt"])
    assert len(noted["layers"]) == 12
    assert noted["layers"]["model.layers.0.mlp.up_proj"]["scale"] == 1.5
    assert len({layer["sha256"] for layer in noted["layers"].values()}) == 12


def test_loading_and_saving_change_no_bit_of_the_base(tiny, tmp_path):
    model = tiny()
    before = model.frozen_sha256()
    save_adapter(adapted(model), tmp_path)
    load_adapter(model, tmp_path, "again")
    assert model.frozen_sha256() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_not_written(tiny, tmp_path, value):
    model = adapted(tiny())
    save_adapter(model, tmp_path)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    model.model.layers[1].mlp.up_proj.adapters["default"].A.data[0, 0] = value
    with pytest.raises(
        AdapterError,
        match=r"^adapter 'default' holds NaN or infinity in 1 of 24 tensors, first in "
        r"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight\n  nothing was written; train it again",
    ):
        save_adapter(model, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in FILES] == before


def test_what_cannot_be_saved_is_said(tiny, tmp_path):
    model = adapted(tiny())
    with pytest.raises(ConfigError, match=r"format is 'gguf', wanted 'peft' \(others are not supported yet\)"):
        save_adapter(model, tmp_path / "x", format="gguf")
    with pytest.raises(ConfigError, match=r"format is 'PEFT', .*; did you mean 'peft'\?"):
        save_adapter(model, tmp_path / "x", format="PEFT")
    with pytest.raises(AdapterError, match=r"Tiny has no adapter 'b'; it has 'default'"):
        save_adapter(model, tmp_path / "x", "b")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    with pytest.raises(MiniloraError, match="cannot make this folder"):
        save_adapter(model, tmp_path / "file")
