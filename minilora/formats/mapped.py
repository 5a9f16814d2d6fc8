"""Open a file that may be hostile: regular files only, mapped or read whole, and names safe to print."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from minilora.errors import FormatError, MiniloraError

_SHOWN = 80  # characters of a stranger's text that an error message repeats


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Map a file into memory, read-only.

    The mapping stays valid after the file is unlinked or replaced by a rename.  A file that another
    process truncates while it is mapped ends this process (SIGBUS), as with every mapping: small files that
    others may rewrite in place are better read by :func:`read_file`.

    Raises MiniloraError when the file cannot be opened, FormatError when it is empty or no regular file.
    """
    descriptor, size = _open_regular(path)
    try:
        if size == 0:
            raise FormatError(f"{path}: the file is empty; was the download or copy interrupted?")
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    except (OSError, OverflowError) as error:
        raise MiniloraError(f"{path}: cannot map {size} bytes into memory: {error}") from error
    finally:
        os.close(descriptor)


def read_file(path: str | os.PathLike[str], *, limit: int | None = None) -> bytes:
    """Read a whole file; one that holds more than ``limit`` bytes is refused unread.

    Raises MiniloraError when the file cannot be read, FormatError when it is too large or no regular file.
    """
    descriptor, size = _open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if limit is not None and size > limit:
            raise FormatError(f"{path}: {size} bytes, expected at most {limit}; is this the right file?")
        try:
            # One byte more than fstat promised tells a file that is still growing from a whole one.
            data = file.read(size + 1)
        except (OSError, MemoryError) as error:
            raise MiniloraError(f"{path}: cannot read {size} bytes: {error}") from error
    if len(data) != size:
        raise FormatError(f"{path}: changed while it was read; try again when nothing writes to it")
    return data


def printable(text: str | bytes) -> str:
    """Quote a stranger's text for a message: control characters escaped, long text cut."""
    if isinstance(text, bytes):
        text = text[: 4 * _SHOWN].decode("utf-8", "backslashreplace")
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def _open_regular(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Descriptor and size in bytes of a regular file (following links)."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        folder = Path(path).parent
        hint = "check the name" if folder.is_dir() else f"there is no folder {folder}"
        raise MiniloraError(f"{path}: no such file; {hint}") from error
    except (OSError, ValueError) as error:
        raise MiniloraError(f"{path}: cannot open: {getattr(error, 'strerror', None) or error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise FormatError(f"{path}: this is {kind}; expected a regular file")
    return descriptor, status.st_size
