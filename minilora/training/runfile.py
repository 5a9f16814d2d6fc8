"""run.yaml: the settings of a run as a file, written for people and read back by ``--config``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilora.errors import ConfigError, FormatError
from minilora.formats.atomic import write_atomically

SCHEMA = 1
_LIMIT = 1 << 20  # bytes; a settings file is a few hundred


def write_run(path: str | Path, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write settings, and under ``record`` what was found out, as YAML.

    settings  name to None, bool, int, float, str or a list of them
    record    the same; for readers only, ``read_run`` drops it

    Written without a YAML library, so that training needs none; any YAML 1.1 or 1.2 reader gets the
    same values.
    """
    lines = [f"schema: {SCHEMA}"]
    lines += [f"{name}: {_yaml(value)}" for name, value in settings.items()]
    lines += ["record:"] + [f"  {name}: {_yaml(value)}" for name, value in record.items()]
    write_atomically(path, ["".join(line + "\n" for line in lines).encode()])


def read_run(path: str | Path) -> dict[str, Any]:
    """Return the settings of a run.yaml, or of a file that someone wrote by hand (``schema`` optional).

    Raises ConfigError where PyYAML is missing or the file cannot be read, FormatError where it is not
    a YAML mapping or of a later schema.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError(f'{path}: reading settings needs PyYAML; pip install "minilora[cli]"') from None
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error.strerror}") from None
    if len(text) > _LIMIT:
        raise FormatError(f"{path}: more than {_LIMIT} bytes; a settings file is a few hundred")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise FormatError(f"{path}{place}: not YAML: {problem}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise FormatError(f"{path}: holds no settings; wanted lines like `lr: 0.001`")
    schema = found.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise FormatError(f"{path}: schema {schema!r}, this minilora reads {SCHEMA}; a newer minilora wrote it?")
    found.pop("record", None)
    return found


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        digits, exponent, power = repr(value).partition("e")
        # YAML 1.1 takes 1e-05 for text and 1e+16 without a point too.
        return f"{digits}.0e{power}" if exponent and "." not in digits else repr(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    return "[" + ", ".join(map(_yaml, value)) + "]"


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
