"""Read training data: one JSON object a line, checked as a whole before anything is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minilora.errors import ConfigError, FormatError

Kind = Literal["text", "completion", "messages"]

WANTED = (
    'each line must be {"text": ...}, {"prompt": ..., "completion": ...} or '
    '{"messages": [{"role": ..., "content": ...}, ...]}, the same kind in the whole file'
)
MAX_LINE_BYTES = 16 << 20  # far above any context window; a larger line is another kind of file
SHOWN = 5  # complaints printed in full; the rest are counted

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}


@dataclass(frozen=True)
class Record:
    """One line of a data file. ``fields`` holds the strings or messages of its kind, nothing else."""

    kind: Kind
    fields: dict[str, Any]
    source: str  # "file:line", for messages to the user


def read_examples(path: str | Path) -> list[Record]:
    """Read a JSONL file of texts, prompts with completions, or conversations.

    Blank lines and unknown top-level keys are passed over. Every bad line is found before the
    first complaint, which shows the first few and the count.

    Raises ConfigError when the file cannot be opened, FormatError when a line cannot be used
    or there is none.
    """
    records: list[Record] = []
    problems: list[str] = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                source = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    problems.append(f"{source}: longer than {MAX_LINE_BYTES >> 20} MiB, not read any further")
                    break
                try:
                    record = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, source)
                    if record and records and record.kind != records[0].kind:
                        raise _BadLine(
                            f"holds {_name(record.kind)}, but {records[0].source} holds {_name(records[0].kind)}"
                        )
                except _BadLine as problem:
                    problems.append(f"{source}: {problem}")
                else:
                    if record:
                        records.append(record)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a JSONL file") from error
    if problems:
        raise FormatError(complaint(str(path), problems, WANTED))
    if not records:
        raise FormatError(f"{path}: holds no examples; {WANTED}")
    return records


def complaint(path: str, problems: list[str], advice: str) -> str:
    """Join what is wrong with a file into one message: the first few complaints, the count, the way out."""
    if len(problems) == 1:
        return f"{problems[0]}; {advice}"
    rest = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    shown = [f"  {problem}" for problem in problems[:SHOWN]]
    return "\n".join([f"{path}: {len(problems)} lines cannot be used", *shown, *rest, advice])


class _BadLine(Exception):
    """What is wrong with one line, without its place."""


def _parse(line: bytes, source: str) -> Record | None:
    """Return the record of one line, or None for a blank one."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    if not text:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _BadLine("not usable JSON: nested too deeply") from None
    except ValueError:  # a number with more digits than Python converts
        raise _BadLine("not usable JSON: a number is too long") from None
    if not isinstance(value, dict):
        raise _BadLine(f"a JSON {_json_type(value)}, not an object")
    kind = _kind(value)
    if kind == "messages":
        return Record(kind, {"messages": _messages(value["messages"])}, source)
    for field in _FIELDS[kind]:
        _check_string(value[field], field, may_be_empty=field == "prompt")
    return Record(kind, {field: value[field] for field in _FIELDS[kind]}, source)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _BadLine(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return value


def _kind(value: dict[str, Any]) -> Kind:
    """Tell a line's kind by its fields; exactly one kind must be there, and whole."""
    begun: list[Kind] = [kind for kind, fields in _FIELDS.items() if any(f in value for f in fields)]
    if len(begun) > 1:
        found = [field for kind in begun for field in _FIELDS[kind] if field in value]
        raise _BadLine(f"has {' and '.join(map(repr, found))}, which are different kinds of example")
    if not begun:
        raise _BadLine(f"has none of the fields wanted, but {_listed(value)}")
    missing = [field for field in _FIELDS[begun[0]] if field not in value]
    if missing:
        raise _BadLine(f"has no {missing[0]!r} beside {next(f for f in _FIELDS[begun[0]] if f in value)!r}")
    return begun[0]


def _messages(value: Any) -> list[dict[str, str]]:
    """Check a conversation: strings only, and at least one turn of the assistant to learn from."""
    if not isinstance(value, list) or not value:
        raise _BadLine("'messages' must be a list of at least one message")
    for number, message in enumerate(value, start=1):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise _BadLine(f"{where} is a JSON {_json_type(message)}, not an object")
        for field in ("role", "content"):
            if field not in message:
                raise _BadLine(f"{where} has no {field!r}")
        # A template may render more (tool calls); training as if it were not there would teach the wrong text.
        unknown = sorted(set(message) - {"role", "content"})
        if unknown:
            raise _BadLine(f"{where} has {unknown[0]!r}; only 'role' and 'content' are supported")
        _check_string(message["role"], f"role of {where}")
        _check_string(message["content"], f"content of {where}", may_be_empty=message["role"] != "assistant")
    if value[0]["role"] == "assistant":  # no template renders the empty conversation that it would answer
        raise _BadLine("the first message has the role 'assistant', so there is nothing that it answers")
    if not any(message["role"] == "assistant" for message in value):
        raise _BadLine("no message has the role 'assistant', so there is no completion token to learn from")
    return value


def _check_string(value: Any, field: str, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise _BadLine(f"{field} is a JSON {_json_type(value)}, not a string")
    if not value and not may_be_empty:
        raise _BadLine(f"{field} is empty, so there is no token to learn from")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadLine(f"{field} holds half of a surrogate pair (a broken \\u escape)") from None


def _name(kind: Kind) -> str:
    return " and ".join(map(repr, _FIELDS[kind]))


def _listed(value: dict[str, Any]) -> str:
    """Name a few keys, cut short: they come from a stranger's file."""
    keys = [repr(key[:40]) for key in list(value)[:4]]
    return ", ".join(keys) + (", ..." if len(value) > 4 else "") if keys else "no field at all"


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
