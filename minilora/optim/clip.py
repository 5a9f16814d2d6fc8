"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

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
    norm = math.sqrt(sum(float(np.sum(np.square(grad, dtype=np.float64))) for grad in grads))
    if math.isfinite(norm) and norm + 1e-6 > max_norm:
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)
    return norm
