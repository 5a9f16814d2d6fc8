"""The page that adds an operator does what it says, and leaves no operator behind."""

from __future__ import annotations

import re

import hypothesis
import numpy as np
import pytest

from minilora.autograd import REGISTRY


@pytest.fixture
def adding(page):
    """The page; afterwards the registry is as before, and so is the Hypothesis profile in force."""
    before = dict(REGISTRY)
    profile = hypothesis.settings.get_current_profile_name()
    # Without shrinking: what a wrong rule is told does not depend on how small the call is, and seconds do.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("docs", max_examples=15, derandomize=True, deadline=None, phases=phases)
    hypothesis.settings.load_profile("docs")
    yield page("adding-an-op.md")
    hypothesis.settings.load_profile(profile)
    REGISTRY.clear()
    REGISTRY.update(before)


def parts(page):
    right, wrong = page.text.split("## What a wrong rule says")
    return right, "## What a wrong rule says" + wrong


def test_the_operator_takes_less_than_thirty_lines_and_obeys_every_law(adding, capsys):
    block = adding.blocks("python")[0]
    assert len(block.splitlines()) < 30
    known = set(REGISTRY)
    names = adding.run(parts(adding)[0])
    assert set(REGISTRY) - known == {"softcap"}
    softcap, laws = names["softcap"], names["laws"]
    out = capsys.readouterr().out
    for law in laws(softcap):
        calls, slopes = re.search(rf"^{law.__name__} \w+\(calls=(\d+), compared=(\d+)", out, re.M).groups()
        assert int(calls) > 0
        assert int(slopes) > 0 or law.__name__ != "gradient_law"
    x = np.array([-100.0, 0.0, 2.0])
    np.testing.assert_allclose(names["capped"].data, [10 * np.tanh(x / 10)], rtol=1e-15)
    np.testing.assert_allclose(names["logits"].grad, [1 / np.cosh(x / 10) ** 2], rtol=1e-7)  # 1 - t² has lost half


def test_a_wrong_rule_is_told_what_the_page_shows(adding):
    right, wrong = parts(adding)
    names = adding.run(right)
    blocks = re.split(r"(?=^```python$)", wrong, flags=re.M)
    with pytest.raises(AssertionError) as told:
        adding.run(blocks[1], **names)
    shown = adding.blocks("text")[0].strip().removeprefix("AssertionError: ")
    message = str(told.value)
    assert without_figures(message) == without_figures(shown)
    for text in (message, shown):
        assert ratio(text) == pytest.approx(30, rel=1e-3)
    adding.run("".join(blocks[2:]), **names)


def without_figures(text):
    text = re.sub(r" is wrong .*", " is wrong", text, count=1)  # where, which depends on the call
    return re.sub(r" +", " ", re.sub(r"-?\d[\d.e+-]*", "#", text))


def ratio(text):
    """The slope of finite differences over that of the rule."""
    difference, claimed = (float(re.search(rf"{name} +(\S+)", text)[1]) for name in ("finite difference", "vjp"))
    return difference / claimed
