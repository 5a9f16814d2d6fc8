"""TrainConfig: what it refuses, what it fills in, and how it reads settings from elsewhere."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError
from minilora.optim import learning_rate
from minilora.training.config import TrainConfig

valid = st.builds(
    TrainConfig,
    steps=st.none() | st.integers(1, 100),
    batch_size=st.integers(1, 64),
    lr=st.floats(1e-8, 10),
    warmup=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    r=st.integers(1, 256),
    lora_alpha=st.none() | st.floats(0.5, 99),
)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ({"steps": 0}, "steps is 0, wanted a whole number >= 1 or nothing"),
        ({"steps": True}, "steps is True"),
        ({"batch_size": 2.0}, "batch_size is 2.0, wanted a whole number >= 1"),
        ({"accumulate": None}, "accumulate is None"),
        ({"max_length": 1}, "max_length is 1, wanted a whole number >= 2"),
        ({"lr": 0}, "lr is 0, wanted a finite number > 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"schedule": "cosin"}, "schedule is 'cosin', wanted one of cosine, linear, constant"),
        ({"warmup": 1.5}, "warmup is 1.5, wanted steps, or a share of the run in"),
        ({"warmup": -1}, "warmup is -1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0, wanted a number > 0, inf to never clip"),
        ({"max_grad_norm": math.nan}, "max_grad_norm is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"target_modules": ()}, "target_modules is"),
        ({"target_modules": ("q_proj", 3)}, "target_modules is"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', wanted true or false"),
        ({"steps": 3, "epochs": 2}, "steps is 3 and epochs is 2, wanted one of the two"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_was_wanted(setting, wanted):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**setting)
    assert wanted in str(caught.value)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError, match=r"lr is -1.*; seed is -2"):
        TrainConfig(lr=-1, seed=-2)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("batchsize", "batch_size"), ("rank", "r"), ("learning_rate", "lr"), ("targets", "target_modules")],
)
def test_a_misspelt_or_foreign_name_is_answered_with_the_nearest(misspelt, meant):
    with pytest.raises(ConfigError, match=f"run.yaml: no such setting: '{misspelt}' .did you mean '{meant}'"):
        TrainConfig.from_mapping({misspelt: 1}, where="run.yaml")


def test_a_name_like_no_other_is_refused_with_the_names_that_exist():
    with pytest.raises(ConfigError, match=r"no such setting: 'zzz'\n  settings are steps, epochs, batch"):
        TrainConfig.from_mapping({"zzz": 1})


def test_values_out_of_a_file_are_refused_with_the_files_name():
    with pytest.raises(ConfigError, match=r"^run.yaml: lr is -1.0"):
        TrainConfig.from_mapping({"lr": -1.0}, where="run.yaml")


def test_numbers_that_yaml_takes_for_text_are_understood():
    assert TrainConfig.from_mapping({"lr": "1e-3"}).lr == 1e-3


@given(valid, st.integers(1, 50))
def test_resolving_twice_is_resolving_once(config, steps_per_epoch):
    once = config.resolved(steps_per_epoch)
    assert once.resolved(7) == once
    assert once.epochs is None
    assert once.steps == (config.steps or 3 * steps_per_epoch)
    assert once.lora_alpha == (config.lora_alpha or 2 * config.r)
    last = learning_rate(once.steps, lr=once.lr, steps=once.steps, warmup=once.warmup, schedule=once.schedule)
    assert 0 < last <= once.lr


@given(valid)
def test_settings_survive_a_mapping(config):
    assert TrainConfig.from_mapping(dataclasses.asdict(config)) == config


def test_warmup_counts_steps_from_one_and_is_a_share_below():
    assert TrainConfig(steps=30, warmup=0.1).resolved(1).warmup == 3
    assert TrainConfig(steps=30, warmup=1).resolved(1).warmup == 1
    assert TrainConfig(steps=30, warmup=0).resolved(1).warmup == 0


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup is 20 steps, but the run has 10"):
        TrainConfig(steps=10, warmup=20).resolved(1)


def test_target_modules_may_be_a_list():
    assert TrainConfig(target_modules=["q_proj"]).target_modules == ("q_proj",)
