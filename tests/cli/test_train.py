"""``minilora train`` from end to end on a tiny model, and what it says when something is wrong."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from minilora.cli.train import target_names
from minilora.lora import load_adapter
from minilora.models import load_model
from minilora.training import TrainConfig
from minilora.training.runfile import read_run


@pytest.fixture
def train(minilora, model_folder, data_file, tmp_path):
    """Run train on the tiny model with these further words; None takes a file's option away."""

    def run(*words: object, **replaced: object):
        files = {"model": model_folder, "data": data_file, "out": tmp_path / "out", **replaced}
        given = [word for name, value in files.items() if value is not None for word in (f"--{name}", value)]
        return minilora("train", *given, *words)

    return run


def effect(model_folder: Path, adapter: Path) -> np.ndarray:
    """How an adapter changes the logits of one prompt."""
    model = load_model(model_folder)
    before = model([[1, 2, 3]]).data
    load_adapter(model, adapter)
    return model([[1, 2, 3]]).data - before


# What a run does -------------------------------------------------------------------------------------


def test_a_run_tells_what_it_does_and_ends_with_a_command_that_uses_the_adapter(
    train, minilora, data_file, model_folder, tmp_path
):
    code, out, err = train("--steps", 30, "--eval-data", data_file, "--lr", "2e-2", "--eval-every", 10)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"data     {data_file}: 10 examples (completion), at most 6 tokens"
    assert lines[2] == f"model    {model_folder}: 23,808 parameters, all frozen"
    assert lines[3] == "adapter  7,424 trainable parameters (31.18% of the model's)"
    assert lines[4].startswith("step 0/30  held-out loss ")
    assert lines[5].startswith("step 1/30  loss ")
    assert "tokens/s" in lines[5]
    assert lines[5].endswith(" left")
    assert any(line.startswith("step 20/30  held-out loss ") for line in lines)
    before, after = (float(word) for word in lines[-2].replace(",", "").split() if "." in word)
    assert lines[-2].endswith("after 30 steps")
    assert after < before / 2
    command = shlex.split(lines[-1].removeprefix("use it: "))
    assert command[:2] == ["minilora", "generate"]
    assert "--prompt" in command
    code, out, err = minilora(*command[1:-1], "ax>")
    assert (code, out, err) == (0, "aa\n", "")


def test_the_folder_holds_what_is_promised(train, data_file, model_folder, tmp_path):
    out = tmp_path / "runs" / "first"
    assert train("--steps", 3, "--eval-data", data_file, "--save-every", 2, out=out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "run.yaml",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) >= {"step", "loss", "lr", "grad_norm", "tokens", "seconds"} for line in lines] == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert "eval_loss" in lines[0]
    settings = read_run(out / "run.yaml")
    assert settings["model"] == str(model_folder)
    assert settings["data"] == settings["eval_data"] == str(data_file)
    assert (settings["steps"], settings["epochs"], settings["lora_alpha"]) == (3, None, 16)
    assert np.abs(effect(model_folder, out)).max() > 0


def test_json_gives_one_object_on_stdout_and_progress_on_stderr(train, data_file, tmp_path):
    code, out, err = train("--steps", 2, "--json", "--eval-data", data_file)
    assert code == 0
    facts = json.loads(out)
    assert facts["steps"] == facts["saved"] == 2
    assert [step for step, _ in facts["eval_losses"]] == [0, 2]
    assert (facts["trainable"], facts["parameters"]) == (7424, 23808)
    assert "step 2/2  loss" in err


def test_the_settings_of_a_run_give_the_same_adapter_again(train, minilora, tmp_path):
    train("--steps", 4, "--rank", 3, "--alpha", 5, "--targets", "q_proj,up_proj", "--seed", 7, "--lr", "3e-3")
    code, _, err = minilora("train", "--config", tmp_path / "out" / "run.yaml", "--out", tmp_path / "again")
    assert (code, err) == (0, "")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_flags_override_the_file(train, tmp_path):
    (tmp_path / "my.yaml").write_text("steps: 50\nlr: 1e-2   # YAML 1.1 takes this for text\nr: 1\n")
    assert train("--config", tmp_path / "my.yaml", "--epochs", 1, "--rank", 2)[0] == 0
    settings = read_run(tmp_path / "out" / "run.yaml")
    assert (settings["steps"], settings["lr"], settings["r"]) == (2, 0.01, 2)


def test_chats_are_trained_through_the_template_and_noted(train, chat_file, tmp_path):
    code, out, _ = train("--steps", 1, data=chat_file)
    assert code == 0
    assert "6 examples (messages)" in out
    assert out.rstrip().endswith('--chat "..."')
    assert 'trained_on: "messages"' in (tmp_path / "out" / "run.yaml").read_text()


def test_accumulation_does_not_change_the_adapter(train, model_folder, tmp_path):
    train("--steps", 4, "--batch-size", 6, out=tmp_path / "a")
    train("--steps", 4, "--batch-size", 2, "--accumulate", 3, out=tmp_path / "b")
    a, b = effect(model_folder, tmp_path / "a"), effect(model_folder, tmp_path / "b")
    assert np.abs(a - b).max() <= 1e-3 * np.abs(a).max()


def test_every_setting_has_a_flag(minilora):
    """Each flag sets the field that it should, so that none is without effect."""
    from minilora.cli import _parse
    from minilora.cli.train import settings

    values = {
        "--epochs": 7, "--batch-size": 3, "--accumulate": 2, "--max-length": 99, "--lr": 0.5, "--schedule": "linear",
        "--warmup": 0.25, "--weight-decay": 0.125, "--max-grad-norm": 3.5, "--seed": 11, "--eval-every": 5,
        "--save-every": 6, "--rank": 4, "--alpha": 12.0, "--targets": "q_proj", "--dropout": 0.5,
    }  # fmt: skip
    words = [str(word) for pair in values.items() for word in pair]
    args = _parse(["train", "--model", "m", "--data", "d", "--out", "o", "--threads", "2", "--rslora", *words])
    paths, config, threads = settings(vars(args))
    assert paths == {"model": "m", "data": "d", "eval_data": None, "out": "o"}
    assert threads == 2
    assert config == TrainConfig(
        epochs=7, batch_size=3, accumulate=2, max_length=99, lr=0.5, schedule="linear", warmup=0.25,
        weight_decay=0.125, max_grad_norm=3.5, seed=11, eval_every=5, save_every=6, r=4, lora_alpha=12.0,
        target_modules=("q_proj",), lora_dropout=0.5, use_rslora=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        ("q_proj,v_proj", ("q_proj", "v_proj")),
        ("layers.0.self_attn.q_proj", ("layers.0.self_attn.q_proj",)),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_targets_are_names_or_a_pattern(text, meant):
    assert target_names(text) == meant


# What is refused -------------------------------------------------------------------------------------


def test_missing_options_are_all_named(minilora, data_file):
    code, _, err = minilora("train", "--data", data_file)
    assert code == 2
    assert "--model and --out missing; give it as an option, or in a --config file" in err


def test_a_missing_model_is_named_with_what_may_be_given(train, tmp_path):
    code, _, err = train(model=tmp_path / "none.gguf")
    assert code == 2
    assert "none.gguf" in err
    assert "smollm2-135m" in err
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_named(train, model_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "m" / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:-8])
    code, _, err = train(model=tmp_path / "m")
    assert code == 1
    assert "model.safetensors" in err
    assert "Traceback" not in err


def test_a_missing_data_file_is_named(train, tmp_path):
    code, _, err = train(data=tmp_path / "none.jsonl")
    assert code == 2
    assert "none.jsonl: cannot be read: No such file or directory" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ('{"prompt": "x"}', ":2: has no 'completion' beside 'prompt'"),
        ('{"prompt": "x", "completion": ""}', ":2: completion is empty, so there is no token to learn from"),
    ],
)
def test_a_bad_data_line_is_named_with_its_number(train, tmp_path, line, message):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    code, _, err = train(data=bad)
    assert code == 1
    assert f"{bad}{message}" in err


def test_cut_examples_are_counted(train, tmp_path, data_file):
    long = tmp_path / "long.jsonl"
    long.write_text(data_file.read_text() + '{"prompt": "%s", "completion": "x"}\n' % ("long" * 9))
    code, out, _ = train("--steps", 1, "--max-length", 5, data=long)
    assert code == 0
    assert "11 of 11 examples are longer than the limit and are cut to 5 tokens (the longest has 38)" in out
    assert f"left out, because cutting left no completion token: {long}:11" in out


def test_examples_longer_than_the_models_positions_are_refused(train, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": "x" * 200}) + "\n")
    code, _, err = train(data=long)
    assert code == 2
    assert "--max-length: an example has 201 tokens, but the model has 128 positions; give --max-length 128 or" in err


def test_targets_that_match_nothing_are_answered_with_names_that_exist(train):
    code, _, err = train("--targets", "query_proj")
    assert code != 0
    assert "query_proj" in err
    assert "q_proj" in err.replace("query_proj", "")


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_loaded(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    code, out, err = train(data=tmp_path / "not even there")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'out'}: the output folder is not empty (thesis.txt); a run never writes over another" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "no such setting: 'lerning_rate'"),
        ("rank: 4", "no such setting: 'rank' (did you mean 'r'?)"),
        ("lr: fast", "my.yaml: lr is 'fast', wanted a finite number > 0"),
        ("model: [a, b]", "my.yaml: model is ['a', 'b'], wanted a path"),
        ("steps: 1\nepochs: 2", "steps is 1 and epochs is 2, wanted one of the two"),
    ],
)
def test_bad_settings_in_a_file_are_named(train, tmp_path, text, message):
    (tmp_path / "my.yaml").write_text(text)
    code, _, err = train("--config", tmp_path / "my.yaml", model=None if "model" in text else "smollm2-135m")
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", 0), "steps is 0, wanted a whole number >= 1"),
        (("--lr", "-1"), "lr is -1.0, wanted a finite number > 0"),
        (("--schedule", "cosin"), "schedule is 'cosin', wanted one of cosine, linear, constant"),
        (("--threads", 0), "0"),
        (("--steps", 2, "--warmup", 9), "warmup is 9 steps, but the run has 2"),
        (("--steps", 2, "--epochs", 2), "steps is 2 and epochs is 2, wanted one of the two"),
    ],
)
def test_bad_values_are_named(train, words, message):
    code, _, err = train(*words)
    assert code == 2
    assert message in err


def test_a_loss_that_is_not_finite_says_at_which_step_and_what_to_try(train, tmp_path):
    code, _, err = train("--lr", "1e30", "--steps", 9, "--warmup", 0)
    assert code == 1
    assert "minilora train: error: training stopped: the " in err
    assert "of step 2 is" in err or "after step 1" in err
    assert "try a lower lr (now 1e+30)" in err
    assert "Warning" not in err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1


# Without the optional packages ------------------------------------------------------------------------


def test_training_needs_neither_yaml_nor_rich(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    code, _, err = train("--steps", 1)
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "run.yaml").read_text().startswith("schema: 1\nmodel: ")


def test_reading_settings_without_yaml_names_the_extra(train, tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text("lr: 0.1")
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, err = train("--config", tmp_path / "my.yaml")
    assert code == 2
    assert 'my.yaml: reading settings needs PyYAML; pip install "minilora[cli]"' in err


def test_training_without_tokenizers_names_the_extra(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, err = train("--steps", 1)
    assert code == 1
    assert "minilora[models]" in err
