"""Memory that arrays give back, in a process of its own: what is asked for here holds for all of it."""

from __future__ import annotations

import platform
import subprocess
import sys

PROGRAM = """
import numpy as np, resource
from minilora import kernels
kept = {ask}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for array in [np.ones(1 << 19) for _ in range(8)]:  # 4 MiB each, all alive at once
        array[0] = 2
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), min(faults() for _ in range(3)))
"""


def test_memory_is_used_again_without_asking_the_system():
    def run(ask):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(ask=ask)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return map(int, done.stdout.split())

    (kept, again), (_, anew) = run("kernels.keep_freed_memory()"), run("False")
    assert kept == (platform.libc_ver()[0] == "glibc")
    assert again < anew / 10 or not kept
