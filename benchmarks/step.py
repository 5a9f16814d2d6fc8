"""Time the demo's training step with the compiled kernel beside the NumPy backend.

    python benchmarks/step.py --repeats 7

Each backend runs in a process of its own, since two thread pools in one process wait for each other; the
two take turns, a step each, so that a machine that slows down slows both. Prints medians and the ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "commands" / "train.jsonl"


def work(model_name: str, batch_size: int) -> None:
    """Make one step for every line on stdin; answer with its seconds, tokens and loss."""
    import time

    import minilora as ml
    from minilora import kernels
    from minilora.data import TrainingBatches, encode_examples, read_examples
    from minilora.models import find_model
    from minilora.training import TrainConfig, accumulate_gradients, lora_config

    path = find_model(model_name)
    model, tokenizer = ml.load_model(path), ml.load_tokenizer(path)
    config = TrainConfig(steps=1, lr=1e-3)
    ml.add_adapter(model, lora_config(config), seed=0)
    examples = encode_examples(read_examples(DATA), tokenizer, max_length=512).examples
    batches = TrainingBatches(examples, batch_size=batch_size, seed=0)
    optimizer = ml.optim.AdamW(list(ml.adapter_parameters(model)), lr=config.lr)
    info = kernels.info()
    print(f"{info.backend}, {info.isa}, {info.threads} threads", flush=True)
    for _ in sys.stdin:
        batch = next(batches)
        began = time.perf_counter()
        optimizer.zero_grad()
        loss, _ = accumulate_gradients(model, [batch])
        ml.optim.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        print(time.perf_counter() - began, batch.input_ids.size, loss, flush=True)


class Worker:
    """A process that makes steps with one backend."""

    def __init__(self, backend: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--work", "--model", args.model, "--batch-size", str(args.batch_size)]
        environment = {**os.environ, "MINILORA_BACKEND": backend}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.name = self._line()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        seconds, tokens, loss = self._line().split()
        self.seconds.append(float(seconds))
        self.tokens.append(int(tokens))
        self.losses.append(float(loss))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"the {self.process.args} process ended early")
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7, help="counted steps of each, after one that is not")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.model, args.batch_size)
        return
    import platform

    import numpy as np

    workers = [Worker("native", args), Worker("reference", args)]
    for _ in range(args.repeats + 1):
        for worker in workers:
            worker.step()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}")
    for worker in workers:
        times = worker.seconds[1:]
        print(
            f"{worker.name:34}  {statistics.median(times):.3f} s a step (median of {len(times)}, "
            f"{min(times):.3f} to {max(times):.3f}), {statistics.mean(worker.tokens[1:]):.0f} tokens with padding"
        )
    # The same batches from the same start: the losses must agree before the times mean anything.
    worst = max(abs(a - b) / abs(b) for a, b in zip(workers[0].losses, workers[1].losses, strict=True))
    print(f"largest relative difference of the losses: {worst:.1e}")
    ratios = [a / b for a, b in zip(workers[1].seconds[1:], workers[0].seconds[1:], strict=True)]
    print(f"reference / native, pair by pair: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
