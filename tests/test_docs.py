"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import minilora as ml

ROOT = Path(__file__).resolve().parent.parent


def test_conventions_example_by_hand():
    x, W = np.array([1.0, 2]), np.array([[1.0, 0, 2], [0, 1, 1]])
    A, B = np.array([[1.0], [3]]), np.array([[1.0, 0, -1]])
    np.testing.assert_array_equal(ml.lora_matmul(x, W, A, B, 2.0), [15, 2, -10])


def test_readme_python_tour_runs_as_written(tmp_path, monkeypatch):
    """Every Python block of README.md, in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), f"a document links to {target}, which does not exist"
