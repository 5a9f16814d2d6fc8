"""What strangers do: two lines in a test file of their own, with NumPy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import minilora
import minilora.testing

ROOT = Path(minilora.__file__).resolve().parents[1]
THEIRS = """
import numpy as np
from minilora.testing import check_vjp, gradcheck


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def vjp(g, x):
    p = softmax(x)
    return p * (g - np.sum(g * p, axis=-1, keepdims=True))


def off_by_one_percent(g, x):
    part = vjp(g, x)
    part[2, 1] *= 1.01
    return part


x = np.random.default_rng(0).standard_normal((4, 5))


def test_mine():
    check_vjp(softmax, vjp, x)


def test_mine_with_a_bug():
    check_vjp(softmax, off_by_one_percent, x)
"""
NO_HYPOTHESIS = """
import sys
sys.modules["hypothesis"] = None  # an import of it fails
import numpy as np
from minilora.testing import assert_complete, check_lora_invariants, check_vjp, gradcheck
from minilora.nn import Linear
from minilora import ops
gradcheck(lambda x: ops.silu(x), np.ones(3))
check_vjp(np.sin, lambda g, x: g * np.cos(x), np.ones(3))
check_lora_invariants(lambda: Linear(3, 2))
try:
    from minilora.testing import strategies
except ModuleNotFoundError as error:
    print(error)
"""


def run(*arguments, cwd):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MINILORA_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_file_outside_the_repository_accepts_a_right_gradient_and_rejects_a_wrong_one(tmp_path):
    (tmp_path / "test_mine.py").write_text(THEIRS)
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert (
        "check_vjp: the gradient for input 0 (x), float64 (4, 5), is wrong at [2, 1]; judged as float64" in done.stdout
    )


def test_assertions_are_raised_under_optimisation_too(tmp_path):
    (tmp_path / "mine.py").write_text(THEIRS + "\ntest_mine()\ntest_mine_with_a_bug()\n")
    done = run("-O", "mine.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "is wrong at [2, 1]" in done.stderr


def test_only_the_strategies_need_hypothesis(tmp_path):
    done = run("-c", NO_HYPOTHESIS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'minilora.testing.strategies needs Hypothesis: pip install "minilora[test]"'


def test_the_public_names_are_there_and_no_others():
    assert sorted(minilora.testing.__all__) == [
        "assert_complete", "check", "check_lora_invariants", "check_vjp", "gradcheck", "laws", "strategies",
    ]  # fmt: skip
    for name in minilora.testing.__all__:
        assert getattr(minilora.testing, name) is not None
    with pytest.raises(AttributeError, match=r"module 'minilora\.testing' has no attribute 'nothing'"):
        minilora.testing.nothing  # noqa: B018
