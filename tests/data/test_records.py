"""Reading data files: what is accepted, and what each bad line is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import read_examples, records
from minilora.errors import ConfigError, FormatError, MiniloraError

GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.jsonl"


def test_each_kind_is_read_with_its_fields_and_its_place(file: Path) -> None:
    for line, kind in [
        ({"text": "héllo\u2028there"}, "text"),
        ({"prompt": "", "completion": " x"}, "completion"),
        ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "hi"}]}, "messages"),
    ]:
        file.write_text(f"\n  \n{json.dumps(line)}\n\n", encoding="utf-8")
        (record,) = read_examples(file)
        assert (record.kind, record.fields, record.source) == (kind, line, f"{file}:3")


def test_other_keys_are_passed_over_and_a_byte_order_mark_too(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf{"id": 7, "text": "a", "meta": {"x": []}}\r\n')
    assert [r.fields for r in read_examples(file)] == [{"text": "a"}]


def test_a_last_line_without_its_newline_counts(file: Path) -> None:
    file.write_bytes(GOOD + GOOD.strip())
    assert len(read_examples(file)) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{'text': 'a'}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"text": "a"', "not JSON: Expecting ',' delimiter"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 11 of the line)"),
        (b'["text"]', "a JSON array, not an object"),
        (b"null", "a JSON null, not an object"),
        (b"true", "a JSON boolean, not an object"),
        (b"[" * 100_000, "not usable JSON: nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not usable JSON: a number is too long"),
        (b"{}", "has none of the fields wanted, but no field at all"),
        (b'{"txet": "a", "b": 1}', "has none of the fields wanted, but 'txet', 'b'"),
        (b'{"prompt": "a"}', "has no 'completion' beside 'prompt'"),
        (b'{"completion": "a"}', "has no 'prompt' beside 'completion'"),
        (b'{"prompt": 3, "completion": "a"}', "prompt is a JSON number, not a string"),
        (b'{"prompt": "a", "completion": null}', "completion is a JSON null, not a string"),
        (b'{"prompt": "a", "completion": ""}', "completion is empty, so there is no token to learn from"),
        (b'{"text": ""}', "text is empty, so there is no token to learn from"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        (b'{"text": "a", "prompt": "b"}', "has 'text' and 'prompt', which are different kinds of example"),
        (b'{"text": "\\ud800"}', "text holds half of a surrogate pair (a broken \\u escape)"),
        (b'{"messages": []}', "'messages' must be a list of at least one message"),
        (b'{"messages": {"role": "user"}}', "'messages' must be a list of at least one message"),
        (b'{"messages": ["hi"]}', "message 1 is a JSON string, not an object"),
        (b'{"messages": [{"role": "user"}]}', "message 1 has no 'content'"),
        (b'{"messages": [{"content": "a"}]}', "message 1 has no 'role'"),
        (
            b'{"messages": [{"role": "user", "content": []}]}',
            "content of message 1 is a JSON array, not a string",
        ),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "no message has the role 'assistant'"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "the first message has the role 'assistant'"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
            "content of message 2 is empty",
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]}',
            "message 1 has 'tool_calls'; only 'role' and 'content' are supported",
        ),
    ],
)
def test_a_bad_line_is_named_and_the_wanted_form_told(file: Path, line: bytes, words: str) -> None:
    file.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(FormatError) as error:
        read_examples(file)
    assert str(error.value).startswith(f"{file}:2: {words}")
    assert str(error.value).endswith(records.WANTED)


def test_kinds_do_not_mix_in_one_file(file: Path) -> None:
    file.write_bytes(GOOD + b'{"text": "a"}\n')
    with pytest.raises(FormatError, match=r"train.jsonl:2: holds 'text', but .*:1 holds 'prompt' and 'completion'"):
        read_examples(file)


def test_many_bad_lines_are_counted_and_the_first_five_shown(file: Path) -> None:
    file.write_bytes(GOOD + b"oops\n" * 8 + GOOD)
    with pytest.raises(FormatError) as error:
        read_examples(file)
    lines = str(error.value).split("\n")
    assert lines[0] == f"{file}: 8 lines cannot be used"
    assert [re.findall(r":(\d+): not JSON", line) for line in lines[1:6]] == [[str(n)] for n in range(2, 7)]
    assert lines[6:] == ["  and 3 more", records.WANTED]


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.jsonl: cannot be read: No such file or directory; give the path"):
        read_examples(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_examples(tmp_path)
    file.write_bytes(b"\n \n")
    with pytest.raises(FormatError, match=r"train.jsonl: holds no examples; each line must be"):
        read_examples(file)


def test_an_absurdly_long_line_is_refused_before_it_is_read_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
    file.write_bytes(GOOD + b'{"text": "' + b"a" * (1 << 21) + b'"}\n' + b"oops\n")
    with pytest.raises(FormatError, match=r"^\S*train.jsonl:2: longer than 1 MiB, not read any further; each line"):
        read_examples(file)


@given(st.binary(max_size=60) | st.from_regex(rb'\{"(text|messages|prompt)": ?[\[{"\\a-z:,}\]]*\}', fullmatch=True))
def test_any_bytes_give_records_or_a_minilora_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        said = ""
        assert read_examples(path)
    except MiniloraError as error:
        said = str(error)
    assert not said or "any.jsonl" in said
