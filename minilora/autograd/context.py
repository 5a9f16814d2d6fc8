"""A setting that belongs to the calls inside a block: each thread and each task sees its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def setting(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give ``variable`` a value inside this block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
