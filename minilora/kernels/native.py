"""Call the compiled kernel: allocate outputs and workspace, and keep every call into C short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import minilora.kernels._kernels as _kernels
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight

# Multiply-adds with W of one call into C. Python sees Ctrl-C only between calls, which should be under half a second
# apart even on one slow core: 5e9 (10 GFLOP) is 0.25 s at 40 GFLOP/s, which AVX2 cores reach.
CALL_WORK = 5e9
BASELINE_CALL_WORK = 2e9
# Elements of one call of an optimiser's kernel, which reads and writes 28 bytes of each: 0.3 s at 5 GB/s.
CALL_FLOATS = 1 << 26

_SINGLE = np.dtype(np.float32)

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


def _complain(op: str, w: np.ndarray | FrozenWeight, named: dict[str, tuple[np.ndarray | None, str]]) -> None:
    """Raise ShapeError for the first array that the kernel cannot read, by the argument's name.

    Called once a call has failed, so that calls that succeed do not pay for the look.
    """
    w = w.dequantize() if isinstance(w, FrozenWeight) else w
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


def _stored(w: np.ndarray | FrozenWeight) -> tuple[np.ndarray, int, bool]:
    """Return the bytes of W, a line of it a row, how they are stored, and whether the lines run over N."""
    if isinstance(w, FrozenWeight):
        code = _kernels.STORAGES.get(w.storage)
        if code is not None:
            return w.lines, code, not w.by_rows
        w = w.dequantize()
    if w.ndim != 2 or w.dtype != np.float32 or not w.flags.forc or not w.flags.aligned:
        raise TypeError("w")  # _complain says what is wrong
    is_nk = not w.flags.c_contiguous
    return (w.T if is_nk else w).view(np.uint8), _kernels.STORAGES["f32"], is_nk


def lora_forward(
    x: np.ndarray,
    w: np.ndarray | FrozenWeight,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    scale: float,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y = x W + bias + scale (x A) B, and hidden = x A for the backward pass.

    x     (M, K)  float32, C-contiguous, as are a, b and bias
    w     (K, N)  a FrozenWeight, or an array in either memory order: C-contiguous, or the transposed view of one (N, K)
    a     (K, R)  or None with b for the plain linear layer; hidden is then None
    b     (R, N)
    bias  (N,)    or None

    Raises ShapeError where the sizes, the dtype or the memory order do not fit.
    """
    try:
        lines, storage, is_nk = _stored(w)
        (m, k), n, r = x.shape, w.shape[1], 0 if a is None else a.shape[1]
        y = np.empty((m, n), dtype=np.float32)
        hidden = None if a is None else np.empty((m, r), dtype=np.float32)
        rows = _block_rows(m, n, k)
        space = _workspace(_kernels.lora_workspace(rows, n, k, r, n_threads))
        for i in range(0, m, rows):
            part = slice(i, i + rows)
            kept = None if hidden is None else hidden[part]
            _kernels.lora_forward(y[part], kept, x[part], lines, a, b, bias, space, scale, storage, is_nk, n_threads)
        return y, hidden
    except (TypeError, ValueError, IndexError):
        named = {"x": (x, "M, K"), "a": (a, "K, R"), "b": (b, "R, N"), "bias": (bias, "N")}
        _complain("lora_forward", w, named)
        raise


def mixed_lora_forward(
    x: np.ndarray,
    w: np.ndarray | FrozenWeight,
    index: np.ndarray,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    bias: np.ndarray | None,
    scales: Sequence[float],
    n_threads: int,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return y (M, N), each row by the adapter that ``index`` names, and x A of each adapter's rows.

    x, w, bias       as in lora_forward
    index   (M,)     which of the adapters a row uses; -1: none
    a, b             an adapter each, (K, R) and (R, N), R of its own

    ``x A`` of an adapter has its rows in the order of ``x``.
    """
    lines, storage, is_nk = _stored(w)
    (m, k), n, rank = x.shape, w.shape[1], max((array.shape[1] for array in a), default=0)
    y = np.empty((m, n), dtype=np.float32)
    hidden = [np.empty((np.count_nonzero(index == i), array.shape[1]), np.float32) for i, array in enumerate(a)]
    used = [0] * len(a)
    step = _block_rows(m, n, k)
    starts = np.flatnonzero(np.diff(index, prepend=-2))  # of the runs of one adapter
    starts = np.union1d(starts, np.arange(0, m, step)).tolist()  # cut where the calls are
    runs = [(i, j - i, int(index[i])) for i, j in zip(starts, [*starts[1:], m], strict=False) if index[i] >= 0]
    space = np.empty(_kernels.span_bytes(len(runs)), np.uint8)
    workspace = _workspace(_kernels.lora_workspace(step, n, k, rank, n_threads))
    for i in range(0, m, step):
        here = [run for run in runs if i <= run[0] < i + step]
        kept = []
        for _, count, which in here:
            kept.append(hidden[which][used[which] : used[which] + count])
            used[which] += count
        _kernels.mixed_lora_forward(
            y[i : i + step],
            kept,
            x[i : i + step],
            lines,
            [a[which] for _, _, which in here],
            [b[which] for _, _, which in here],
            bias,
            [(first - i, count) for first, count, _ in here],
            [scales[which] for _, _, which in here],
            space,
            workspace,
            rank,
            storage,
            is_nk,
            n_threads,
        )
    return y, hidden


def lora_backward(
    grad: np.ndarray,
    x: np.ndarray | None,
    hidden: np.ndarray | None,
    w: np.ndarray | FrozenWeight,
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
        lines, storage, is_nk = _stored(w)
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
                lines,
                a,
                b,
                space,
                scale,
                i > 0,
                storage,
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


def _pairs(q: np.ndarray, k: np.ndarray, products: int) -> int:
    """Return how many pairs of batch entry and group one call of attention may take, by the sizes alone."""
    rows, keys = q.shape[1] * (q.shape[2] // max(k.shape[2], 1)), k.shape[1]
    limit = BASELINE_CALL_WORK if _kernels.chosen() == "baseline" else CALL_WORK
    return max(1, int(limit / max(products * rows * keys * q.shape[3], 1)))


def attention_forward(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    causal: bool,
    window: int | None,
    scale: float,
    keep: bool,
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y, and stats (B, T, H, 2) for the backward pass where ``keep``: each query's peak and 1 / total.

    q       (B, T, H, D)  float32, C-contiguous
    k, v    (B, S, G, D)  float32, each batch entry C-contiguous; the entries may lie apart, as in a cache
    mask    (B, S)        bool, C-contiguous; False for keys that no query may see
    window                positions that a query sees, its own included; None: all

    Raises ShapeError where the sizes or the memory order do not fit.
    """
    (b, t, h, d), (s, g) = q.shape, k.shape[1:3]
    y = np.empty(q.shape, dtype=np.float32)
    stats = np.empty((b, t, h, 2), dtype=np.float32) if keep else None
    seen = None if mask is None else mask.view(np.uint8)
    ahead = 0 if window is None else min(window, t + s)
    pairs = min(_pairs(q, k, 2), b * g)
    space = _workspace(_kernels.attention_workspace(b, t, s, h, g, d, pairs, False, n_threads))
    for i in range(0, b * g, max(pairs, 1)):
        end = min(i + pairs, b * g)
        _kernels.attention_forward(y, stats, q, k, v, seen, space, i, end, ahead, causal, scale, n_threads)
    return y, stats


def attention_backward(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray | None,
    y: np.ndarray | None,
    stats: np.ndarray,
    mask: np.ndarray | None,
    causal: bool,
    window: int | None,
    scale: float,
    need: tuple[bool, bool, bool],
    n_threads: int,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to q, k and v; None where ``need`` is False.

    grad   (B, T, H, D)  gradient with respect to y, C-contiguous
    y      (B, T, H, D)  as attention_forward returned it; it and v may be None where v's gradient alone is needed
    stats  (B, T, H, 2)  as attention_forward returned them
    The others as there. Raises ShapeError where the sizes or the memory order do not fit.
    """
    (b, t, h, d), (s, g) = q.shape, k.shape[1:3]
    grad_q = np.empty(q.shape, dtype=np.float32) if need[0] else None
    grad_k = np.empty(k.shape, dtype=np.float32) if need[1] else None
    grad_v = np.empty(k.shape, dtype=np.float32) if need[2] else None
    seen = None if mask is None else mask.view(np.uint8)
    ahead = 0 if window is None else min(window, t + s)
    pairs = min(_pairs(q, k, 5), b * g)
    space = _workspace(_kernels.attention_workspace(b, t, s, h, g, d, pairs, True, n_threads))
    for i in range(0, b * g, max(pairs, 1)):
        operands = grad, q, k, v, y, stats, seen, space, i, min(i + pairs, b * g)
        _kernels.attention_backward(grad_q, grad_k, grad_v, *operands, ahead, causal, scale, n_threads)
    return grad_q, grad_k, grad_v


# Floats of one operand that one call takes, of operators that work on rows or single elements: a quarter of a second at
# the 4 ns that each takes GELU without wide vectors, and less than a tenth with them.
CALL_FLOATS = 1 << 26


def _cuts(rows: int, d: int) -> Iterator[slice]:
    """Cut rows of ``d`` floats into what one call may take; at least one slice, by the sizes alone."""
    step = max(1, CALL_FLOATS // max(d, 1))
    for i in range(0, max(rows, 1), step):
        yield slice(i, i + step)


def rms_norm_forward(x: np.ndarray, weight: np.ndarray, eps: float, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return y = x / sqrt(mean(x²) + eps) weight, and 1 / sqrt(mean(x²) + eps) of each row for the backward pass.

    x       (M, D)  float32, C-contiguous, as are all arrays below
    weight  (D,)
    """
    y, inv_rms = np.empty(x.shape, np.float32), np.empty(len(x), np.float32)
    for part in _cuts(*x.shape):
        _kernels.rms_norm_forward(y[part], inv_rms[part], x[part], weight, eps, n_threads)
    return y, inv_rms


def rms_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    inv_rms: np.ndarray,
    weight: np.ndarray,
    need: tuple[bool, bool],
    n_threads: int,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to x and weight; None where ``need`` is False.

    grad     (M, D)  gradient with respect to y
    inv_rms  (M,)    as rms_norm_forward returned it
    """
    grad_x = np.empty(x.shape, np.float32) if need[0] else None
    grad_weight = np.empty(weight.shape, np.float32) if need[1] else None
    for part in _cuts(*x.shape):
        space = _workspace(_kernels.norm_workspace(len(x[part]), x.shape[1]))
        here = None if grad_x is None else grad_x[part]
        operands = grad[part], x[part], inv_rms[part], weight
        _kernels.rms_norm_backward(here, grad_weight, *operands, space, part.start > 0, n_threads)
    return grad_x, grad_weight


def layer_norm_forward(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float, n_threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y, and for the backward pass each row's mean, relative to its first element, and 1 / standard deviation.

    x             (M, D)
    weight, bias  (D,)    or None
    """
    weight = np.ones(x.shape[1], np.float32) if weight is None else weight
    bias = np.zeros(x.shape[1], np.float32) if bias is None else bias
    y, mean, inv_std = np.empty(x.shape, np.float32), np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    for part in _cuts(*x.shape):
        _kernels.layer_norm_forward(y[part], mean[part], inv_std[part], x[part], weight, bias, eps, n_threads)
    return y, mean, inv_std


def layer_norm_backward(
    grad: np.ndarray,
    normalised: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    weight: np.ndarray | None,
    need: tuple[bool, bool, bool],
    n_threads: int,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to x, weight and bias; None where ``need`` is False.

    grad        (M, D)  gradient with respect to y
    normalised          x, and mean and 1 / standard deviation as layer_norm_forward returned them; may be None
                        where only bias's gradient is needed
    weight      (D,)    or None
    """
    rows, d = grad.shape
    weight = np.ones(d, np.float32) if weight is None else weight
    grad_x = np.empty(grad.shape, np.float32) if need[0] else None
    grad_weight, grad_bias = (np.empty(d, np.float32) if wanted else None for wanted in need[1:])
    for part in _cuts(rows, d):
        space = _workspace(_kernels.norm_workspace(len(grad[part]), d))
        here = None if grad_x is None else grad_x[part]
        x, mean, inv_std = (None,) * 3 if normalised is None else (array[part] for array in normalised)
        operands = grad[part], x, mean, inv_std, weight
        _kernels.layer_norm_backward(here, grad_weight, grad_bias, *operands, space, part.start > 0, n_threads)
    return grad_x, grad_weight, grad_bias


def _on_elements(call: Callable[..., None], outs: Sequence[np.ndarray | None], operands: Sequence[Any]) -> None:
    """Call a kernel on the elements of ``outs`` and ``operands``, of which those that are no array come last."""
    flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in (*outs, *operands)]
    for part in _cuts(operands[0].size, 1):
        call(*(a[part] if isinstance(a, np.ndarray) else a for a in flat))


def silu_forward(x: np.ndarray, n_threads: int) -> np.ndarray:
    """Return x σ(x) of the elements of x, of any shape."""
    y = np.empty(x.shape, np.float32)
    _on_elements(_kernels.silu_forward, [y], [x, n_threads])
    return y


def silu_backward(grad: np.ndarray, x: np.ndarray, n_threads: int) -> np.ndarray:
    """Return the gradient with respect to x."""
    grad_x = np.empty(x.shape, np.float32)
    _on_elements(_kernels.silu_backward, [grad_x], [grad, x, n_threads])
    return grad_x


def swiglu_forward(gate: np.ndarray, up: np.ndarray, n_threads: int) -> np.ndarray:
    """Return gate σ(gate) up of the elements of gate and up, of any shape."""
    y = np.empty(gate.shape, np.float32)
    _on_elements(_kernels.swiglu_forward, [y], [gate, up, n_threads])
    return y


def swiglu_backward(
    grad: np.ndarray, gate: np.ndarray, up: np.ndarray, need: tuple[bool, bool], n_threads: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the gradients with respect to gate and up; None where ``need`` is False."""
    grad_gate, grad_up = (np.empty(gate.shape, np.float32) if wanted else None for wanted in need)
    _on_elements(_kernels.swiglu_backward, [grad_gate, grad_up], [grad, gate, up, n_threads])
    return grad_gate, grad_up


def gelu_forward(x: np.ndarray, by_tanh: bool, n_threads: int) -> np.ndarray:
    """Return x Φ(x) of the elements of x, of any shape, or its tanh approximation."""
    y = np.empty(x.shape, np.float32)
    _on_elements(_kernels.gelu_forward, [y], [x, by_tanh, n_threads])
    return y


def gelu_backward(grad: np.ndarray, x: np.ndarray, by_tanh: bool, n_threads: int) -> np.ndarray:
    """Return the gradient with respect to x."""
    grad_x = np.empty(x.shape, np.float32)
    _on_elements(_kernels.gelu_backward, [grad_x], [grad, x, by_tanh, n_threads])
    return grad_x


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, back: bool, n_threads: int) -> np.ndarray:
    """Turn pairs of components of each head by the angles of its position, or by the opposite ones.

    x         (B, T, H, 2 E)
    cos, sin  (B, T, E)
    """
    y = np.empty(x.shape, np.float32)
    positions, heads, half = x.shape[0] * x.shape[1], x.shape[2], cos.shape[-1]
    flat_y, flat_x = (array.reshape(positions, heads, x.shape[3]) for array in (y, x))
    flat_cos, flat_sin = (array.reshape(positions, half) for array in (cos, sin))
    for part in _cuts(positions, heads * 2 * half):
        _kernels.rotary(flat_y[part], flat_x[part], flat_cos[part], flat_sin[part], back, n_threads)
    return y


def embedding_forward(ids: np.ndarray, weight: np.ndarray, n_threads: int) -> np.ndarray:
    """Return weight[ids].

    ids     (N,)    int64, each in [0, V)
    weight  (V, D)
    """
    y = np.empty((len(ids), weight.shape[1]), np.float32)
    for part in _cuts(*y.shape):
        _kernels.embedding_forward(y[part], weight, ids[part], n_threads)
    return y


def embedding_backward(grad: np.ndarray, ids: np.ndarray, count: int, n_threads: int) -> np.ndarray:
    """Return the gradient (V, D) with respect to a table of V = ``count`` rows: each row the sum of its uses'."""
    grad_weight = np.zeros((count, grad.shape[1]), np.float32)
    for part in _cuts(*grad.shape):
        _kernels.embedding_backward(grad_weight, grad[part], ids[part], n_threads)
    return grad_weight


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
    w: np.ndarray | FrozenWeight,
    labels: np.ndarray,
    factors: np.ndarray | None,
    need: tuple[bool, bool],
    n_threads: int,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the losses (M,) of the logits x W, and the gradients of x (M, K) and w (K, N) that are needed, or None.

    x        (M, K)  float32, C-contiguous
    w        (K, N)  as in lora_forward
    labels   (M,)    int64 in [0, N)
    factors  (M,)    gradient with respect to each loss; may be None where nothing is needed

    Raises ShapeError where the sizes, the dtype or the memory order do not fit.
    """
    try:
        lines, storage, is_nk = _stored(w)
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
                lines,
                None if factors is None else factors[part],
                labels[part],
                space,
                i > 0,
                storage,
                is_nk,
                n_threads,
            )
        return losses, grad_x, grad_w
    except (TypeError, ValueError, IndexError):
        _complain("linear_cross_entropy", w, {"x": (x, "M, K"), "factors": (factors, "M")})
        raise


def takes(array: np.ndarray, *, writable: bool) -> bool:
    """Say whether ``adamw``, ``square_sum`` and ``scale`` can read this array where it lies, or write it."""
    flags = array.flags
    return array.dtype == _SINGLE and flags.c_contiguous and flags.aligned and (flags.writeable or not writable)


def overlap(arrays: list[np.ndarray]) -> bool:
    """Say whether two of the arrays share memory; then their order matters, and threads would keep none."""
    at, sizes = _addresses(arrays, writable=False)
    order = np.argsort(at, kind="stable")
    ends = at + _SINGLE.itemsize * sizes.astype(np.uintp)
    return bool(np.any(ends[order[:-1]] > at[order[1:]]))


def _addresses(arrays: list[np.ndarray], *, writable: bool) -> tuple[np.ndarray, np.ndarray]:
    at, sizes = np.empty(len(arrays), np.uintp), np.empty(len(arrays), np.intp)
    _kernels.addresses(arrays, at, sizes, writable)
    return at, sizes


def _calls(at: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut arrays at addresses (*, arrays) into parts for calls of about CALL_FLOATS elements, at fixed places.

    Yields the addresses and the sizes of a call's parts, and which array each is of.
    """
    cuts = np.maximum(-(-sizes // CALL_FLOATS), 1)
    which = np.repeat(np.arange(len(sizes)), cuts)
    start = CALL_FLOATS * (np.arange(len(which)) - np.repeat(np.cumsum(cuts) - cuts, cuts))
    lengths = np.minimum(sizes[which] - start, CALL_FLOATS)
    parts = at[..., which] + (_SINGLE.itemsize * start).astype(np.uintp)
    call = np.cumsum(lengths) // CALL_FLOATS
    for group in np.split(np.arange(len(which)), np.flatnonzero(np.diff(call)) + 1):
        yield np.ascontiguousarray(parts[..., group]), lengths[group], which[group]


def adamw(
    weights: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    grads: list[np.ndarray],
    factors: np.ndarray,
    keep: float,
    mean_share: float,
    square_keep: float,
    square_share: float,
    eps: float,
    n_threads: int,
) -> None:
    """Move weights, means and squares by one step of AdamW; csrc/minilora.h has the rule and the scalars.

    factors  (2, arrays)  float32: for each parameter lr / (1 - beta1^step) and sqrt(1 - beta2^step)
    """
    written = [_addresses(arrays, writable=True) for arrays in (weights, means, squares)]
    at, sizes = zip(*written, _addresses(grads, writable=False), strict=True)
    if any(np.any(other != sizes[0]) for other in sizes[1:]):
        raise ShapeError("adamw: a weight, its mean, its square and its gradient differ in size")
    for parts, lengths, which in _calls(np.stack(at), sizes[0]):
        scalars = keep, mean_share, square_keep, square_share, eps
        _kernels.adamw(parts, np.ascontiguousarray(factors[:, which]), lengths, *scalars, n_threads)


def square_sum(arrays: list[np.ndarray], n_threads: int) -> float:
    """Return the sum of the squares of all elements, in float64."""
    total = 0.0
    for parts, lengths, _ in _calls(*_addresses(arrays, writable=False)):
        space = np.empty(-(-_kernels.square_sum_workspace(lengths) // 8))
        total += _kernels.square_sum(parts, space, lengths, n_threads)
    return total


def scale(arrays: list[np.ndarray], factor: float, n_threads: int) -> None:
    """Multiply every element by ``factor``, in place."""
    for parts, lengths, _ in _calls(*_addresses(arrays, writable=True)):
        _kernels.scale(parts, lengths, factor, n_threads)


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
