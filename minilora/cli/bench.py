"""``minilora bench``: this machine's limits, and the LoRA linear layer beside NumPy, verified and then timed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minilora.cli.model import add_threads_argument
from minilora.errors import ConfigError

EXAMPLE = """examples:
  minilora bench --quick
  minilora bench --threads 2 --isa x86-64-v3 --json bench.json

Each side is a process of its own; they take turns, and the ratio is the median over rounds of NumPy's time over the
kernel's: above 1 the kernel is faster. roofline: the share of the FLOP/s or the bandwidth measured here, whichever
binds. error: the largest of the kernel, and of NumPy's float32, as a share of the bound in csrc/minilora.h.
"""
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Verify the kernel, then time it beside NumPy and this machine's limits (two minutes)."
    parser.epilog = EXAMPLE
    add_threads_argument(parser)
    parser.add_argument("--isa", metavar="NAME", help="hold kernel and NumPy to an instruction set, such as x86-64-v3")
    parser.add_argument("--quick", action="store_true", help="small sizes and short turns, in a few seconds")
    parser.add_argument("--json", metavar="FILE", help="also write every figure to a file, as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minilora.benchmark import Checked, Limits, Settings, Timed, measure

    threads = getattr(args, "threads", None)
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: wanted a whole number >= 1")
    found: dict[str, Any] = {"machine": {}, "limits": [], "checks": [], "times": []}
    checked: Checked | None = None
    for event in measure(Settings(threads, args.isa, args.quick)):
        if isinstance(event, Limits):
            found["limits"].append(
                {"threads": event.threads, "peak_flops": event.peak_flops, "read_bandwidth": event.read_bandwidth}
            )
            _say_limits(event)
        elif isinstance(event, Checked):
            checked = event
            found["checks"].append({**vars(event.size), "errors": event.errors})
        elif isinstance(event, Timed):
            if not found["times"]:
                print(
                    f"\n{'d':>5} {'M':>5} {'R':>3}  {'':8} kernel ms  NumPy ms  ratio (range)       GFLOP/s  roofline"
                )
            found["times"].append(event.facts())
            _say_times(event, checked if event.part == "forward" else None)
        else:
            found["machine"] = event
            _say_machine(event)
    worst = max(max(errors) for check in found["checks"] for errors in check["errors"].values())
    print(f"\nevery result is within its error bound (largest share {worst:.2f}), and both sides agree")
    if args.json is not None:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _say_machine(facts: dict[str, Any]) -> None:
    size = "" if facts["memory"] is None else f", {facts['memory'] / 2**30:.0f} GiB"
    print(f"{facts['processor']}, {facts['cpus']} CPUs{size}; {facts['system']}")
    print(f"Python {facts['python']}, NumPy {facts['numpy']}, minilora {facts['minilora']}, {facts['compiler']}")
    print(f"instruction set {facts['isa']}, {facts['threads']} threads\n")


def _say_limits(limits: Any) -> None:
    reads = ", ".join(f"{rate / 1e9:.1f} GB/s from {_size(size)}" for size, rate in limits.read_bandwidth.items())
    plural = "s" if limits.threads > 1 else ""
    print(f"{limits.threads} thread{plural}: peak {limits.peak_flops / 1e9:.1f} GFLOP/s; reads {reads}", flush=True)


def _size(nbytes: int) -> str:
    factor, unit = next((pair for pair in UNITS if nbytes >= pair[0]), (1, "bytes"))
    return f"{nbytes // factor} {unit}"


def _say_times(timed: Any, checked: Any) -> None:
    size, duel = timed.size, timed.duel
    ours, theirs = duel.seconds
    name = {"forward": "forward", "both": "+ back"}[timed.part]
    spread = f"({duel.ratios[0]:.2f} to {duel.ratios[-1]:.2f})"
    line = f"{size.k:>5} {size.m:>5} {size.r:>3}  {name:8} {ours * 1e3:9.3f} {theirs * 1e3:9.3f}  {duel.ratio:5.2f} "
    line += f"{spread:16} {size.flops(timed.part) / ours / 1e9:8.1f}  {timed.share:4.0%} of {timed.binds:9}"
    if checked is not None:
        line += f"  error {checked.worst:.3f} (NumPy {checked.worst_of_numpy:.3f})"
    print(line.rstrip(), flush=True)
