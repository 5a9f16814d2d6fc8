"""What tokenizers of both kinds of file share: the byte alphabet, tokens that end a turn, limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

MAX_TEMPLATE = 256 << 10  # characters of a chat template; the longest in use have some 30,000
MAX_TOKEN = 4096  # characters of one token; runs of spaces are the longest in use

# Control tokens that end a turn or a text in the models that have them (llama.cpp, llama-vocab.cpp).
END_OF_TURN = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
)


def byte_alphabet() -> dict[int, str]:
    """Return the character by which byte-level BPE spells each byte (GPT-2, encoder.py, bytes_to_unicode)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelled = {byte: chr(byte) for byte in visible}
    hidden = (byte for byte in range(256) if byte not in spelled)
    return spelled | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def lost_bytes(vocabulary: Collection[str]) -> bytes:
    """Return the bytes that byte-level BPE drops, since no token spells them."""
    return bytes(byte for byte, char in byte_alphabet().items() if char not in vocabulary)


def end_of_turn(named: Iterable[int | None], special: Mapping[str, int]) -> list[int]:
    """Return the ids that end a turn: those that the file names, then those known by their text."""
    known = [special[token] for token in END_OF_TURN if token in special]
    return [i for i in dict.fromkeys([*named, *sorted(known)]) if i is not None]
