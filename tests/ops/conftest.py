"""Say at the end of a run how much the operator laws have looked at."""

from __future__ import annotations

import pytest

from minilora import kernels


def pytest_terminal_summary(terminalreporter):
    reports = [r for r in terminalreporter.getreports("passed") if "::test_operator_obeys_law[" in r.nodeid]
    if not reports:
        return
    cases = [r.nodeid.partition("[")[2].rstrip("]").partition("-") for r in reports]
    calls, slopes = (sum(dict(r.user_properties)[name] for r in reports) for name in ("calls", "slopes"))
    terminalreporter.write_line(
        f"operator laws: {len({op for op, _, _ in cases})} operators, {len({law for _, _, law in cases})} laws, "
        f"{len(cases)} pairs; {calls} drawn calls, {slopes} slopes compared with finite differences"
    )


@pytest.fixture(autouse=True)
def _compiled_kernel_where_it_is_tested(request, monkeypatch):
    """Run tests marked native with the compiled kernel, also where MINILORA_BACKEND chose the reference."""
    if request.node.get_closest_marker("native") and not kernels.use_native():
        from minilora.kernels import native

        native._kernels.choose(native._kernels.instruction_sets()[-1])
        monkeypatch.setattr(kernels, "_choose", lambda: (native, None))
