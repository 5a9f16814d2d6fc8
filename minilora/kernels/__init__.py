"""Choose, once per process, the compiled kernel or NumPy, its instruction set and its threads; call the kernel.

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

import numpy as np

from minilora.errors import ConfigError
from minilora.kernels.frozen import FrozenWeight

__all__ = [
    "Backend",
    "FrozenWeight",
    "get_include",
    "info",
    "lora_backward",
    "lora_forward",
    "set_num_threads",
    "use_native",
]

MAX_THREADS = 1024


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


def _threads() -> int:
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
    native, reason = _load_native()
    if native is None and (required or wanted == "native"):
        setting = "MINILORA_REQUIRE_KERNELS=1" if required else "MINILORA_BACKEND=native"
        raise ConfigError(f"{setting}, but there is no compiled kernel: {reason}\n  build it, or unset the variable")
    if native is not None:
        runs_here = tuple(native._kernels.instruction_sets())
        native._kernels.choose(_environment("MINILORA_ISA", runs_here) or runs_here[-1])
    return native, reason


def use_native() -> bool:
    """Say whether float32 products go to the compiled kernel."""
    return _choose()[0] is not None


def info() -> Backend:
    """Return what was chosen, and why the compiled kernel is not used where it is not."""
    native, reason = _choose()
    if native is None:
        return Backend("reference", None, _threads(), False, None, reason)
    kernels = native._kernels
    threads = kernels.allowed_threads(_threads()) if kernels.has_openmp() else 1
    return Backend("native", kernels.chosen(), threads, kernels.has_openmp(), kernels.compiler(), None)


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


def _native(caller: str) -> ModuleType:
    """Return the module that calls the kernel; raise ConfigError, with the reason, where there is none."""
    native, reason = _choose()
    if native is None:
        raise ConfigError(
            f"{caller}: the compiled kernel is needed, but it is not in use: {reason}\n"
            "  call minilora.ops.lora_matmul, which computes in NumPy then"
        )
    return native


def lora_forward(
    x: np.ndarray,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    scale: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y = x W + bias + scale (x A) B, and hidden = x A for the backward pass.

    x     (M, K)  float32, C-contiguous, as are a, b and bias
    w     (K, N)  either memory order: C-contiguous, or the transposed view of a C-contiguous (N, K)
    a     (K, R)  or None with b for the plain linear layer; hidden is then None
    b     (R, N)
    bias  (N,)    or None

    Raises ShapeError where the sizes, the dtype or the memory order do not fit, ConfigError without a kernel.
    """
    return _native("lora_forward").lora_forward(x, w, a, b, bias, scale, _threads())


def lora_backward(
    grad: np.ndarray,
    x: np.ndarray | None,
    hidden: np.ndarray | None,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    scale: float,
    need: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to x, a and b; None where ``need`` is False.

    grad    (M, N)  gradient with respect to y
    x       (M, K)  may be None unless a's gradient is needed
    hidden  (M, R)  as lora_forward returned it; may be None unless b's gradient is needed
    need            (x, a, b): which gradients are wanted

    Raises ShapeError where the sizes, the dtype or the memory order do not fit, ConfigError without a kernel.
    """
    return _native("lora_backward").lora_backward(grad, x, hidden, w, a, b, scale, need, _threads())
