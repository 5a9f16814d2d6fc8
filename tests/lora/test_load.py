"""Loading is proof: each kind of damage is refused by name, and the model is then as it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autograd import Tensor
from minilora.errors import AdapterError, ConfigError, FormatError, MiniloraError
from minilora.formats.peft import tensor_name
from minilora.formats.safetensors import read_safetensors, write_safetensors
from minilora.kernels import FrozenWeight
from minilora.lora import LoraConfig, active_adapter, adapter_layers, add_adapter, load_adapter, save_adapter
from minilora.nn import Linear

CONFIG = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4, rank_pattern={r"layers\.2.*q_proj": 3})
Q0 = "model.layers.0.self_attn.q_proj"
NAME_A, NAME_B = tensor_name(Q0, "A"), tensor_name(Q0, "B")


def trained(model, config=CONFIG, name="default"):
    """Attach an adapter as if it had been trained."""
    add_adapter(model, config, name)
    rng = np.random.default_rng(1)
    for _, low in adapter_layers(model, name):
        low.B.data[...] = rng.standard_normal(low.B.shape) / 10
    return model


@pytest.fixture
def folder(tmp_path, tiny):
    save_adapter(trained(tiny()), tmp_path / "adapter")
    return tmp_path / "adapter"


def output(model, x):
    y = model(x)
    return y.data if isinstance(y, Tensor) else y


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    settings = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value != "remove"}), "utf-8")


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors, metadata = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors, metadata)


def as_of_another_tool(folder):
    """Take minilora's own notes out, so that only what every PEFT file has is left to judge by."""
    path = folder / "adapter_model.safetensors"
    write_safetensors(path, read_safetensors(path)[0], {"format": "pt"})


def snapshot(model):
    return [(path, sorted(vars(m)), dict(getattr(m, "adapters", {}))) for path, m in model.named_modules()]


def refused(model, folder, error=AdapterError, **arguments):
    """Load; return the message, having checked that the model is as before."""
    before = snapshot(model)
    with pytest.raises(MiniloraError) as caught:
        load_adapter(model, folder, **arguments)
    assert isinstance(caught.value, error), caught.value
    assert snapshot(model) == before
    assert model.adapter_choice is None or model.adapter_choice.default is not None
    return str(caught.value)


def test_a_loaded_adapter_computes_what_the_saved_one_did(tiny, folder, x):
    model = tiny()
    receipt = load_adapter(model, folder)
    assert np.array_equal(output(model, x), output(trained(tiny()), x))
    assert receipt.effective
    assert receipt.used == tuple(
        tensor_name(f"model.layers.{i}.self_attn.{n}_proj", part) for i in range(3) for n in "qv" for part in "AB"
    )
    assert receipt.missing == receipt.unused == ()
    assert receipt.base == "the ones it was trained on (SHA-256)"
    assert active_adapter(model) == "default"
    assert not list(model.named_parameters())


def test_the_receipt_says_what_the_adapter_does_to_each_layer(tiny, folder):
    model = tiny()
    receipt = load_adapter(model, folder)
    assert len(receipt.layers) == 6
    for layer, (path, low) in zip(receipt.layers, adapter_layers(model, "default"), strict=True):
        change = low.scale * low.A.data.astype(float) @ low.B.data.astype(float)
        weight = dict(model.named_modules())[path].weight.dequantize()
        assert (layer.path, layer.rank, layer.scale) == (
            path,
            3 if path.endswith("2.self_attn.q_proj") else 2,
            low.scale,
        )
        assert layer.change == pytest.approx(np.linalg.norm(change), rel=1e-12)
        assert layer.weight == pytest.approx(np.linalg.norm(weight), rel=1e-6)
        assert layer.relative == layer.change / layer.weight
    text = str(receipt).splitlines()
    assert text[0] == f"adapter 'default' from {folder} on Tiny: changes the model"
    assert text[1] == "tensors: 12 used, 0 missing, 0 unused"
    assert text[2] == "base weights: the ones it was trained on (SHA-256)"
    assert text[3].split() == ["layer", "r", "scale", "|dW|", "|dW|/|W|"]
    assert text[4].split()[:3] == [Q0, "2", "2"]
    assert len(text) == 10


def test_a_trainable_adapter_goes_on_training(tiny, folder):
    model = tiny()
    load_adapter(model, folder, trainable=True)
    assert len(list(model.named_parameters())) == 12


def test_a_second_adapter_is_loaded_beside_the_first_and_does_not_become_active(tiny, folder, x):
    model = tiny()
    load_adapter(model, folder, "a")
    load_adapter(model, folder, "b")
    assert active_adapter(model) == "a"
    assert refused(model, folder, name="b") == (
        "Tiny already has an adapter 'b'\n  pass another name, or call delete_adapter to drop the one it has"
    )


def test_notes_come_back_in_the_receipt(tiny, tmp_path):
    save_adapter(trained(tiny()), tmp_path, metadata={"format": "chat", "receipt": "x"})
    assert load_adapter(tiny(), tmp_path).metadata == {"format": "chat", "receipt": "x"}


# --- The thirteen kinds of damage of which PEFT 0.21 says nothing to seven. ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(tiny, folder, value):
    edit_tensors(folder, lambda t: t[NAME_B].__setitem__((1, 1), value))
    message = refused(tiny(), folder)
    assert message == (
        f"{folder}/adapter_model.safetensors does not fit Tiny (1 tensors; the file has 12)\n"
        f"  {NAME_B}   1 of 12 are NaN or infinite   wanted finite numbers\n"
        "Nothing was loaded."
    )


def test_another_base_models_weights_are_refused(tiny, folder):
    message = refused(tiny(seed=1), folder)
    assert message == (
        f"{folder}/adapter_model.safetensors: trained on other base weights: of 'Tiny', which differ from those of "
        f"Tiny in 6 of 6 adapted layers, first in {Q0}\n"
        "  load the model it was trained on, or pass verify=False to use it all the same\nNothing was loaded."
    )
    assert load_adapter(tiny(seed=1), folder, verify=False).base == "not compared"


def test_one_changed_base_weight_is_noticed(tiny, folder):
    model = tiny()
    layer = model.model.layers[1].self_attn.v_proj
    changed = layer.weight.dequantize().copy()
    changed[0, 0] += 1e-6
    layer.weight = FrozenWeight(changed)
    assert "in 1 of 6 adapted layers, first in model.layers.1.self_attn.v_proj" in refused(model, folder)


def test_the_same_weights_in_another_memory_layout_are_the_same(tiny, folder):
    model = tiny()
    for module in (m for _, m in model.named_modules() if isinstance(m, Linear)):
        module.weight = FrozenWeight(np.ascontiguousarray(module.weight.dequantize()))
    assert load_adapter(model, folder).base == "the ones it was trained on (SHA-256)"


def test_weights_in_another_storage_cannot_be_compared_and_draw_a_warning(tiny, folder):
    model = tiny()
    for module in (m for _, m in model.named_modules() if isinstance(m, Linear)):
        module.weight = FrozenWeight(module.weight.dequantize().astype(np.float64))
    finding = "trained on weights stored as 'f32', used on f64: hashes cannot be compared"
    with pytest.warns(UserWarning, match=f"^{re.escape(str(folder))}: {finding}$"):
        assert load_adapter(model, folder).base == finding


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"lora_alpha": 5}, {"alpha_pattern": {"v_proj": 1}}])
def test_a_scale_that_was_changed_after_saving_is_refused(tiny, folder, change):
    edit_config(folder, **change)
    message = refused(tiny(), folder)
    first = Q0.replace("q_proj", "v_proj") if "alpha_pattern" in change else Q0
    assert re.search(
        rf": {re.escape(first)} was scale 2 when this was saved, but adapter_config.json now gives scale", message
    )
    assert "restore it, or pass verify=False to load it as it stands\nNothing was loaded." in message
    load_adapter(tiny(), folder, verify=False)


def test_an_extra_tensor_is_refused(tiny, folder):
    def change(tensors):
        tensors[tensor_name("model.layers.31.mlp.up_proj", "A")] = np.ones((2, 6), np.float32)
        tensors[tensor_name("model.layers.1.mlp.up_proj", "B")] = np.ones((10, 2), np.float32)
        tensors[tensor_name("model.layers.1.mlp", "B")] = np.ones((10, 2), np.float32)
        tensors[tensor_name("other", "B")] = np.ones((10, 2), np.float32)
        tensors["base_model.model.q.lora_magnitude_vector"] = np.ones(3, np.float32)
        tensors["base_model.model.e.lora_embedding_A"] = np.ones(3, np.float32)
        tensors["base_model.model.q.base_layer.bias"] = np.ones(3, np.float32)
        tensors["evil\x1b[2J\n"] = np.ones(3, np.float32)

    edit_tensors(folder, change)
    message = refused(tiny(), folder)
    for tensor, reason in {
        tensor_name("model.layers.31.mlp.up_proj", "A"): "file (2, 6)    model has layers 0..2",
        tensor_name(
            "model.layers.1.mlp.up_proj", "B"
        ): "file (10, 2)   adapter_config.json does not target this module",
        tensor_name("model.layers.1.mlp", "B"): "file (10, 2)   model has a Mlp there, wanted a Linear",
        tensor_name("other", "B"): "file (10, 2)   model has no such module",
        "base_model.model.q.lora_magnitude_vector": "file (3,)      DoRA is not supported yet",
        "base_model.model.e.lora_embedding_A": "file (3,)      adapters of embeddings are not supported yet",
        "base_model.model.q.base_layer.bias": "file (3,)      trained biases are not supported yet",
        "'evil\\x1b[2J\\n'": "file (3,)      no tensor of a LoRA adapter",
    }.items():
        assert re.search(rf"^  {re.escape(tensor)} +{re.escape(reason)}$", message, re.MULTILINE), (tensor, message)
    assert "\x1b" not in message


def test_a_target_that_matches_nothing_is_refused_with_the_names_that_exist(tiny, folder):
    edit_config(folder, target_modules=["q_proj", "v_proj", "c_attn"])
    message = refused(tiny(), folder)
    assert message.startswith(f"{folder}/adapter_config.json: target_modules 'c_attn' matches no module of Tiny\n")
    assert "its Linear layers are q_proj (3), v_proj (3)" in message
    assert message.endswith("\nNothing was loaded.")


@pytest.mark.parametrize("name", ["lora_alpha", "target_modules", "r"])
def test_a_missing_setting_is_refused(tiny, folder, name):
    edit_config(folder, **{name: "remove"})
    assert f"{folder}/adapter_config.json: {name} missing; a file must state" in refused(tiny(), folder, ConfigError)


def test_a_missing_tensor_is_refused(tiny, folder):
    edit_tensors(folder, lambda t: t.pop(NAME_B))
    message = refused(tiny(), folder)
    assert f"  {NAME_B}   missing   model needs (6, 2)\nNothing was loaded." in message


def test_a_wrong_rank_is_refused(tiny, folder):
    edit_config(folder, r=4, rank_pattern={})
    as_of_another_tool(folder)
    edit_tensors(folder, lambda t: [t.pop(n) for n in list(t) if "layers.2" in n])
    edit_config(folder, layers_to_transform=[0, 1])
    message = refused(tiny(), folder)
    assert re.search(rf"^  {re.escape(NAME_A)}   file \(2, 6\)   model needs \(4, 6\)$", message, re.MULTILINE)
    assert message.endswith("\nNothing was loaded.  The file's rank is 2, but adapter_config.json says 4.")


def test_swapped_factors_are_refused(tiny, folder):
    def swap(tensors):
        tensors[NAME_A], tensors[NAME_B] = tensors[NAME_B], tensors[NAME_A]

    edit_tensors(folder, swap)
    message = refused(tiny(), folder)
    assert f"  {NAME_A}   file (6, 2)   model needs (2, 6); lora_A and lora_B are swapped\n" in message
    assert f"  {NAME_B}   file (2, 6)   model needs (6, 2); lora_A and lora_B are swapped\n" in message


def test_shapes_of_another_model_are_refused_in_a_table(tiny, folder):
    def widen(tensors):
        for name in tensors:
            if "lora_A" in name:
                tensors[name] = np.ones((tensors[name].shape[0], 8), np.float32)

    edit_tensors(folder, widen)
    message = refused(tiny(), folder)
    assert message.startswith(
        f"{folder}/adapter_model.safetensors does not fit Tiny (6 tensors; the file has 12)\n"
        f"  {NAME_A}   file (2, 8)   model needs (2, 6)\n"
    )
    assert message.endswith("\nNothing was loaded.  The file looks made for a model with width 8 where this one has 6.")


def test_a_truncated_file_is_refused(tiny, folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "adapter_model.safetensors" in refused(tiny(), folder, FormatError)


def test_an_adapter_without_effect_is_refused_unless_it_is_to_be_trained(tiny, tmp_path):
    model = tiny()
    add_adapter(model, CONFIG)
    save_adapter(model, tmp_path)
    assert refused(tiny(), tmp_path) == (
        f"{tmp_path}/adapter_model.safetensors: this adapter does nothing: A · B is zero in all 6 layers\n"
        "  it was saved before it was trained; pass trainable=True to train it\nNothing was loaded."
    )
    receipt = load_adapter(tiny(), tmp_path, trainable=True)
    assert not receipt.effective
    assert "on Tiny: has no effect" in str(receipt)


def test_a_product_that_is_zero_though_its_factors_are_not_has_no_effect(tiny, folder):
    def cancel(tensors):
        for name in tensors:
            if "lora_A" in name:
                tensors[name][...] = 1
            else:
                tensors[name][...] = 0
                tensors[name][:, :2] = (1, -1)

    edit_tensors(folder, cancel)
    assert "this adapter does nothing" in refused(tiny(), folder)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16, np.int8, bool])
def test_a_wrong_dtype_is_refused(tiny, folder, dtype):
    edit_tensors(folder, lambda t: t.update({NAME_A: np.ones((2, 6), dtype)}))
    assert f"  {NAME_A}   file dtype {np.dtype(dtype)}   wanted F32, F16 or BF16\n" in refused(tiny(), folder)


# --- Beyond the thirteen. ---


def test_a_copy_of_a_base_weight_is_left_unused_if_it_has_the_right_shape(tiny, folder):
    name = f"base_model.model.{Q0}.base_layer.weight"
    edit_tensors(folder, lambda t: t.update({name: np.ones((6, 6), np.float32)}))
    assert load_adapter(tiny(), folder).unused == (name,)
    edit_tensors(folder, lambda t: t.update({name: np.ones((7, 6), np.float32)}))
    assert f"  {name}   file (7, 6)   no tensor of a LoRA adapter\n" in refused(tiny(), folder)


def test_half_precision_files_become_float32(tiny, folder, x):
    edit_tensors(folder, lambda t: t.update({name: array.astype(np.float16) for name, array in t.items()}))
    model = tiny()
    load_adapter(model, folder)
    low = adapter_layers(model, "default")[0][1]
    assert low.A.dtype == low.B.dtype == np.float32
    want = output(trained(tiny()), x)
    # float16 keeps 11 bits: each of 6 adapted layers errs by 2^-11 of its change, itself below the output's size.
    assert np.allclose(output(model, x), want, atol=6 * 2**-11 * np.abs(want).max())


def test_a_product_beyond_float32_is_refused(tiny, folder):
    edit_tensors(folder, lambda t: t.update({n: np.full_like(a, 1e30) for n, a in t.items() if Q0 in n}))
    assert f"{NAME_B}   scale · A · B overflows float32   wanted finite numbers" in refused(tiny(), folder)
    as_of_another_tool(folder)
    edit_tensors(folder, lambda t: t.update({n: np.ones_like(a) for n, a in t.items()}))
    edit_config(folder, lora_alpha=1e300)
    assert "(6 tensors; the file has 12)" in refused(tiny(), folder)


def test_many_complaints_are_cut(tiny, folder):
    edit_tensors(folder, lambda t: t.update({f"x{i}": np.ones(1, np.float32) for i in range(50)}))
    message = refused(tiny(), folder)
    assert "(50 tensors; the file has 62)" in message
    assert "... and 38 more" in message


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds a JSON list"),
        ('{"version": 2}', "version is '2', expected 1; update minilora"),
        ('{"version": 1, "model": 1, "layers": {}}', "no model and layers"),
        ('{"version": 1, "model": "m", "layers": {"a": 1}}', "entry 'a' is not complete"),
        ('{"version": 1, "model": "m", "layers": {"a": {"scale": true, "storage": "", "sha256": ""}}}', "not complete"),
    ],
)
def test_a_damaged_receipt_is_refused(tiny, folder, stamp, message):
    path = folder / "adapter_model.safetensors"
    write_safetensors(path, read_safetensors(path)[0], {"format": "pt", "minilora.receipt": stamp})
    found = refused(tiny(), folder, FormatError)
    assert "metadata 'minilora.receipt'" in found
    assert message in found


def test_a_layer_that_the_receipt_does_not_know_is_refused(tiny, folder):
    path = folder / "adapter_model.safetensors"
    stamp = '{"version": 1, "model": "m", "layers": {}}'
    write_safetensors(path, read_safetensors(path)[0], {"minilora.receipt": stamp})
    assert f"{Q0} was not adapted when this was saved" in refused(tiny(), folder)


def test_a_file_of_another_tool_says_that_its_base_is_not_recorded(tiny, folder):
    as_of_another_tool(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_adapter(tiny(), folder).base == "not recorded in the file"


@pytest.mark.parametrize(
    "change",
    [
        {f"unknown_{i}": 1 for i in range(50_000)},
        {"target_modules": [f"q{i}" for i in range(50_000)]},
        {"exclude_modules": [f"q{i}" for i in range(50_000)]},
        {"rank_pattern": {f"q{i}": 2 for i in range(50_000)}},
        {"layers_to_transform": list(range(50_000))},
        {"layers_to_transform": 0, "layers_pattern": [f"l{i}" for i in range(12_000)]},
        {"target_modules": "(q|" * 600},
        {"base_model_name_or_path": "x" * 4_000_000},
    ],
)
def test_a_config_of_megabytes_takes_no_minutes(tiny, folder, change):
    edit_config(folder, **change)
    began = time.perf_counter()
    with contextlib.suppress(MiniloraError):
        load_adapter(tiny(layers=10), folder, verify=False)
    assert time.perf_counter() - began < 5


def test_a_pattern_that_backtracks_for_ever_is_matched_at_once(tiny, folder):
    edit_config(folder, target_modules=r"((((a|[a-z._0-9])+)+)+)+!")
    assert "matches no module of Tiny" in refused(tiny(), folder)


def test_a_wrong_load_beside_a_good_adapter_leaves_it_alone(tiny, folder, x):
    model = tiny()
    load_adapter(model, folder, "good")
    before = output(model, x)
    edit_tensors(folder, lambda t: t.pop(NAME_A))
    refused(model, folder, name="bad")
    assert active_adapter(model) == "good"
    assert np.array_equal(output(model, x), before)


@given(data=st.data())
def test_any_damage_to_either_file_is_refused_or_harmless(tmp_path_factory, tiny, data):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(trained(tiny()), folder)
    path = folder / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content) - 1, 4000)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(bytes(content))
    model = tiny()
    before = snapshot(model)
    try:
        load_adapter(model, folder)
    except MiniloraError:
        assert snapshot(model) == before
        assert model.adapter_choice is None


@given(data=st.data())
def test_any_change_of_the_tensors_is_refused_or_fits(tmp_path_factory, tiny, data):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(trained(tiny()), folder)
    path = folder / "adapter_model.safetensors"
    tensors, metadata = read_safetensors(path)
    names = st.sampled_from(sorted(tensors)) | st.text(max_size=30).filter(lambda n: n != "__metadata__")
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), max_size=3)
    dtypes = st.sampled_from([np.float32, np.float16, np.float64, np.int64, np.uint8, bool])
    kept = {}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(names)
        if data.draw(st.booleans()) and name in tensors:
            del tensors[name]
        else:
            kept[name] = np.zeros(data.draw(shapes), data.draw(dtypes))
    try:
        write_safetensors(path, {**tensors, **kept}, metadata)
    except MiniloraError:
        return
    model = tiny()
    try:
        load_adapter(model, folder)
    except MiniloraError:
        assert model.adapter_choice is None
    else:
        assert len(tensors) == 12
        for name, array in kept.items():
            assert array.shape == tensors[name].shape
            assert array.dtype in (np.float32, np.float16)


def test_an_unreadable_folder_is_a_minilora_error(tiny, tmp_path):
    if os.geteuid() == 0:
        os.symlink("loop", tmp_path / "loop")
        folder = tmp_path / "loop"
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0)
    refused(tiny(), folder, MiniloraError)
