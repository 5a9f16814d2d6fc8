"""The table of benchmarks/: verdicts, agreement before times, and what a missing rival reads."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minilora.formats.quant import dequantize

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """Load a file of benchmarks/ under the name that the others import it by, for this module only."""
    loaded = {}

    def named(name):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
        return sys.modules[name]

    named("sides")
    yield named
    for name in loaded:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"figure": 1.5, "goal": 1.4}, "met"),
        ({"figure": 1.399, "goal": 1.4}, "not met"),
        ({"figure": 1.0, "goal": 1.4, "share": 0.8}, "80 % of roofline"),
        ({"figure": 1.0, "goal": 1.4, "share": 0.799}, "not met"),
        ({"figure": 1.15, "goal": 1.15, "at_most": True}, "met"),
        ({"figure": 1.16, "goal": 1.15, "at_most": True}, "not met"),
        ({"goal": 1.4}, "not measured here"),
        ({"figure": 1.0}, "no goal"),
    ],
)
def test_a_verdict_follows_from_the_figure_and_is_not_rounded(load, settings, verdict):
    assert load("sides").Row("a row", **settings).verdict == verdict


def test_a_row_shows_its_range_goal_and_reason(load):
    Row = load("sides").Row
    row = Row("a", ours="1 s", theirs="2 s", figure=2.0, spread=(1.9, 2.125), goal=1.5)
    assert row.cells() == ["a", "1 s", "2 s", "2.00× (1.90× to 2.12×)", "≥ 1.50×", "–", "met"]
    row = Row("a", goal=0.45, at_most=True, unit="%", note="No module named 'torch'")
    assert row.cells() == ["a", "–", "–", "–", "≤ 45 %", "–", "not measured here: No module named 'torch'"]


def test_a_ratio_is_taken_against_the_fastest_rival_of_each_round(load):
    result = load("sides").Result({"own": [1.0, 1.0, 2.0], "a": [2.0, 4.0, 6.0], "b": [3.0, 3.0, 9.0]})
    assert result.ratios("own", ["a", "b"]) == [2.0, 3.0, 3.0]
    assert result.ratio("own", ["a", "b"]) == {"figure": 3.0, "spread": (2.0, 3.0)}
    assert load("sides").Result(result.times, best=True).ratio("own", "b")["figure"] == 3.0


def test_sides_that_computed_different_things_are_not_timed(load):
    sides = load("sides")
    sides.verify("equal", {"a": [[1.0, 2.0], 3.0], "b": [[1.0, 2.0], 3.0 + 2e-4]}, 1e-4)
    with pytest.raises(sides.Disagreement, match=r"losses: a and b differ by 1\.3e-04 of the largest"):
        sides.verify("losses", {"a": [1.0, 3.0], "b": [1.0, 3.0 + 4e-4]}, 1e-4)
    with pytest.raises(sides.Disagreement):
        sides.verify("losses", {"a": float("nan"), "b": float("nan")}, 1e-4)


@pytest.mark.parametrize("storage", ["bf16", "q8_0", "q4_1"])
def test_weights_are_rounded_to_the_nearest_of_their_storage(load, storage):
    weight = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32)
    found = dequantize(load("generate").stored_as(weight, storage), storage)
    blocks = weight.reshape(6, -1, 32)
    step = {
        "bf16": abs(weight) * 2.0**-7,  # eight bits of mantissa, one of them implied
        "q8_0": np.repeat(abs(blocks).max(-1) / 127, 32, axis=1),
        "q4_1": np.repeat((blocks.max(-1) - blocks.min(-1)) / 15, 32, axis=1),
    }[storage]
    # Half a step, and what a step and an offset lose as float16, up to 127 steps away.
    assert (abs(found - weight) <= 0.5 * step + 128 * step * 2.0**-11 + abs(weight).max() * 2.0**-11).all()


@pytest.mark.native
@pytest.mark.usefixtures("kernel_in_use")
def test_a_rival_that_is_not_installed_reads_not_measured_here(tmp_path):
    path = tmp_path / "table.json"
    command = [sys.executable, FOLDER / "table.py", "--only", "mlp", "--short", "--threads", "1", "--json", path]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(path.read_text())["rows"]
    assert [row["theirs"].split()[0] for row in rows] == ["torch", "HIPS", "MyGrad"]
    for row in rows:
        assert row["figure"] is None or row["figure"] > 0
        missing = row["figure"] is None
        assert (row["verdict"] == "not measured here") == missing
        assert row["note"].startswith("No module named") == missing
    assert "minutes by medians" in found.stdout
    assert found.stdout.count("MLP 784-1024-1024-10") == 3
