"""Sinusoidal embedding of time steps, by which a denoiser knows how noisy its input is."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError

Array = NDArray[Any]


@op(
    "t[*] -> y[*, D]",
    params={
        "dim": (1, 2, 4, 7), "max_period": (10000, 10.0), "flip_sin_to_cos": (True, False),
        "downscale_freq_shift": (0, 0.5),
    },
    source="Ho et al. 2020, arXiv:2006.11239, appendix B, after Vaswani et al. 2017, arXiv:1706.03762, section 3.5",
    formula="y = [cos(f t) | sin(f t)], f[i] = max_period^(-i / (D/2 - downscale_freq_shift))",
    saves="t",
)  # fmt: skip
def timestep_embedding(
    t: Array,
    dim: int,
    *,
    max_period: float = 10000,
    flip_sin_to_cos: bool = True,
    downscale_freq_shift: float = 0,
) -> tuple[Array, Any]:
    """Turn each time step into the cosines and sines of D/2 frequencies, from 1 down to about 1 / max_period.

    t                     (*)  time steps, real numbers
    dim                   D, the width of the embedding; where it is odd, the last element is zero
    max_period            steps in 1 / 2π of the slowest turn
    flip_sin_to_cos       True: cosines first, as in guided-diffusion; False: sines first, as in Ho's own code
    downscale_freq_shift  0: the slowest frequency is just above 1 / max_period, as in guided-diffusion;
                          1: exactly that, as in Ho's own code

    The names of the last two are those of the library diffusers. Returns y (*, D), same dtype as t.
    ConfigError for a dim below 1, a max_period that is not positive or a shift of D/2 or more.
    """
    if not (isinstance(dim, Integral) and dim >= 1):
        raise ConfigError(f"timestep_embedding: dim is {dim!r}, expected an integer of at least 1")
    if not 0 < max_period < np.inf:
        raise ConfigError(f"timestep_embedding: max_period is {max_period}, expected a positive number")
    half = dim // 2
    if half and not downscale_freq_shift < half:
        raise ConfigError(
            f"timestep_embedding: downscale_freq_shift is {downscale_freq_shift}, expected less than "
            f"{half}, half of dim {dim}"
        )
    angle, _ = _angles(t, dim, max_period, downscale_freq_shift)
    cosines, sines = _parts(dim, flip_sin_to_cos)
    y = np.zeros((*t.shape, dim), t.dtype)
    y[..., cosines], y[..., sines] = np.cos(angle), np.sin(angle)
    return y, t


@timestep_embedding.defvjp
def _timestep_vjp(
    grad: Array,
    t: Array,
    need: tuple[bool, ...],
    *,
    dim: int,
    max_period: float,
    flip_sin_to_cos: bool,
    downscale_freq_shift: float,
) -> tuple[Array | None, ...]:
    if not need[0]:
        return (None,)
    angle, frequency = _angles(t, dim, max_period, downscale_freq_shift)
    cosines, sines = _parts(dim, flip_sin_to_cos)
    slopes = grad[..., sines] * np.cos(angle) - grad[..., cosines] * np.sin(angle)
    return ((slopes * frequency).sum(axis=-1).astype(grad.dtype),)


def _angles(t: Array, dim: int, max_period: float, shift: float) -> tuple[Array, Array]:
    """Frequency times time (*, D/2), and the frequencies; in float64, where t of float32 may be some thousand."""
    half = dim // 2
    frequency = np.float64(max_period) ** (-np.arange(half) / (half - shift))
    return t[..., None] * frequency, frequency


def _parts(dim: int, flip_sin_to_cos: bool) -> tuple[slice, slice]:
    """Where the cosines are, and the sines."""
    half = dim // 2
    first, second = slice(0, half), slice(half, 2 * half)
    return (first, second) if flip_sin_to_cos else (second, first)
