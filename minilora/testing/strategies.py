"""Hypothesis strategies for arrays, axes and whole calls of an operator. The other modules need no Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from minilora.autograd import Op
from minilora.testing.draws import FILLS, MODERATE, WIDE, Call, axes, draw

SIZES = (2, 1, 3, 0, 5)  # Hypothesis shrinks towards the first
KERNEL_SIZES = (*SIZES, 16, 17, 64, 65, 130)  # also whole blocks of a kernel, and what is left over


def dims(sizes: Sequence[int] = SIZES) -> st.SearchStrategy[int]:
    """The size of one axis: also empty, one, and odd."""
    return st.sampled_from(sizes)


def shapes(max_axes: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """A shape of up to ``max_axes`` axes."""
    return st.lists(dims(), max_size=max_axes).map(tuple)


def generators() -> st.SearchStrategy[np.random.Generator]:
    """A generator, shown as its seed."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def arrays(
    shape: st.SearchStrategy[tuple[int, ...]] | tuple[int, ...], dtype: DTypeLike = np.float64, size: float = 3.0
) -> st.SearchStrategy[NDArray[Any]]:
    """An array of numbers within ± ``size``."""
    shaped = st.just(shape) if isinstance(shape, tuple) else shape
    return st.builds(lambda s, rng: rng.uniform(-size, size, s).astype(dtype), shaped, generators())


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
