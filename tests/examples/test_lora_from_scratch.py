"""The textbook example runs, and comes to the same conclusions from other figures with another seed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "01_lora_from_scratch.py"


def run(seed):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seed", str(seed)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def conclusions(text):
    """What was concluded, without the figures in it."""
    return [re.sub(r"[\d.,%]+", "#", line) for line in text.splitlines() if "=>" in line]


@pytest.fixture(scope="module")
def outputs():
    return run(0), run(1)


def test_both_seeds_come_to_the_same_conclusions_from_other_figures(outputs):
    first, second = outputs
    assert conclusions(first) == conclusions(second)
    assert len(conclusions(first)) == 9
    assert "NOT SO" not in first + second
    loss = r"loss on unseen inputs ([\d.]+) -> ([\d.]+)"
    assert re.search(loss, first).groups() != re.search(loss, second).groups()


def test_each_fault_is_shown_by_a_number(outputs):
    text = outputs[0]
    assert "gradient of A: None, of B: None; of the wrapped sum: 1,000,000 numbers" in text
    assert "numbers with a gradient: W 1,000,000, A and B together 20,000" in text
    assert float(re.search(r"\|x W\| = ([\d.]+) before the first step", text)[1]) > 0.1


def test_the_right_form_recovers_the_planted_change(outputs):
    for text in outputs:
        first, last = map(float, re.search(r"loss on unseen inputs ([\d.]+) -> ([\d.]+)", text).groups())
        assert last <= 0.001 * first
        assert "largest difference from x W is 0.0" in text
        assert "Trained numbers: 20,000 of 1,000,000 (2%)" in text
