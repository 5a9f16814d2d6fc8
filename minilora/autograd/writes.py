"""What backward still needs must not change: writes in place are noted, and found before a wrong gradient is.

A write through a Tensor or an optimiser notes the memory that it changes, with the time. A recorded
call keeps the time at which it was recorded; when its rule is about to use what it saved, memory
that was written since is an error. A plain ndarray can be written without our knowing: inside
check_writes() each call also keeps checksums of what it saved, and compares them.
"""

from __future__ import annotations

import itertools
import weakref
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd.context import setting
from minilora.errors import MiniloraError

_clock = itertools.count()
_written: dict[int, tuple[weakref.ref[Any], int]] = {}  # id of the array that owns memory -> itself, last write
_checking: ContextVar[bool] = ContextVar("minilora_check_writes", default=False)

Stamp = tuple[int, list[int] | None]  # when a call was recorded, and checksums of what it saved


def check_writes() -> AbstractContextManager[None]:
    """Find writes to plain ndarrays too, by checksums of all that is saved inside this block. Slow; for debugging."""
    return setting(_checking, True)


def note_write(array: NDArray[Any]) -> None:
    """Say that ``array`` is about to be written in place."""
    owner = owner_of(array)
    key = id(owner)
    _written[key] = weakref.ref(owner, lambda _: _written.pop(key, None)), next(_clock)


def stamp(kept: Any) -> Stamp:
    """The time, and inside check_writes() the checksum of every array in ``kept``."""
    return next(_clock), [_checksum(array) for array in arrays_in(kept)] if _checking.get() else None


def assert_unwritten(name: str, kept: Any, recorded: Stamp) -> None:
    """Raise MiniloraError if an array in ``kept`` was written after ``recorded``."""
    time, checksums = recorded
    if checksums is None and not _written:
        return
    for i, array in enumerate(arrays_in(kept)):
        last = _written.get(id(owner_of(array)))
        if (last is not None and last[1] > time) or (checksums is not None and checksums[i] != _checksum(array)):
            raise MiniloraError(
                f"backward: {name} needs an array {array.dtype} {array.shape} that was written in place after the "
                "forward pass\n  call backward() before the write, or give the operator a copy"
            )


def arrays_in(kept: Any) -> Iterator[NDArray[Any]]:
    """Every ndarray in what a rule saved, inside tuples, lists and dicts."""
    if isinstance(kept, np.ndarray):
        yield kept
    elif isinstance(kept, dict | tuple | list):
        for item in kept.values() if isinstance(kept, dict) else kept:
            yield from arrays_in(item)


def owner_of(array: NDArray[Any]) -> NDArray[Any]:
    """The array whose memory ``array`` is a view of, perhaps itself."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
