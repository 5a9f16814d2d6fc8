"""Drawing real numbers from a domain, of any magnitude, with a NumPy generator."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Interval

Array = NDArray[Any]
MIXED = 0.1  # share of such operands whose elements each have a magnitude of their own
_MARGIN = 0.01  # relative distance kept from kinks, ends and equal elements, so that differences stay on one side


def reals(
    interval: Interval, shape: tuple[int, ...], rng: np.random.Generator, fill: str = "random",
    decades: tuple[float, float] | None = None,
) -> Array:  # fmt: skip
    """Draw an array inside ``interval``: off its kinks and ends, and with distinct elements where they have to be.

    Magnitudes are distances from zero or from a finite end, whichever is drawn.
    """
    magnitude = magnitude_of(rng, shape, decades)
    low, high = interval.low, interval.high
    ends = [end for end in (low, high) if np.isfinite(end)]
    centres = [*([0.0] if low < 0 < high else []), *ends]
    if decades is None or rng.random() < 0.5 or not ends:  # the plain case: spread over the interval, or around zero
        span = 3.0 * (float(np.max(magnitude, initial=0.0)) or 1.0)
        first, last = max(low, -span), min(high, span)
        if first >= last:  # zero is far from the interval
            first, last = (low, low + span) if np.isfinite(low) else (high - span, high)
        spread = {
            "random": lambda: rng.uniform(first, last, shape),
            "zeros": lambda: np.zeros(shape),
            "equal": lambda: np.full(shape, rng.uniform(first, last)),
            "ends": lambda: rng.choice([first, last], shape),
        }[fill if rng.random() < 0.5 else "random"]()
        values = spread if np.ndim(magnitude) == 0 or ends else spread * magnitude / np.max(magnitude, initial=1e-300)
    else:
        centre = centres[int(rng.integers(len(centres)))]
        side = rng.choice([-1.0, 1.0], shape) if low < centre < high else 1.0 if centre == low else -1.0
        values = centre + side * magnitude * rng.uniform(0.1, 1, shape)
    return _settled(np.asarray(values), interval, float(np.max(magnitude, initial=1e-12)), rng)


def magnitude_of(rng: np.random.Generator, shape: tuple[int, ...], decades: tuple[float, float] | None) -> Any:
    """One magnitude for a whole operand, or now and then one for each element."""
    if decades is None:
        return 1.0
    return 10.0 ** rng.uniform(*decades, shape if rng.random() < MIXED else None)


def _settled(values: Array, interval: Interval, magnitude: float, rng: np.random.Generator) -> Array:
    """``values`` moved off the ends and kinks of their interval, and off each other."""

    def gap(point: float) -> float:
        return _MARGIN * (abs(point) or min(magnitude, 1.0))

    low = interval.low + gap(interval.low) if np.isfinite(interval.low) else -np.inf
    high = interval.high - gap(interval.high) if np.isfinite(interval.high) else np.inf
    if not low < high:  # a narrow interval far from zero
        low, high = (interval.low + (interval.high - interval.low) * share for share in (0.01, 0.99))
    if interval.distinct:
        values = _spaced(values, low, high, magnitude, rng)
    values = np.clip(values, low, high)
    for kink in interval.kinks:
        near = np.abs(values - kink) < (gap(kink) if kink else np.finfo(np.float32).tiny)
        values = np.where(near, kink + np.where(values < kink, -gap(kink), gap(kink)), values)
    return np.asarray(values)


def _spaced(values: Array, low: float, high: float, magnitude: float, rng: np.random.Generator) -> Array:
    """The same order, with elements apart by a relative _MARGIN, or evenly over a bounded interval."""
    if np.isfinite(high) and not np.isfinite(low):
        return -_spaced(-values, -high, -low, magnitude, rng)
    flat = np.maximum(values.ravel(), low)
    order = np.argsort(flat + magnitude * 1e-9 * rng.standard_normal(flat.shape), kind="stable")
    if np.isfinite(high):
        flat[order] = low + (high - low) * (np.arange(flat.size) + rng.uniform(0.3, 0.7, flat.size)) / max(flat.size, 1)
        return flat.reshape(values.shape)
    for before, at in itertools.pairwise(order):
        least = flat[before] + _MARGIN * max(abs(flat[before]), abs(flat[at]), 1e-3 * magnitude)
        flat[at] = max(flat[at], least)
    return flat.reshape(values.shape)
