"""Time ops.lora_matmul, forward and backward, by the compiled kernel and by NumPy, in alternating processes.

    python benchmarks/kernel.py                     every shape of SmolLM2-135M
    python benchmarks/kernel.py --isa x86-64-v3     both sides held to AVX2
    python benchmarks/kernel.py --rows 64 1024 --rank 16 --shapes 576x576

Two thread pools in one process would disturb each other, so each side is a process of its own. They take turns,
every round measures both, and the printed ratio is the median over rounds of NumPy's time over the kernel's:
above 1 the kernel is faster. W is stored (out, in), as model files have it. Results are compared before timing.
On a machine that others use too, --best takes the fastest run of each side instead of medians, and one thread is
timed by the processor time that it got.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ["576x576", "576x192", "576x1536", "1536x576", "576x49152"]
EVERY = (True, False, True, True, False)  # gradients of lora_matmul's operands: W is frozen, there is no bias
GRADS = ["grad_x", "grad_w", "grad_a", "grad_b", "grad_bias"]
PARTS = ["forward", "grad_x", "grad_a", "grad_b", "both"]


def worker() -> None:
    """Answer one JSON request a line: times in seconds of one shape, or facts about this side."""
    import numpy as np

    from minilora import kernels
    from minilora.ops import lora_matmul

    for line in sys.stdin:
        request = json.loads(line)
        m, k, n, r = request["m"], request["k"], request["n"], request["r"]
        rng = np.random.default_rng(0)
        x, grad = (rng.standard_normal((m, width), dtype=np.float32) for width in (k, n))
        w = rng.standard_normal((n, k), dtype=np.float32).T
        a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((k, r), (r, n)))
        rule = lora_matmul.choose((x, w, a, b, None))  # the kernel's, or the NumPy that runs without one
        assert rule.vjp is not None
        _, saved = lora_matmul.run(rule, (x, w, a, b, None), {"scale": 2.0}, EVERY)

        def run(part: str, rule=rule, operands=(x, w, a, b, None), grad=grad, saved=saved) -> tuple:  # type: ignore[no-untyped-def]
            if part == "forward":
                return lora_matmul.run(rule, operands, {"scale": 2.0}, (False,) * 5)[:1]
            if part == "both":
                _, saved = lora_matmul.run(rule, operands, {"scale": 2.0}, EVERY)
                return rule.vjp(grad, saved, EVERY, scale=2.0)
            return rule.vjp(grad, saved, tuple(part == name for name in GRADS), scale=2.0)

        answer: dict[str, object] = {"info": vars(kernels.info()), "numpy": np.__version__}
        if request["task"] == "check":
            results = [array for array in (*run("both"), *run("forward")) if array is not None]
            answer["probe"] = [
                [float(abs(array).max()), *array.ravel()[:: array.size // 7].tolist()] for array in results
            ]
        else:
            clock = time.process_time if request["threads"] == 1 else time.perf_counter
            run(request["part"])
            times: list[float] = []
            while len(times) < 3 or (sum(times) < request["seconds"] and len(times) < 400):
                start = clock()
                run(request["part"])
                times.append(clock() - start)
            answer["seconds"] = min(times) if request["best"] else statistics.median(times)
        print(json.dumps(answer), flush=True)


class Side:
    """One of the two processes."""

    def __init__(self, backend: str, isa: str | None, threads: int) -> None:
        environment = dict(os.environ, MINILORA_BACKEND=backend, MINILORA_THREADS=str(threads), PYTHONPATH=str(ROOT))
        environment |= {"OPENBLAS_NUM_THREADS": str(threads)}
        if isa:
            environment |= {"MINILORA_ISA": isa, "OPENBLAS_CORETYPE": "Haswell" if isa == "x86-64-v3" else ""}
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request: object) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def agree(ours: list, theirs: list) -> bool:
    """Say whether samples of every result agree to float32 sums: 1e-4 of the largest element."""
    return all(
        abs(one - other) <= 1e-4 * mine[0]
        for mine, their in zip(ours, theirs, strict=True)
        for one, other in zip(mine, their, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="instruction set of the kernel; x86-64-v3 holds OpenBLAS to AVX2 too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 128, 400, 1024])
    parser.add_argument("--rank", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="KxN")
    parser.add_argument("--parts", nargs="+", default=["forward", "both"], choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="time for one part in one round")
    parser.add_argument("--best", action="store_true", help="fastest runs instead of medians")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return

    native, numpy = Side("native", options.isa, options.threads), Side("reference", options.isa, options.threads)
    clock = {"threads": options.threads, "best": options.best}
    typical = min if options.best else statistics.median
    printed = False
    for shape in options.shapes:
        k, n = map(int, shape.split("x"))
        for r in options.rank:
            for m in options.rows:
                sizes = {"m": m, "k": k, "n": n, "r": r}
                ours, theirs = (side.ask(task="check", **sizes) for side in (native, numpy))
                if not printed:
                    info = ours["info"]
                    print(f"{processor()}, {os.cpu_count()} processors; kernel {info['isa']}, {info['compiler']},")
                    print(f"{info['threads']} threads; NumPy {theirs['numpy']}, {options.threads} threads")
                    print(f"{'K x N':>12} {'R':>3} {'M':>5}  part       kernel ms  GFLOP/s   NumPy ms   ratio")
                    printed = True
                if not agree(ours["probe"], theirs["probe"]):
                    raise SystemExit(f"kernel and NumPy disagree at {sizes}")
                for part in options.parts:
                    task = {"task": "time", "part": part, "seconds": options.seconds, **sizes, **clock}
                    pairs = [
                        (native.ask(**task)["seconds"], numpy.ask(**task)["seconds"]) for _ in range(options.rounds)
                    ]
                    mine, their = (typical(side) for side in zip(*pairs, strict=True))
                    ratio = their / mine if options.best else statistics.median(other / one for one, other in pairs)
                    product, low = 2 * m * k * n, 2 * m * r * (k + n)
                    flops = {"forward": product + low, "both": 2 * product + 3 * low, "grad_x": product + low}
                    rate = f"{flops[part] / mine / 1e9:8.1f}" if part in flops else " " * 8
                    line = f"{shape:>12} {r:>3} {m:>5}  {part:<8} {mine * 1e3:11.3f} {rate} {their * 1e3:10.3f}"
                    print(f"{line} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
