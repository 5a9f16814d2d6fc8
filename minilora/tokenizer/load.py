"""load_tokenizer: the one way in, from a GGUF file or a Hugging Face folder."""

from __future__ import annotations

import os

from minilora.formats.packaged import find_model
from minilora.tokenizer.from_folder import tokenizer_from_folder
from minilora.tokenizer.from_gguf import tokenizer_from_gguf
from minilora.tokenizer.tokenizer import Tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load the tokenizer of a model: a .gguf file, a folder with tokenizer.json, that file, or a packaged name.

    Raises FormatError, naming the file and what is wrong with it, ConfigError where there is no such model,
    and MiniloraError where the `tokenizers` package is missing.
    """
    place = find_model(path)
    if place.is_dir():
        return tokenizer_from_folder(place)
    if place.name == "tokenizer.json":
        return tokenizer_from_folder(place.parent)
    return tokenizer_from_gguf(place)
