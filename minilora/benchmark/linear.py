"""The LoRA linear layer as two sides compute it: minilora's kernel, and NumPy by hand.

A side's process loads this file as its subject. Both get the same operands, W as model files have it, (out, in):

    forward   y = x W + s (x A) B
    both      forward, and the gradients of x, A and B; W is frozen
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SCALE = 2.0
RESULTS = ("y", "grad_x", "grad_A", "grad_B")


@dataclass(frozen=True)
class Size:
    """M rows, K inputs, N outputs, rank R; R = 0 is the frozen product alone."""

    m: int
    k: int
    n: int
    r: int

    def flops(self, part: str) -> int:
        """Operations of "forward" or "both"."""
        product, low = 2 * self.m * self.k * self.n, 2 * self.m * self.r * (self.k + self.n)
        return product + low if part == "forward" else 2 * product + 3 * low

    def nbytes(self, part: str) -> int:
        """Bytes that must be read or written at least: W and the adapter once a pass, each activation once."""
        weights = 4 * (self.k * self.n + self.r * (self.k + self.n))
        rows = 4 * self.m * (self.k + self.n)
        return weights + rows if part == "forward" else 2 * weights + 3 * rows


def operands(size: Size) -> tuple[Array, Array, Array, Array, Array]:
    """Return x (M, K), W (K, N) stored as (N, K), A (K, R), B (R, N) and the gradient of y (M, N)."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    return (
        normal(size.m, size.k),
        normal(size.n, size.k).T,
        normal(size.k, size.r),
        normal(size.r, size.n),
        normal(size.m, size.n),
    )


def ours(m: int, k: int, n: int, r: int) -> dict[str, Callable[..., Any]]:
    """Compute as a user does: through Tensor and backward."""
    from minilora import ops
    from minilora.autograd import no_grad, tensor
    from minilora.kernels import FrozenWeight

    size = Size(m, k, n, r)
    x, W, A, B, grad = operands(size)
    frozen = FrozenWeight(W)
    leaves = [tensor(array, requires_grad=True) for array in (x, A, B)]

    def forward() -> Array:
        with no_grad():
            y = ops.lora_matmul(x, frozen, A, B, SCALE) if r else ops.linear(x, frozen)
        return np.asarray(y)

    def both() -> tuple[Array, ...]:
        for leaf in leaves:
            leaf.grad = None
        y = ops.lora_matmul(leaves[0], frozen, leaves[1], leaves[2], SCALE)
        y.backward(grad)
        return (y.data, *(leaf.grad for leaf in leaves))

    return {"forward": forward, "both": both, "check": lambda: check(size, both(), _by_hand(x, W, A, B, grad)),
            "probe": lambda: probe(both())}  # fmt: skip


def numpy_by_hand(m: int, k: int, n: int, r: int) -> dict[str, Callable[..., Any]]:
    """Compute with as few products and temporaries as NumPy allows."""
    x, W, A, B, grad = operands(Size(m, k, n, r))
    return {
        "forward": lambda: _forward(x, W, A, B)[0],
        "both": lambda: _by_hand(x, W, A, B, grad),
        "probe": lambda: probe(_by_hand(x, W, A, B, grad)),
    }


def _forward(x: Array, W: Array, A: Array, B: Array) -> tuple[Array, Array]:
    scaled = x @ A
    scaled *= x.dtype.type(SCALE)
    y = x @ W
    y += scaled @ B
    return y, scaled


def _by_hand(x: Array, W: Array, A: Array, B: Array, grad: Array) -> tuple[Array, ...]:
    y, scaled = _forward(x, W, A, B)
    grad_h = grad @ B.T
    grad_h *= x.dtype.type(SCALE)
    grad_x = grad @ W.T
    grad_x += grad_h @ A.T
    return y, grad_x, x.T @ grad_h, scaled.T @ grad


def probe(results: tuple[Array, ...]) -> list[list[float]]:
    """Return a few elements of each result, after its largest absolute value: two sides must agree in these."""
    return [
        [float(abs(array).max()), *array.ravel()[:: max(1, array.size // 7)].tolist()]
        for array in results
        if array.size
    ]


def check(size: Size, kernel: tuple[Array, ...], by_numpy: tuple[Array, ...]) -> dict[str, list[float]]:
    """Compare with float64: by result, the largest error of the kernel and of NumPy as a share of the bound.

    The bound is that of csrc/minilora.h: gamma(t) times the sum of the terms' absolute values, where t counts the
    roundings that a term can pass through, and gamma(t) = t eps / (1 - t eps), eps = 2^-24.
    """
    exact = operands(size)
    doubles = tuple(array.astype(np.float64) for array in exact)
    right = _by_hand(*doubles)
    x, W, A, B, grad = (abs(array) for array in doubles)
    m, k, n, r = size.m, size.k, size.n, size.r
    hidden, grad_h = SCALE * (x @ A), SCALE * (grad @ B.T)
    bounds = (
        _gamma(k + r + 2) * (x @ W) + _gamma(2 * k + r + 4) * (hidden @ B),
        _gamma(n + r + 2) * (grad @ W.T) + _gamma(2 * n + r + 4) * (grad_h @ A.T),
        _gamma(m + n + 4) * (x.T @ grad_h),
        _gamma(m + k + 4) * (hidden.T @ grad),
    )
    return {
        name: [float((abs(found[i] - right[i]) / bounds[i]).max()) for found in (kernel, by_numpy)]
        for i, name in enumerate(RESULTS)
    }


def _gamma(terms: int) -> float:
    eps = 2.0**-24
    return terms * eps / (1 - terms * eps)
