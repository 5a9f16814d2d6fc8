"""The output folder of a run: refused unless empty, metrics.jsonl line by line, errors with a way out."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minilora.errors import ConfigError, MiniloraError


def prepare_folder(path: str | Path) -> Path:
    """Make the output folder, or accept it if it exists and is empty.

    Raises ConfigError where it holds anything, is no folder or cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made an output folder: {error.strerror}") from None
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(
            f"--out {folder}: not empty ({shown}); a run never writes over another: give a new folder or "
            "remove this one"
        )
    return folder


@contextmanager
def saving(what: str | Path, kept: str) -> Iterator[None]:
    """Turn an OSError while writing ``what`` into one sentence that says what is ``kept`` all the same."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "free some space" if full else "see that the folder can be written"
        raise MiniloraError(f"{what}: cannot be written: {error.strerror}\n  {kept}; {way_out}") from error


class MetricsFile:
    """A JSONL file to which whole lines are appended, each on disk's side of this process at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object; raises OSError."""
        rest = memoryview(json.dumps(record).encode() + b"\n")
        while rest:  # a raw write may be short
            rest = rest[self._file.write(rest) or 0 :]

    def close(self) -> None:
        self._file.close()
