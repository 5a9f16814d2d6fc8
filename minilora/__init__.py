"""minilora: low-rank adaptation (LoRA) on a CPU, with NumPy as its only requirement."""

from __future__ import annotations

__version__ = "0.1.0"
