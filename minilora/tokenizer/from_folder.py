"""A tokenizer from a Hugging Face folder: tokenizer.json and the small files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minilora.errors import FormatError
from minilora.tokenizer.components import check_tokenizer_json
from minilora.tokenizer.library import import_tokenizers, library_errors
from minilora.tokenizer.tokenizer import Tokenizer
from minilora.tokenizer.vocabulary import MAX_TEMPLATE, end_of_turn, lost_bytes

MAX_TOKENIZER = 64 << 20  # bytes; the largest in use have some 33 million
MAX_CONFIG = 4 << 20  # bytes of each file beside it
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Build the tokenizer of a folder. Raises FormatError, naming the file.

    Read are tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json,
    chat_template.jinja and generation_config.json; no other file, whatever these may name.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise FormatError(
            f"{folder}: no tokenizer.json\n  a folder with tokenizer.model or vocab.txt alone must be converted: "
            "save its tokenizer with transformers"
        )
    content = _read_json(path, MAX_TOKENIZER)
    checked = check_tokenizer_json(content, str(path))
    with library_errors(str(path)):
        rust = import_tokenizers().Tokenizer.from_str(json.dumps(checked))
    config = _read_object(folder / "tokenizer_config.json")
    names = _named_tokens({**_read_object(folder / "special_tokens_map.json"), **config}, folder)
    ids = {role: rust.token_to_id(token) for role, token in names.items()}
    special = {token.content: i for i, token in rust.get_added_tokens_decoder().items() if token.special}
    return Tokenizer(
        rust,
        str(path),
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=end_of_turn([ids.get("eos_token"), *_generation_eos(folder, rust)], special),
        pad_token_id=ids.get("pad_token"),
        chat_template=_chat_template(folder, config),
        template_variables=names,
        lost_bytes=_lost_bytes(checked),
    )


def _read_json(path: Path, limit: int) -> Any:
    text = _read_text(path, limit)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{path}: not JSON: {reason}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_text(path: Path, limit: int) -> str:
    try:
        if not path.is_file():
            raise FormatError(f"{path}: not a regular file")
        size = path.stat().st_size
        if size > limit:
            raise FormatError(f"{path}: {size} bytes; the limit is {limit}")
        with path.open("rb") as file:
            return file.read(limit + 1).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = _read_json(path, MAX_CONFIG)
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds {type(content).__name__}, expected an object")
    return content


def _named_tokens(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return bos_token, eos_token and so on: text, or an object with its content."""
    names = {}
    for role in _NAMED:
        value = config.get(role)
        if isinstance(value, dict):
            value = value.get("content")
        if value is None:
            continue
        if not isinstance(value, str):
            raise FormatError(f"{folder / 'tokenizer_config.json'}: {role} is {str(value)[:60]}, expected text")
        names[role] = value
    return names


def _generation_eos(folder: Path, rust: Any) -> list[int]:
    value = _read_object(folder / "generation_config.json").get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    for i in values:
        if type(i) is not int or i < 0:
            raise FormatError(
                f"{folder / 'generation_config.json'}: eos_token_id holds {str(i)[:40]}, expected token ids"
            )
    return [i for i in values if rust.id_to_token(i) is not None] if max(values, default=0) < 1 << 31 else []


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        template: Any = _read_text(path, MAX_CONFIG)
    else:
        path, template = folder / "tokenizer_config.json", config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise FormatError(f"{path}: chat_template must be text of at most {MAX_TEMPLATE} characters")
    return template


def _lost_bytes(checked: dict[str, Any]) -> bytes:
    """Bytes without a token, for byte-level BPE that has no other way out."""
    model = checked["model"]
    byte_level = any('"ByteLevel"' in json.dumps(checked[part]) for part in ("pre_tokenizer", "normalizer"))
    if model["type"] != "BPE" or not byte_level or model.get("unk_token") or model.get("byte_fallback"):
        return b""
    return lost_bytes(model["vocab"].keys())
