"""Hypothesis strategies: shapes, arrays by domain, whole LoRA problems, token batches, calls of operators.

What they draw shrinks to cases that a person can read: few elements, small integers, magnitude one, C order.
Needs Hypothesis: pip install "minilora[test]".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from minilora.autograd import Interval, Op
from minilora.testing.draws import FILLS, MODERATE, WIDE, Call, axes, draw, frozen

Array = NDArray[Any]
Shape = tuple[int, ...]
SIZES = (2, 1, 3, 0, 5)  # Hypothesis shrinks towards the first
KERNEL_SIZES = (*SIZES, 16, 17, 64, 65, 130)  # also whole blocks of a kernel, and what is left over
REALS = Interval()
_DIGITS = st.integers(-99, 99)
_LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    lambda a: a,
    np.asfortranarray,
    lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    lambda a: np.ascontiguousarray(a[(slice(None, None, -1),) * a.ndim])[(slice(None, None, -1),) * a.ndim],
)


def dims(sizes: Sequence[int] = SIZES) -> st.SearchStrategy[int]:
    """The size of one axis: also empty, one, and odd."""
    return st.sampled_from(sizes)


def shapes(max_axes: int = 3) -> st.SearchStrategy[Shape]:
    """A shape of up to ``max_axes`` axes."""
    return st.lists(dims(), max_size=max_axes).map(tuple)


@st.composite
def broadcasting_shapes(draw: Any, count: int = 2, max_axes: int = 3) -> tuple[Shape, ...]:
    """``count`` shapes that broadcast with each other: axes of size one or missing in front, some of size zero."""
    whole = draw(shapes(max_axes))
    found = []
    for _ in range(count):
        stretched = draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)))
        dropped = draw(st.integers(0, len(whole)))
        found.append(tuple(1 if one else n for n, one in zip(whole, stretched, strict=True))[dropped:])
    return tuple(found)


@st.composite
def numbers(draw: Any, domain: Interval = REALS, decades: tuple[int, int] = (0, 0)) -> float:
    """A real number of one or two digits inside ``domain``, off its kinks, of a magnitude from 10^decades.

    The magnitude is that of the distance from 0, or from an end of the domain.
    """
    centre = draw(st.sampled_from(_centres(domain)))
    return _number(domain, centre, draw(_DIGITS), draw(_exponents(decades)))


@st.composite
def arrays(
    draw: Any,
    shape: st.SearchStrategy[Shape] | Shape | None = None,
    domain: Interval = REALS,
    dtype: DTypeLike = np.float64,
    decades: tuple[int, int] = (-12, 6),
    layouts: bool = True,
) -> Array:
    """An array of real numbers inside ``domain``, off its kinks, with distinct elements where it says so.

    shape    a shape, or a strategy for one; None: any of up to three axes, of sizes 0 and 1 too
    decades  powers of ten of the magnitude: one for the whole array, or now and then for each element
    layouts  also Fortran order, strides and reversed axes, and arrays that cannot be written
    """
    wanted = draw(shapes() if shape is None else st.just(shape) if isinstance(shape, tuple) else shape)
    count = math.prod(wanted)
    centre = draw(st.sampled_from(_centres(domain)))
    several = {"min_size": count, "max_size": count}
    digits = draw(st.lists(_DIGITS, unique_by=(lambda d: abs(d) or 1) if domain.distinct else None, **several))
    if not domain.distinct and draw(st.integers(0, 9)) == 9:
        exponents = draw(st.lists(_exponents(decades), **several))
    else:
        exponents = [draw(_exponents(decades))] * count
    values = [_number(domain, centre, d, e) for d, e in zip(digits, exponents, strict=True)]
    array = np.asarray(values, dtype).reshape(wanted)
    if not layouts:
        return array
    array = draw(st.sampled_from(_LAYOUTS))(array)
    return frozen(array) if draw(st.booleans()) else array


def _exponents(decades: tuple[int, int]) -> st.SearchStrategy[int]:
    """Powers of ten for two digits; 0 is the simplest, so numbers shrink to whole ones."""
    return st.integers(min(decades) - 1, max(decades) - 1)


def _centres(domain: Interval) -> list[float]:
    zero = [0.0] if domain.low < 0 < domain.high else []
    return [*zero, *(end for end in (domain.low, domain.high) if math.isfinite(end))]


def _number(domain: Interval, centre: float, digits: int, exponent: int) -> float:
    """centre ± digits · 10^exponent, brought inside the domain and off its kinks."""
    up = digits > 0 if domain.low < centre < domain.high else centre == domain.low
    room = (domain.high - centre if up else centre - domain.low) * 0.99
    distance = abs(digits) * 10.0**exponent
    least = 1e-3 * abs(centre) or 10.0**exponent
    if centre in (domain.low, domain.high, *domain.kinks):
        distance = max(distance, least)
    if distance > room:
        distance = room * (abs(digits) or 1) / 100
    value = centre + (distance if up else -distance)
    for kink in domain.kinks:
        if kink and abs(value - kink) < 0.01 * abs(kink):
            value = kink * (1.05 if value >= kink else 0.95)
    return value


@dataclass(frozen=True, repr=False)
class LoraProblem:
    """A linear layer with a low-rank update: y = x W + scale · (x A) B.

    x  (*, K)   W  (K, N)   A  (K, R)   B  (R, N), R from 0 to full rank, which is min(K, N)
    """

    x: Array
    W: Array
    A: Array
    B: Array
    scale: float

    @property
    def rank(self) -> int:
        return self.A.shape[1]

    @property
    def merged(self) -> Array:
        """W + scale · A B (K, N)"""
        return self.W + self.scale * (self.A @ self.B)

    def __repr__(self) -> str:
        return _shown(self)


@st.composite
def lora_problems(draw: Any, dtype: DTypeLike = np.float64, max_size: int = 4) -> LoraProblem:
    """A LoraProblem of one or two leading axes, of up to ``max_size`` inputs and outputs, and of rank 0 to full."""
    into, out = draw(st.integers(1, max_size)), draw(st.integers(1, max_size))
    rank = draw(st.integers(0, min(into, out)))
    batch = draw(st.lists(st.sampled_from((1, 2, 0, 3)), min_size=1, max_size=2).map(tuple))
    # As many numbers whatever the sizes are, so that making one smaller leaves the others as they were.
    matrices = st.lists(_DIGITS, min_size=max_size**2, max_size=max_size**2)

    def matrix(rows: int, columns: int) -> Array:
        values = np.reshape(draw(matrices), (max_size, max_size))[:rows, :columns]
        return np.asarray(values * 10.0 ** draw(st.integers(-4, 2)), dtype)

    x = np.resize(matrix(max_size, into), (*batch, into))
    return LoraProblem(
        x, matrix(into, out), matrix(into, rank), matrix(rank, out), draw(st.sampled_from((1.0, 0.5, 2.0, -1.0, 0.0)))
    )


@dataclass(frozen=True, repr=False)
class TokenBatch:
    """Rows of tokens of several lengths, padded to one.

    input_ids       (B, T)  integers in [0, vocabulary); 0 where padded
    attention_mask  (B, T)  1 for tokens, 0 for padding, which stands on one side of every row
    labels          (B, T)  input_ids, or -100 for padding and for a prompt in front, which does not count
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __repr__(self) -> str:
        return _shown(self)


@st.composite
def token_batches(draw: Any, vocabulary: int = 16, max_rows: int = 3, max_length: int = 6) -> TokenBatch:
    """A TokenBatch of at least one row, each of at least one token."""
    ids = st.integers(0, vocabulary - 1)
    rows = draw(st.lists(st.lists(ids, min_size=1, max_size=max_length), min_size=1, max_size=max_rows))
    longest, left = max(map(len, rows)), draw(st.booleans())
    given = np.zeros((len(rows), longest), np.int64)
    mask, labels = np.zeros_like(given), np.full_like(given, -100)
    for r, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        prompt = draw(st.integers(0, len(row)))
        given[r, at], mask[r, at], labels[r, at] = row, 1, [*[-100] * prompt, *row[prompt:]]
    return TokenBatch(given, mask, labels)


def _shown(record: Any) -> str:
    values = ((field.name, getattr(record, field.name)) for field in fields(record))
    shown = (f"{name}={v.tolist() if isinstance(v, np.ndarray) and v.size else _short(v)}" for name, v in values)
    return f"{type(record).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)


def generators() -> st.SearchStrategy[np.random.Generator]:
    """A generator, shown as its seed."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def calls(op: Op, sizes: Sequence[int] = SIZES, wide: bool = False) -> st.SearchStrategy[Call]:
    """A call of ``op`` with operands from its record, whose lettered axes have one of ``sizes``.

    wide  half of the calls have operands of any magnitude from 1e-12 to 1e+6; else a quarter, from 1e-3 to 1e+3
    """
    chosen = st.fixed_dictionaries({axis: shapes() if axis in ("*", "...") else dims(sizes) for axis in axes(op)})
    params = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in op.params.items()})
    decades = st.sampled_from((None, WIDE) if wide else (None, None, None, MODERATE))
    return st.builds(
        lambda s, p, rng, fill, decades: draw(op, rng, s, p, fill, decades),
        chosen, params, generators(), st.sampled_from(FILLS), decades,
    )  # fmt: skip
