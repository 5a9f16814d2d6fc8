"""The textbook example runs, and comes to the same conclusions from other figures with another seed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minilora as ml

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "01_lora_from_scratch.py"


def run(seed):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seed", str(seed)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outputs():
    return run(0), run(1)


@pytest.fixture
def example(monkeypatch):
    """The script as a module, which leaves the threads of this process and its children alone."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(ml, "set_num_threads", lambda n: None)
    spec = importlib.util.spec_from_file_location("lora_from_scratch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conclusions(text):
    """What was concluded, without the figures in it."""
    return [re.sub(r"[\d.,%]+", "#", line) for line in text.splitlines() if "=>" in line]


def figures(pattern, text):
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in\n{text}"
    return [float(group.replace(",", "")) for group in found.groups()]


def test_both_seeds_come_to_the_same_conclusions_from_other_figures(outputs):
    first, second = outputs
    assert conclusions(first) == conclusions(second)
    assert len(conclusions(first)) == 9
    assert "NOT SO" not in first + second
    for pattern in (r"\|x W\| = ([\d.]+)", r"unseen inputs ([\d.]+) -> ([\d.]+)"):
        assert figures(pattern, first) != figures(pattern, second)


def test_each_fault_is_shown_by_a_number(outputs):
    for text in outputs:
        assert "gradient of A: None, of B: None; of the wrapped sum: 1,000,000 numbers" in text
        assert figures(r"AdamW moves A and B by ([\d.]+)", text) == [0]
        assert figures(r"with a gradient: W ([\d,]+), A and B together ([\d,]+)", text) == [1_000_000, 20_000]
        assert figures(r"AdamW's state: W ([\d.]+) MB, A and B together ([\d.]+) MB", text) == [12, 0.24]
        # x A B and x W are of one size by how the three are drawn
        assert 0.5 < figures(r"\|x W\| = ([\d.]+) before the first step", text)[0] < 2


def test_the_right_form_starts_from_the_old_layer_and_recovers_the_planted_change(outputs):
    for text in outputs:
        assert figures(r"largest difference from x W is ([\d.]+)", text) == [0]
        assert figures(r"all (\d+) elements agree", text) == [3 * 12 + 12 * 4 + 4 * 9]
        first, last = figures(r"loss on unseen inputs ([\d.]+) -> ([\d.]+)", text)
        assert last <= 0.001 * first
        assert "Trained numbers: 20,000 of 1,000,000 (2%)" in text


def test_memory_of_the_two_forms_is_what_their_arrays_take(outputs):
    for text in outputs:
        inside = figures(r"x \(W \+ A B\) +[\d.]+ ms +([\d,]+) bytes", text)[0]
        beside = figures(r"x W \+ \(x A\) B +[\d.]+ ms +([\d,]+) bytes", text)[0]
        # A B and the sum, in one array or two. One row and x A, or in NumPy three; and some Python objects.
        assert 4_000_000 <= inside <= 8_100_000
        assert 4_040 <= beside <= 20_000


def test_a_conclusion_that_does_not_hold_ends_the_script_with_1(example, capsys):
    example.STEPS = 2
    with pytest.raises(SystemExit) as end:
        example.main([])
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert re.search(r"NOT SO: [\d.-]+% of the loss is gone\n$", out)
