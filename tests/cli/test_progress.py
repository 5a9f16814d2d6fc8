"""Progress: a bar on a terminal, plain lines elsewhere, no colours where they are not wanted."""

from __future__ import annotations

import builtins
import io
import re

import pytest

from minilora.cli.progress import Bar, Lines, clock, progress
from minilora.training import Evaluated, Saved, Started, Step, Stopped, TrainConfig


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events(total=100):
    config = TrainConfig(steps=total).resolved(1)
    yield Started(config, examples=10, trainable=7)
    yield Evaluated(0, 3.25, 1000, 0.5)
    for step in range(1, total + 1):
        yield Step(step, 3.0 / step, 1e-3, 1.0, 50, 0.5, 80)
    yield Saved(total, "runs/[first]")
    yield Stopped(total, "SIGINT")


def shown(out, **kwargs):
    with progress(out) as view:
        for event in events(**kwargs):
            view.show(event)
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_there_are_plain_lines():
    text = shown(io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    assert "step 0/100  held-out loss 3.2500  (1,000 tokens)\n" in text
    assert re.search(r"^step 60/100  loss 0\.0500  lr 1\.00e-03  160 tokens/s  \d+\.\d\d GB  0:20 left$", text, re.M)
    assert "step 100/100  saved in runs/[first]\n" in text
    assert text.endswith("stopped after step 100 by SIGINT\n")


@pytest.mark.parametrize("total", [1, 39, 40, 1000, 12345])
def test_plain_lines_are_few_and_hold_the_first_and_last_step(total):
    steps = [line for line in shown(io.StringIO(), total=total).splitlines() if "tokens/s" in line]
    assert len(steps) <= 42
    assert steps[0].startswith(f"step 1/{total}  ")
    assert steps[-1].startswith(f"step {total}/{total}  ")


def test_on_a_terminal_a_bar_shows_loss_speed_and_other_events_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(Terminal())
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "100/100" in plain
    assert "loss 0.0300" in plain
    assert "160 tokens/s" in plain
    assert "held-out loss 3.2500" in plain
    assert "saved in runs/[first]" in plain  # not taken for markup
    assert "step 50/100" not in plain


def test_no_color_leaves_the_bar_without_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9;]*m", shown(Terminal()))


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with progress(Terminal()) as view:
        assert type(view) is Lines


def test_without_rich_a_terminal_gets_lines(monkeypatch):
    real = builtins.__import__

    def without_rich(name, *args, **kwargs):
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    monkeypatch.setenv("TERM", "xterm")
    with progress(Terminal()) as view:
        assert type(view) is Lines


def test_with_rich_a_terminal_gets_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with progress(Terminal()) as view:
        assert type(view) is Bar


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (5.4, "0:05"), (65, "1:05"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
