"""Call the compiled kernel: allocate outputs and workspace, and keep every call into C short."""

from __future__ import annotations

import threading

import numpy as np

import minilora.kernels._kernels as _kernels
from minilora.errors import ShapeError

# Multiply-adds with W of one call into C. Python sees Ctrl-C only between calls, which should be under half a second
# apart even on one slow core: 5e9 (10 GFLOP) is 0.25 s at 40 GFLOP/s, which AVX2 cores reach.
CALL_WORK = 5e9
BASELINE_CALL_WORK = 2e9

_own = threading.local()


def _workspace(size: int) -> np.ndarray:
    """Return this Python thread's workspace, grown to at least ``size`` bytes; what it holds is of no meaning."""
    space: np.ndarray | None = getattr(_own, "space", None)
    if space is None or space.size < size:
        space = _own.space = np.empty(size, dtype=np.uint8)
    return space


def _block_rows(m: int, n: int, k: int) -> int:
    """Return how many rows one call may take, by the sizes alone so that results do not depend on threads.

    Nor by the rank, so that an adapter whose B is zero gives the bits of the plain layer; up to rank
    n k / (2 (n + k)) it at most doubles the time.
    """
    work = n * k
    if m * work <= BASELINE_CALL_WORK:
        return max(m, 1)
    return max(1, int((BASELINE_CALL_WORK if _kernels.chosen() == "baseline" else CALL_WORK) / work))


def _complain(op: str, w: np.ndarray, named: dict[str, tuple[np.ndarray | None, str]]) -> None:
    """Raise ShapeError for the first array that the kernel cannot read, by the argument's name.

    Called once a call has failed, so that calls that succeed do not pay for the look.
    """
    is_nk = w.ndim == 2 and not w.flags.c_contiguous and w.flags.f_contiguous
    for name, (array, axes) in {**named, "w": (w.T if is_nk else w, "K, N")}.items():
        if array is None:
            continue
        flags = array.flags
        wrong = "" if flags.c_contiguous else ", not C-contiguous"
        wrong = wrong if flags.aligned else ", not aligned"
        if array.dtype != np.float32 or array.ndim != axes.count(",") + 1 or wrong:
            orders = "C-contiguous float32, or its transpose," if name == "w" else "C-contiguous float32"
            raise ShapeError(
                f"{op}: {name} is {array.dtype} {array.shape}{wrong}, need {orders} ({axes})\n"
                f"  use np.array({name}, dtype=np.float32, order='C')"
            )


def _stored(w: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return W as it lies in memory, and whether that is (N, K)."""
    if w.flags.c_contiguous:
        return w, False
    return w.T, True


def lora_forward(
    x: np.ndarray,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    scale: float,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y = x W + bias + scale (x A) B, and hidden = x A for the backward pass.

    x     (M, K)  float32, C-contiguous, as are a, b and bias
    w     (K, N)  either memory order: C-contiguous, or the transposed view of a C-contiguous (N, K)
    a     (K, R)  or None with b for the plain linear layer; hidden is then None
    b     (R, N)
    bias  (N,)    or None

    Raises ShapeError where the sizes, the dtype or the memory order do not fit.
    """
    try:
        stored, is_nk = _stored(w)
        (m, k), n, r = x.shape, w.shape[1], 0 if a is None else a.shape[1]
        y = np.empty((m, n), dtype=np.float32)
        hidden = None if a is None else np.empty((m, r), dtype=np.float32)
        rows = _block_rows(m, n, k)
        space = _workspace(_kernels.lora_workspace(rows, n, k, r, n_threads))
        for i in range(0, m, rows):
            part = slice(i, i + rows)
            kept = None if hidden is None else hidden[part]
            _kernels.lora_forward(y[part], kept, x[part], stored, a, b, bias, space, scale, is_nk, n_threads)
        return y, hidden
    except (TypeError, ValueError, IndexError):
        named = {"x": (x, "M, K"), "a": (a, "K, R"), "b": (b, "R, N"), "bias": (bias, "N")}
        _complain("lora_forward", w, named)
        raise


def lora_backward(
    grad: np.ndarray,
    x: np.ndarray | None,
    hidden: np.ndarray | None,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    scale: float,
    need: tuple[bool, bool, bool],
    n_threads: int,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to x, a and b; None where ``need`` is False.

    grad    (M, N)  gradient with respect to y
    x       (M, K)  may be None unless a's gradient is needed
    hidden  (M, R)  as lora_forward returned it; may be None unless b's gradient is needed
    need            (x, a, b): which gradients are wanted

    Raises ShapeError where the sizes, the dtype or the memory order do not fit.
    """
    try:
        stored, is_nk = _stored(w)
        (m, n), k, r = grad.shape, w.shape[0], 0 if a is None else a.shape[1]
        grad_x = np.empty((m, k), dtype=np.float32) if need[0] else None
        grad_a = np.empty((k, r), dtype=np.float32) if need[1] and a is not None else None
        grad_b = np.empty((r, n), dtype=np.float32) if need[2] and a is not None else None
        rows = _block_rows(m, n, k)
        space = _workspace(_kernels.lora_workspace(rows, n, k, r, n_threads))
        for i in range(0, max(m, 1), rows):
            part = slice(i, i + rows)
            _kernels.lora_backward(
                None if grad_x is None else grad_x[part],
                grad_a,
                grad_b,
                grad[part],
                None if x is None else x[part],
                None if hidden is None else hidden[part],
                stored,
                a,
                b,
                space,
                scale,
                i > 0,
                is_nk,
                n_threads,
            )
        return grad_x, grad_a, grad_b
    except (TypeError, ValueError, IndexError):
        named = {
            "grad": (grad, "M, N"),
            "x": (x, "M, K"),
            "hidden": (hidden, "M, R"),
            "a": (a, "K, R"),
            "b": (b, "R, N"),
        }
        _complain("lora_backward", w, named)
        raise


def peak_fma(blocks: int, n_threads: int) -> float:
    """Multiply and add in registers for some microseconds a block; return how many flops that were.

    The time of such a call gives the most that this machine can compute with the chosen instruction set.
    """
    return _kernels.peak_fma(np.zeros(blocks, np.float32), n_threads)


def read(x: np.ndarray, n_threads: int) -> np.ndarray:
    """Read x (n,) float32 once, by adding it up; return the sums of its chunks."""
    sums = np.empty(_kernels.read_chunks(x.shape[0]), np.float32)
    _kernels.read(sums, x, n_threads)
    return sums
