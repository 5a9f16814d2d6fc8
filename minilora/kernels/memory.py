"""What the C library's allocator does with memory that arrays give back."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names and numbers, of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1  # bytes: no array of a training step is larger


def keep_freed_memory() -> bool:
    """Let this process keep what its arrays free, to use it again; say whether its C library can (glibc).

    By default, memory that a step frees goes back to the system, and the next step waits until it gets it again, page
    by page and filled with zeros: a twentieth of a training step. The peak stays what it is, but the memory of a peak
    is given back only when the process ends. `minilora.training` asks for it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _ALL) and mallopt(_MMAP_THRESHOLD, _ALL))
