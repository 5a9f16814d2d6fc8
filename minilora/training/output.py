"""The output folder of a run: refused unless empty, the adapter saved whole, metrics line by line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor
from minilora.errors import ConfigError, MiniloraError
from minilora.formats.atomic import remove_stale_temporaries
from minilora.training.events import Evaluated, Event, Saved, Step


def prepare_folder(path: str | Path) -> Path:
    """Make the output folder, or accept it if it exists and is empty.

    Temporary files that a killed run left half-written there are removed first.
    Raises ConfigError where it holds anything, is no folder or cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(folder)
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be the output folder: {error.strerror}") from None
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(
            f"{folder}: the output folder is not empty ({shown}); a run never writes over another: "
            "name a new folder, or remove this one"
        )
    return folder


class LastGood:
    """The last weights known to be good, in memory, and the last save, on disk.

    params  the trained tensors, in a fixed order
    write   saves the adapter as it is now
    """

    def __init__(self, params: Sequence[Tensor], write: Callable[[Path], None], folder: Path | None) -> None:
        self._params, self._write, self.folder = params, write, folder
        self._copies: list[NDArray[Any]] = [param.data.copy() for param in params]
        self.step = 0
        self.at: int | None = 0  # steps that the tensors have had; None in the middle of one
        self.saved: int | None = None

    def remember(self, step: int) -> None:
        """Keep the weights as they are: after ``step`` steps, and they gave a finite loss."""
        for copy, param in zip(self._copies, self._params, strict=True):
            np.copyto(copy, param.data)
        self.step = step

    def finite(self) -> bool:
        """Whether every weight is a finite number in float32, which is what is saved."""
        largest = np.finfo(np.float32).max
        return all(bool((np.abs(param.data) <= largest).all()) for param in self._params)

    def save(self, step: int) -> Saved:
        """Write the adapter of ``step`` steps over the last one; raises MiniloraError, which stays then."""
        assert self.folder is not None
        try:
            self._write(self.folder)
        except MiniloraError as error:
            raise MiniloraError(f"after step {step}: {error}\n  {self.kept()}") from error
        self.saved = step
        return Saved(step, str(self.folder))

    def give_up(self, found: str, cure: str) -> MiniloraError:
        """Put the last good weights back, see that they are the ones on disk, and return the error."""
        self._put_back()
        return MiniloraError(f"training stopped: {found}\n  {self.rescue()}; {cure}")

    def rescue(self) -> str:
        """Try once to save what was trained, and return in a clause what is on disk.

        The tensors are saved as they are, or, in the middle of a step and where they are not finite, as
        they were when last known to be good; they are put back to that then.
        """
        if self.at is None or not self.finite():
            self._put_back()
        if self.folder is not None and self.at and self.saved != self.at:
            try:
                self.save(self.at)
            except MiniloraError as error:
                return str(error)  # ends in what is kept
        return self.kept()

    def _put_back(self) -> None:
        self.at = None
        for copy, param in zip(self._copies, self._params, strict=True):
            param[...] = copy
        self.at = self.step

    def kept(self) -> str:
        """What is on disk, in a clause."""
        if self.saved is None:
            return "no adapter is saved"
        return f"the adapter of step {self.saved} is in {self.folder}"


class MetricsFile:
    """metrics.jsonl: one object for each step and each held-out loss, handed to the system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - it lives as long as the run

    def write(self, event: Event) -> None:
        """Append a line for a Step or an Evaluated; other events have none. Raises MiniloraError."""
        if isinstance(event, Step):
            line: Mapping[str, Any] = dataclasses.asdict(event)
        elif isinstance(event, Evaluated):
            line = {"eval_" + k if k == "loss" else k: v for k, v in dataclasses.asdict(event).items()}
        else:
            return
        rest = memoryview(json.dumps(line).encode() + b"\n")
        try:
            while rest:  # a write may be short
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise MiniloraError(f"{self.path}: cannot be written: {error.strerror}; free some space") from error

    def close(self) -> None:
        self._file.close()
