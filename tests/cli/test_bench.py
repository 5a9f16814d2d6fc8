"""``minilora bench``: what it prints and writes, and what it refuses. No time is asserted, only that it is one."""

from __future__ import annotations

import json

import pytest

from minilora import kernels
from minilora.benchmark import Duel, Missing, Settings, Side, SideError, sides, take_turns
from minilora.benchmark.linear import Size, check
from minilora.benchmark.machine import settings

pytestmark = pytest.mark.usefixtures("kernel_in_use")
SUBJECT = """
import os
def counted(start):
    runs = []
    def run():
        runs.append(start)
        print("a library that prints")
        return len(runs)
    return {"run": run, "threads": lambda: os.environ.get("MINILORA_THREADS"), "fail": lambda: 1 / 0,
            "leave": lambda: os._exit(3)}
def absent():
    import no_such_package_as_this
"""


@pytest.fixture
def side(tmp_path):
    path = tmp_path / "subject.py"
    path.write_text(SUBJECT)
    with Side(path, environment=settings(3)) as made:
        yield made


def test_a_side_keeps_its_tasks_and_answers_in_json(side):
    side.make("counted", start=5)
    assert side.call("run") == 1
    assert side.time("run") >= 0
    assert side.call("run") == 3
    assert side.call("threads") == "3"
    side.make("counted", start=6)
    assert side.call("run") == 1
    assert side.peak_memory == 0 or side.peak_memory > 1 << 20


def test_a_side_that_lacks_a_package_is_missing_and_can_go_on(side):
    with pytest.raises(Missing, match="no_such_package_as_this"):
        side.make("absent")
    side.make("counted", start=1)
    with pytest.raises(SideError, match="fail: ZeroDivisionError: division by zero"):
        side.call("fail")
    assert side.call("run") == 1


def test_a_side_that_dies_is_an_error_with_its_exit_code(side):
    side.make("counted", start=1)
    with pytest.raises(SideError, match="the process of leave ended with exit code 3"):
        side.call("leave")


def test_sides_take_turns_there_and_back(monkeypatch):
    order = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def time(self, task, *, seconds=0.0, best=False):
            order.append(self.name)
            return float(len(order))

    monkeypatch.setattr(sides, "PAUSE", 0)
    ours, theirs = take_turns([Recorder("a"), Recorder("b")], "run", rounds=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert (ours, theirs) == ((3.0, 6.0, 7.0), (4.0, 5.0, 8.0))


def test_the_ratio_is_the_median_over_rounds():
    duel = Duel((1.0, 2.0, 1.0), (2.0, 2.0, 3.0))
    assert duel.ratios == [1.0, 2.0, 3.0]
    assert (duel.ratio, duel.seconds) == (2.0, (1.0, 2.0))


def test_work_and_bytes_are_counted_by_the_formula():
    size = Size(m=2, k=3, n=5, r=1)
    assert size.flops("forward") == 2 * 2 * (3 * 5 + 1 * (3 + 5))
    # Backward: W and A, B once more for grad_x and grad_h, then grad_A and grad_B.
    assert size.flops("both") == size.flops("forward") + 2 * 2 * (3 * 5 + 2 * (3 + 5))
    assert size.nbytes("forward") == 4 * (3 * 5 + 8 + 2 * (3 + 5))


@pytest.mark.native
def test_the_check_sees_one_wrong_element():
    from minilora.benchmark.linear import SCALE, _by_hand, operands
    from minilora.ops import lora_matmul

    size = Size(m=5, k=33, n=17, r=4)
    x, W, A, B, grad = operands(size)
    right = _by_hand(x, W, A, B, grad)
    assert all(0 <= error < 1 for errors in check(size, right, right).values() for error in errors)
    y = lora_matmul(x, W, A, B, SCALE).copy()
    y[4, 16] *= 1 + 1e-4
    assert check(size, (y, *right[1:]), right)["y"][0] > 1


@pytest.mark.native
def test_quick_prints_every_figure_and_writes_them_as_json(minilora, tmp_path):
    path = tmp_path / "bench.json"
    code, out, err = minilora("bench", "--quick", "--threads", 2, "--isa", "baseline", "--json", path)
    assert (code, err) == (0, "")
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "limits", "checks", "times"}
    assert (found["machine"]["isa"], found["machine"]["threads"]) == ("baseline", kernels.compiled() and 2)
    assert f"instruction set baseline, {found['machine']['threads']} threads" in out
    assert [limit["threads"] for limit in found["limits"]] == [1, 2]
    assert all(limit["peak_flops"] > 0 and min(limit["read_bandwidth"].values()) > 0 for limit in found["limits"])
    sizes = [(size.m, size.k, size.n, size.r) for size in Settings(quick=True).sizes]
    assert [(c["m"], c["k"], c["n"], c["r"]) for c in found["checks"]] == sizes
    assert all(0 <= e <= 1 for c in found["checks"] for both in c["errors"].values() for e in both)
    assert len(found["times"]) == 2 * len(sizes)
    for row in found["times"]:
        assert row["kernel_seconds"] > 0
        assert row["numpy_seconds"] > 0
        assert row["ratios"][0] <= row["ratio"] <= row["ratios"][-1]
        assert row["binds"] in ("FLOP/s", "bandwidth")
        assert row["share"] > 0
    assert out.count("% of ") == len(found["times"])
    assert "every result is within its error bound" in out


@pytest.mark.native
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", 0), "--threads 0: wanted a whole number >= 1"),
        (("--isa", "sse9"), "instruction set 'sse9' does not run here\n  choose one of baseline"),
    ],
)
def test_bad_usage_is_one_sentence(minilora, words, message):
    code, out, err = minilora("bench", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_without_a_kernel_there_is_nothing_to_measure(minilora, monkeypatch):
    monkeypatch.setattr(kernels, "_choose", lambda: (None, "MINILORA_BACKEND=reference"))
    code, out, err = minilora("bench", "--quick")
    assert (code, out) == (2, "")
    assert "the compiled kernel is needed, but it is not in use: MINILORA_BACKEND=reference" in err


@pytest.mark.native
def test_a_result_outside_its_bound_is_a_failure(minilora, monkeypatch):
    monkeypatch.setattr("minilora.benchmark.compare.Checked.worst", 1.5)
    code, _, err = minilora("bench", "--quick")
    assert code == 1
    assert "is 1.50 times its error bound away" in err
