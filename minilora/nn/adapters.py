"""Which adapter the layers of a model use: chosen for all later calls, or for the calls inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Names = str | tuple[str | None, ...] | None  # one adapter for all rows of a batch, one (or None) for each, or none
_in_call: ContextVar[Mapping[AdapterChoice, Names]] = ContextVar("minilora_adapters", default={})  # noqa: B039


class AdapterChoice:
    """The active adapter of one model, shared by its layers.

    default  the adapter's name for every call that does not choose its own, or None
    """

    __slots__ = ("default",)

    def __init__(self, default: str | None = None) -> None:
        self.default = default

    def current(self) -> Names:
        """What holds here: the choice of the innermost block in this thread or task, or the default."""
        return _in_call.get().get(self, self.default)

    @contextmanager
    def during(self, names: Names) -> Iterator[None]:
        """Use an adapter (None: none; or one a row of the batch) inside the block, in this thread or task only."""
        token = _in_call.set({**_in_call.get(), self: names})
        try:
            yield
        finally:
            _in_call.reset(token)
