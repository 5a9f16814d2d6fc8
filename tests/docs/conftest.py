"""Documents that are programs: find the code in a page, and run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Page:
    """A page of docs/ and its blocks of code.

    name  path below docs/
    """

    def __init__(self, name):
        self.name = name
        self.path = DOCS / name
        self.text = self.path.read_text(encoding="utf-8")

    def blocks(self, language, text=None):
        """The blocks of one language; of ``text``, which is a part of the page, or of all of it."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text if text is None else text, re.S | re.M)

    def run(self, text=None, **namespace):
        """Run the Python blocks in order, in one namespace, which is returned. A traceback names the page's line."""
        whole = self.text
        for block in self.blocks("python", text):
            above = whole[: whole.index(block)].count("\n")
            exec(compile("\n" * above + block, str(self.path), "exec"), namespace)
        return namespace

    def section(self, heading):
        """What stands below a heading, up to the next one."""
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", self.text, re.S | re.M)
        assert found, f"{self.name} has no section {heading!r}"
        return found[1]

    def before(self, heading):
        """All that stands above a heading."""
        above, found, _ = self.text.partition(f"\n## {heading}\n")
        assert found, f"{self.name} has no section {heading!r}"
        return above


@pytest.fixture
def page():
    """Page, by the path of its file below docs/."""
    return Page
