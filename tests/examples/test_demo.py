"""The demo's account of itself: it succeeds with W unchanged, and fails where W was written or too little learned."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

from minilora.models import Llama

DEMO = Path(__file__).resolve().parents[2] / "examples" / "commands" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = sys.modules["demo"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path):
    """Two steps and three requests of the real data, on a tiny model that learns nothing from them."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_tiny_llama(folder)
    return ["--model", str(folder), "--out", str(tmp_path / "out"), "--steps", "2", "--requests", "3"]


def test_the_demo_ends_well_and_shows_that_frozen_weights_are_unchanged(demo, arguments, capsys):
    assert demo.main([*arguments, "--require", "0"]) == 0
    out = capsys.readouterr().out
    before, after = re.search(r"frozen weights: (\w+)… before, (\w+)… after: unchanged", out).groups()
    assert before == after
    for part in ("exact match: 0.0% of 3", "held-out loss:", "time a step:", "peak memory:", "adapter:", "Try next"):
        assert part in out


def test_a_weight_that_is_written_during_training_makes_the_demo_fail(demo, arguments, capsys, monkeypatch):
    """The tiny model's weights are mapped from its file, so writing the file writes live memory."""
    loss = Llama.loss

    def loss_that_writes(model, *args, **kwargs):
        with open(Path(arguments[1]) / "model.safetensors", "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\x00\x00\x80\x3e")
        return loss(model, *args, **kwargs)

    monkeypatch.setattr(Llama, "loss", loss_that_writes)
    assert demo.main([*arguments, "--require", "0"]) == 1
    captured = capsys.readouterr()
    assert "CHANGED" in captured.out
    assert "a frozen weight changed during training" in captured.err


def test_too_few_right_answers_make_the_demo_fail(demo, arguments, capsys):
    assert demo.main(arguments) == 1
    assert "0.0% exact match, at least 95% required" in capsys.readouterr().err


def test_a_base_model_that_knows_the_task_makes_the_demo_fail(demo, arguments, capsys, monkeypatch):
    def all_right(model, tokenizer, test, **_):
        return demo.Answers([demo._command(record) for record in test], 1.0)

    monkeypatch.setattr(demo, "answer", all_right)
    assert demo.main(arguments) == 1
    assert "the base model alone has 100.0% exact match" in capsys.readouterr().err


def test_the_demo_replaces_its_own_folder_but_no_run_of_a_user(demo, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    default = [*arguments[:2], *arguments[4:], "--require", "0"]
    assert demo.main(default) == 0
    assert demo.main(default) == 0
    mine = tmp_path / "runs" / "demo-seed0"
    weights = (mine / "adapter_model.safetensors").read_bytes()
    assert demo.main([*default, "--out", str(mine)]) == 1
    assert "the output folder is not empty" in capsys.readouterr().err
    assert (mine / "adapter_model.safetensors").read_bytes() == weights
