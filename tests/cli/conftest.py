"""The command line on a tiny model, and data to train it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

import minilora as package
from minilora.cli import main


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """Ten prompts, each answered by one letter twice."""
    pairs = [{"prompt": f"{a}{b}>", "completion": a + a} for a in "abcde" for b in "xy"]
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", pairs)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory):
    chats = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": a + a}]} for a in "abcdef"]
    return write_lines(tmp_path_factory.mktemp("chat") / "chat.jsonl", chats)


@pytest.fixture
def minilora(capsys):
    """Run a command in this process: minilora("info", "--json") -> (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def spawn():
    """Start a command in a process of its own and return it, its pipes open."""
    # The package that is tested here, installed or not: -m looks in the current folder first, then in PYTHONPATH.
    root = Path(package.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def start(*words: object, command: list | None = None) -> subprocess.Popen:
        whole = [str(word) for word in (*(command or [sys.executable, "-m", "minilora"]), *words)]
        return subprocess.Popen(
            whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    return start


@pytest.fixture(scope="session")
def trained(model_folder, data_file, tmp_path_factory):
    """An adapter trained for a few steps on prompt and completion."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    code = main(["train", "--model", str(model_folder), "--data", str(data_file), "--out", str(out), "--steps", "3"])
    assert code == 0
    return out
