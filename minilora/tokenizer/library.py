"""The door to the `tokenizers` library: its import, and its exceptions turned into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minilora.errors import FormatError, MiniloraError


def import_tokenizers() -> Any:
    """Return the `tokenizers` module. Raises MiniloraError that names the extra."""
    try:
        import tokenizers
    except ImportError:
        raise MiniloraError('tokenizers need the tokenizers package\n  pip install "minilora[models]"') from None
    return tokenizers


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Turn whatever the Rust library raises, its panics included, into a FormatError that begins with ``where``."""
    try:
        yield
    except MiniloraError:
        raise
    except BaseException as error:
        # PyO3's PanicException is a BaseException that no module exports.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{where}: the tokenizers library refused it: {error}"[:600]) from None
