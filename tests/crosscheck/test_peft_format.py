"""PEFT opens our folders and we open PEFT's: the same modules, scales, tensors and logits."""

from __future__ import annotations

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import minilora as ml
from minilora.formats.peft import read_peft
from minilora.lora import LoraConfig, adapter_layers, add_adapter, find_targets, load_adapter, save_adapter
from minilora.lora.config import SETTINGS
from minilora.lora.peft_config import AT_DEFAULT, HARMLESS, REFUSED

QV = ["q_proj", "v_proj"]
CASES = {
    "names": {"target_modules": QV},
    "one name": {"target_modules": ["down_proj"], "r": 1, "lora_alpha": 3},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "k_proj"], "use_rslora": True, "lora_alpha": 5},
    "the head": {"target_modules": ["lm_head", "o_proj"]},
    "regex": {"target_modules": r".*\.(0|2)\.(self_attn\.[qkv]_proj|mlp\.(?:up|down)_proj)"},
    "lazy regex": {"target_modules": r"model\.layers\.\d+?\.mlp\..*?_proj$"},
    "rank pattern": {"target_modules": QV, "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 3}},
    "alpha pattern": {
        "target_modules": "all-linear", "alpha_pattern": {r"layers\.[12]\..*": 2, "^model.layers.0.mlp.up_proj": 7},
    },
    "patterns and rslora": {
        "target_modules": ["q_proj", "up_proj"], "use_rslora": True,
        "rank_pattern": {r"(q|k)_proj": 5, "q_proj": 6}, "alpha_pattern": {"up_proj": 32},
    },
    "exclude names": {"target_modules": QV, "exclude_modules": ["layers.1.self_attn.q_proj"]},
    "exclude regex": {"target_modules": "all-linear", "exclude_modules": r".*mlp.*|.*\.2\..*"},
    "exclude all-linear": {"target_modules": "all-linear", "exclude_modules": ["up_proj", "k_proj"]},
    "one layer": {"target_modules": QV, "layers_to_transform": 1},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "layer lists": {
        "target_modules": ["q_proj", "lm_head"], "layers_to_transform": [2], "layers_pattern": ["h", "layers"],
    },
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "random": {"target_modules": ["q_proj"], "init_lora_weights": False},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.25},
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 40, (2, 7))


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # their start, 0.02, would hide a wrong adapter behind small logits
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    base.save_pretrained(path)
    return path


def theirs(model):
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


def ours(model):
    return model(IDS).data


def peft_layers(model):
    """path -> (rank, scale) of every layer that PEFT adapted."""
    prefix = "base_model.model."
    return {
        name[len(prefix) :]: (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def close(got, want):
    # float32 sums of at most 24 terms through three layers, in another order: about 1e-6 of the largest logit.
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_wrote_does_the_same_here(case, base, folder, tmp_path):
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(base), PeftLoraConfig(**CASES[case])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path)
    model = ml.load_model(folder).eval()
    plain = ours(model)
    receipt = load_adapter(model, tmp_path)
    wanted = peft_layers(adapted)
    assert {layer.path: (layer.rank, pytest.approx(layer.scale, rel=1e-15)) for layer in receipt.layers} == wanted
    assert receipt.base == "not recorded in the file"
    # PEFT adds a copy of the output head's own weight where the head is adapted.
    assert receipt.unused == ("base_model.model.lm_head.base_layer.weight",) * ("lm_head" in wanted)
    assert np.abs(theirs(adapted) - plain).max() > 1e-3
    close(ours(model), theirs(adapted))
    for layer in receipt.layers:
        module = adapted.get_submodule(f"base_model.model.{layer.path}")
        change = module.get_delta_weight("default").detach().double().norm().item()
        assert layer.change == pytest.approx(change, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_we_wrote_does_the_same_in_peft(case, base, folder, tmp_path):
    model = ml.load_model(folder).eval()
    add_adapter(model, LoraConfig(**CASES[case]), seed=3)
    rng = np.random.default_rng(4)
    for _, low in adapter_layers(model, "default"):
        low.B.data[...] = rng.standard_normal(low.B.shape) / 5
    save_adapter(model, tmp_path, metadata={"note": "x"})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*(adapter|target|tensor|keys).*")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert peft_layers(loaded) == {
        path: (low.A.shape[1], pytest.approx(low.scale, rel=1e-15)) for path, low in adapter_layers(model, "default")
    }
    for path, low in adapter_layers(model, "default"):
        module = loaded.get_submodule(f"base_model.model.{path}")
        assert np.array_equal(module.lora_A["default"].weight.detach().numpy(), low.A.data.T)
        assert np.array_equal(module.lora_B["default"].weight.detach().numpy(), low.B.data.T)
    close(ours(model), theirs(loaded))


def test_an_adapter_survives_the_way_through_peft_and_back(folder, base, tmp_path):
    model = ml.load_model(folder)
    add_adapter(model, LoraConfig(target_modules="all-linear", r=3, lora_alpha=5, use_rslora=True))
    for _, low in adapter_layers(model, "default"):
        low.B.data[...] = np.random.default_rng(1).standard_normal(low.B.shape)
    save_adapter(model, tmp_path / "ours")
    PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").save_pretrained(tmp_path / "peft")
    again = ml.load_model(folder)
    load_adapter(again, tmp_path / "peft")
    first, second = dict(adapter_layers(model, "default")), dict(adapter_layers(again, "default"))
    assert first.keys() == second.keys()
    for path, low in first.items():
        assert np.array_equal(low.A.data, second[path].A.data)
        assert np.array_equal(low.B.data, second[path].B.data)
        assert low.scale == second[path].scale


def test_half_precision_files_of_peft_are_read_exactly(base, folder, tmp_path):
    torch.manual_seed(1)
    adapted = get_peft_model(copy.deepcopy(base), PeftLoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    for dtype in (torch.bfloat16, torch.float16):
        adapted.to(dtype).save_pretrained(tmp_path / str(dtype))
        model = ml.load_model(folder)
        load_adapter(model, tmp_path / str(dtype))
        for path, low in adapter_layers(model, "default"):
            module = adapted.get_submodule(f"base_model.model.{path}")
            assert np.array_equal(low.A.data.T, module.lora_A["default"].weight.detach().float().numpy())


def test_every_field_that_this_peft_writes_has_a_word_in_our_tables():
    known = {*SETTINGS, *HARMLESS, *AT_DEFAULT, *REFUSED, "peft_type"}
    assert set(PeftLoraConfig(target_modules=["a"]).to_dict()) <= known


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"trainable_token_indices": [1]},
    ],
)
def test_what_is_not_supported_is_refused_by_name(settings, base, folder, tmp_path):
    config = PeftLoraConfig(target_modules=["q_proj"], **settings)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    model = ml.load_model(folder)
    with pytest.raises(ml.MiniloraError, match=next(iter(settings))):
        load_adapter(model, tmp_path)
    assert model.adapter_choice is None


def test_bytes_agree_with_the_official_reader(folder, tmp_path):
    model = ml.load_model(folder)
    add_adapter(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    save_adapter(model, tmp_path)
    official, mine = load_file(tmp_path / "adapter_model.safetensors"), read_peft(tmp_path)
    assert len(official) == 2 * len(mine.factors)
    for path, low in adapter_layers(model, "default"):
        assert np.array_equal(official[f"base_model.model.{path}.lora_A.weight"], low.A.data.T)
        assert np.array_equal(mine.factors[path]["B"], low.B.data)


# --- The rules themselves, against PEFT's own functions on paths of many shapes. ---

PARTS = ["model", "layers", "h", "0", "1", "12", "q_proj", "v_proj", "mlp", "experts"]


def some_paths(count=400):
    rng = np.random.default_rng(5)
    return sorted({".".join(rng.choice(PARTS, rng.integers(1, 7))) for _ in range(count)})


class _Linears(ml.nn.Module):
    """A flat model that claims its linear layers stand at given paths."""

    def __init__(self, paths):
        self.layers = {path: ml.nn.Linear(1, 1) for path in paths}

    def named_modules(self, prefix=""):
        yield from self.layers.items()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "mlp.v_proj"]},
        {"target_modules": ["q_proj", "v_proj", "mlp"], "exclude_modules": ["experts.q_proj", "mlp"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*(h|layers)\.1\..*"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 12]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 12], "layers_pattern": "h"},
        {"target_modules": ["v_proj"], "layers_to_transform": [0], "layers_pattern": ["layers", "experts"]},
        {"target_modules": r"(model\.)?(h|layers)\.\d+\..*(q_proj|mlp)"},
        {"target_modules": r".*\.(?:0|12)\b.*"},
    ],
)
def test_targets_are_those_of_peft(settings):
    paths = some_paths()
    theirs = PeftLoraConfig(**settings)
    # PEFT answers True or a match object, or else False, None or a mark for what is excluded.
    answers = {path: check_target_module_exists(theirs, path) for path in paths}
    want = [path for path, answer in answers.items() if isinstance(answer, bool | re.Match) and answer]
    assert want
    assert list(find_targets(_Linears(paths), LoraConfig(**settings))) == want


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj", "model.layers.1"],
        [r"layers\.\d+\.q_proj", "q_proj", "^model.*mlp"],
        ["h|layers.1.mlp", "v_pro.", r"\w+\.experts"],
        ["^q_proj$", "(?:model|h).0.(q|v)_proj", "mlp"],
    ],
)
def test_the_key_of_a_pattern_is_that_of_peft(keys):
    config = LoraConfig(target_modules=["x"], rank_pattern={key: 10 + i for i, key in enumerate(keys)})
    for path in some_paths():
        assert config.rank(path) == dict(config.rank_pattern).get(get_pattern_key(keys, path), 8), path


def test_settings_are_written_so_that_peft_reads_the_same(tmp_path, folder):
    model = ml.load_model(folder)
    add_adapter(model, LoraConfig(**CASES["patterns and rslora"]))
    save_adapter(model, tmp_path)
    read = PeftLoraConfig.from_pretrained(tmp_path).to_dict()
    for name, value in json.loads((tmp_path / "adapter_config.json").read_text()).items():
        got = read[name]
        assert (sorted(got) if isinstance(got, set) else got) == value, name
