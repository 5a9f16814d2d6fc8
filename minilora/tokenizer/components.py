"""What a tokenizer.json may hold: checked before the Rust library sees it, since it trusts its input."""

from __future__ import annotations

from typing import Any, NoReturn

from minilora.errors import FormatError
from minilora.tokenizer.patterns import check_regex
from minilora.tokenizer.vocabulary import MAX_TOKEN

# Each list leaves out what is not needed for language models and sentence encoders, or cannot be bounded:
# normalizers Precompiled and Nmt (opaque tables), decoder CTC (speech).
ALLOWED = {
    "model": ("BPE", "WordPiece", "Unigram", "WordLevel"),
    "normalizer": (
        "Sequence", "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents",
        "Replace", "Prepend", "ByteLevel",
    ),
    "pre_tokenizer": (
        "Sequence", "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "Split",
        "Punctuation", "Digits", "CharDelimiterSplit", "UnicodeScripts",
    ),
    "decoder": (
        "Sequence", "ByteLevel", "ByteFallback", "Metaspace", "WordPiece", "BPEDecoder", "Fuse", "Strip",
        "Replace",
    ),
    "post_processor": (
        "Sequence", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel",
    ),
}  # fmt: skip
MAX_COMPONENTS = 32
MAX_ID = 1 << 22  # ids of the largest vocabularies end near 2^18
MAX_GROWTH = 64  # times that all steps of a normalizer or decoder may lengthen a text
MAX_WORD = 1000  # characters of a word that WordPiece may take apart, in time of its square
MAX_PIECES = 64  # of a post-processing template


def check_tokenizer_json(content: Any, where: str) -> dict[str, Any]:
    """Return the parts of a tokenizer.json that are used, checked; ``where`` is the file, for messages.

    Truncation, padding and dropout are left out: they change ids behind the caller's back.
    Raises FormatError.
    """
    if not isinstance(content, dict):
        _fail(where, f"holds {type(content).__name__}, expected an object")
    checked: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        value = content.get(part)
        if value is not None:
            components = _components(value, part, where)
            for component in components:
                _check_component(component, part, where)
            _check_growth(components, part, where)
        checked[part] = value
    checked["model"] = _check_model(content.get("model"), where)
    checked["added_tokens"] = _check_added(content.get("added_tokens"), where)
    return checked


def _fail(where: str, what: str) -> NoReturn:
    raise FormatError(f"{where}: {what}")


def _components(value: Any, part: str, where: str) -> list[dict[str, Any]]:
    """Return every component in a part, sequences unfolded; checks that each is of an allowed type."""
    found: list[dict[str, Any]] = []
    todo = [value]
    while todo:
        component = todo.pop()
        if len(found) >= MAX_COMPONENTS:
            _fail(where, f"{part} has more than {MAX_COMPONENTS} components")
        kind = component.get("type") if isinstance(component, dict) else None
        if kind not in ALLOWED[part]:
            _fail(
                where,
                f"{part} is of type {str(kind)[:60]!r}, which is not supported\n"
                f"  supported: {', '.join(ALLOWED[part])}",
            )
        found.append(component)
        if kind == "Sequence":
            # The key is the part's plural; other keys are not read by the library.
            inner = component.get("processors" if part == "post_processor" else part + "s")
            if inner is None:
                inner = component.get("pretokenizers")
            if not isinstance(inner, list):
                _fail(where, f"{part} of type Sequence has no list of components")
            todo += inner
    return found


def _check_component(component: dict[str, Any], part: str, where: str) -> None:
    pattern = component.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        check_regex(pattern["Regex"], f"{where}: {part} {component['type']}")
    for key, limit in (("content", MAX_TOKEN), ("prepend", 16), ("replacement", 16), ("prefix", 64)):
        text = component.get(key)
        if isinstance(text, str) and len(text) > limit:
            _fail(where, f"{part} {component['type']}: {key} has {len(text)} characters; the limit is {limit}")
    for key in ("single", "pair"):
        if isinstance(component.get(key), list) and len(component[key]) > MAX_PIECES:
            _fail(where, f"{part} {component['type']}: {key} has {len(component[key])} pieces, over {MAX_PIECES}")
    ids = component.get("special_tokens")
    if isinstance(ids, dict):
        for token in ids.values():
            inner = token.get("ids") if isinstance(token, dict) else None
            if not isinstance(inner, list) or len(inner) > MAX_PIECES:
                _fail(where, f"{part} {component['type']}: special_tokens must each hold a short list of ids")
            for i in inner:
                _check_id(i, f"{where}: {part} {component['type']}")


def _check_growth(components: list[dict[str, Any]], part: str, where: str) -> None:
    growth = 1.0
    for component in components:
        if component["type"] == "Replace":
            pattern, text = component.get("pattern"), component.get("content")
            plain = pattern.get("String") if isinstance(pattern, dict) else pattern
            shortest = len(plain) if isinstance(plain, str) and plain else 1
            growth *= max(1.0, len(text) / shortest) if isinstance(text, str) else 1.0
        elif component["type"] == "Prepend":
            growth *= 1.0 + len(str(component.get("prepend")))
    if growth > MAX_GROWTH:
        _fail(where, f"{part} could lengthen a text {growth:.0f} times; the limit is {MAX_GROWTH}")


def _check_id(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value < MAX_ID:
        _fail(where, f"token id {str(value)[:40]}, expected an integer from 0 to {MAX_ID - 1}")


def _check_model(model: Any, where: str) -> dict[str, Any]:
    if not isinstance(model, dict):
        _fail(where, f"model is {type(model).__name__}, expected an object")
    kind = model.get("type")
    if kind is None:  # written by old versions of the library
        kind = "BPE" if "merges" in model else "WordPiece" if "continuing_subword_prefix" in model else None
    if kind not in ALLOWED["model"]:
        _fail(where, f"model is of type {str(kind)[:60]!r}\n  supported: {', '.join(ALLOWED['model'])}")
    checked = {**model, "type": kind}
    vocabulary = model.get("vocab")
    if kind == "Unigram":
        if not isinstance(vocabulary, list) or not vocabulary or len(vocabulary) >= MAX_ID:
            _fail(where, "model Unigram has no vocab list")
        for entry in vocabulary:
            if not (
                isinstance(entry, list)
                and len(entry) == 2
                and isinstance(entry[0], str)
                and isinstance(entry[1], (int, float))
                and abs(entry[1]) < 1e30
            ):
                _fail(where, f"model Unigram: vocab entry {str(entry)[:80]}, expected [token, score]")
        unknown = model.get("unk_id")
        if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(vocabulary)):
            _fail(where, f"model Unigram: unk_id {str(unknown)[:40]} is outside the vocabulary")
        return checked
    if not isinstance(vocabulary, dict) or not vocabulary:
        _fail(where, f"model {kind} has no vocab object")
    for token, i in vocabulary.items():
        _check_id(i, f"{where}: vocab {token[:60]!r}")
        if len(token) > MAX_TOKEN:
            _fail(where, f"vocab holds a token of {len(token)} characters; the limit is {MAX_TOKEN}")
    if len(set(vocabulary.values())) != len(vocabulary):
        _fail(where, "vocab gives one id to two tokens")
    if kind == "BPE":
        checked["dropout"] = None
        if not isinstance(model.get("merges"), list):
            _fail(where, "model BPE has no merges list")
    longest = model.get("max_input_chars_per_word", 100)
    if kind == "WordPiece" and not (type(longest) is int and 0 < longest <= MAX_WORD):
        _fail(where, f"model WordPiece: max_input_chars_per_word is {str(longest)[:40]}, expected 1 to {MAX_WORD}")
    return checked


def _check_added(tokens: Any, where: str) -> list[dict[str, Any]]:
    if tokens is None:
        return []
    if not isinstance(tokens, list):
        _fail(where, f"added_tokens is {type(tokens).__name__}, expected a list")
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or len(content) > MAX_TOKEN:
            _fail(where, f"added_tokens holds {str(token)[:80]}, expected an object with content")
        _check_id(token.get("id"), f"{where}: added token {content[:60]!r}")
        for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            if not isinstance(token.get(flag, False), bool):
                _fail(where, f"added token {content[:60]!r}: {flag} must be true or false")
    return tokens
