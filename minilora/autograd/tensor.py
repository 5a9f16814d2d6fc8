"""Tensor: an ndarray and, if it was computed from trained arrays, its place on the tape."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from minilora.autograd.backward import Edge, Hook, Leaf, backward, seed
from minilora.autograd.context import setting
from minilora.autograd.writes import note_write
from minilora.errors import MiniloraError

_recording: ContextVar[bool] = ContextVar("minilora_recording", default=True)


def is_recording() -> bool:
    """True unless inside no_grad()."""
    return _recording.get()


def no_grad() -> AbstractContextManager[None]:
    """Record nothing inside this block, in this thread or task only."""
    return setting(_recording, False)


def enable_grad() -> AbstractContextManager[None]:
    """Record inside this block, also where it stands in a no_grad()."""
    return setting(_recording, True)


class Tensor:
    """An array that operators know: they record what is computed from one that requires a gradient.

    data           the ndarray; float32 and float64 keep their dtype through every operator
    requires_grad  True for a trained array and for all that is computed from one
    grad           for a trained array, the gradient that backward() has added up so far, or None
    """

    __slots__ = ("__weakref__", "data", "edge")
    __array_ufunc__ = None  # makes `ndarray + tensor` call Tensor.__radd__

    def __init__(self, data: NDArray[Any], *, edge: Edge | None = None) -> None:
        self.data = data
        self.edge = edge

    @property
    def requires_grad(self) -> bool:
        return self.edge is not None

    @property
    def grad(self) -> NDArray[Any] | None:
        return self.edge[0].grad if self.edge is not None and isinstance(self.edge[0], Leaf) else None

    @grad.setter
    def grad(self, value: NDArray[Any] | None) -> None:
        if self.edge is None or not isinstance(self.edge[0], Leaf):
            raise MiniloraError("grad: only a tensor made with requires_grad=True holds a gradient")
        self.edge[0].grad = value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def backward(self, gradient: ArrayLike | None = None) -> None:
        """Add the gradient of this tensor to ``grad`` of every trained array it was computed from.

        gradient  same shape as this tensor; may be left out for a single element, where it is 1

        The tape is consumed: a second call on the same graph raises MiniloraError.
        """
        if self.edge is None:
            raise MiniloraError(
                "backward: nothing here requires a gradient\n"
                "  make the trained arrays with tensor(data, requires_grad=True), outside no_grad()"
            )
        backward(self.edge, seed(self.shape, self.dtype, gradient))

    def register_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook`` with the gradient of this tensor, each time backward() has summed it up.

        hook  takes the gradient, read-only; returns None, or the gradient to go on with, of the same shape

        Returns a function that removes the hook again.
        """
        if self.edge is None:
            raise MiniloraError("register_hook: this tensor requires no gradient, so none will arrive here")
        (node, slot), entry = self.edge, (self.edge[1], hook)
        node.hooks.append((slot, hook))
        return lambda: node.hooks.remove(entry)

    def writable(self) -> NDArray[Any]:
        """Return the ndarray for writing in place, and note the write.

        A graph that still needs the old values then refuses to go back, with a clear error. For trained
        arrays and constants only: a computed tensor raises MiniloraError, its gradient would not know.
        """
        if self.edge is not None and not isinstance(self.edge[0], Leaf):
            raise MiniloraError(
                "writable: this tensor was computed; write to a copy of it, as with detach().numpy().copy()"
            )
        note_write(self.data)
        return self.data

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.requires_grad:
                raise MiniloraError("__setitem__: the value requires a gradient, which a write in place would lose")
            value = value.data
        self.writable()[key.data if isinstance(key, Tensor) else key] = value

    def detach(self) -> Tensor:
        """Return the same array as a tensor that requires no gradient."""
        return Tensor(self.data)

    def numpy(self) -> NDArray[Any]:
        """Return the ndarray itself, not a copy."""
        return self.data

    def item(self) -> Any:
        """Return the only element as a Python number."""
        return self.data.item()

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"


def tensor(data: ArrayLike, requires_grad: bool = False, *, dtype: DTypeLike | None = None) -> Tensor:
    """Make a tensor as np.asarray makes an array: without a copy where it can.

    requires_grad  True for an array that is to be trained; it must be float32 or float64
    """
    array = np.asarray(data, dtype)
    if not requires_grad:
        return Tensor(array)
    if array.dtype not in (np.float32, np.float64):
        raise MiniloraError(f"tensor: dtype {array.dtype} cannot require a gradient, expected float32 or float64")
    return Tensor(array, edge=(Leaf(((array.shape, array.dtype),)), 0))


def install_operators(**methods: Callable[..., Any]) -> None:
    """Give Tensor its operators and methods. The package ``ops`` calls this once; nothing else does."""
    for name, method in methods.items():
        setattr(Tensor, name, method)
