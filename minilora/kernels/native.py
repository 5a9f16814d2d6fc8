"""Call the compiled kernel: allocate outputs and workspace, and keep every call into C short."""

from __future__ import annotations

import threading
from collections.abc import Iterator

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


def _block_rows(m: int, n: int, k: float) -> int:
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


def cross_entropy_forward(
    logits: np.ndarray, labels: np.ndarray, n_threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses, peaks and others (M,) of rows of logits; the last two are for the backward pass.

    logits  (M, N)  float32, C-contiguous
    labels  (M,)    int64 below N; negative: not counted
    """
    m = len(logits)
    _expect_rows("cross_entropy_forward", m, labels=labels)
    losses, peaks, others = (np.empty(m, np.float32) for _ in range(3))
    for part in _row_parts(m, logits.shape[1]):
        operands = losses[part], peaks[part], others[part], logits[part], labels[part]
        _kernels.cross_entropy_forward(*operands, n_threads)
    return losses, peaks, others


def cross_entropy_backward(
    logits: np.ndarray, peaks: np.ndarray, others: np.ndarray, factors: np.ndarray, labels: np.ndarray, n_threads: int
) -> np.ndarray:
    """Return the gradient of logits (M, N), where that of each loss is its factor."""
    rows = {"peaks": peaks, "others": others, "factors": factors, "labels": labels}
    _expect_rows("cross_entropy_backward", len(logits), **rows)
    grad = np.empty_like(logits)
    for part in _row_parts(*logits.shape):
        operands = grad[part], logits[part], peaks[part], others[part], factors[part], labels[part]
        _kernels.cross_entropy_backward(*operands, n_threads)
    return grad


def _expect_rows(op: str, m: int, **arrays: np.ndarray | None) -> None:
    """Raise ShapeError for an array of another length, which cutting it into calls would hide."""
    for name, array in arrays.items():
        if array is not None and array.shape != (m,):
            raise ShapeError(f"{op}: {name} is {array.shape}, need (M,) = ({m},)")


def _row_parts(m: int, n: int) -> Iterator[slice]:
    """The rows of each call of a kernel that computes an exponential, as long as 32 multiply-adds, an element."""
    rows = _block_rows(m, n, 32)
    return (slice(i, i + rows) for i in range(0, m, rows))


def linear_cross_entropy(
    x: np.ndarray,
    w: np.ndarray,
    labels: np.ndarray,
    factors: np.ndarray | None,
    need: tuple[bool, bool],
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the losses (M,) of the logits x W, and the gradients of x (M, K) and w (K, N) that are needed, or None.

    x        (M, K)  float32, C-contiguous
    w        (K, N)  either memory order: C-contiguous, or the transposed view of a C-contiguous (N, K)
    labels   (M,)    int64 in [0, N)
    factors  (M,)    gradient with respect to each loss; may be None where nothing is needed

    Raises ShapeError where the sizes, the dtype or the memory order do not fit.
    """
    try:
        stored, is_nk = _stored(w)
        (m, k), n = x.shape, w.shape[1]
        _expect_rows("linear_cross_entropy", m, labels=labels, factors=factors)
        losses = np.empty(m, np.float32)
        grad_x = np.empty((m, k), np.float32) if need[0] else None
        grad_w = np.empty((k, n), np.float32) if need[1] else None
        # Twice as long a call as others may take: W is packed for every product, whose time many rows share.
        most = _block_rows(m, n, k * (1 + sum(need)) / 2)
        rows = -(-m // -(-m // most)) if m else 1
        space = _workspace(_kernels.linear_cross_entropy_workspace(rows, n, k, n_threads))
        for i in range(0, max(m, 1), rows):
            part = slice(i, i + rows)
            _kernels.linear_cross_entropy(
                losses[part],
                None if grad_x is None else grad_x[part],
                grad_w,
                x[part],
                stored,
                None if factors is None else factors[part],
                labels[part],
                space,
                i > 0,
                is_nk,
                n_threads,
            )
        return losses, grad_x, grad_w
    except (TypeError, ValueError, IndexError):
        _complain("linear_cross_entropy", w, {"x": (x, "M, K"), "factors": (factors, "M")})
        raise
