"""The command line itself: exit codes, where messages go, and what is imported when."""

from __future__ import annotations

import shlex
import sys

import pytest

import minilora as package
from minilora import cli
from minilora.cli import info
from minilora.errors import ConfigError, FormatError


def test_version(minilora):
    assert minilora("--version") == (0, f"minilora {cli.__version__}\n", "")


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_help_has_examples_that_parse(minilora, verb):
    code, out, err = minilora(verb, "--help")
    assert (code, err) == (0, "")
    examples = [line.strip() for line in out.splitlines() if line.startswith(f"  minilora {verb}")]
    assert examples
    for example in examples:
        assert cli._parse(shlex.split(example)[1:]).verb == verb


def test_no_verb_is_bad_usage(minilora):
    code, out, err = minilora()
    assert (code, out) == (2, "")
    assert "the following arguments are required: VERB" in err


def test_an_unknown_verb_is_answered_with_those_that_exist(minilora):
    code, _, err = minilora("trian")
    assert code == 2
    assert "invalid choice: 'trian' (choose from" in err
    assert "train" in err


def test_an_unknown_option_is_answered_with_the_nearest(minilora):
    code, _, err = minilora("train", "--max-lenght", 3)
    assert code == 2
    assert "minilora train: error: no such option: --max-lenght; did you mean --max-length?" in err


def test_an_option_before_the_verb_is_told_where_it_belongs(minilora):
    code, _, err = minilora("--debug", "info")
    assert code == 2
    assert "minilora info: error: --debug stands before the verb; put it after info" in err


def test_options_are_not_abbreviated(minilora):
    code, _, err = minilora("train", "--max-len", 3)
    assert code == 2
    assert "no such option: --max-len" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FormatError("model.gguf: cut short"), 1, "minilora info: error: model.gguf: cut short\n"),
        (ConfigError("lr is -1"), 2, "minilora info: error: lr is -1\n"),
        (MemoryError("no 9 GiB"), 1, "minilora info: error: out of memory (no 9 GiB)\n  a smaller --batch-size"),
        (FileNotFoundError(2, "No such file or directory", "x.json"), 1, "error: x.json: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "minilora: interrupted\n"),
        (KeyError("q_proj"), 1, "KeyError: 'q_proj'\n  this is a defect of minilora; --debug shows where"),
    ],
)
def test_an_error_is_one_message_on_stderr_and_an_exit_code(minilora, monkeypatch, error, code, message):
    def fail():
        raise error

    monkeypatch.setattr(info, "facts", fail)
    found, out, err = minilora("info")
    assert found == code
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(minilora, monkeypatch):
    def fail():
        raise FormatError("cut short")

    monkeypatch.setattr(info, "facts", fail)
    with pytest.raises(FormatError):
        minilora("info", "--debug")


def test_a_command_of_its_own_runs_the_package_under_test(spawn):
    process = spawn(command=[sys.executable, "-c", "import minilora; print(minilora.__file__)"])
    assert process.communicate() == (f"{package.__file__}\n", "")


def test_a_reader_that_goes_away_is_no_defect(spawn):
    process = spawn("info")
    process.stdout.close()
    assert process.wait() == 1
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_only_the_chosen_verb_is_imported_and_nothing_optional(spawn):
    code = (
        "import sys; from minilora.cli import main; main(['info', '--json']); "
        "print([m for m in sys.modules if m.startswith('minilora.cli.')"
        " or m.split('.')[0] in ('rich', 'yaml', 'jinja2', 'tokenizers')], file=sys.stderr)"
    )
    process = spawn(command=[sys.executable, "-c", code])
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "['minilora.cli.info']\n")
