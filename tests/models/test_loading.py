"""The same model comes out of a Hugging Face folder and a GGUF file, in the memory layout of the file."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from formats.gguf_builder import build_gguf, random_blocks
from models.tiny import (
    as_safetensors,
    gguf_metadata,
    gguf_tensors,
    tiny_config,
    tiny_weights,
    write_folder,
    write_gguf,
)

from minilora import kernels
from minilora.formats.gguf import open_gguf
from minilora.models import find_model, load_model

IDS = np.array([[5, 0, 36, 7, 7, 21], [1, 2, 3, 4, 5, 6]])
SHAPES = {
    "grouped heads": {},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "tied head": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1, "head_dim": 2},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_gguf_file_and_a_folder_of_the_same_weights_give_the_same_bits(tmp_path, changes):
    config = tiny_config(**changes)
    weights = tiny_weights(config)
    folder = load_model(write_folder(tmp_path / "hf", config, weights))
    gguf = load_model(write_gguf(tmp_path / "tiny.gguf", config, weights))
    np.testing.assert_array_equal(folder(IDS).data, gguf(IDS).data)
    for ours, theirs in zip(folder.frozen_weights(), gguf.frozen_weights(), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1].dequantize(), theirs[1].dequantize())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_snapshot_of_the_hugging_face_cache_loads_though_every_file_is_a_link(tmp_path, shards):
    config = tiny_config()
    plain = write_folder(tmp_path / "plain", config, tiny_weights(config), shards=shards)
    snapshot, blobs = tmp_path / "models--tiny" / "snapshots" / "0123abcd", tmp_path / "models--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(plain.iterdir())):
        blob = blobs / f"{number:040x}"  # as in the cache: named by hash, without a suffix
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    np.testing.assert_array_equal(load_model(snapshot)(IDS).data, load_model(plain)(IDS).data)


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_every_dtype_and_number_of_shards_gives_the_same_bits(tmp_path, dtype, shards):
    config = tiny_config()
    weights = tiny_weights(config)
    model = load_model(write_folder(tmp_path, config, weights, dtype=dtype, shards=shards))
    for path, weight in model.frozen_weights():
        matrix = weights[path.removesuffix(".weight")]
        np.testing.assert_array_equal(weight.dequantize(), matrix if "embed" in path else matrix.T, err_msg=path)
        assert weight.dequantize().dtype == np.float32
    for path, vector in model.named_frozen():
        if isinstance(vector, np.ndarray):
            np.testing.assert_array_equal(vector, weights[path.removesuffix(".weight")], err_msg=path)
            assert not vector.flags.writeable


def test_module_paths_and_shapes_are_those_of_transformers(tmp_path):
    config = tiny_config(num_hidden_layers=1)
    model = load_model(write_folder(tmp_path, config, tiny_weights(config)))
    assert {path: weight.shape for path, weight in model.frozen_weights()} == {
        "model.embed_tokens.weight": (37, 20),
        "model.layers.0.self_attn.q_proj.weight": (20, 24),
        "model.layers.0.self_attn.k_proj.weight": (20, 12),
        "model.layers.0.self_attn.v_proj.weight": (20, 12),
        "model.layers.0.self_attn.o_proj.weight": (24, 20),
        "model.layers.0.mlp.gate_proj.weight": (20, 28),
        "model.layers.0.mlp.up_proj.weight": (20, 28),
        "model.layers.0.mlp.down_proj.weight": (28, 20),
        "lm_head.weight": (20, 37),
    }
    assert list(model.named_parameters()) == []


def test_float32_weights_of_a_folder_are_the_file_itself_and_not_a_copy(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    model = load_model(write_folder(tmp_path, config, weights))
    before = model.frozen_sha256()
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    for path, weight in model.frozen_weights():
        stored = weights[path.removesuffix(".weight")]
        at = raw.index(stored.tobytes())
        # The mapping is shared: what is written to the file shows in the weight, if the weight is the mapping.
        with file.open("r+b") as handle:
            handle.seek(at)
            handle.write(np.float32(777).tobytes())
        assert weight.dequantize()[0, 0] == 777, f"{path} is a copy"
        assert weight.storage == "f32"
        with file.open("r+b") as handle:
            handle.seek(at)
            handle.write(raw[at : at + 4])
    assert model.frozen_sha256() == before


def test_linear_weights_are_views_of_the_files_rows_and_tables_lie_by_rows(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    for model in (
        load_model(write_folder(tmp_path, config, weights)),
        load_model(write_folder(tmp_path / "half", config, weights, dtype="BF16")),
        load_model(write_gguf(tmp_path / "tiny.gguf", config, weights)),
    ):
        for path, weight in model.frozen_weights():
            matrix = weight.dequantize()
            assert (matrix if path == "model.embed_tokens.weight" else matrix.T).flags.c_contiguous, path


def test_a_tied_head_is_the_embedding_table_itself(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    weights = tiny_weights(config)
    paths = [
        write_folder(tmp_path / "f32", config, weights),
        write_folder(tmp_path / "bf16", config, weights, dtype="BF16"),
        write_gguf(tmp_path / "tiny.gguf", config, weights),
    ]
    for path in paths:
        model = load_model(path)
        table, head = model.model.embed_tokens.weight, model.lm_head.weight
        assert table.memory == head.memory
        np.testing.assert_array_equal(table.dequantize(), head.dequantize().T)


@pytest.mark.parametrize("dequantize", [True, False])
def test_matrices_stay_as_they_are_stored_unless_asked(tmp_path, dequantize):
    config = tiny_config()
    weights = tiny_weights(config)
    plain = load_model(write_folder(tmp_path / "f32", config, weights), dequantize=dequantize)
    assert {weight.storage for _, weight in plain.frozen_weights()} == {"f32"}
    for dtype in ("BF16", "F16"):
        model = load_model(write_folder(tmp_path / dtype, config, weights, dtype=dtype), dequantize=dequantize)
        assert {weight.storage for _, weight in model.frozen_weights()} == {"f32" if dequantize else dtype.lower()}
        other = load_model(tmp_path / dtype, dequantize=not dequantize)
        # The same numbers, summed in another order where a product of a few rows is read in place.
        np.testing.assert_allclose(model(IDS).data, other(IDS).data, rtol=0, atol=1e-5 * np.abs(other(IDS).data).max())


def test_without_the_kernel_matrices_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "use_native", lambda: False)
    config = tiny_config()
    model = load_model(write_folder(tmp_path, config, tiny_weights(config), dtype="BF16"))
    assert {weight.storage for _, weight in model.frozen_weights()} == {"f32"}


def test_a_tied_folder_may_hold_the_head_once_more(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    weights = tiny_weights(config)
    twice = weights | {"lm_head": weights["model.embed_tokens"]}
    plain = load_model(write_folder(tmp_path / "once", config, weights))
    model = load_model(write_folder(tmp_path / "twice", config, twice))
    np.testing.assert_array_equal(model(IDS).data, plain(IDS).data)


@pytest.mark.parametrize("storage", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16", "bf16"])
def test_a_quantised_gguf_file_is_the_model_of_its_decoded_tensors(tmp_path, storage):
    config = tiny_config(hidden_size=32, head_dim=8, intermediate_size=64, vocab_size=40)
    rng = np.random.default_rng(3)
    tensors = {
        name: array if array.ndim == 1 else (storage, array.shape, random_blocks(storage, array.shape, rng))
        for name, array in gguf_tensors(config, tiny_weights(config)).items()
    }
    path = tmp_path / "quantised.gguf"
    path.write_bytes(build_gguf(gguf_metadata(config), tensors))
    decoded, file = tmp_path / "decoded.gguf", open_gguf(path)
    decoded.write_bytes(build_gguf(gguf_metadata(config), {name: file.array(name) for name in file.tensors}))
    model, plain = load_model(path), load_model(decoded)
    np.testing.assert_array_equal(model(IDS).data, plain(IDS).data)
    assert np.ptp(model(IDS).data) > 0


def test_configuration_read_from_both_kinds_of_file_is_the_same(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    folder = load_model(write_folder(tmp_path, config, weights)).config
    gguf = load_model(write_gguf(tmp_path / "tiny.gguf", config, weights)).config
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings", "rope_theta",
        "bos_token_id", "eos_token_ids",
    ):  # fmt: skip
        assert getattr(folder, key) == getattr(gguf, key), key
    assert folder.eos_token_ids == (2, 3)
    assert gguf.rms_norm_eps == pytest.approx(1e-5, rel=1e-7)  # stored as float32


def test_sizes_left_out_of_config_json_have_the_defaults_of_transformers(tmp_path):
    config = tiny_config(num_key_value_heads=4, hidden_size=24)
    weights = tiny_weights(config)
    whole = load_model(write_folder(tmp_path / "whole", config, weights))
    short = {k: v for k, v in config.items() if k not in ("num_key_value_heads", "head_dim", "eos_token_id")}
    model = load_model(write_folder(tmp_path / "short", short, weights))
    assert (model.config.num_key_value_heads, model.config.head_dim) == (4, 6)
    assert model.config.eos_token_ids == ()
    np.testing.assert_array_equal(model(IDS).data, whole(IDS).data)


def test_newer_rope_parameters_mean_what_rope_theta_and_rope_scaling_mean(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0}
    config = tiny_config(rope_scaling=scaling)
    weights = tiny_weights(config)
    older = load_model(write_folder(tmp_path / "older", config, weights))
    newer = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {"rope_theta": 500.0, **scaling}
    model = load_model(write_folder(tmp_path / "newer", newer, weights))
    np.testing.assert_array_equal(model(IDS).data, older(IDS).data)
    oldest = config | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    model = load_model(write_folder(tmp_path / "oldest", oldest, weights))
    np.testing.assert_array_equal(model(IDS).data, older(IDS).data)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ],
    ids=["type and factor", "factor alone", "the older key"],
)
def test_linear_rope_scaling_of_gguf_metadata_is_that_of_config_json(tmp_path, metadata):
    config = tiny_config(rope_scaling={"rope_type": "linear", "factor": 4.0})
    weights = tiny_weights(config)
    folder = load_model(write_folder(tmp_path, config, weights))
    gguf = load_model(write_gguf(tmp_path / "tiny.gguf", config, weights, metadata))
    np.testing.assert_array_equal(folder(IDS).data, gguf(IDS).data)


def test_a_gguf_file_whose_scaling_is_none_is_not_scaled(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    for metadata in ({}, {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}):
        model = load_model(write_gguf(tmp_path / "tiny.gguf", config, weights, metadata))
        assert model.config.rope_scaling is None


def test_rope_freqs_of_a_gguf_file_divide_the_frequencies(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    tensors = gguf_tensors(config, weights) | {"rope_freqs.weight": np.full(3, 4, np.float32)}
    path = tmp_path / "freqs.gguf"
    path.write_bytes(build_gguf(gguf_metadata(config), tensors))
    scaled = write_folder(tmp_path, config | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, weights)
    np.testing.assert_array_equal(load_model(path)(IDS).data, load_model(scaled)(IDS).data)


def test_mistral_without_a_sliding_window_is_read_as_a_llama(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    llama = load_model(write_folder(tmp_path / "llama", config, weights))
    mistral = load_model(
        write_folder(tmp_path / "mistral", config | {"model_type": "mistral", "sliding_window": None}, weights)
    )
    np.testing.assert_array_equal(llama(IDS).data, mistral(IDS).data)


def test_a_model_survives_the_deletion_of_its_files(tmp_path):
    config = tiny_config()
    folder = write_folder(tmp_path / "hf", config, tiny_weights(config))
    model = load_model(str(folder))
    before = model(IDS).data
    shutil.rmtree(folder)
    np.testing.assert_array_equal(model(IDS).data, before)


def test_find_model_prefers_what_lies_at_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert find_model("smollm2-135m").resolve() == tmp_path / "smollm2-135m"


def test_unused_gguf_metadata_and_old_frequency_buffers_are_no_obstacle(tmp_path):
    config = tiny_config(num_hidden_layers=1)
    weights = tiny_weights(config)
    plain = load_model(write_folder(tmp_path / "plain", config, weights))
    tensors = {f"{path}.weight": w for path, w in weights.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    folder = write_folder(tmp_path / "old", config, weights)
    (folder / "model.safetensors").write_bytes(as_safetensors(tensors))
    np.testing.assert_array_equal(load_model(folder)(IDS).data, plain(IDS).data)
    gguf = write_gguf(
        tmp_path / "tiny.gguf", config, weights, {"general.quantization_version": 2, "some.list": ["a", "b"]}
    )
    np.testing.assert_array_equal(load_model(gguf)(IDS).data, plain(IDS).data)
