"""The errors a caller can act on. Every complaint about a user's input is one of these."""

from __future__ import annotations


class MiniloraError(ValueError):
    """Something minilora was given cannot be used; the message says what to do."""


class FormatError(MiniloraError):
    """A file is damaged, or is not what it claims to be."""


class ShapeError(MiniloraError):
    """Operands do not fit together."""


class AdapterError(MiniloraError):
    """An adapter does not fit this model, or would do nothing."""


class ConfigError(MiniloraError):
    """A setting is unknown, out of range, or contradicts another."""
