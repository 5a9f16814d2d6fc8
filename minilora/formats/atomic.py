"""Replace a file so that a crash, a full disk or Ctrl-C leaves the old one or the new one, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from minilora.errors import MiniloraError

_PREFIX, _SUFFIX = ".minilora-", ".tmp"
_PIECE = 8 << 20  # bytes a call of write() gets, so that Ctrl-C is heard on a slow disk
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}


def write_atomically(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Write ``chunks`` to a temporary file beside ``path``, then rename it over ``path``.

    Everything is on the disk before the rename (fsync), and the rename before this returns (fsync of the
    folder).  The new file's mode follows the umask; a symbolic link is followed, so the link stays.
    On any error, also one that ``chunks`` raises and also KeyboardInterrupt, the temporary file is removed and
    the file that was at ``path`` is untouched.

    Raises MiniloraError when the system refuses (disk full, no permission, not a regular file).
    """
    target = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):  # absent is fine, and what else is wrong open() will say
        if not stat.S_ISREG(target.stat().st_mode):
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise MiniloraError(f"{path}: cannot write: this is {kind}; choose another name")
    temporary = target.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    descriptor = -1
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise _refusal(path, error) from error
        for chunk in chunks:  # outside the handlers: an OSError of the producer is its own
            _write_all(path, descriptor, chunk)
        try:
            os.fsync(descriptor)
            closing, descriptor = descriptor, -1
            os.close(closing)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _refusal(path, error) from error
    except BaseException:
        if descriptor != -1:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        with contextlib.suppress(OSError):  # absent: never made, or already renamed
            os.unlink(temporary)
        raise


def remove_stale_temporaries(folder: str | os.PathLike[str], *, age: float = 3600.0) -> list[Path]:
    """Remove what a killed process left half-written in ``folder``; return what was removed.

    age     seconds since the last write; a younger file may belong to a live process and stays
    """
    removed = []
    now = time.time()
    for stale in sorted(Path(folder).glob(f"{_PREFIX}*{_SUFFIX}")):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            status = stale.lstat()
            if stat.S_ISREG(status.st_mode) and now - status.st_mtime >= age:
                stale.unlink()
                removed.append(stale)
    return removed


def _write_all(path: str | os.PathLike[str], descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    if view.nbytes == 0:  # an empty view cannot be cast
        return
    view = view.cast("B")
    try:
        while view:
            # A write may be short: at a limit, on a full disk, after a signal.
            view = view[os.write(descriptor, view[:_PIECE]) :]
    except OSError as error:
        raise _refusal(path, error) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder, and a folder may be writable but not readable:
        # the renamed file is whole all the same.  An I/O error is another matter.
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _refusal(path: str | os.PathLike[str], error: OSError) -> MiniloraError:
    cures = {
        errno.ENOSPC: "free some space or choose another disk",
        errno.EDQUOT: "your quota is used up: free some space or choose another disk",
        errno.EFBIG: "the file-size limit is reached (ulimit -f): raise it or choose another disk",
        errno.ENOENT: "the folder does not exist: create it first",
        errno.ENOTDIR: "a part of the path is a file: choose another folder",
        errno.EACCES: "choose a folder you may write to",
        errno.EPERM: "choose a folder you may write to",
        errno.EROFS: "choose a folder you may write to",
    }
    cure = cures.get(error.errno or 0, "check the disk and the folder")
    return MiniloraError(
        f"{path}: cannot write: {error.strerror or error}; {cure}.  What was there before is unchanged."
    )
