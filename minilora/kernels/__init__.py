"""Choose, once per process, the compiled kernel or NumPy, its instruction set and its threads.

Environment variables, read here and nowhere else, when something is first computed or asked:

MINILORA_BACKEND           native or reference; default: native where it was built
MINILORA_ISA               an instruction set of the kernel; default: the fastest that runs here
MINILORA_THREADS           threads of the kernel, 1 to 1024; default: the processors this process may use
MINILORA_REQUIRE_KERNELS   1: a missing kernel is an error
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from minilora.errors import ConfigError
from minilora.kernels.frozen import FrozenWeight
from minilora.kernels.memory import keep_freed_memory

__all__ = [
    "STORAGES",
    "Backend",
    "FrozenWeight",
    "compiled",
    "get_include",
    "info",
    "keep_freed_memory",
    "set_num_threads",
    "threads",
    "use_native",
]

MAX_THREADS = 1024
STORAGES = ("f32", "bf16", "f16", "q8_0", "q4_0", "q4_1")  # of a FrozenWeight that the kernel reads as it lies


@dataclass(frozen=True)
class Backend:
    """What computes the products of this process."""

    backend: str  # "native" or "reference"
    isa: str | None  # instruction set of the native kernel
    threads: int  # of the native kernel; NumPy has its own setting
    openmp: bool
    compiler: str | None
    reason: str | None  # why the native kernel is not used


def _environment(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, "")
    if value and value not in allowed:
        raise ConfigError(f"{name} is {value!r}, allowed: {', '.join(allowed)}\n  set one of these or unset it")
    return value


_set_threads: int | None = None  # by set_num_threads


def threads() -> int:
    """Return how many threads a call of the compiled kernel may use."""
    return _set_threads or _threads_of_environment()


@functools.cache
def _threads_of_environment() -> int:
    value = os.environ.get("MINILORA_THREADS", "")
    if not value:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(usable, MAX_THREADS)
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MAX_THREADS:
        raise ConfigError(
            f"MINILORA_THREADS is {value!r}, allowed: a whole number from 1 to {MAX_THREADS}\n  set one or unset it"
        )
    return int(value)


def _load_native() -> tuple[ModuleType | None, str | None]:
    """Return the module that calls the kernel, or None and why there is none."""
    try:
        from minilora.kernels import native
    except ImportError as error:
        try:
            from minilora.kernels._build import REASON
        except ImportError:
            REASON = None
        missing = "the compiled kernel was not built; run: pip install -e ."
        return None, REASON or (missing if "_kernels" in f"{error}" else f"the compiled kernel does not load: {error}")
    return native, None


@functools.cache
def _choose() -> tuple[ModuleType | None, str | None]:
    wanted = _environment("MINILORA_BACKEND", ("native", "reference"))
    required = _environment("MINILORA_REQUIRE_KERNELS", ("0", "1")) == "1"
    if wanted == "reference":
        return None, "MINILORA_BACKEND=reference"
    module, reason = _load_native()
    if module is None and (required or wanted == "native"):
        setting = "MINILORA_REQUIRE_KERNELS=1" if required else "MINILORA_BACKEND=native"
        raise ConfigError(f"{setting}, but there is no compiled kernel: {reason}\n  build it, or unset the variable")
    if module is not None:
        runs_here = tuple(module._kernels.instruction_sets())
        module._kernels.choose(_environment("MINILORA_ISA", runs_here) or runs_here[-1])
    return module, reason


def use_native() -> bool:
    """Say whether float32 products go to the compiled kernel."""
    return _choose()[0] is not None


def info() -> Backend:
    """Return what was chosen, and why the compiled kernel is not used where it is not."""
    module, reason = _choose()
    if module is None:
        return Backend("reference", None, threads(), False, None, reason)
    kernels = module._kernels
    team = kernels.allowed_threads(threads()) if kernels.has_openmp() else 1
    return Backend("native", kernels.chosen(), team, kernels.has_openmp(), kernels.compiler(), None)


def set_num_threads(n: int) -> None:
    """Let the compiled kernel use ``n`` threads, 1 to 1024. Results do not depend on it, bit for bit.

    In a forked child the kernel uses one thread whatever is set, since its parent's threads did not follow it.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_THREADS:
        raise ConfigError(f"set_num_threads: got {n!r}, allowed: a whole number from 1 to {MAX_THREADS}")
    global _set_threads
    _set_threads = n


def get_include() -> str:
    """Return the folder that holds minilora.h and the C sources behind it."""
    here = Path(__file__).resolve().parent
    installed, checkout = here / "csrc", here.parents[1] / "csrc"
    return str(installed if installed.is_dir() else checkout)


def compiled() -> ModuleType:
    """Return minilora.kernels.native, which calls the kernel; raise ConfigError, with the reason, if that is off."""
    module, reason = _choose()
    if module is None:
        raise ConfigError(
            f"the compiled kernel is needed, but it is not in use: {reason}\n"
            "  call the operator in minilora.ops instead, which computes in NumPy then"
        )
    return module
