"""Ctrl-C and SIGTERM while training: the first finishes the step, a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Remembers which signal came, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reason(self) -> str | None:
        """Why training should stop, or None."""
        return self.signal.name if self.signal is not None else None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 without one."""
        return 128 + self.signal if self.signal is not None else 0

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise SystemExit(128 + number)  # unwinds, so that temporary files and the terminal are put right
        self.signal = signal.Signals(number)


@contextmanager
def catching_signals() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM inside the block; the old handlers come back after it."""
    interrupt = Interrupt()
    old = {number: signal.signal(number, interrupt._received) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
