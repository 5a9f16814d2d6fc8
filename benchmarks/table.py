"""Run every subject and print the table: what, minilora, its rival, the ratio, the goal, and whether it is met.

    python benchmarks/table.py                         everything, in about ten minutes
    python benchmarks/table.py --avx2                  every side held to AVX2
    python benchmarks/table.py --only step mlp         some subjects
    python benchmarks/table.py --markdown              as docs/performance.md has it

The rivals (torch, PEFT, transformers, HIPS autograd, MyGrad) may live in an environment of their own, --rivals; what
is not installed there reads "not measured here". Each side is a process, the sides take turns, and before any time is
taken they must have computed the same.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sides import ROOT, Bench, Disagreement, Row

SUBJECTS = ["rooflines", "linear", "mlp", "step", "start", "generate", "encoder", "adapters", "demo"]
HEADER = ["what", "minilora", "against", "figure (range)", "goal", "roofline", "verdict"]
RIVALS = ("torch", "transformers", "peft", "autograd", "mygrad")


def versions(python: str) -> dict[str, str | None]:
    """Versions of the rivals that an interpreter has installed."""
    code = "import importlib.metadata as m; print([(d.name.lower(), d.version) for d in m.distributions()])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    installed = dict(ast.literal_eval(found.stdout))
    return {name: installed.get(name) for name in RIVALS}


def introduction(bench: Bench) -> list[str]:
    """The machine, the versions, and the limits that were measured before anything else."""
    from minilora.benchmark import machine

    facts: dict[str, Any] = bench.limits.call("facts")
    rivals = [f"{name} {version or '(not installed)'}" for name, version in versions(bench.rivals).items()]
    caps = machine.settings(bench.threads, bench.isa)
    peaks = {count: bench.limits.call("peak_flops", threads=count) / 1e9 for count in sorted({1, bench.threads})}
    reads = [
        f"{bench.roofline.bandwidth(size) / 1e9:.1f} GB/s ({size >> 20} MiB)" for size in (1 << 20, 1 << 26, 1 << 30)
    ]
    return [
        f"{facts['processor']}, {facts['cpus']} CPUs, {(facts['memory'] or 0) / 2**30:.0f} GiB, {facts['system']}",
        f"Python {facts['python']}, NumPy {facts['numpy']}, minilora {facts['minilora']} ({facts['compiler']}), "
        + ", ".join(rivals),
        f"minilora's instruction set {facts['isa']}; every side with " + " ".join(f"{k}={v}" for k, v in caps.items()),
        "peak "
        + ", ".join(f"{peak:.0f} GFLOP/s with {count} thread{'s' * (count > 1)}" for count, peak in peaks.items()),
        "read bandwidth " + ", ".join(reads),
    ]


def shown(rows: list[Row], markdown: bool) -> str:
    """The table as text."""
    cells = [HEADER, *(row.cells() for row in rows)]
    if markdown:
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        return "\n".join([lines[0], "|" + "---|" * len(HEADER), *lines[1:]])
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def main() -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of every side (default: 2, as in the goals)")
    parser.add_argument("--avx2", action="store_true", help="hold every side to AVX2")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--ours", default=sys.executable, metavar="PYTHON", help="interpreter that runs minilora")
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON", help="interpreter that has the rivals")
    parser.add_argument("--short", action="store_true", help="one round of everything: does it work?")
    parser.add_argument("--best", action="store_true", help="fastest runs, not medians: for a machine in other use")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to a file")
    options = parser.parse_args()
    isa = "x86-64-v3" if options.avx2 else None
    from minilora.benchmark import SideError

    began, rows, failed = time.perf_counter(), [], False
    settings = {"threads": options.threads, "isa": isa, "ours": options.ours, "rivals": options.rivals}
    with Bench(**settings, short=options.short, best=options.best) as bench:
        lines = introduction(bench)
        for name in options.only:
            started = time.perf_counter()
            try:
                for row in importlib.import_module(name).rows(bench):
                    rows.append(row)
                    print("  ".join(row.cells()), file=sys.stderr, flush=True)
            except (Disagreement, SideError) as error:
                failed = True
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                rows.append(Row(f"the rest of {name}", note=str(error)))
            bench.close()
            print(f"[{name}: {time.perf_counter() - started:.0f} s]", file=sys.stderr, flush=True)
    took = time.perf_counter() - began
    lines.append(f"measured in {took / 60:.1f} minutes by {'fastest runs' if options.best else 'medians'}")
    print("\n".join(f"- {line}" if options.markdown else line for line in lines) + "\n")
    print(shown(rows, options.markdown))
    if options.json is not None:
        found = {"introduction": lines, "seconds": took, "rows": [row.facts() for row in rows]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
