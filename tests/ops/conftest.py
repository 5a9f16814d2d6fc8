"""Say at the end of a run how much the operator laws have looked at."""

from __future__ import annotations


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
