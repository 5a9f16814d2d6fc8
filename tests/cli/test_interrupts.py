"""Training in a process of its own: signals, a full disk, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
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
    process.communicate(timeout=60)
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
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "minilora: interrupted\n"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.13])
def test_a_killed_process_leaves_an_adapter_that_loads(train, model_folder, tmp_path, delay):
    process = train("--save-every", 1)
    wait_for(process, "saved in")
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=60)
    assert loads(model_folder, tmp_path / "out")


@pytest.fixture
def train_with(spawn, model_folder, data_file, tmp_path):
    """Train with ``loop`` changed by these lines of code; return the exit code and stderr."""

    def start(code: str, *words: object) -> tuple[int, str]:
        script = tmp_path / "changed.py"
        script.write_text(
            "import resource, sys, minilora.training.loop as loop\n"
            "from minilora.cli import main\n"
            # What is written beyond the limit is refused as it would be on a full disk; pipes have no limit.
            "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
            f"{code}\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        files = ("--model", model_folder, "--data", data_file, "--out", tmp_path / "out")
        process = spawn("train", *files, *words, command=[sys.executable, script])
        _, err = process.communicate(timeout=30)
        return process.returncode, err

    return start


def test_a_full_disk_keeps_the_last_save_and_says_so(train_with, model_folder, tmp_path):
    code = (
        "real = loop.LastGood.save\n"
        "loop.LastGood.save = lambda self, step: (real(self, step), limit(8192))[0]"  # from the first save on
    )
    returned, err = train_with(code, "--save-every", 1, "--steps", 9)
    assert returned == 1
    assert "minilora train: error: after step 2: " in err
    assert "adapter_model.safetensors: cannot write: File too large" in err
    assert f"the adapter of step 1 is in {tmp_path / 'out'}" in err
    assert "Traceback" not in err
    assert loads(model_folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_disk_that_is_full_from_the_start_is_named(train_with, tmp_path):
    code = (
        "real = loop.MetricsFile\n"
        "loop.MetricsFile = lambda path: (real(path), limit(0))[0]"  # from the start of metrics.jsonl on
    )
    returned, err = train_with(code, "--steps", 3)
    assert returned == 1
    assert f"minilora train: error: {tmp_path / 'out' / 'metrics.jsonl'}: cannot be written: File too large" in err
    assert "no adapter is saved" in err
    assert "Traceback" not in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.jsonl", "run.yaml"]


def test_metrics_that_no_longer_fit_do_not_cost_what_was_trained(train_with, model_folder, tmp_path):
    code = (
        "real, (soft, hard) = loop.MetricsFile.write, resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "def write(self, event):\n"
        "    full = getattr(event, 'step', 0) >= 3\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else soft, hard))\n"
        "    try: real(self, event)\n"
        "    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"  # someone made room
        "loop.MetricsFile.write = write"
    )
    returned, err = train_with(code, "--steps", 9)
    assert returned == 1
    assert "metrics.jsonl: cannot be written: File too large; free some space\n" in err
    assert f"the adapter of step 3 is in {tmp_path / 'out'}" in err
    assert loads(model_folder, tmp_path / "out")
