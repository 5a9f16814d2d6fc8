"""Tests of the compiled kernel use it whatever the environment chose."""

from __future__ import annotations

import pytest

from minilora import kernels


@pytest.fixture(autouse=True)
def _compiled_kernel_where_it_is_tested(request, monkeypatch):
    """Run tests marked native with the compiled kernel, also where MINILORA_BACKEND chose the reference."""
    if request.node.get_closest_marker("native") and not kernels.use_native():
        from minilora.kernels import native

        native._kernels.choose(native._kernels.instruction_sets()[-1])
        monkeypatch.setattr(kernels, "_choose", lambda: (native, None))
