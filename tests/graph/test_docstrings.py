"""The examples in the docstrings of minilora.graph give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["functional", "trace"])
def test_examples_give_what_they_say(module):
    found = doctest.testmod(importlib.import_module(f"minilora.graph.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
