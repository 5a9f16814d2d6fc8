"""Without the optional libraries the error names the extra to install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minilora.errors import ConfigError, FormatError, MiniloraError
from minilora.tokenizer import Tokenizer, load_tokenizer, worker
from minilora.tokenizer.library import library_errors

Make = Callable[[str], Tokenizer]
MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_tokenizer_without_tokenizers_names_the_extra(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MiniloraError, match=r'need the tokenizers package\n  pip install "minilora\[models\]"'):
        load_tokenizer(write_folder())


def test_a_chat_without_jinja2_names_the_extra(chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer("x")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MiniloraError, match=r'chat templates need jinja2\n  pip install "minilora\[models\]"'):
        tokenizer.apply_chat_template(MESSAGES)


def test_a_jinja2_with_a_hole_in_its_sandbox_is_refused(chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jinja2.__version__", "3.1.5")
    with pytest.raises(MiniloraError, match=r"chat templates need jinja2 3\.1\.6 or later, found 3\.1\.5"):
        chat_tokenizer("x").apply_chat_template(MESSAGES)


def test_a_system_that_cannot_limit_a_process_renders_no_strangers_template(
    chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(worker, "_WORKER", worker.Worker())
    with pytest.raises(ConfigError, match="this system cannot limit a process, so only known templates"):
        chat_tokenizer("x").apply_chat_template(MESSAGES)


def test_a_python_that_cannot_be_started_is_named(chat_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_WORKER", worker.Worker())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ConfigError, match="cannot start '/nowhere/python' to render it"):
        chat_tokenizer("x").apply_chat_template(MESSAGES)


def test_panics_of_the_library_become_errors_and_interrupts_do_not() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(FormatError, match=r"^f: the tokenizers library refused it: boom$"), library_errors("f"):
        raise PanicException("boom")
    with pytest.raises(KeyboardInterrupt), library_errors("f"):
        raise KeyboardInterrupt
