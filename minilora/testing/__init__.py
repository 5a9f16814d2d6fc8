"""Property-based proof that gradients and adapters are right, also for those of others.

    from minilora.testing import check_vjp, gradcheck

gradcheck              the gradient of a function on Tensors
check_vjp              that of a plain function on ndarrays, with a vjp of its own
check_lora_invariants  what every layer or model with a low-rank adapter obeys
laws, check            those of an operator's record, and a run of one with drawn calls
strategies             shapes, arrays, LoRA problems and token batches for Hypothesis

Only ``check`` and ``strategies`` need Hypothesis: pip install "minilora[test]".
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minilora.testing.gradcheck import check_vjp, gradcheck
from minilora.testing.modelcheck import check_lora_invariants
from minilora.testing.opcheck import assert_complete, check, laws

if TYPE_CHECKING:
    from minilora.testing import strategies

__all__ = ["assert_complete", "check", "check_lora_invariants", "check_vjp", "gradcheck", "laws", "strategies"]


def __getattr__(name: str) -> Any:
    """Import ``strategies`` only when asked for it, since it needs Hypothesis."""
    if name != "strategies":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("minilora.testing.strategies")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ModuleNotFoundError(
            'minilora.testing.strategies needs Hypothesis: pip install "minilora[test]"'
        ) from error
