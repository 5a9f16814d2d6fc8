"""The demo's data: reproducible, correct, and held-out lines that share nothing with the training lines.

What is checked is the shipped files alone; the script's own lists are not believed. A request's phrase is
recovered by putting slot names where the command's values stand in the request.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "commands"
SCRIPT = FOLDER / "make_data.py"
FILES = ["train.jsonl", "valid.jsonl", "test.jsonl", "instructions.txt"]
# Words that carry no content, and that one cannot speak English without.
FUNCTION_WORDS = {*["the", "a", "an", "i", "is", "and", "of", "my", "was", "we", "new"]}

Line = tuple[str, dict[str, Any]]  # request, command


def parsed(text: str) -> list[Line]:
    lines = []
    for line in map(json.loads, text.splitlines()):
        assert set(line) == {"prompt", "completion"}
        request = re.fullmatch(r"Request: (.+)\nCommand:", line["prompt"])
        assert request, line
        command = json.loads(line["completion"])
        assert line["completion"] == " " + json.dumps(command), "written in the one canonical way"
        lines.append((request[1], command))
    return lines


def load(name: str) -> list[Line]:
    return parsed((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def train() -> list[Line]:
    return load("train.jsonl")


def as_said(slot: str, value: Any) -> str:
    """A pattern of the ways to say a value in a request."""
    if slot != "time":
        return rf"(?<!\w){re.escape(str(value))}(?!\w)"
    number, half = value.split(" ")
    whole = number.removesuffix(":00")
    return rf"(?<![\w:]){whole}(?: ?{half}(?!\w)| {half[0]}\.m\.)"


def skeleton(line: Line) -> str:
    """The request with slot names for values: its phrase. Fails when a value does not stand there just once."""
    request, command = line
    for slot, value in command.items():
        if slot != "intent":
            request, found = re.subn(as_said(slot, value), f"<{slot}>", request)
            assert found == 1, f"{slot} {value!r} stands {found} times in {line[0]!r}"
    return request.lower()


def words(value: Any) -> set[str]:
    return set(re.findall(r"[a-z]+", str(value).lower())) - FUNCTION_WORDS


def slots(line: Line) -> list[tuple[str, Any]]:
    return [(slot, value) for slot, value in line[1].items() if slot != "intent"]


def word_edits(a: list[str], b: list[str]) -> int:
    """Words to insert, delete or replace to make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def shared(train: list[Line], held_out: list[Line]) -> list[str]:
    """Say everything that held-out lines have in common with training lines."""
    phrases = {skeleton(line) for line in train}
    values = {(slot, value) for line in train for slot, value in slots(line)}
    value_words = {word for line in train for slot, value in slots(line) if slot != "time" for word in words(value)}
    requests = [request.lower() for request, _ in train]
    everything = "\n".join(requests)
    found = []
    for line in held_out:
        if skeleton(line) in phrases:
            found.append(f"phrase: {skeleton(line)}")
        for slot, value in slots(line):
            if (slot, value) in values:
                found.append(f"value: {slot} {value}")
            if slot == "time":
                continue
            if words(value) & value_words:
                found.append(f"word of a value: {words(value) & value_words}")
            if isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", everything):
                found.append(f"value within a training request: {value}")
        near = min(requests, key=lambda request: word_edits(request.split(), line[0].lower().split()))
        if word_edits(near.split(), line[0].lower().split()) < 3:
            found.append(f"request: {line[0]!r} is nearly {near!r}")
    return found


def test_the_script_writes_the_shipped_files_again_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_another_seed_gives_other_lines(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--seed", "1", "--train", "64", "--test", "9"],
        check=True,
        capture_output=True,
    )
    other = parsed((tmp_path / "train.jsonl").read_text(encoding="utf-8"))
    assert (len(other), len(parsed((tmp_path / "test.jsonl").read_text(encoding="utf-8")))) == (64, 9)
    assert len({r for r, _ in other} & {r for r, _ in load("train.jsonl")}) <= 2


def test_every_intent_has_its_share_of_lines_and_phrases(train: list[Line]) -> None:
    for lines, least, least_phrases in (
        (train, 60, 12),
        (load("test.jsonl"), 13, 3),
        (load("valid.jsonl"), 3, 1),
    ):
        by_intent = defaultdict(list)
        for line in lines:
            by_intent[line[1]["intent"]].append(line)
        assert len(by_intent) == 8
        for intent, members in by_intent.items():
            assert len(members) >= least, intent
            assert len({skeleton(line) for line in members}) >= least_phrases, intent
            assert len({tuple(line[1]) for line in members}) == 1, "always the same keys in the same order"
    assert len(load("test.jsonl")) >= 100


def test_every_value_stands_in_its_request(train: list[Line]) -> None:
    for line in [*train, *load("valid.jsonl"), *load("test.jsonl")]:
        skeleton(line)


@pytest.mark.parametrize("name", ["valid.jsonl", "test.jsonl"])
def test_held_out_lines_share_no_phrase_no_value_and_no_word_of_a_value_with_training(
    train: list[Line], name: str
) -> None:
    assert shared(train, load(name)) == []


def test_no_request_comes_twice(train: list[Line]) -> None:
    requests = [request for request, _ in [*train, *load("valid.jsonl"), *load("test.jsonl")]]
    assert len(set(requests)) == len(requests)


@pytest.mark.parametrize(
    ("request_", "command", "finds"),
    [
        (
            "set the attic lights to 200 percent",
            {"intent": "set_light", "room": "attic", "level": 200},
            "phrase:",
        ),
        ("could the pool get 200", {"intent": "set_light", "room": "pool", "level": 200}, "value: room pool"),
        ("attic, bright: {level}!", {"intent": "set_light", "room": "attic"}, "value: level"),
        ("oh, up by 6:01pm", {"intent": "set_alarm", "time": "6:01 pm"}, ""),
        ("oh, up by {time}", {"intent": "set_alarm"}, "value: time"),
        ("could the swimming pool get 200", {"intent": "x", "room": "swimming pool"}, "word of a value: {"),
        (
            "could the calendar get 200",
            {"intent": "x", "room": "calendar"},
            "value within a training request",
        ),
        ("{request} today", {"intent": "x"}, "request: "),
    ],
)
def test_a_planted_overlap_is_found(train: list[Line], request_: str, command: dict[str, Any], finds: str) -> None:
    for slot in ("level", "time"):
        if f"{{{slot}}}" in request_:
            command = {**command, slot: next(c[slot] for _, c in train if slot in c)}
    line = (request_.format(request=train[0][0], **command), command)
    found = shared(train, [line])
    assert any(f.startswith(finds) for f in found) if finds else found == [], found


def test_the_instructions_name_every_intent_and_show_three_training_lines(train: list[Line]) -> None:
    text = (FOLDER / "instructions.txt").read_text(encoding="utf-8")
    for _, command in train:
        assert f"\n{command['intent']}: {', '.join(list(command)[1:])}\n" in text
    shown = re.findall(r"^Request: (.+)\nCommand: (.+)$", text, flags=re.MULTILINE)
    assert len(shown) == 3
    assert all((request, json.loads(command)) in train for request, command in shown)
