"""Property-based proof that gradients and adapters are right, also for those of others.

    from minilora.testing import gradcheck, check_vjp

gradcheck and check_vjp need NumPy only; ``strategies`` and running the laws of an operator need Hypothesis:
pip install "minilora[test]".
"""

from __future__ import annotations

from minilora.testing.gradcheck import check_vjp, gradcheck

__all__ = ["check_vjp", "gradcheck"]
