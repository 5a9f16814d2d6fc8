"""LoraConfig checks what it is given, and gives each module its rank and scale."""

from __future__ import annotations

import math

import pytest

from minilora.errors import ConfigError
from minilora.lora import LoraConfig


def config(**settings):
    return LoraConfig(**{"target_modules": ["q_proj"], **settings})


def test_the_defaults_are_those_of_peft():
    made = config()
    assert (made.r, made.lora_alpha, made.lora_dropout, made.bias) == (8, 8, 0.0, "none")
    assert made.use_rslora is made.use_dora is False
    assert made.init_lora_weights is True
    assert made.rank_pattern == made.alpha_pattern == {}
    assert made.scale("model.q_proj") == 1.0


def test_the_order_of_names_does_not_matter():
    assert (
        config(target_modules=["v", "q", "v"]) == config(target_modules=("q", "v")) == config(target_modules={"v", "q"})
    )


def test_the_scale_is_alpha_over_r_or_over_its_root():
    assert config(r=4, lora_alpha=16).scale("q_proj") == 4.0
    assert config(r=4, lora_alpha=16, use_rslora=True).scale("q_proj") == 8.0


def test_patterns_change_rank_and_alpha_and_the_first_key_wins():
    made = config(
        r=8,
        lora_alpha=16,
        use_rslora=True,
        rank_pattern={"layers.0.q_proj": 2, "q_proj": 4, "^model.k_proj": 16},
        alpha_pattern={r"(q|k)_proj": 1.5},
    )
    assert [made.rank(p) for p in ("model.layers.0.q_proj", "model.layers.1.q_proj", "q_proj")] == [2, 4, 4]
    assert [made.rank(p) for p in ("model.k_proj", "a.model.k_proj", "v_proj", "xq_proj")] == [16, 8, 8, 8]
    assert made.alpha("model.layers.1.q_proj") == 1.5
    assert made.scale("model.layers.1.q_proj") == 1.5 / math.sqrt(4)
    assert made.scale("v_proj") == 16 / math.sqrt(8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": None},
            r"target_modules is missing; name the modules to adapt, or \"all-linear\"",
        ),
        ({"target_modules": []}, r"target_modules is \(\), wanted names, or one regular expression"),
        ({"target_modules": ""}, r"target_modules is '', wanted names"),
        ({"target_modules": [1]}, r"target_modules is \(1,\), wanted names"),
        ({"target_modules": 5}, r"target_modules is 5, wanted names"),
        ({"r": 0}, r"LoraConfig: r is 0, wanted a whole number from 1 to 1048576"),
        ({"r": 10**400}, r"r is 1000"),
        ({"r": True}, r"r is True, wanted a whole number"),
        ({"r": 2.0}, r"r is 2.0, wanted a whole number"),
        (
            {"lora_alpha": 0},
            r"lora_alpha is 0, wanted a finite number other than 0, which would turn the adapter off",
        ),
        ({"lora_alpha": math.inf}, r"lora_alpha is inf"),
        ({"lora_alpha": math.nan}, r"lora_alpha is nan"),
        ({"lora_alpha": 10**400}, r"lora_alpha is 1000"),
        ({"lora_alpha": "8"}, r"lora_alpha is '8'"),
        ({"lora_dropout": 1.0}, r"lora_dropout is 1.0, wanted a number in \[0, 1\)"),
        ({"lora_dropout": math.nan}, r"lora_dropout is nan"),
        ({"use_rslora": 1}, r"use_rslora is 1, wanted True or False"),
        ({"use_dora": True}, r"use_dora is True, wanted False \(the rest is not supported yet\)"),
        ({"init_lora_weights": "gausian"}, r"init_lora_weights is 'gausian', .*; did you mean 'gaussian'\?"),
        (
            {"init_lora_weights": "pissa"},
            r"init_lora_weights is 'pissa', wanted True, False or \"gaussian\" \(the rest",
        ),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern is \{'q': 0\}, wanted a mapping"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\], wanted a mapping"),
        ({"alpha_pattern": {"q": "a"}}, r"alpha_pattern is \{'q': 'a'\}"),
        ({"exclude_modules": 3}, r"exclude_modules is 3"),
        ({"layers_to_transform": -1}, r"layers_to_transform is -1, wanted an index >= 0"),
        ({"layers_to_transform": [0, "a"]}, r"layers_to_transform is \(0, 'a'\)"),
        ({"layers_to_transform": []}, r"layers_to_transform is \(\)"),
        ({"layers_pattern": "h"}, r"layers_pattern means nothing without layers_to_transform"),
        (
            {"target_modules": "a.*", "layers_to_transform": 1},
            r"layers_to_transform needs target_modules as a list of names, not as the text 'a\.\*'",
        ),
        (
            {"modules_to_save": ["lm_head"]},
            r"modules_to_save is \('lm_head',\), wanted None \(the rest is not supported",
        ),
        ({"bias": "all"}, r"bias is 'all', wanted \"none\" \(the rest is not supported yet\)"),
        (
            {"target_modules": "(a"},
            r"target_modules: the regular expression '\(a' opens a group that is never closed",
        ),
        ({"exclude_modules": "a**"}, r"exclude_modules: the regular expression"),
        ({"rank_pattern": {"(?=a)": 2}}, r"rank_pattern: the regular expression '\(\?=a\)' uses look-ahead"),
        ({"alpha_pattern": {r"(a)\1": 2}}, r"alpha_pattern: .* uses a back-reference"),
        (
            {"layers_to_transform": 0, "layers_pattern": "(?!h)"},
            r"layers_pattern: .* uses negative look-ahead",
        ),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, lora_alpha=0, lora_dropout=2)
    for name in ("r is 0", "lora_alpha is 0", "lora_dropout is 2", "target_modules is missing"):
        assert name in str(caught.value)


def test_a_config_cannot_be_changed_from_outside():
    ranks = {"q": 2}
    made = config(rank_pattern=ranks)
    ranks["q"] = 0
    assert made.rank("q") == 2
    with pytest.raises(AttributeError):
        made.r = 3
