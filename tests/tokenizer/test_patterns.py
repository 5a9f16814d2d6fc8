"""Regular expressions of strangers: those of real models pass, those that can hang do not."""

from __future__ import annotations

import time

import pytest
from tokenizers import Regex, pre_tokenizers

from minilora.errors import FormatError
from minilora.tokenizer.patterns import check_regex

REAL = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll"
    r"|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "chinese": "[一-龥぀-ゟ゠-ヿ]+",
    "bloom": " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "spaces": r"\s{2,}",
    "plain": " ",
    "optional after two": r"\p{Lu}+\p{Ll}*(?:'s|'t)?[\r\n]?",
}
HANGING = {
    "(a+)+$": "repeats what is itself a group or repeated",
    "(a|aa)*$": "repeats what is itself a group or repeated",
    "(?:a?){99}": "repeats what is itself a group or repeated",
    "(?:a{1,4}){1,4}": "repeats what is itself a group or repeated",
    "a{2}{3,}": "repeats what is itself a group or repeated",
    "a{1,9}+": "repeats what is itself a group or repeated",
    "(?:a+)?*": "repeats what is itself a group or repeated",
    "a*a*a*b": "too many repeats and choices in a row",
    "(?:a*|b)(?:a*|c)(?:a*|d)": "can fail after two unbounded repeats",
    r"[\s\S]*[\s\S]*x": "can fail after two unbounded repeats",
    "(?:a*|b)(?:a*|c)(?:x)": "can fail after two unbounded repeats",
    "(?:a*a*)?b": "can fail after two unbounded repeats",
    "a*a*(?=b)": "can fail after two unbounded repeats",
    "a*a*(?!b)": "can fail after two unbounded repeats",
    "a*(?=a*b)": "can fail after two unbounded repeats",
    "a{5}a+b": "can fail after two unbounded repeats",
    "(?:" * 9 + "a" + ")" * 9: "nests groups deeper than 8",
    "(?:a": "holds a group without end",
    "(?=(?:x*y*z*))": "too many repeats and choices in a row",
    "a?" * 30: "too many repeats and choices in a row",
    "(a|a)" * 30: "too many repeats and choices in a row",
    "x{0,50}x{0,50}x{0,50}": "too many repeats and choices in a row",
    r"(a)\1*": r"holds '\\1'",
    r"(?<n>a\g<n>?)": "holds '(?<n'",
    r"(?P<n>a)": "holds '(?P'",
    "(?x)a + +": "holds '(?x'",
    "[a-z": "holds a class without end",
}


@pytest.mark.parametrize("model", REAL)
def test_patterns_of_real_models_pass(model: str) -> None:
    check_regex(REAL[model], "f")


@pytest.mark.parametrize("pattern", HANGING)
def test_patterns_that_can_hang_are_refused(pattern: str) -> None:
    with pytest.raises(FormatError) as caught:
        check_regex(pattern, "tokenizer.json: Split")
    assert str(caught.value).startswith("tokenizer.json: Split: Regex ")
    assert HANGING[pattern] in str(caught.value)


@pytest.mark.parametrize("model", REAL)
def test_what_passes_takes_no_long_time(model: str) -> None:
    # Runs of one kind of character, and the same with an end that does not fit, are what backtracking suffers from.
    splitter = pre_tokenizers.Split(Regex(REAL[model]), "isolated")
    began = time.process_time()
    for char in "aA1 \n.é漢\t'":
        for end in ("", "!", "a", " ", "\n", "1"):
            splitter.pre_tokenize_str(char * 3000 + end)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("value", [None, 3, "", "a" * 5000])
def test_a_pattern_must_be_text_of_some_length(value: object) -> None:
    with pytest.raises(FormatError, match="f: Regex must be text of 1 to 4096 characters"):
        check_regex(value, "f")
