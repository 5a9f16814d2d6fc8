"""Tokenizers from tokenizer.json or GGUF metadata, and chat templates."""

from __future__ import annotations

from minilora.tokenizer.load import load_tokenizer
from minilora.tokenizer.stream import DecodeStream
from minilora.tokenizer.tokenizer import LostTextWarning, Tokenizer

__all__ = ["DecodeStream", "LostTextWarning", "Tokenizer", "load_tokenizer"]
