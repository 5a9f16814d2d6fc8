"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from minilora import kernels
from minilora.errors import ConfigError

if TYPE_CHECKING:
    from minilora.autograd import Tensor


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> float:
    """Scale the gradients so that their joint Euclidean norm is at most ``max_norm``.

    params    Tensors; those without a gradient are passed over
    max_norm  > 0; ``math.inf`` only measures

    Returns the norm before clipping. Where that is infinite or NaN no gradient is touched, so that the
    caller can say which one it was. The rule is that of ``torch.nn.utils.clip_grad_norm_`` (1e-6 in
    the denominator included); squares are summed in float64, so that large float32 gradients
    do not overflow.
    """
    if not max_norm > 0:
        raise ConfigError(f"clip_grad_norm: max_norm is {max_norm}, wanted a number > 0 (inf: measure only)")
    grads = [param.grad for param in params if param.grad is not None]
    together = _taken_by_kernel(grads) if kernels.use_native() else []
    taken = set(map(id, together))
    others = [grad for grad in grads if id(grad) not in taken]
    squares = sum(float(np.sum(np.square(grad, dtype=np.float64))) for grad in others)
    if together:
        squares += kernels.compiled().square_sum(together, kernels.threads())
    norm = math.sqrt(squares)
    if math.isfinite(norm) and norm + 1e-6 > max_norm:
        factor = max_norm / (norm + 1e-6)
        if together:
            kernels.compiled().scale(together, factor, kernels.threads())
        for grad in others:
            grad *= factor
    return norm


def _taken_by_kernel(grads: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients that the compiled kernel measures and scales, all at once: float32, contiguous, none in another."""
    native = kernels.compiled()
    taken = [grad for grad in grads if native.takes(grad, writable=True)]
    return [] if native.overlap(taken) else taken
