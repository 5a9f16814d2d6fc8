"""Call the compiled kernel: allocate outputs and workspace, and keep every call into C short."""

from __future__ import annotations

import threading

import numpy as np

from minilora.errors import ShapeError
from minilora.kernels import _kernels

# Multiply-adds of one call into C. Python sees Ctrl-C only between calls, which should be under half a second
# apart even on one slow core: 5e9 (10 GFLOP) is 0.25 s at 40 GFLOP/s, which AVX2 cores reach.
CALL_WORK = 5e9
BASELINE_CALL_WORK = 2e9

_own = threading.local()


def _workspace(m: int, n: int, k: int, r: int, n_threads: int) -> np.ndarray:
    """Return this Python thread's workspace, grown to what the call needs."""
    size = _kernels.workspace_bytes(m, n, k, r, n_threads)
    space: np.ndarray | None = getattr(_own, "space", None)
    if space is None or space.size < size:
        space = _own.space = np.empty(size, dtype=np.uint8)
    return space


def _row_blocks(m: int, n: int, k: int, r: int) -> list[slice]:
    """Cut m rows into blocks of bounded work, by the sizes alone so that results do not depend on threads."""
    limit = BASELINE_CALL_WORK if _kernels.chosen() == "baseline" else CALL_WORK
    rows = max(1, int(limit / max(1, n * k + 2 * r * (n + k))))
    return [slice(i, min(i + rows, m)) for i in range(0, max(m, 1), rows)]


def _check(op: str, name: str, array: np.ndarray | None, axes: str) -> None:
    """Refuse what the kernel cannot read, by the argument's name."""
    if array is None:
        return
    flags = array.flags
    if array.dtype != np.float32 or array.ndim != axes.count(",") + 1 or not (flags.c_contiguous and flags.aligned):
        raise ShapeError(
            f"{op}: {name} is {array.dtype} {array.shape}{_layout(array)}, need C-contiguous float32 ({axes})\n"
            f"  use np.array({name}, dtype=np.float32, order='C')"
        )


def _layout(array: np.ndarray) -> str:
    if not array.flags.aligned:
        return ", not aligned"
    return "" if array.flags.c_contiguous else ", not C-contiguous"


def _stored(op: str, w: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return W as it lies in memory, and whether that is (N, K)."""
    if w.ndim == 2 and not w.flags.c_contiguous and w.flags.f_contiguous:
        w, is_nk = w.T, True
    else:
        is_nk = False
    _check(op, "w", w, "N, K" if is_nk else "K, N")
    return w, is_nk


def lora_forward(
    x: np.ndarray,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    scale: float,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y (M, N) and hidden (M, R); see ``minilora.kernels.lora_forward``."""
    op = "lora_forward"
    for name, array, axes in (("x", x, "M, K"), ("a", a, "K, R"), ("b", b, "R, N"), ("bias", bias, "N")):
        _check(op, name, array, axes)
    stored, is_nk = _stored(op, w)
    (m, k), n, r = x.shape, w.shape[1], 0 if a is None else a.shape[1]
    y = np.empty((m, n), dtype=np.float32)
    hidden = None if a is None else np.empty((m, r), dtype=np.float32)
    for rows in _row_blocks(m, n, k, r):
        space = _workspace(rows.stop - rows.start, n, k, r, n_threads)
        _kernels.lora_forward(
            y[rows], None if hidden is None else hidden[rows], x[rows], stored, a, b, bias, space, scale, is_nk, n_threads
        )
    return y, hidden


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
    """Return the gradients of x (M, K), a (K, R), b (R, N); see ``minilora.kernels.lora_backward``."""
    op = "lora_backward"
    for name, array, axes in (
        ("grad", grad, "M, N"), ("x", x, "M, K"), ("hidden", hidden, "M, R"), ("a", a, "K, R"), ("b", b, "R, N"),
    ):  # fmt: skip
        _check(op, name, array, axes)
    stored, is_nk = _stored(op, w)
    (m, n), k, r = grad.shape, w.shape[0], 0 if a is None else a.shape[1]
    grad_x = np.empty((m, k), dtype=np.float32) if need[0] else None
    grad_a = np.empty((k, r), dtype=np.float32) if need[1] and a is not None else None
    grad_b = np.empty((r, n), dtype=np.float32) if need[2] and a is not None else None
    for rows in _row_blocks(m, n, k, r):
        space = _workspace(rows.stop - rows.start, n, k, r, n_threads)
        _kernels.lora_backward(
            None if grad_x is None else grad_x[rows],
            grad_a,
            grad_b,
            grad[rows],
            None if x is None else x[rows],
            None if hidden is None else hidden[rows],
            stored,
            a,
            b,
            space,
            scale,
            rows.start > 0,
            is_nk,
            n_threads,
        )
    return grad_x, grad_a, grad_b
