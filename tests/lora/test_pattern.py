"""The linear-time matcher agrees with re.fullmatch on its subset, refuses the rest by name, never hangs."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError
from minilora.lora.pattern import Patterns
from minilora.lora.pattern_syntax import MAX_DEPTH, MAX_LENGTH

CHARACTERS = "ab.1_ \n-"

_ATOMS = r"""
a b 1 _ - . \. \d \w \s \D \W \S \- \n \x61 \u0062 { {} a{b } () (?:)
[ab] [^a] [a-b1] []a] [^]a] [\d.] [^\w] [a-] [|&~] [\]\-]
"""
_REPEATS = "* + ? *? +? ?? {2} {0} {1,2} {,2} {1,} {,} {0,1}? {2,}"
_atoms = st.sampled_from(_ATOMS.split())
_anchors = st.sampled_from(["^", "$", r"\b", r"\A", r"\Z", "(^)", "($)", r"(\b)"])
_repeats = st.sampled_from(["", "", *_REPEATS.split()])


def _grow(inner):
    group = st.builds("{}{})".format, st.sampled_from(["(", "(?:"]), inner)
    return st.one_of(
        st.builds("{}{}".format, group, _repeats),
        st.builds("{}{}".format, inner, inner),
        st.builds("{}|{}".format, inner, inner),
    )


patterns = st.recursive(st.one_of(st.builds("{}{}".format, _atoms, _repeats), _anchors), _grow, max_leaves=8)
texts = st.text(CHARACTERS, max_size=8)


def same(pattern: str) -> Patterns | None:
    """Compile in both; a random glue may form a repeat of a repeat, which both must refuse."""
    try:
        re.compile(pattern)
    except re.error:
        with pytest.raises(ConfigError):
            Patterns([pattern], "test")
        return None
    if re.search(r"[*+?}]\+", pattern):  # newer versions of re know possessive repeats; they are not in the subset
        return None
    return Patterns([pattern], "test")


@given(patterns, st.lists(texts, min_size=1, max_size=12))
def test_a_pattern_of_the_subset_matches_what_re_fullmatch_matches(pattern, candidates):
    ours = same(pattern)
    for text in candidates:
        if ours is not None:
            assert (ours.first(text) == 0) == (re.fullmatch(pattern, text) is not None), (pattern, text)


@given(st.lists(patterns, max_size=4), texts)
def test_a_set_of_patterns_gives_the_first_key_by_the_rule_of_peft(keys, text):
    keys = [key for key in keys if same(key) is not None]
    want = next((i for i, key in enumerate(keys) if re.match(rf"(.*\.)?({key})$", text)), None)
    assert Patterns(keys, "test", as_suffix=True).first(text) == want, (keys, text)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r".*\.(q|v)_proj", "model.layers.0.self_attn.q_proj", True),
        (r".*\.(q|v)_proj", "model.layers.0.self_attn.k_proj", False),
        (r"model\.layers\.(1[0-9]|[02-9])\..*_proj$", "model.layers.12.mlp.up_proj", True),
        (r"model\.layers\.(1[0-9]|[02-9])\..*_proj$", "model.layers.1.mlp.up_proj", False),
        (r"(?P<block>x|y)+", "xyx", True),
        ("", "", True),
        ("", "a", False),
        ("ü+", "üü", True),
        (r"\w+", "naïve", True),
        ("a$", "a\n", False),  # fullmatch: the newline is left over
        ("a$\n", "a\n", True),
    ],
)
def test_patterns_that_people_write_match_as_in_re(pattern, text, matches):
    assert (Patterns([pattern], "test").first(text) == 0) is matches
    assert (re.fullmatch(pattern, text) is not None) is matches


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(a)\1", "back-reference"),
        (r"(?P<x>a)(?P=x)", "back-reference"),
        ("(?=a)a", "look-ahead"),
        ("(?!a)b", "negative look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "negative look-behind"),
        ("(?i)a", "inline flags"),
        ("(?i:a)", "inline flags"),
        ("(a)?(?(1)b|c)", "conditional"),
        ("(?>a)", "atomic group"),
        ("(?#hello)", "comment"),
        ("a*+", "possessive"),
        ("a{2}+", "possessive"),
        ("a**", "repeats a repeat"),
        ("*a", "repeats nothing"),
        ("{2}", "repeats nothing"),
        ("(|*)", "repeats nothing"),
        ("^*", "repeats an anchor"),
        ("(a", "never closed"),
        ("a)", "not opened"),
        ("[a", "never closed"),
        ("[b-a]", "not valid"),
        ("[a--b]", "--"),
        ("\\", "lone backslash"),
        (r"\q", r"\q"),
        (r"\B", r"\B"),
        (r"\xzz", "not valid"),
        (r"\U99999999", "not valid"),
        ("a{3,2}", "at least 3 but at most 2"),
        ("a{9999999999}", "digits"),
        ("a{100000}", "states"),
        ("a{1400}|b{1400}", "needs 5605 states"),
        ("(a{1000}|b){3}", "needs 6022 states"),
        ("a{2400,}b{200}", "states"),
        ("((a{99}){99}){99}", "states"),
        ("((((a{0,99}){0,99}){0,99}){0,99}){0,99}", "states"),
        ("(" * (MAX_DEPTH + 1) + ")" * (MAX_DEPTH + 1), "nests more than"),
        ("(" * 1900, "nests more than"),
        ("a" * (MAX_LENGTH + 1), "characters"),
    ],
)
def test_what_is_not_in_the_subset_is_refused_by_name(pattern, named):
    with pytest.raises(ConfigError) as caught:
        Patterns([pattern], "target_modules")
    message = str(caught.value)
    assert message.startswith("target_modules: the regular expression ")
    assert named in message
    assert "matched in linear time" in message
    assert len(message) < 500


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of re, which plans set operations
@given(st.text(r"ab\()[]{}*+?|^$.,0123456789:<>=!P-xuUdwsbAZ", max_size=30))
def test_any_text_is_either_compiled_like_re_or_refused_as_a_config_error(pattern):
    try:
        ours = Patterns([pattern], "test")
    except ConfigError:
        return
    theirs = re.compile(pattern)
    for text in ("", "a", "ab", "a1", "b-", pattern[:5]):
        assert (ours.first(text) == 0) == (theirs.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 5000 + "!"),
        ("(a|a)*b", "a" * 5000),
        ("(a|aa)+$", "a" * 5000 + "!"),
        ("(.*)(.*)(.*)(.*)(.*)(.*)x", "y" * 5000),
        ("(a?){200}a{200}", "a" * 199),
        ("(.*a){50}", "a" * 49 + "b" * 1000),
        ("((a*)*)*b", "a" * 5000),
    ],
)
def test_patterns_that_make_re_backtrack_for_ever_end_at_once(pattern, text):
    began = time.perf_counter()
    assert Patterns([pattern], "test").first(text) is None
    assert time.perf_counter() - began < 0.5


def test_the_time_grows_linearly_with_the_text():
    ours = Patterns(["(a|b)*a(a|b){10}"], "test")  # 2,048 sets of states: remembering them all would not help

    def seconds(length: int) -> float:
        text = "".join("ab"[(i * i // 3 + i // 7) % 2] for i in range(length))
        began = time.perf_counter()
        ours.first(text)
        return time.perf_counter() - began

    seconds(4000)
    short = min(seconds(4000) for _ in range(3))
    long = min(seconds(40000) for _ in range(3))
    assert long < 40 * short + 0.05


def test_a_model_with_one_pattern_for_each_module_is_fast():
    paths = [f"model.layers.{i}.{part}" for i in range(80) for part in ("self_attn.q_proj", "mlp.up_proj")]
    ours = Patterns(paths, "rank_pattern", as_suffix=True)
    began = time.perf_counter()
    assert [ours.first(path) for path in paths] == list(range(160))
    assert time.perf_counter() - began < 1.0


def test_a_set_of_patterns_with_too_many_live_states_is_refused():
    with pytest.raises(ConfigError, match=r"rank_pattern: the regular expressions need more than 10000 states"):
        Patterns(["a?" * 900] * 20, "rank_pattern").first("aaaa")


def test_a_set_of_patterns_with_too_many_states_is_refused_before_they_are_built():
    with pytest.raises(ConfigError, match=r"rank_pattern: 9999 regular expressions need more than 100000 states"):
        Patterns([".{2000}"] * 9999, "rank_pattern")


def test_remembered_transitions_are_forgotten_before_they_fill_the_memory():
    ours = Patterns(["(.?){800}"], "test")
    assert ours.first("ab" * 400) == 0
    assert ours._remembered <= 500_000
    assert ours.first("ab" * 400) == 0


def test_the_whole_message_says_where_what_and_what_to_do():
    with pytest.raises(ConfigError) as caught:
        Patterns(["a.*", "ab(?=c)"], "exclude_modules")
    assert str(caught.value) == (
        "exclude_modules: the regular expression 'ab(?=c)' uses look-ahead, which is refused (at character 2)\n"
        "  patterns are matched in linear time; available are literals, ., classes, groups, |, * + ? {m,n}, ^ $ \\b"
    )
    with pytest.raises(ConfigError, match=r"'a\(b' opens a group that is never closed \(at character 1\)"):
        Patterns(["a(b"], "exclude_modules")
