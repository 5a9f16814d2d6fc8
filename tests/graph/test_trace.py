"""trace: counts, times, bytes and operations, against what was called, slept, kept and counted by hand."""

from __future__ import annotations

import contextlib
import gc
import math
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import minilora as ml
from minilora import FrozenWeight, kernels, ops
from minilora.autograd import REGISTRY, op
from minilora.testing.draws import axes, draw


def trained(*shape, dtype=np.float64, seed=0):
    return ml.tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def row(t, name):
    return next(r for r in t.rows if r.name == name)


@pytest.fixture
def sleeper():
    """An operator that takes 20 ms forward, 50 ms backward, and keeps x."""

    @op("x[*] -> y[*]", source="none", flops=lambda s: 7 * math.prod(s["*"]))
    def sleeping(x):
        time.sleep(0.02)
        return x * 2, x

    @sleeping.defvjp
    def _(grad, x, need):
        time.sleep(0.05)
        return (grad * 2,)

    yield sleeping
    del REGISTRY["sleeping"]


# ---------------------------------------------------------------- calls and time


def test_calls_are_counted_with_tensors_with_ndarrays_and_without_recording():
    x = trained(3)
    with ml.trace() as t:
        (x * 2.0).sum().backward()
        ops.mul(np.ones(3), 2.0)
        with ml.no_grad():
            x * 2.0
    x * 2.0
    assert {r.name: (r.calls, r.pulls) for r in t.rows} == {"mul": (3, 1), "sum": (1, 1)}


def test_forward_and_backward_are_timed_apart_also_when_backward_runs_after_the_block(sleeper):
    with ml.trace() as t:
        out = sleeper(sleeper(trained(3)))
    assert 0.04 <= row(t, "sleeping").forward < 0.09
    assert row(t, "sleeping").backward == 0
    out.sum().backward()
    found = row(t, "sleeping")
    assert 0.10 <= found.backward < 0.2
    assert found.time == found.forward + found.backward
    assert [r.name for r in t.rows] == ["sleeping"]  # the sum was called outside


def test_rows_are_sorted_by_time_and_the_total_sums_them(sleeper):
    x = trained(3)
    with ml.trace() as t:
        ((x * x) + sleeper(x)).sum().backward()
    assert t.rows[0].name == "sleeping"
    assert [r.time for r in t.rows] == sorted((r.time for r in t.rows), reverse=True)
    assert t.total.name == "total"
    assert t.total.calls == 4
    for name in ("forward", "backward", "saved", "flops", "pulls", "kernel"):
        assert getattr(t.total, name) == sum(getattr(r, name) for r in t.rows)


def test_a_call_that_fails_is_not_counted():
    with ml.trace() as t, pytest.raises(ml.ShapeError):
        ops.add(np.ones(2), np.ones(3))
    assert t.rows == ()


def test_results_and_gradients_are_the_same_as_without():
    def step():
        x = trained(4, 3)
        out = (ops.silu(x) * x).sum()
        out.backward()
        return out.data, x.grad

    expected = step()
    with ml.trace():
        found = step()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_block_inside_another_counts_for_both():
    x = trained(3)
    with ml.trace() as outer:
        x * 2.0
        with ml.trace() as inner:
            (x * 2.0).sum().backward()
        x + 1.0
    assert {r.name: (r.calls, r.pulls) for r in inner.rows} == {"mul": (1, 1), "sum": (1, 1)}
    assert {r.name: (r.calls, r.pulls) for r in outer.rows} == {"mul": (2, 1), "sum": (1, 1), "add": (1, 0)}


def test_another_thread_is_not_counted():
    with ml.trace() as t:
        thread = threading.Thread(target=lambda: ops.mul(np.ones(3), 2.0))
        thread.start()
        thread.join()
    assert t.rows == ()


@pytest.mark.native
def test_calls_by_the_compiled_kernel_are_counted():
    x32, x64 = np.ones((2, 3), np.float32), np.ones((2, 3))
    with ml.trace() as t:
        ops.linear(x32, np.ones((3, 4), np.float32))
        ops.linear(x64, np.ones((3, 4)))
    assert (row(t, "linear").calls, row(t, "linear").kernel) == (2, int(kernels.use_native()))


# ---------------------------------------------------------------- bytes


def test_bytes_saved_are_those_of_the_arrays_that_the_rule_keeps():
    x, y = trained(10, 10), np.ones((10, 10))
    with ml.trace() as t:
        out = (x * y).sum()  # keeps y, for the gradient of x alone
        ops.exp(np.ones(5))  # not recorded
    assert row(t, "mul").saved == 800
    assert row(t, "exp").saved == 0
    assert out.requires_grad


def test_memory_that_several_calls_keep_is_counted_once_and_views_for_what_they_hold():
    x, big = trained(10), np.ones((10, 10))
    with ml.trace() as t:
        out = x * big[0] + x * big[1] + x * big[0]
    assert row(t, "mul").saved == t.peak == 800
    assert out.requires_grad


def test_frozen_weights_and_mapped_memory_are_not_counted(tmp_path):
    np.ones((4, 3)).tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float64, "r", shape=(4, 3))
    x, frozen = trained(2, 4, dtype=np.float32), FrozenWeight(np.ones((4, 3), np.float32))
    with ml.trace() as t:
        out = (ops.linear(x, frozen), ops.mul(trained(4, 3), np.asarray(mapped)))
    assert row(t, "linear").saved == 0
    assert row(t, "mul").saved == 0
    assert all(o.requires_grad for o in out)


def test_the_peak_is_what_was_alive_at_one_time():
    x = trained(100)
    gc.collect()
    with ml.trace() as t:
        for _ in range(3):
            h = ops.exp(ops.exp(x * 1e-3))  # 800 bytes a call of exp
            h.sum().backward()
            del h
    assert row(t, "exp").saved == 6 * 800
    assert t.peak == 2 * 800


def test_checkpoint_lowers_the_peak():
    def block(x):
        return ops.exp(ops.exp(ops.exp(x * 1e-3)))

    peaks = []
    for call in (lambda f, x: f(x), ml.checkpoint):
        h = trained(100)
        with ml.trace() as t:
            for _ in range(5):
                h = call(block, h)
            h.sum().backward()
        del h
        peaks.append(t.peak)
    assert peaks == [5 * 3 * 800, (5 + 3) * 800]  # the output of each block, and what one keeps inside


# ---------------------------------------------------------------- operations


def test_operations_are_those_of_the_record_or_one_for_each_element_of_the_output(sleeper):
    with ml.trace() as t:
        ops.matmul(np.ones((5, 2, 3)), np.ones((3, 4)))
        ops.add(np.ones((2, 3)), np.ones((4, 1, 1)))
        ops.reshape(np.ones((2, 3)), (6,))
        ops.conv1d(np.ones((1, 2, 6)), np.ones((3, 2, 2)))
        sleeper(np.ones((2, 3)))
    assert row(t, "matmul").flops == 2 * 5 * 2 * 3 * 4
    assert row(t, "add").flops == 4 * 2 * 3
    assert row(t, "reshape").flops == 0
    assert row(t, "conv1d").flops == 2 * 3 * 5 * 2 * 2  # outputs · channels · taps
    assert row(t, "sleeping").flops == 7 * 2 * 3


SHAPES = 128  # bytes that an operator may keep without saying so: an array of widths or shifts


def test_a_letter_means_the_axis_where_an_operand_has_the_same_name():
    @op("N[M], M[N] -> y[N]", source="none", flops=lambda s: s["M"] * 10 + s["N"])
    def swapped(N, M):
        return M, None

    try:
        with ml.trace() as t:
            swapped(np.ones(3), np.ones(4))
    finally:
        del REGISTRY["swapped"]
    assert row(t, "swapped").flops == 34


OURS = [op for op in REGISTRY.values() if op.reference.forward.__module__.startswith("minilora.")]


@pytest.mark.parametrize("record", OURS, ids=lambda record: record.name)
def test_every_operator_can_say_how_much_it_computes_and_keeps_only_what_it_says(record):
    rng, kept, calls = np.random.default_rng(0), 0, 0
    for _ in range(20):
        sizes = {axis: (2, 3) if axis in ("*", "...") else int(rng.integers(1, 5)) for axis in axes(record)}
        call = draw(record, rng, sizes)
        operands = [ml.tensor(a, i in call.real) if isinstance(a, np.ndarray) else a for i, a in enumerate(call.arrays)]
        rest = record.signature.gather(operands)
        with ml.trace() as t, contextlib.suppress(ml.ShapeError):  # the record's own draw may give a mean of nothing
            record(**rest, **call.params)
        for found in t.rows:
            assert (found.name, found.calls) == (record.name, 1)
            assert found.flops >= 0
            kept = max(kept, found.saved)
            calls += 1
    assert calls > 10
    says = f"{record.name} says that it saves {record.saves!r}"
    assert kept if record.saves else kept <= SHAPES, f"{says}, but kept {kept} bytes"


# ---------------------------------------------------------------- the table


def test_the_table_is_aligned_and_shows_every_row_and_the_total():
    x = trained(100, 100)
    with ml.trace() as t:
        for _ in range(12):
            ops.silu(x * 2.0).sum().backward()
    lines = str(t).split("\n")
    assert lines[0].split("  ")[0] == "operator"
    assert [line.split()[0] for line in lines[1:]] == [*(r.name for r in t.rows), "total"]
    assert len({len(line) for line in lines}) == 1
    numbers = dict(
        zip(re.split(r"  +", lines[0].strip()), lines[1:][[r.name for r in t.rows].index("silu")].split(), strict=True)
    )
    silu = row(t, "silu")
    assert numbers["calls"] == "12"
    assert numbers["forward ms"] == f"{silu.forward * 1e3:.3f}"
    assert numbers["backward ms"] == f"{silu.backward * 1e3:.3f}"
    assert numbers["saved MB"] == f"{silu.saved / 1e6:.3f}"
    assert numbers["MFLOP"] == f"{silu.flops / 1e6:.3f}"
    assert float(numbers["GFLOP/s"]) == pytest.approx(silu.flops / silu.forward / 1e9, abs=0.06)


def test_a_table_without_calls_has_its_head_and_an_empty_total():
    with ml.trace() as t:
        pass
    head, total = str(t).split("\n")
    assert head.startswith("operator")
    assert total.split() == ["total", "0", "0", "0.000", "0.000", "0.0", "0.000", "0.000"]


CODE = "import minilora as ml, numpy as np; ml.ops.mul(np.ones(3), 2.0)"


@pytest.mark.parametrize(("setting", "traced"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_a_table_on_stderr_at_the_end(monkeypatch, setting, traced):
    monkeypatch.setenv("MINILORA_TRACE", setting)
    run = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    if traced:
        assert lines[0] == "MINILORA_TRACE: calls of operators in MainThread"
        assert [line.split()[:2] for line in lines[2:]] == [["mul", "1"], ["total", "1"]]
    else:
        assert lines == []


def test_the_table_comes_also_after_an_error(monkeypatch):
    monkeypatch.setenv("MINILORA_TRACE", "1")
    run = subprocess.run([sys.executable, "-c", f"{CODE}; 1 / 0"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr
    assert run.stderr.splitlines()[-1].split()[:2] == ["total", "1"]
