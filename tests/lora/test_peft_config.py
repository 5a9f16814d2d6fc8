"""Every field of PEFT's adapter_config.json is supported, harmless, at its default, or refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError
from minilora.lora import LoraConfig
from minilora.lora.peft_config import AT_DEFAULT, HARMLESS, REFUSED, from_peft, to_peft

SMALLEST = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]}

# As PEFT 0.21.2 wrote it.
WRITTEN_BY_PEFT = {
    **SMALLEST,
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "os"},
    "base_model_name_or_path": None, "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.0, "lora_ga_config": None,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {}, "revision": None, "target_parameters": None,
    "task_type": None, "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "velora_config": None,
}  # fmt: skip


def test_the_smallest_config_has_pefts_defaults():
    assert from_peft(SMALLEST, "f") == LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"])


def test_a_config_that_peft_wrote_is_read():
    assert from_peft(WRITTEN_BY_PEFT, "f") == LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"])


@pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_a_missing_field_is_named_and_no_default_is_taken(name):
    for settings in (
        {key: value for key, value in SMALLEST.items() if key != name},
        {**SMALLEST, name: None},
    ):
        with pytest.raises(ConfigError, match=rf"^dir/adapter_config.json: {name} missing; a file must state"):
            from_peft(settings, "dir/adapter_config.json")


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless_fields_are_ignored_whatever_they_say(name):
    for value in ("x", ["os.system"], {"a": 1}, 7, None):
        from_peft({**SMALLEST, name: value}, "f")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_feature_that_is_not_supported_is_refused_by_name_unless_it_is_off(name):
    for off in (None, False, "", [], {}):
        from_peft({**SMALLEST, name: off}, "f")
    for on in (True, "x", [1], {"a": None}, 1, 0):
        with pytest.raises(ConfigError, match=rf"^f: {name} is .*: .* is not supported yet\n  remove what"):
            from_peft({**SMALLEST, name: on}, "f")


@pytest.mark.parametrize("name", sorted(AT_DEFAULT))
def test_a_field_that_matters_only_with_a_refused_one_is_accepted_at_its_default(name):
    from_peft({**SMALLEST, name: AT_DEFAULT[name]}, "f")
    with pytest.raises(ConfigError, match=rf"{name} is 17; minilora accepts only PEFT's default, 16"):
        from_peft({**SMALLEST, name: 17}, "f")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, r"^f: use_dora is True, wanted False \(the rest is not supported yet\)"),
        ({"bias": "lora_only"}, r"^f: bias is 'lora_only', wanted \"none\""),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \('lm_head',\), wanted None"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "eva"}, r"init_lora_weights is 'eva'"),
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA'; minilora reads 'LORA' adapters only"),
        ({"future_maths": 1}, r"'future_maths' is 1: no field that minilora knows"),
        (
            {"use_rsloar": True},
            r"'use_rsloar' is True: no field that minilora knows \(did you mean use_rslora\?\)",
        ),
        ({"r": "8"}, r"r is '8', wanted a whole number"),
        ({"lora_alpha": 1e999}, r"lora_alpha is inf"),
        ({"target_modules": "(a+)+(?=b)"}, r"^f: target_modules: the regular expression .* look-ahead"),
        ({"target_modules": []}, r"target_modules is \(\), wanted names"),
        ({"target_modules": {"a": 1}}, r"target_modules is \{'a': 1\}, wanted names"),
        ({"layers_to_transform": "3"}, r"layers_to_transform is '3', wanted an index"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_peft({**SMALLEST, **settings}, "f")


def test_unknown_fields_are_accepted_only_when_null_false_or_empty():
    from_peft({**SMALLEST, "a": None, "b": False, "c": "", "d": [], "e": {}}, "f")


def test_everything_that_is_refused_is_listed():
    with pytest.raises(ConfigError) as caught:
        from_peft({**SMALLEST, "use_qalora": True, "layer_replication": [[0, 2]], "zzz": 1}, "f")
    for name in ("use_qalora", "layer_replication", "zzz"):
        assert name in str(caught.value)


def test_fields_that_peft_takes_for_absent_are_absent():
    settings = {
        "exclude_modules": [],
        "layers_to_transform": None,
        "layers_pattern": [],
        "rank_pattern": None,
    }
    assert from_peft({**SMALLEST, **settings, "lora_dropout": None}, "f") == from_peft(SMALLEST, "f")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["b", "a"]),
        LoraConfig(
            r=3, lora_alpha=1.5, target_modules=r".*\.q", lora_dropout=0.1, use_rslora=True, exclude_modules="x",
            rank_pattern={"b": 1, "a": 2}, alpha_pattern={"q": 4}, init_lora_weights="gaussian",
        ),
        LoraConfig(
            target_modules=["q"], layers_to_transform=[2, 0], layers_pattern=["h", "layers"], exclude_modules=["z"],
            init_lora_weights=False,
        ),
    ],
)  # fmt: skip
def test_a_config_survives_the_way_to_peft_and_back(config):
    targets = config.target_modules
    written = to_peft(config, targets if isinstance(targets, str) else list(targets))
    back = from_peft(written, "f")
    assert back == config
    assert list(back.rank_pattern) == list(config.rank_pattern)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(sorted({*WRITTEN_BY_PEFT, "exclude_modules", "unknown"}))


@given(st.dictionaries(_names, _json, max_size=4), st.lists(_names, max_size=2))
def test_any_settings_make_a_config_or_a_config_error(changes, gone):
    settings = {**WRITTEN_BY_PEFT, **changes}
    for name in gone:
        settings.pop(name, None)
    try:
        config = from_peft(settings, "f")
    except ConfigError as caught:
        config = caught
    if isinstance(config, ConfigError):
        assert str(config).startswith("f: ")
    else:
        assert config.rank("model.layers.0.q_proj") >= 1
