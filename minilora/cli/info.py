"""``minilora info``: what this installation can do, and what is missing and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

from minilora.errors import ConfigError

EXAMPLE = """examples:
  minilora info
  minilora info --json
"""
# Extra -> (import name, distribution) that it brings.
EXTRAS = {
    "models": (("tokenizers", "tokenizers"), ("jinja2", "jinja2")),
    "cli": (("rich", "rich"), ("yaml", "PyYAML")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the backend, instruction set, threads, versions, formats and extras."
    parser.epilog = EXAMPLE
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = facts()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    extras = found.pop("extras")
    reason = found.pop("reason")
    models = found.pop("models")
    for name, value in found.items():
        print(f"{name:12} {_shown(value)}")
    if reason:
        state = "not used" if reason.startswith("MINILORA_BACKEND=") else "missing"
        print(f"{'':12} the compiled kernel is {state}: {reason}")
    for name, path in models.items():
        print(f"{'model':12} {name}: {path or 'not installed'}")
    for extra, packages in extras.items():
        missing = [name for name, version in packages.items() if version is None]
        shown = ", ".join(f"{name} {version or '(missing)'}" for name, version in packages.items())
        print(f"{'extra ' + extra:12} {shown}" + (f'   pip install "minilora[{extra}]"' if missing else ""))
    return 0


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else "no" if value is False else "none"
    return ", ".join(value) if isinstance(value, list) else str(value)


def facts() -> dict[str, Any]:
    """Everything that ``info`` shows, ready for JSON."""
    import numpy

    from minilora import __version__, kernels
    from minilora.formats.packaged import PACKAGED
    from minilora.formats.quant import STORAGES

    backend = kernels.info()
    return {
        "minilora": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "backend": backend.backend,
        "isa": backend.isa,
        "threads": backend.threads,
        "openmp": backend.openmp,
        "compiler": backend.compiler,
        "reason": backend.reason,
        "formats": ["safetensors", "gguf (v2, v3)", "PEFT adapter"],
        "storages": list(STORAGES),
        "models": {name: _packaged(name) for name in PACKAGED},
        "extras": {
            extra: {name: _version(distribution) for name, distribution in packages}
            for extra, packages in EXTRAS.items()
        },
    }


def _packaged(name: str) -> str | None:
    """Where an installed package has this model, or None."""
    from minilora.models import find_model

    try:
        return str(find_model(name))
    except ConfigError:
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
