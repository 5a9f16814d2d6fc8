"""Dropout: the operator with its mask given, and the function that draws the mask from a Generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.autograd.context import setting
from minilora.errors import ConfigError

Array = NDArray[Any]
States = dict[int, tuple[np.random.BitGenerator, Any]]  # id -> a source of bits, and its state before its first draw

_noting: ContextVar[tuple[States, ...]] = ContextVar("minilora_dropout_states", default=())


@op(
    "x[*], keep:bool[*] -> y[*]",
    params={"p": (0.0, 0.1, 0.5)},
    source="Srivastava et al. 2014, JMLR 15, sec. 4",
    formula="y = x · keep / (1 - p)",
    saves="keep",
)
def masked_dropout(x: Array, keep: NDArray[np.bool_], *, p: float) -> tuple[Array, Any]:
    """Zero the elements that are not kept and scale the others by 1 / (1 - p).

    keep  (*)  True for the elements that stay; draw it with probability 1 - p
    p          probability of dropping an element, in [0, 1)

    ConfigError where p is outside its range.
    """
    _check_probability("masked_dropout", p)
    scale = x.dtype.type(1.0 / (1.0 - p))
    return x * (keep * scale), keep


@masked_dropout.defvjp
def _masked_dropout_vjp(
    grad: Array, keep: NDArray[np.bool_], need: tuple[bool, ...], *, p: float
) -> tuple[Array | None, ...]:
    return grad * (keep * grad.dtype.type(1.0 / (1.0 - p))), None


def dropout(x: Any, p: float, generator: np.random.Generator, *, training: bool = True) -> Any:
    """Zero each element with probability p and scale the others by 1 / (1 - p).

    x          (*) float32 or float64
    p          probability of dropping an element, in [0, 1)
    generator  draws one number an element; the same seed drops the same elements
    training   False gives x as it is, and draws nothing; so does p = 0

    ConfigError where p is outside its range, or generator is no np.random.Generator.
    """
    _check_probability("dropout", p)
    if not isinstance(generator, np.random.Generator):
        raise ConfigError(
            f"dropout: generator is {generator!r}, expected a numpy Generator\n"
            "  make one with np.random.default_rng(seed)"
        )
    if not training or p == 0:
        return x
    note_draw(generator)
    return masked_dropout(x, generator.random(np.shape(x), np.float32) >= p, p=p)


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p < 1:
        raise ConfigError(f"{name}: p is {p}, expected at least 0 and below 1\n  to drop everything, multiply by 0")


def note_draw(generator: np.random.Generator) -> None:
    """Say that ``generator`` is about to be drawn from, so that a checkpoint can draw the same again."""
    bits = generator.bit_generator
    for states in _noting.get():
        if id(bits) not in states:
            states[id(bits)] = bits, bits.state


@contextmanager
def noting_draws() -> Iterator[States]:
    """Collect the sources of bits that are drawn from inside this block, each with its state before."""
    states: States = {}
    with setting(_noting, (*_noting.get(), states)):
        yield states


@contextmanager
def replaying(states: States) -> Iterator[None]:
    """Draw inside this block what was drawn from ``states`` on, and put every source back where it was."""
    now = [(bits, bits.state) for bits, _ in states.values()]
    for bits, state in states.values():
        bits.state = state
    try:
        yield
    finally:
        for bits, state in now:
            bits.state = state
