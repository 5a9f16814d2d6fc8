"""The low-rank linear layer in plain NumPy: what the compiled kernel must equal, and the backend without it."""

from __future__ import annotations

import numpy as np


def lora_forward(
    x: np.ndarray,
    w: np.ndarray,
    a: np.ndarray | None,
    b: np.ndarray | None,
    bias: np.ndarray | None,
    scale: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return y = x W + bias + scale (x A) B of shape (M, N), and hidden = x A of shape (M, R)."""
    y = x @ w
    hidden = None
    if a is not None and b is not None:
        hidden = x @ a
        y += x.dtype.type(scale) * hidden @ b
    if bias is not None:
        y += bias
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
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return grad W^T + grad_h A^T, x^T grad_h and scale hidden^T grad, where grad_h = scale grad B^T."""
    factor = grad.dtype.type(scale)
    grad_x = grad @ w.T if need[0] else None
    grad_a = grad_b = None
    if a is not None and b is not None:
        grad_h = factor * (grad @ b.T) if need[0] or need[1] else None
        if grad_x is not None:
            grad_x += grad_h @ a.T
        if need[1] and x is not None:
            grad_a = x.T @ grad_h
        if need[2] and hidden is not None:
            grad_b = factor * (hidden.T @ grad)
    return grad_x, grad_a, grad_b
