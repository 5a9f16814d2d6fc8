"""Which adapter the layers of a model use: chosen for all later calls, or for the calls inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_in_call: ContextVar[Mapping[AdapterChoice, str | None]] = ContextVar("minilora_adapters", default={})  # noqa: B039


class AdapterChoice:
    """The active adapter of one model, shared by its layers.

    default  the adapter's name for every call that does not choose its own, or None
    """

    __slots__ = ("default",)

    def __init__(self, default: str | None = None) -> None:
        self.default = default

    def current(self) -> str | None:
        """The name that holds here: that of the innermost block in this thread or task, or the default."""
        return _in_call.get().get(self, self.default)

    @contextmanager
    def during(self, name: str | None) -> Iterator[None]:
        """Use adapter ``name`` (None: no adapter) inside the block, in this thread or task only."""
        token = _in_call.set({**_in_call.get(), self: name})
        try:
            yield
        finally:
            _in_call.reset(token)
