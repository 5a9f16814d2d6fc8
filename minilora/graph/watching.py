"""Watches around watches: who measures or checks every call of an operator leaves those outside in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from minilora.autograd import Op, watched_by
from minilora.autograd.context import setting
from minilora.autograd.registry import Rule, Watch

__all__ = ["Op", "Rule", "Watch", "watching"]


def _run(
    op: Op, rule: Rule, arrays: Sequence[Any], params: Mapping[str, Any], need: tuple[bool, ...]
) -> tuple[Rule, tuple[Any, Any]]:
    return rule, op.run(rule, arrays, params, need)


_outside: ContextVar[Watch] = ContextVar("minilora_watch_outside", default=_run)


@contextmanager
def watching(around: Callable[[Watch], Watch]) -> Iterator[None]:
    """Let ``around(run)`` compute every call inside this block, where ``run`` is what would compute it outside."""
    watch = around(_outside.get())
    with setting(_outside, watch), watched_by(watch):
        yield
