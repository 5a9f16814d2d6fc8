"""Operators are tested without a warning or an overflow; and what the laws have looked at is said at the end."""

from __future__ import annotations

import pytest

from minilora import kernels
from minilora.testing.opcheck import strict


def pytest_terminal_summary(terminalreporter):
    _summarise_planted(terminalreporter)
    reports = [r for r in terminalreporter.getreports("passed") if "::test_operator_obeys_law[" in r.nodeid]
    if not reports:
        return
    cases = [(*r.nodeid.partition("[")[2].rstrip("]").partition("-")[::2], dict(r.user_properties)) for r in reports]
    calls, slopes = (sum(seen[name] for _, _, seen in cases) for name in ("calls", "slopes"))
    terminalreporter.write_line(
        f"operator laws: {len({op for op, _, _ in cases})} operators, {len({law for _, law, _ in cases})} laws, "
        f"{len(cases)} pairs; {calls} examples, {slopes} slopes compared with finite differences"
    )
    of_gradients = {op: seen for op, law, seen in cases if law == "gradient_law"}
    if of_gradients:
        shares = sorted(((seen["doubtful"] / seen["calls"], op) for op, seen in of_gradients.items()), reverse=True)
        total, drawn = (sum(seen[name] for seen in of_gradients.values()) for name in ("doubtful", "calls"))
        worst = ", ".join(f"{op} {share:.1%}" for share, op in shares[:5] if share)
        terminalreporter.write_line(
            f"gradient law: {total} of {drawn} examples had a slope that could not be judged; most: {worst or 'none'}"
        )


def _summarise_planted(terminalreporter):
    reports = [r for r in terminalreporter.getreports("passed") if "::test_every_fault_that_changes" in r.nodeid]
    planted, excluded = (sum(dict(r.user_properties)[name] for r in reports) for name in ("planted", "excluded"))
    if reports:
        terminalreporter.write_line(
            f"planted faults: {planted} wrong gradients of {len(reports)} operators, all rejected; "
            f"{excluded} pairs left out, since the fault changes nothing there on any call"
        )


@pytest.fixture(autouse=True)
def _no_warning_no_overflow():
    with strict():
        yield


@pytest.fixture(autouse=True)
def _compiled_kernel_where_it_is_tested(request, monkeypatch):
    """Run tests marked native with the compiled kernel, also where MINILORA_BACKEND chose the reference."""
    if request.node.get_closest_marker("native") and not kernels.use_native():
        from minilora.kernels import native

        native._kernels.choose(native._kernels.instruction_sets()[-1])
        monkeypatch.setattr(kernels, "_choose", lambda: (native, None))
