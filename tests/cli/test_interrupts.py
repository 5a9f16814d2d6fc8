"""Training in a process of its own: signals, a full disk, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

import pytest

from minilora.lora import load_adapter
from minilora.models import load_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


@pytest.fixture
def train(spawn, model_folder, data_file, tmp_path):
    """Start training for ever, or as long as the words say."""

    def start(*words: object, **options):
        files = ("--model", model_folder, "--data", data_file, "--out", tmp_path / "out")
        return spawn("train", *files, "--steps", 1_000_000, *words, **options)

    return start


def wait_for(process, what: str) -> None:
    """Read the process's output up to the first report of a step that holds these words."""
    for line in process.stdout:
        if line.startswith("step ") and what in line:
            return
    pytest.fail(f"ended early: {process.stderr.read()}")


def loads(model_folder, folder) -> bool:
    return load_adapter(load_model(model_folder), folder).effective


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_exits_with_its_code(train, model_folder, tmp_path, number, code):
    process = train()
    wait_for(process, "loss")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == ""
    assert f"by {number.name}" in out
    assert f"saved in {tmp_path / 'out'}" in out
    assert "use it: minilora generate" in out
    assert loads(model_folder, tmp_path / "out")
    steps = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert f"stopped after step {json.loads(steps[-1])['step']} by" in out


def test_a_reader_that_goes_away_does_not_cost_what_was_trained(train, model_folder, tmp_path):
    process = train()
    wait_for(process, "loss")
    process.stdout.close()  # as Ctrl-C does to tee in `minilora train | tee log`
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read() == ""
    process.stderr.close()
    assert loads(model_folder, tmp_path / "out")


def test_a_second_signal_stops_at_once_and_leaves_no_temporary_file(spawn, model_folder, data_file, tmp_path):
    # Steps that last for ever: the first signal cannot be answered before the second comes.
    code = (
        "import sys, time, minilora.training.loop as loop; real = loop.accumulate_gradients\n"
        "def slow(*args):\n"
        "    result = real(*args); print('in the step', flush=True); time.sleep(60); return result\n"
        "loop.accumulate_gradients = slow\n"
        "from minilora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    script = tmp_path / "slow.py"
    script.write_text(code)
    files = ["--model", model_folder, "--data", data_file, "--out", tmp_path / "out"]
    process = spawn("train", *files, command=[sys.executable, script])
    for line in process.stdout:
        if line == "in the step\n":
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None  # the first one waits for the step
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.jsonl", "run.yaml"]


def test_a_signal_before_training_exits_130_without_a_traceback(spawn, model_folder, tmp_path):
    fifo = tmp_path / "data.jsonl"
    os.mkfifo(fifo)  # reading it waits for a writer, so the signal surely comes before training
    process = spawn("train", "--model", model_folder, "--data", fifo, "--out", tmp_path / "out")
    deadline = time.monotonic() + 20
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == "minilora: interrupted\n"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.13])
def test_a_killed_process_leaves_an_adapter_that_loads(train, model_folder, tmp_path, delay):
    process = train("--save-every", 1)
    wait_for(process, "saved in")
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=10)
    assert loads(model_folder, tmp_path / "out")


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit")
def test_a_full_disk_keeps_the_last_save_and_says_so(train, model_folder, tmp_path):
    process = train("--save-every", 1)
    wait_for(process, "saved in")
    # From here on no file may grow beyond 8 KB: the next save hits it as it would a full disk.
    os.system(f"prlimit --pid {process.pid} --fsize=8192:8192")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "minilora train: error: after step " in err
    assert "adapter_model.safetensors: cannot write: File too large" in err
    assert f"is in {tmp_path / 'out'}" in err
    assert "Traceback" not in err
    assert loads(model_folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_device_that_is_full_from_the_start_is_named(spawn, model_folder, data_file, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    out = tmp_path / "out"
    # metrics.jsonl on a full device: the write of the first line fails as on a full disk.
    code = (
        "import sys, os, minilora.training.loop as loop; real = loop.MetricsFile\n"
        "loop.MetricsFile = lambda path: (os.symlink('/dev/full', path), real(path))[1]\n"
        "from minilora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "full.py").write_text(code)
    process = spawn(
        "train", "--model", model_folder, "--data", data_file, "--out", out, "--steps", 3,
        command=[sys.executable, tmp_path / "full.py"],
    )  # fmt: skip
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"minilora train: error: {out / 'metrics.jsonl'}: cannot be written: No space left on device" in err
