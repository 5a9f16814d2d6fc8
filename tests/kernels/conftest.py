"""Tests of the compiled kernel use it whatever the environment chose; and how exact it is, is said at the end."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _compiled_kernel_where_it_is_tested(request):
    if request.node.get_closest_marker("native"):
        request.getfixturevalue("kernel_in_use")


def pytest_terminal_summary(terminalreporter):
    found = [dict(r.user_properties).get("errors") for r in terminalreporter.getreports("passed")]
    for case, ours, numpy in filter(None, found):
        terminalreporter.write_line(f"{case:22} off by {ours:.1e} of the largest element, NumPy by {numpy:.1e}")
