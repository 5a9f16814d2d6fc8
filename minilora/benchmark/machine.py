"""The machine that a benchmark runs on: what it is, what it can do at most, and how to hold libraries to less.

A side's process loads this file as its subject: ``limits`` makes the tasks that measure.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minilora.errors import ConfigError

# How to hold each library to an instruction set, where it can be held: OpenBLAS (NumPy), ATen and oneDNN (torch).
_CAPS = {
    "baseline": {"OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "x86-64-v3": {"OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
LONG_ENOUGH = 0.001  # seconds of one run that is timed
MEASURING = 0.1  # seconds of all runs of one limit
LEAST_RUNS = 7


def settings(threads: int, isa: str | None = None) -> dict[str, str]:
    """Return the environment that gives every library so many threads and, where one is named, the instruction set."""
    names = ("MINILORA_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    held = {} if isa is None else {"MINILORA_ISA": isa, **_CAPS.get(isa, {})}
    return {**dict.fromkeys(names, str(threads)), **held}


def facts() -> dict[str, Any]:
    """Return the processor, the versions and what computes here, ready for JSON."""
    import os

    import numpy

    from minilora import __version__, kernels

    backend = kernels.info()
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory": memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "minilora": __version__,
        "isa": backend.isa,
        "threads": backend.threads,
        "compiler": backend.compiler,
    }


def processor() -> str:
    """Return the processor's name, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory() -> int | None:
    """Return the bytes of memory of this machine, or None where the system does not say."""
    try:
        first = Path("/proc/meminfo").read_text().splitlines()[0]
    except OSError:
        return None
    return int(first.split()[1]) * 1024


def check_isa(isa: str | None) -> None:
    """Raise ConfigError where the kernel has no such instruction set, or this processor does not run it."""
    from minilora import kernels

    here = kernels.compiled()._kernels.instruction_sets()
    if isa is not None and isa not in here:
        raise ConfigError(f"instruction set {isa!r} does not run here\n  choose one of {', '.join(here)}")


def limits() -> dict[str, Callable[..., Any]]:
    return {"facts": facts, "peak_flops": peak_flops, "read_bandwidth": read_bandwidth}


def peak_flops(threads: int) -> float:
    """Return the most float32 operations a second, two a multiply-add, with operands in registers."""
    from minilora import kernels

    compute = kernels.compiled().peak_fma
    return _highest_rate(lambda times: compute(8 * threads * times, threads))


def read_bandwidth(nbytes: int, threads: int) -> float:
    """Return the most bytes a second at which a buffer of so many bytes is read again and again."""
    import numpy as np

    from minilora import kernels

    read = kernels.compiled().read
    buffer = np.ones(max(nbytes // 4, 1), np.float32)

    def run(times: int) -> float:
        for _ in range(times):
            read(buffer, threads)
        return float(times * buffer.nbytes)

    return _highest_rate(run)


def _highest_rate(run: Callable[[int], float]) -> float:
    """Return the highest rate of many short runs, some of which nothing else on the machine disturbs.

    run  does its work so many times, and returns how much that was
    """
    times, spent = 1, 0.0
    rates: list[float] = []
    while len(rates) < LEAST_RUNS or spent < MEASURING:
        began = time.perf_counter()
        amount = run(times)
        took = time.perf_counter() - began
        if took < LONG_ENOUGH:
            times *= 2
        else:
            rates.append(amount / took)
            spent += took
    return max(rates)
