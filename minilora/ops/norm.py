"""Normalisation: RMSNorm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op

Array = NDArray[Any]


@op(
    "x[*, D], weight[D] -> y[*, D]",
    params={"eps": (1e-6, 1e-5)},
    source="Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4",
)
def rms_norm(x: Array, weight: Array, *, eps: float = 1e-6) -> tuple[Array, Any]:
    """Scale each row of ``x`` to unit root mean square, then by ``weight``.

    x       (*, D)  activations
    weight  (D,)    learned gain
    eps             added to the mean square, in the units of x squared

    Returns y (*, D), same dtype as x.
    """
    square = np.einsum("...d,...d->...", x, x)[..., None] / x.dtype.type(max(x.shape[-1], 1))
    inv_rms = 1 / np.sqrt(square + x.dtype.type(eps))
    return x * inv_rms * weight, (x, weight, inv_rms)


@rms_norm.defvjp
def _rms_norm_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, eps: float) -> tuple[Array | None, ...]:
    x, weight, inv_rms = saved
    unit = x * inv_rms  # recomputed: cheaper than keeping a second activation
    grad_x = grad_weight = None
    if need[0]:
        g = grad * weight
        # The second term comes through inv_rms, whose derivative is -inv_rms³ x / D.
        mean = np.einsum("...d,...d->...", g, unit)[..., None] / x.dtype.type(max(x.shape[-1], 1))
        grad_x = inv_rms * (g - unit * mean)
    if need[1]:
        grad_weight = (grad * unit).sum(axis=tuple(range(x.ndim - 1)))
    return grad_x, grad_weight
